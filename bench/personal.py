"""Personal data: how much of what Faker makes is found, and what is found in texts of people who wrote for the public.

    python -m bench.personal --sentences 10000
    python -m bench.personal FILES            plain texts, such as books: each find is printed, so that it can be judged
    python -m bench.personal --numbers 1000000    a list of numbers of so many characters: what takes longest

Faker makes numbers of ten kinds in English and Chinese sentences; it knows nothing of the libraries that check them
here. It makes some that no authority would give out (a telephone number of an area that does not exist): they count as
missed.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handscroll.data.personal import Found, find

SAID = {
    "en": ("Please write to {} today.", "My number is {}, call me.", "({})", "id={};", "It was {}."),
    "zh": ("我的号码是{}，请记下。", "请联系{}。", "登记为{}的用户", "【{}】", "编号：{}"),
}
PASSPORT = ("passport: {}", "护照号{}", "Her passport number is {}.")


@dataclass
class Score:
    """How many were made and found, by kind, and what else was found."""

    made: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def recall(self) -> float:
        """The share of what was made that was found whole, as its kind."""
        return self.right.total() / self.made.total()

    @property
    def precision(self) -> float:
        """The share of the finds that were made."""
        return self.right.total() / (self.right.total() + self.wrong.total())


def sentences(count: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Kinds, values, and sentences with {} for the value; the same ones for the same seed."""
    from faker import Faker

    Faker.seed(seed)
    draw, en, zh, gb, de = random.Random(seed), *map(Faker, ("en_US", "zh_CN", "en_GB", "de_DE"))
    makers = {
        "email": (en.email, zh.email, en.company_email),
        "phone": (zh.phone_number, lambda: _american(draw)),
        "identity": (zh.ssn,),
        "ssn": (en.ssn,),
        "iban": (gb.iban, de.iban),
        "card": (en.credit_card_number,),
        "ip": (en.ipv4, en.ipv6),
        "mac": (en.mac_address,),
        "plate": (zh.license_plate,),
        "passport": (en.passport_number,),
    }
    for _ in range(count):
        kind = draw.choice(list(makers))
        value = draw.choice(makers[kind])()
        yield kind, value, draw.choice(PASSPORT if kind == "passport" else SAID[draw.choice(("en", "zh"))])


def _american(draw: random.Random) -> str:
    area, middle, last = draw.choice((212, 415, 312, 617, 206, 305)), draw.randint(220, 899), draw.randint(0, 9999)
    return draw.choice(("({}) {}-{:04}", "{}-{}-{:04}", "+1 {} {} {:04}", "{}.{}.{:04}")).format(area, middle, last)


def scored(count: int, seed: int = 0) -> Score:
    """The score of `find` on made sentences."""
    score = Score()
    for kind, value, frame in sentences(count, seed):
        found, at = find(frame.format(value)), frame.index("{}")
        hits = [one for one in found if one.kind == kind and one.start <= at and one.end >= at + len(value)]
        score.made[kind] += 1
        score.right[kind] += bool(hits)
        score.wrong.update(one.kind for one in found if one not in hits)
    return score


def numbers(count: int, seed: int = 0) -> str:
    """A list of whole numbers of 1 to 20 digits, of `count` characters."""
    draw, parts, size = random.Random(seed), list[str](), 0
    while size < count:
        parts.append(str(draw.randrange(10 ** draw.randint(1, 20))) + draw.choice((" ", ", ", "\n", "-", "; ")))
        size += len(parts[-1])
    return "".join(parts)[:count]


def timed(text: str) -> tuple[list[Found], float]:
    """What is found in a text, and the seconds of processor time."""
    begun = time.process_time()
    return find(text), time.process_time() - begun


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", type=Path)
    options.add_argument("--sentences", type=int, default=0)
    options.add_argument("--numbers", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    if asked.sentences:
        score = scored(asked.sentences, asked.seed)
        for kind, made in score.made.most_common():
            print(f"{kind:<10} {score.right[kind]:,} of {made:,} found")
        print(f"all        {score.recall:.2%} found, {score.precision:.2%} of the finds are right")
    if asked.numbers:
        found, seconds = timed(numbers(asked.numbers, asked.seed))
        print(f"a list of numbers of {asked.numbers:,} characters: {len(found):,} finds in {seconds:.1f} s")
    characters, all_seconds, kinds = 0, 0.0, Counter[str]()
    for path in asked.files:
        text = path.read_text(encoding="utf-8")
        characters += len(text)
        found, seconds = timed(text)
        all_seconds += seconds
        for one in found:
            kinds[one.kind] += 1
            print(f"{path.name}: {one.kind}: {text[max(0, one.start - 20) : one.end + 10]!r}")
    if asked.files:
        print(f"{len(asked.files):,} files of {characters:,} characters: {dict(kinds) or 'nothing found'}, in "
              f"{all_seconds:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
