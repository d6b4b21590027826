"""Numbers of lists in the formats of Word."""

import pytest

from handscroll.text.numerals import written


@pytest.mark.parametrize(
    ("form", "pairs"),
    [
        ("decimal", "1:1 10:10"),
        ("decimalZero", "1:01 10:10"),
        ("lowerLetter", "1:a 26:z 27:aa 53:aaa"),
        ("upperRoman", "4:IV 99:XCIX 400:CD 1994:MCMXCIV"),
        ("ordinal", "1:1st 2:2nd 11:11th 23:23rd 112:112th"),
        ("chineseCounting", "1:一 10:十 11:十一 20:二十 99:九十九 100:一〇〇 105:一〇五"),
        ("taiwaneseCounting", "12:十二 100:一○○"),
        ("chineseCountingThousand", "10:十 100:一百 101:一百零一 110:一百一十 111:一百一十一 1001:一千零一 10000:一万"),
        ("chineseCountingThousand", "1010:一千零一十 12345:一万二千三百四十五 10001:一万零一 100000000:100000000"),
        ("chineseLegalSimplified", "1:壹 10:壹拾 25:贰拾伍 306:叁佰零陆"),
        ("ideographLegalTraditional", "2:貳 13:壹拾參"),
        ("ideographDigital", "1:一 10:一〇 21:二一"),
        ("japaneseCounting", "1:一 10:十 21:二十一 101:百一 1110:千百十"),
        ("ideographTraditional", "1:甲 10:癸 11:甲甲"),
        ("ideographZodiac", "1:子 12:亥"),
        ("decimalEnclosedCircle", "1:① 20:⑳ 21:21"),
        ("decimalEnclosedCircleChinese", "3:③"),
        ("decimalEnclosedParen", "1:⑴"),
        ("ideographEnclosedCircle", "1:㊀ 10:㊉ 11:11"),
        ("decimalFullWidth", "12:１２"),
        ("russianUpper", "1:А 29:Я 30:АА"),
        ("ganada", "2:나"),
        ("koreanDigital", "10:일영"),
        ("thaiNumbers", "3:3"),
        ("chineseCounting", "0:0"),
    ],
)
def test_numbers_are_written_as_word_writes_them(form, pairs):
    for pair in pairs.split():
        number, _, text = pair.partition(":")
        assert written(int(number), form) == text
