"""Numbers of lists as Word writes them, by the names of its number formats (ECMA-376, 17.18.59)."""

from collections.abc import Callable

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_RUSSIAN = "абвгдежзиклмнопрстуфхцчшщыэюя"  # without ё, й, ъ, ь
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"))
_SMALL_ROMAN = ((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
_HAN = "〇一二三四五六七八九"
_HAN_ROUND = "○一二三四五六七八九"
_HAN_LARGEST = 10**8  # greater numbers are written with digits
_REPEATED = 9  # most letters of a number such as "cc"


def written(number: int, form: str) -> str:
    """A number in a format of Word, with plain digits in a format that is unknown here."""
    make = _FORMS.get(form)
    return str(number) if make is None or number < 1 else make(number)


def _letters(letters: str) -> Callable[[int], str]:
    """a, b, ... z, aa, bb, ..."""
    size = len(letters)
    return lambda number: letters[(number - 1) % size] * ((number - 1) // size % _REPEATED + 1)


def _signs(first: str, count: int) -> Callable[[int], str]:
    """Signs that follow each other in Unicode, then plain digits."""
    return lambda number: chr(ord(first) + number - 1) if number <= count else str(number)


def _digits(digits: str) -> Callable[[int], str]:
    return lambda number: str(number).translate(str.maketrans("0123456789", digits))


def _roman(number: int) -> str:
    text, rest = "", number % 4000
    for value, sign in _ROMAN + _SMALL_ROMAN:
        text += sign * (rest // value)
        rest %= value
    return text


def _ordinal(number: int) -> str:
    end = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{end}"


def _tens(digits: str) -> Callable[[int], str]:
    """二十一, but digits alone from 100 on."""
    spelled = _spelled(digits, "十百千", digits[0])
    return lambda number: spelled(number) if number < 100 else _digits(digits)(number)


def _spelled(digits: str, units: str, zero: str, formal: bool = False) -> Callable[[int], str]:
    """一百零一, ten thousand as 万; `formal` numbers begin with 壹拾 for 10."""

    def group(number: int) -> str:
        text, gap = "", ""
        for power in (3, 2, 1, 0):
            digit = number // 10**power % 10
            if digit:
                text, gap = text + gap + digits[digit] + (units[power - 1] if power else ""), ""
            elif text:
                gap = zero
        return text

    def spell(number: int) -> str:
        if number >= _HAN_LARGEST:
            return str(number)
        above, rest = divmod(number, 10_000)
        text = f"{group(above)}万{zero if 0 < rest < 1000 else ''}" if above else ""
        text += group(rest)
        return text if formal or not text.startswith("一十") else text[1:]

    return spell


def _japanese(number: int) -> str:
    text = _spelled(_HAN, "十百千", "")(number)
    for unit in "十百千":
        text = text.replace(f"一{unit}", unit)
    return text


_FORMS: dict[str, Callable[[int], str]] = {
    "decimalZero": lambda number: f"{number:02d}",
    "numberInDash": lambda number: f"- {number} -",
    "ordinal": _ordinal,
    "lowerLetter": _letters(_LATIN),
    "upperLetter": _letters(_LATIN.upper()),
    "lowerRoman": _roman,
    "upperRoman": lambda number: _roman(number).upper(),
    "russianLower": _letters(_RUSSIAN),
    "russianUpper": _letters(_RUSSIAN.upper()),
    "decimalFullWidth": _digits("０１２３４５６７８９"),
    "decimalFullWidth2": _digits("０１２３４５６７８９"),
    "decimalEnclosedCircle": _signs("①", 20),
    "decimalEnclosedCircleChinese": _signs("①", 20),
    "decimalEnclosedParen": _signs("⑴", 20),
    "decimalEnclosedFullstop": _signs("⒈", 20),
    "ideographEnclosedCircle": _signs("㊀", 10),
    "chineseCounting": _tens(_HAN),
    "taiwaneseCounting": _tens(_HAN_ROUND),
    "chineseCountingThousand": _spelled(_HAN, "十百千", "零"),
    "taiwaneseCountingThousand": _spelled(_HAN, "十百千", "零"),
    "chineseLegalSimplified": _spelled("零壹贰叁肆伍陆柒捌玖", "拾佰仟", "零", formal=True),
    "ideographLegalTraditional": _spelled("零壹貳參肆伍陸柒捌玖", "拾佰仟", "零", formal=True),
    "ideographDigital": _digits(_HAN),
    "japaneseDigitalTenThousand": _digits(_HAN),
    "taiwaneseDigital": _digits(_HAN_ROUND),
    "japaneseCounting": _japanese,
    "koreanDigital": _digits("영일이삼사오육칠팔구"),
    "koreanDigital2": _digits("零一二三四五六七八九"),
    "ideographTraditional": _letters("甲乙丙丁戊己庚辛壬癸"),
    "ideographZodiac": _letters("子丑寅卯辰巳午未申酉戌亥"),
    "ganada": _letters("가나다라마바사아자차카타파하"),
    "chosung": _letters("ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ"),
}
