"""Personal data in a text: what has a form that can be checked, such as numbers of people, cards and telephones.

What can be checked is checked: telephone numbers against the plans of their countries (phonenumbers), numbers of cards,
accounts and people by their check digits (python-stdnum). Names of people, addresses and dates of birth have no such
form and are not found.
"""

import ipaddress
import re
import string
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from handscroll.base.errors import ConfigError

REGIONS = ("CN", "US")  # countries whose telephone numbers are found without their +86 or +1
_PLAIN = {ord(one) + 0xFEE0: one for one in string.ascii_letters + string.digits + "@.-+"}  # full-width ones
_NEAR = 40  # characters before a passport's number in which the word stands
_CALLED_PASSPORT = re.compile(r"passport|护照|護照", re.IGNORECASE)
# A word with a letter that no hexadecimal number has may stand before a value without a space: Visa4111...
_LABEL = "|".join(rf"(?<=[G-Zg-z]\w{{{more}}}:)" for more in range(4))
_WORD = "|".join((r"(?<=[A-Za-z][G-WYZg-wyz])", *(rf"(?<=[G-WYZg-wyz][A-Za-z]{{{more}}})" for more in range(1, 4))))
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?!\w)", re.ASCII)
_IDENTITY = re.compile(r"(?<!\w)\d{17}[\dXx](?!\w)", re.ASCII)
_IBAN = re.compile(r"(?:(?<!\w)|(?<=IBAN))[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,}(?!\w)", re.ASCII)
_COUNTRY = re.compile(r"[A-Z]{2}\d{2}", re.ASCII)  # the beginning of an account's number
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII)
_CARD = re.compile(rf"(?=\d)(?:(?<![\w.+-])|(?<=[A-Za-z]\.)|{_WORD})\d(?:[ -]?\d){{11,}}(?![\w-])(?!\.\d)", re.ASCII)
_ISSUERS = re.compile(r"4|5[0-8]|6|2[2-7]|3[04-9]|2131|1800")  # first digits of cards of payment
_MAC = re.compile(
    rf"(?=\w\w[:-])(?:(?<![\w:-])|{_LABEL})(?:[0-9A-Fa-f]{{2}}[:-]){{5}}[0-9A-Fa-f]{{2}}(?![\w:-])", re.ASCII
)
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w)(?!\.\d)", re.ASCII)
_IP6 = re.compile(rf"(?=\w{{0,4}}:)(?:(?<![\w:.])|{_LABEL})[0-9A-Fa-f:]{{2,39}}(?![\w:])", re.ASCII)
_PASSPORT = re.compile(r"(?<!\w)[A-Z]{0,2}\d{7,9}(?!\w)", re.ASCII)
_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_PLATE = re.compile(rf"[{_PROVINCES}][A-Z][-· ]?[A-Z0-9]{{5,6}}(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of personal data: its kind, and where it stands in the text, in characters."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class _Kind:
    """A form: its name, its pattern, and what tells whether a match is one; that has the text before the match too."""

    name: str
    pattern: re.Pattern[str]
    holds: Callable[[str, str], bool] = lambda _match, _before: True
    longest: int = 0  # of a kind in groups, the most characters without the signs between; a match may hold several


def find(text: str, regions: Sequence[str] = REGIONS) -> list[Found]:
    """The personal data of a text, in its order; no two overlap.

    The kinds are `email`, `identity` (Chinese resident identity numbers), `ssn` (United States), `iban`, `card`, `ip`,
    `mac`, `passport` (with the word near it), `plate` (of Chinese cars) and `phone`. Full-width characters count as
    plain ones. Telephone numbers with + and a country's code are found of every country, others of `regions` (two
    letters each, ISO 3166).

    Raises:
        ConfigError: phonenumbers or python-stdnum is not installed, or a region is not known.
    """
    plain = text.translate(_PLAIN)
    taken = list[Found]()  # in their order
    for one in (*_formed(plain), *_telephones(plain, regions)):  # the kinds before are surer than those behind
        at = bisect(taken, one.start, key=lambda other: other.start)
        if (at == 0 or taken[at - 1].end <= one.start) and (at == len(taken) or one.end <= taken[at].start):
            taken.insert(at, one)
    return taken


def masked(text: str, found: Sequence[Found]) -> str:
    """The text with its kind in square brackets instead of each piece: `[phone]`."""
    made, at = list[str](), 0
    for one in found:
        made += text[at : one.start], f"[{one.kind}]"
        at = one.end
    return "".join((*made, text[at:]))


def counted(kinds: Mapping[str, int]) -> str:
    """How often each kind was found, the commonest first: `12 phone, 2 email`."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(kinds).most_common()) or "none"


def _formed(text: str) -> Iterator[Found]:
    for kind in _kinds():
        for match in kind.pattern.finditer(text):
            before = text[max(0, match.start() - _NEAR) : match.start()]
            for start, end in _held(kind, match[0], before):
                yield Found(kind.name, match.start() + start, match.start() + end)


def _held(kind: _Kind, match: str, before: str) -> Iterator[tuple[int, int]]:
    """The parts of a match that hold: beside a number in groups may stand a date, a name or another number."""
    if not kind.longest:
        if kind.holds(match, before):
            yield 0, len(match)
        return
    cuts = [at for at, one in enumerate(match) if one in " -"]
    starts, ends, done = [0, *(cut + 1 for cut in cuts)], [*cuts, len(match)], 0
    for number, start in enumerate(starts):
        if start >= done:
            near = reversed(ends[number : number + kind.longest])  # the longest part first
            done = next((end for end in near if kind.holds(match[start:end], before)), 0)
            if done:
                yield start, done


def _telephones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    numbers = _library("phonenumbers")
    for region in regions:
        if region not in numbers.SUPPORTED_REGIONS:
            raise ConfigError(f"region '{region}': give two letters of ISO 3166, such as CN, US or DE")
        tries = len(text) + 1  # the library's own limit would leave the end of a long text unread
        for match in numbers.PhoneNumberMatcher(text, region, numbers.Leniency.VALID, tries):
            alone = match.raw_string.startswith("(") and ")" not in match.raw_string
            yield Found("phone", match.start + alone, match.end)


def _kinds() -> tuple[_Kind, ...]:
    """The forms, the surest first."""
    _library("stdnum")
    from stdnum import iban, luhn
    from stdnum.cn import ric
    from stdnum.exceptions import ValidationError
    from stdnum.us import ssn

    def a_card(match: str, _before: str) -> bool:
        digits = re.sub("[ -]", "", match)
        return 12 <= len(digits) <= 19 and bool(_ISSUERS.match(digits)) and luhn.is_valid(digits)

    def an_account(match: str, _before: str) -> bool:
        return bool(_COUNTRY.match(match)) and 15 <= len(match.replace(" ", "")) <= 34 and iban.is_valid(match)

    def a_person(match: str, _before: str) -> bool:
        """The code of the place is not looked up: places come and go, and numbers stay."""
        try:
            return ric.calc_check_digit(match) == match[-1].upper() and bool(ric.get_birth_date(match))
        except ValidationError:
            return False

    return (
        _Kind("email", _EMAIL),
        _Kind("identity", _IDENTITY, a_person),
        _Kind("iban", _IBAN, an_account, longest=34),
        _Kind("ssn", _SSN, lambda match, _before: ssn.is_valid(match)),
        _Kind("card", _CARD, a_card, longest=19),
        _Kind("mac", _MAC),
        _Kind("ip", _IP, _an_address),
        _Kind("ip", _IP6, _an_address),
        _Kind("passport", _PASSPORT, lambda _match, before: bool(_CALLED_PASSPORT.search(before))),
        _Kind("plate", _PLATE),
    )


def _an_address(match: str, _before: str) -> bool:
    groups = [one for one in match.split(":") if one]
    if ":" in match and not (len(groups) > 2 or any(len(one) == 4 for one in groups)):  # `a[1::2]`, `ab::cd` are code
        return False
    try:
        found = ipaddress.ip_address(match)
    except ValueError:
        return False
    return not (found.is_unspecified or found.is_loopback)


def _library(name: str):
    try:
        return __import__(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"personal data is found by the packages phonenumbers and python-stdnum, and {name} is not installed: "
            "pip install 'handscroll[personal]'"
        ) from None
