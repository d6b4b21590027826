"""Windows, packing and batches: nothing is lost, nothing is counted twice, boundaries are honest."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handscroll.base.errors import CheckpointError, ConfigError, DataError
from handscroll.data.batch import collate
from handscroll.data.pack import Packed, pack
from handscroll.data.row import IGNORED
from handscroll.data.sources import TokenSource
from handscroll.data.windows import CyclicWindows, SlidingWindows
from handscroll.text.readers import Document
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.naming import naming

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def source(*lengths):
    """Documents whose tokens are all different, so that a token tells where it came from."""
    ends = np.cumsum(lengths)
    return TokenSource([np.arange(end - size, end) for size, end in zip(lengths, ends, strict=True)])


def counted_targets(rows):
    return Counter(int(t) for row in rows for t in row.targets if t != IGNORED)


def followers(data):
    """Every token but the first of each document."""
    return Counter(int(token) for document in data for token in document[1:])


def check_row(row, data):
    """Targets follow their tokens, segments and positions are runs, padding comes last and is never counted."""
    length = len(row.tokens)
    segment = np.zeros(length, int) if row.segment is None else row.segment
    positions = np.arange(length) if row.positions is None else row.positions
    assert (row.segment is None) == (row.positions is None)
    assert row.tokens[0] == data[row.document][row.start]
    used = int((segment >= 0).sum())
    assert (segment[used:] == -1).all() and (row.targets[used:] == IGNORED).all()
    for number in range(segment.max() + 1):
        places = np.flatnonzero(segment == number)
        assert (np.diff(places) == 1).all() and (np.diff(row.tokens[places]) == 1).all()
        assert positions[places].tolist() == list(range(len(places)))
    wrong = (row.targets != row.tokens + 1) & (row.targets != IGNORED)
    assert not wrong.any()


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 12))
def test_sliding_windows_cover_everything_once(lengths, length):
    data = source(*lengths)
    stream = SlidingWindows(data, length)
    rows = [row for row, _ in stream]
    assert len(rows) == len(stream) == sum(-(-size // length) for size in lengths)
    assert counted_targets(rows) == followers(data)
    assert [(row.document, row.start) for row in rows] == sorted((row.document, row.start) for row in rows)
    for row in rows:
        check_row(row, data)


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 12), stride=st.integers(1, 12))
def test_overlapping_windows_and_dropped_tails(lengths, length, stride):
    stride, data = min(stride, length), source(*lengths)
    padded = [row for row, _ in SlidingWindows(data, length, stride)]
    assert set(counted_targets(padded)) == set(followers(data))
    if max(lengths) < length:
        with pytest.raises(DataError, match="document"):
            SlidingWindows(data, length, stride, tails="drop")
        return
    stream = SlidingWindows(data, length, stride, tails="drop")
    rows = [row for row, _ in stream]
    assert all(row.segment is None for row in rows)
    assert len({int(t) for row in rows for t in row.tokens}) == data.total - stream.dropped


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 12), seed=st.integers(0, 99), epoch=st.integers(0, 50))
def test_cyclic_windows_count_every_token_once_an_epoch(lengths, length, seed, epoch):
    data = source(*lengths)
    stream = CyclicWindows(data, length, seed)
    rows = [stream.row(epoch, number) for number in range(len(stream))]
    assert counted_targets(rows) == followers(data)
    for row in rows:
        check_row(row, data)
    joined = CyclicWindows(data, length, seed, seam="join")
    assert counted_targets(joined.row(epoch, n) for n in range(len(joined))) == followers(data)


@pytest.mark.parametrize(("size", "length"), [(8, 8), (23, 8), (24, 8), (30, 7), (97, 12), (64, 1)])
def test_over_n_epochs_every_token_stands_at_every_place(size, length):
    stream = CyclicWindows(source(size), length, seed=4, seam="join")
    places = np.zeros((size, length), int)
    offsets = set()
    for epoch in range(size):
        offsets.add(stream.offset(0, epoch))
        row = [stream.row(epoch, number) for number in range(len(stream))]
        for r in row:
            places[r.tokens, np.arange(length)] += 1
    assert len(offsets) == size, "another offset in every epoch"
    assert (places > 0).all()


def test_a_few_epochs_already_spread_over_the_window():
    stream = CyclicWindows(source(10_000), 100, seed=0)
    offsets = np.sort([stream.offset(0, epoch) % 100 for epoch in range(16)])
    gaps = np.diff(np.append(offsets, offsets[0] + 100))
    assert gaps.max() <= 13  # evenly spread would be 6.25; random offsets leave about 20


def test_shuffled_epochs_hold_the_same_rows_in_another_order():
    stream = CyclicWindows(source(100, 60), 8, seed=0, epochs=2)
    rows = [row for row, _ in stream]
    half = len(stream)
    for epoch, part in enumerate([rows[:half], rows[half:]]):
        inorder = [(r.document, r.start) for r in (stream.row(epoch, n) for n in range(half))]
        order = [(row.document, row.start) for row in part]
        assert sorted(order) == sorted(inorder) and order != inorder


def test_short_documents_are_padded_dropped_or_refused():
    data = source(20, 3)
    padded = CyclicWindows(data, 8, seed=0, order="reading")
    last = padded.row(5, len(padded) - 1)
    assert last.tokens.tolist()[:3] == [20, 21, 22] and last.segment.tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    dropped = CyclicWindows(data, 8, seed=0, short="drop")
    assert dropped.dropped == 3 and len(dropped) == len(padded) - 1
    with pytest.raises(DataError, match=naming("1 document", "8 tokens", "document 1", "3")):
        CyclicWindows(data, 8, seed=0, short="error")
    with pytest.raises(DataError, match="50 tokens"):
        CyclicWindows(data, 50, seed=0, short="drop")


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 20), seed=st.none() | st.integers(0, 9))
def test_packing_keeps_every_token(lengths, length, seed):
    data = source(*lengths)
    rows = [row for row, _ in Packed(data, length, seed=seed)]
    assert len(rows) == -(-data.total // length)
    used = [row.tokens if row.segment is None else row.tokens[row.segment >= 0] for row in rows]
    assert sorted(np.concatenate(used).tolist()) == list(range(data.total))
    assert seed is not None or np.concatenate(used).tolist() == list(range(data.total))
    assert counted_targets(rows) == followers(data)
    for row in rows:
        check_row(row, data)


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 20))
def test_packing_without_tails_begins_every_segment_at_a_document(lengths, length):
    data = source(*lengths)
    stream = Packed(data, length, tails="drop")
    rows = [row for row, _ in stream]
    firsts = {int(document[0]) for document in data}
    starts = []
    for row in rows:
        check_row(row, data)
        zeros = np.arange(length) == 0 if row.positions is None else (row.positions == 0) & (row.segment >= 0)
        starts += row.tokens[zeros].tolist()
    assert set(starts) == firsts and len(starts) == len(firsts)
    used = sum(length if row.segment is None else int((row.segment >= 0).sum()) for row in rows)
    assert used == data.total - stream.dropped


def test_pack_in_small():
    first, second = pack([np.array([5, 6, 7]), np.array([8, 9])], length=4)
    assert first.tokens.tolist() == [5, 6, 7, 8] and first.targets.tolist() == [6, 7, -100, 9]
    assert first.segment.tolist() == [0, 0, 0, 1] and first.positions.tolist() == [0, 1, 2, 0]
    assert second.tokens.tolist()[0] == 9 and second.segment.tolist() == [0, -1, -1, -1]


def test_collate():
    plain = collate([row for row, _ in SlidingWindows(source(16), 8)])
    assert plain.tokens.dtype == plain.targets.dtype == torch.int64 and plain.tokens.shape == (2, 8)
    assert plain.index is plain.segment is plain.positions is None and plain.counted == 15
    mixed = collate([row for row, _ in SlidingWindows(source(8, 3), 8)])
    assert mixed.segment.tolist() == [[0] * 8, [0, 0, 0, -1, -1, -1, -1, -1]]
    assert mixed.index.tolist() == [list(range(8)), [0, 1, 2, -1, -1, -1, -1, -1]]
    assert mixed.positions.tolist() == [list(range(8)), [0, 1, 2, 0, 0, 0, 0, 0]]
    assert {t.dtype for t in (mixed.index, mixed.segment, mixed.positions)} == {torch.int64}
    with pytest.raises(DataError, match=naming("4", "8 tokens")):
        collate([next(iter(SlidingWindows(source(9), n)))[0] for n in (8, 4)])
    with pytest.raises(DataError, match="rows"):
        collate([])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four five\n" * 20], TokenizerConfig(vocab=270))


def test_sources_from_text(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one two three")
    (tmp_path / "b.txt").write_text("four five")
    built = TokenSource.from_paths([tmp_path], tokenizer, end=True)
    assert [tokenizer.decode(document) for document in built] == ["one two three", "four five"]
    assert all(document[-1] == tokenizer.eos and document.dtype == np.uint16 for document in built)
    assert [Path(name).name for name in built.names] == ["a.txt", "b.txt"]
    assert built.unknown == [0, 0] and built.total == sum(map(len, built)) and built.tokenizer == tokenizer.fingerprint


def test_saved_sources_are_mapped_and_checked(tokenizer, tmp_path):
    built = TokenSource.build([Document("one two", "x"), Document("三\n", "y")], tokenizer)
    built.save(tmp_path / "s")
    again = TokenSource.load(tmp_path / "s")
    assert isinstance(again[0].base, np.memmap) and again.names == ["x", "y"]
    assert [d.tolist() for d in again] == [d.tolist() for d in built] and again.fingerprint == built.fingerprint
    file = tmp_path / "s" / "tokens.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="belong"):
        TokenSource.load(tmp_path / "s")
    with pytest.raises(CheckpointError, match="source"):
        TokenSource.load(tmp_path)


EMPTY = '{"documents": [{"name": "x", "tokens": %s, "unknown": 0}], "tokenizer": "", "fingerprint": ""}'


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.npy", b""),
        ("tokens.npy", npy(np.array(5))),
        ("tokens.npy", npy(np.arange(40, dtype=np.int32))[:-7]),
        ("tokens.npy", b"PK\x03\x04"),
        ("index.json", b""),
        ("index.json", b"[]"),
        ("index.json", b'{"documents": 5, "tokenizer": "", "fingerprint": ""}'),
        ("index.json", (EMPTY % '"many"').encode()),
        ("index.json", (EMPTY % "1e400").encode()),
        ("index.json", (EMPTY % ("9" * 30)).encode()),
    ],
)
def test_damaged_sources_are_refused(tokenizer, tmp_path, name, content):
    TokenSource.build([Document("one two", "x")], tokenizer).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"(damaged token|do not belong together).* build (it|the source) again"):
        TokenSource.load(tmp_path)


def test_both_files_of_a_source_are_durable_before_they_have_their_names(tokenizer, tmp_path, monkeypatch):
    calls = list[str]()
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda path, to: calls.append(to.name) or replace(path, to))
    TokenSource.build([Document("one two", "x")], tokenizer).save(tmp_path)
    assert calls == ["fsync", "tokens.npy", "fsync", "fsync", "index.json", "fsync"], "fsync: the file, then its folder"
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.npy", "index.json"}


def test_source_refusals(tokenizer):
    with pytest.raises(DataError, match="at least one"):
        TokenSource([])
    with pytest.raises(DataError, match="document 1"):
        TokenSource([np.arange(3), np.array([], dtype=np.int32)])
    with pytest.raises(DataError, match="float64"):
        TokenSource([np.array([1.0])])
    bare = train_tokenizer(["one two three\n" * 9], TokenizerConfig(vocab=257, special=("<|x|>",)))
    with pytest.raises(ConfigError, match="eos"):
        TokenSource.build([Document("one", "x")], bare, end=True)


def test_only_batches_need_torch():
    code = (
        "import handscroll.data.pack, handscroll.data.windows, handscroll.cli.tokenizer, sys; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
