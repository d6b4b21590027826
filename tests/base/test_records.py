"""Records come back exactly, and a crash costs at most the line that was being written."""

import errno
import os
import random

import pytest

from handscroll.base.errors import CheckpointError, DataError
from handscroll.base.records import RecordWriter, read_object, read_records, requiring
from tests.naming import naming


def test_records_come_back_as_they_were(tmp_path):
    records = [
        {"step": 1, "loss": 0.1 + 0.2, "tiny": 5e-324, "text": "山水 \u2028 \x85 \n tab\t", "none": None},
        {"z": 1, "a": {"nested": [1, 2.5, True]}},
    ]
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        for record in records:
            writer.append(record)
        assert writer.offset == (tmp_path / "r.jsonl").stat().st_size
    assert list(read_records(tmp_path / "r.jsonl")) == records
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert text.startswith('{"step": 1, "loss": 0.30000000000000004, ') and "山水" in text


def test_each_line_is_in_the_file_at_once(tmp_path):
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        for step in range(5):
            writer.append({"step": step})
            assert len(list(read_records(tmp_path / "r.jsonl"))) == step + 1


def test_resume_at_an_offset_leaves_the_bytes_of_an_undisturbed_run(tmp_path):
    straight, resumed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with RecordWriter(straight) as writer:
        for step in range(20):
            writer.append({"step": step, "loss": 1 / (step + 1)})
    with RecordWriter(resumed) as writer:
        for step in range(13):
            if step == 10:
                offset = writer.sync()
            writer.append({"step": step, "loss": 1 / (step + 1)})
    with RecordWriter(resumed, offset=offset) as writer:
        for step in range(10, 20):
            writer.append({"step": step, "loss": 1 / (step + 1)})
    assert resumed.read_bytes() == straight.read_bytes()


def test_a_crash_at_every_byte_is_tolerated_and_continued(tmp_path):
    path = tmp_path / "r.jsonl"
    with RecordWriter(path) as writer:
        for step in range(6):
            writer.append({"step": step, "text": "卷" * step})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        finished = whole[:length].count(b"\n")
        assert [record["step"] for record in read_records(path)] == list(range(finished))
        with RecordWriter(path) as writer:
            writer.append({"step": finished})
        assert [record["step"] for record in read_records(path)] == list(range(finished + 1))


def test_a_long_unfinished_line_is_cut(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n{"text": "' + b"x" * 200_000)
    with RecordWriter(path) as writer:
        assert writer.offset == 9
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b'{"a": 1}\n' * 20_000 + b'{"text": "' + b"x" * 200_000)
    with RecordWriter(path) as writer:
        assert writer.offset == 180_000


@pytest.mark.parametrize("line", [b"", b"{", b'{"a": 1} {', b"[1]", b"3", b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(CheckpointError, match=r"r\.jsonl, line 2"):
        list(read_records(path))


def test_the_last_line_of_a_whole_file_is_a_record_without_its_newline(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}', encoding="utf-8")
    assert list(read_records(path)) == [{"a": 1}] and list(read_records(path, whole=True)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"r\.jsonl, line 2"):
        list(read_records(path, whole=True))


def test_a_record_that_lacks_a_name_is_named_by_its_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b": 3}\n{"b": 4}\n', encoding="utf-8")
    records = requiring(read_records(path), path, lambda record: ("a",))
    assert [next(records), next(records)] == [{"a": 1}, {"a": 2, "b": 3}]
    with pytest.raises(CheckpointError, match=r"r\.jsonl, line 3.*'a'"):
        next(records)


@pytest.mark.parametrize("content", ["", '{"a": 1', "[1]", "3"])
def test_a_file_that_holds_no_object_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / "about.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"about\.json"):
        read_object(tmp_path / "about.json")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), {1, 2}, b"bytes", "\udc80", [float("nan")]], ids=repr
)
def test_what_json_cannot_say_is_refused_and_nothing_is_written(tmp_path, value):
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer.append({"a": 1})
        with pytest.raises(DataError, match=r"r\.jsonl"):
            writer.append({"a": value})
        writer.append({"a": 2})
    assert list(read_records(tmp_path / "r.jsonl")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(("offset", "message"), [(100, "16 bytes"), (-1, "16 bytes"), (5, "line")])
def test_an_offset_that_does_not_fit_is_refused(tmp_path, offset, message):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    with pytest.raises(CheckpointError, match=message):
        RecordWriter(path, offset=offset)
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n'


def test_offset_zero_begins_anew(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a":1}\n')
    RecordWriter(path, offset=0).close()
    assert path.read_bytes() == b""


def test_missing_files_and_folders_are_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.jsonl"):
        list(read_records(tmp_path / "none.jsonl"))
    with pytest.raises(CheckpointError, match="absent"):
        RecordWriter(tmp_path / "absent" / "r.jsonl")


def test_short_writes_and_a_full_disk_leave_whole_lines(tmp_path, monkeypatch):
    real, rng = os.write, random.Random(0)
    budget = [0]

    def write(descriptor, data):
        if budget[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), rng.randint(1, 7), budget[0])
        budget[0] -= taken
        return real(descriptor, bytes(data[:taken]))

    monkeypatch.setattr(os, "write", write)
    for limit in range(0, 60, 3):
        path = tmp_path / f"{limit}.jsonl"
        budget[0] = 10**6
        with RecordWriter(path) as writer:
            writer.append({"step": 0, "text": "whole"})
            budget[0] = limit
            record = {"step": 1, "text": "x" * 60}
            with pytest.raises(CheckpointError, match=naming("ENOSPC", "needed", "free")):
                writer.append(record)
            budget[0] = 10**6
            writer.append({"step": 1, "text": "after"})
        assert [r["text"] for r in read_records(path)] == ["whole", "after"]
