"""Personal data is found in made sentences of both languages, and not in what only looks like it."""

from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.personal import scored
from handscroll.base.errors import ConfigError
from handscroll.cli.main import app
from handscroll.data.personal import find, masked
from handscroll.data.table.clean import Cleaning, clean
from handscroll.data.table.table import Table


@pytest.mark.promise("R36")
def test_ten_kinds_in_sentences_of_both_languages():
    score = scored(2000)
    assert len(score.made) == 10 and min(score.made.values()) > 100
    f_half = 5 * score.precision * score.recall / (4 * score.precision + score.recall)
    assert score.recall >= 0.99 and f_half >= 0.95, (score.made - score.right, score.wrong)
    assert min(score.right[kind] / made for kind, made in score.made.items()) > 0.95


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111111111111112 of 2026-11-29, 12:30:05, version 1.2.3, pi is 3.14159265358979.",  # wrong check digit
        "ISBN 978-0-306-40615-7, DOI 10.1000/182, 11010519491231002Y, 110105194912310021",
        "std::vector a::b, x[1::2], x[::2], x[5::], 10::20, [1:2:3], 256.1.1.1, 1.2.3.4.5, 127.0.0.1, ::",
        "name@localhost, @someone, a@b, 000-12-3456, 666-12-3456",
        "A12345678 and 123456789 without the word; 京城A级 is no plate",
        "一九四九年十月一日，1949年10月1日，共12345678人",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert find(text) == []


def test_full_width_characters_and_long_texts():
    assert [one.kind for one in find("电话１３８１２３４５６７８，信箱ａ＠ｂ．ｃｎ")] == ["phone", "email"]
    noise = "call 12345 or 1-2-3; " * 5000  # more attempts than the library's own limit lets it make
    (found,) = find(noise + "(415) 555-2671")
    assert found.start == len(noise)
    assert masked("call (4155552671 now", find("call (4155552671 now")) == "call ([phone] now"


def test_no_two_overlap_and_masking_leaves_nothing():
    text = "京A12345，11010519491231002X，a@b.cn，62 2202 0012 3456 7895，GB33BUKB20201555555555，+49 30 901820"
    found = find(text)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert masked(text, found) == "[plate]，[identity]，[email]，62 2202 0012 3456 7895，[iban]，[phone]"
    assert find(masked(text, found)) == []


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("4111 1111 1111 1111 12/26", "[card] 12/26"),
        ("card 4111111111111111 123, 1 4111 1111 1111 1111", "card [card] 123, 1 [card]"),
        ("DE89 3704 0044 0532 0130 00 BIC COBADEFF", "[iban] BIC COBADEFF"),
        ("IBAN DE89370400440532013000 BIC: COBADEFF", "IBAN [iban] BIC: COBADEFF"),
        ("2001:db8::8a2e:370:7334 fe80::1", "[ip] [ip]"),
        ("4111 1111 1111 1111 5500 0000 0000 0004", "[card] [card]"),
        ("4111-1111-1111-1111-5500-0000-0000-0004 4111111111111111", "[card]-[card] [card]"),
        ("4222222222222 30569309025904", "[card] [card]"),
        ("20240101 120000 000123 4111 1111 1111 1111", "20240101 120000 000123 [card]"),
        ("DE89370400440532013000 GB82WEST12345698765432", "[iban] [iban]"),
        ("DE89 3704 0044 0532 0130 00 AB12 AND GB82 WEST 1234 5698 7654 32", "[iban] AB12 AND [iban]"),
    ],
)
def test_what_stands_beside_a_number_does_not_hide_it(text, new):
    assert masked(text, find(text)) == new


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("No.4111111111111111, Visa4111111111111111", "No.[card], Visa[card]"),
        ("MAC:00:1A:2B:3C:4D:5E, mac:00-1a-2b-3c-4d-5e", "MAC:[mac], mac:[mac]"),
        ("ip:2001:db8::1, IPv6:fe80::1, address:fe80::3", "ip:[ip], IPv6:[ip], address:[ip]"),
        ("IBANDE89370400440532013000", "IBAN[iban]"),
    ],
)
def test_a_word_without_a_space_does_not_hide_what_follows(text, new):
    assert masked(text, find(text)) == new


@pytest.mark.parametrize(
    "text",
    [
        "3.4111111111111111 and .4111111111111111, 0x4111111111111111, 0xa4111111111111111, fe4111111111111111",
        "SHA1:00:1A:2B:3C:4D:5E:6F, 11:MAC:00:1A:2B, aa:00:1A:2B:3C:4D:5E",
        "std::dead::beef, T::abcd::e, at:12:30:05, ns:add::b, x[i:2::2]",
    ],
)
def test_a_word_before_makes_no_data_of_what_only_looks_like_it(text):
    assert find(text) == []


def test_a_list_of_many_takes_its_time_once():
    """With ten thousand finds, each compared with all others, this would take minutes."""
    text = "a@b.cn " * 20_000
    assert len(find(text, ())) == 20_000


def test_regions_are_asked_for():
    assert find("0171 1234567", ("DE",)) and not find("0171 1234567")
    with pytest.raises(ConfigError, match="region 'Germany': give two letters"):
        find("x", ("Germany",))


def test_conversations_are_masked_and_counted():
    said = [{"role": "user", "content": "call 13812345678"}, {"role": "assistant", "content": "a@b.cn, a@c.cn"}]
    table = clean(Table.of([{"messages": said}, {"messages": said[:0]}]), ["messages"], Cleaning(personal=True))
    first, second = (record.values["messages"] for record in table)
    assert [turn["content"] for turn in first] == ["call [phone]", "[email], [email]"] and second == []
    assert table.account.repaired[0].count == 1
    assert "masked in all columns: 2 email, 1 phone; names and addresses of people are not found" in str(table.account)
    numbers = clean(Table.of([{"a": {"n": [13812345678, 7, True]}}]), ["a"], Cleaning(personal=True))
    assert "1 whole numbers of seven digits or more are no texts" in str(numbers.account)


def test_the_command_counts_and_masks(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,contact\nhello there,13812345678\nwrite to a@b.cn,\n")
    shown = CliRunner().invoke(app, ["data", "look", str(path), "--personal"], catch_exceptions=False).output
    assert "personal data: 2 rows" in shown and "'text': 1 email; 'contact': 1 phone" in " ".join(shown.split())
    command = ["data", "clean", str(path), "--text", "text", "--text", "contact", "--personal"]
    CliRunner().invoke(app, [*command, "--out", str(tmp_path / "new.jsonl")], catch_exceptions=False)
    written = (tmp_path / "new.jsonl").read_text()
    assert "[phone]" in written and "write to [email]" in written and "138" not in written


def test_numbers_beside_texts_are_looked_at(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"person": {"name": "Li", "phone": 13812345678, "others": [13812345679, "a@b.cn"]}}\n')
    shown = CliRunner().invoke(app, ["data", "look", str(path), "--personal"], catch_exceptions=False).output
    assert "'person': 2 phone, 1 email" in " ".join(shown.split())


@pytest.mark.parametrize("command", [["look"], ["clean", "--space", "--out", "new.jsonl"]])
def test_regions_without_personal_are_refused(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text\nhello there\n")
    with pytest.raises(ConfigError, match=r"--regions DE: .* give --personal too"):
        CliRunner().invoke(
            app, ["data", command[0], "rows.csv", *command[1:], "--regions", "DE"], catch_exceptions=False
        )
    assert not Path("new.jsonl").exists()
    with pytest.raises(ConfigError, match="regions DE: they belong to personal"):
        Cleaning(space=True, regions=("DE",))
