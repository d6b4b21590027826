"""Forgetting takes all that only the forgotten text had, though others continue its beginning."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from handscroll.base.errors import CapacityError
from handscroll.cache.reading import names
from handscroll.cache.reading import store as module
from handscroll.cache.reading.store import Store
from tests.generate import readings


@pytest.fixture
def lm(tiny_folder):
    return readings.roomy(tiny_folder)


@pytest.fixture
def windowed(lm):
    return readings.windowed(lm, 50)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "readings")


def text(seed):
    return np.random.default_rng(seed).integers(1, 500, 200).tolist()


def holding(store, ids):
    """The files of a store in which these ids stand one behind another."""
    wanted = np.array(ids, dtype=np.int32).tobytes()
    return [path.name for path in store.folder.rglob("*") if path.is_file() and wanted in path.read_bytes()]


@pytest.mark.parametrize("again", [False, True])
def test_what_only_a_forgotten_text_had_is_gone_though_others_continue_its_beginning(lm, store, monkeypatch, again):
    ids = text(0)
    rest, secret = [7, 9] * 60, ids[150:200]
    lm.read(ids[:200], store, "first")
    lm.read(ids[:120], store, "short")  # a beginning of the first: nothing new is kept
    other = lm.read([*ids[:140], *rest], store, "other")
    assert [len(layer) for layer in other.spans] == [2] * len(other.spans) and holding(store, secret)
    want = {name: lm.ask(name, "?", store, max_tokens=9) for name in ("short", "other")}
    store.forget("first")
    assert holding(store, secret) == []
    assert sorted((about.first, about.length) for about in store.parts()) == [(0, 140), (140, 260)]
    counted = readings.reads(lm, monkeypatch)
    assert {name: lm.ask(name, "?", store, max_tokens=9) for name in want} == want
    assert sum(counted) < 100  # nothing is read again
    if again:  # the same text comes back, and others go on from it
        lm.read(ids[:200], store, "first")
        lm.read([*ids[:180], *rest], store, "later")
        assert {name: lm.ask(name, "?", store, max_tokens=9) for name in want} == want
        store.forget("first")
        assert holding(store, ids[180:200]) == [] and holding(store, secret[:20]) != []
        assert lm.ask("later", "?", store, max_tokens=9) == lm.generate(
            [*ids[:180], *rest, *lm.encode("\n\nQuestion: ?\nAnswer:", special=False)], max_tokens=9
        )
        store.forget("later")
    store.forget("short")
    assert lm.ask("other", "?", store, max_tokens=9) == want["other"]
    store.forget("other")
    assert store.nbytes == 0 and not [
        path for path in store.folder.rglob("*") if path.is_file() and path.name != "lock"
    ]


def test_a_kill_while_a_text_is_forgotten(lm, store, monkeypatch):
    """Wherever it stops, others keep their readings, and `prune` ends it."""
    ids = text(0)
    for stop in range(1, 9):
        lm.read(ids[:200], store, "first")
        lm.read([*ids[:140], *[7, 9] * 60], store, "other")
        lm.read([*ids[:100], *[8, 6] * 60], store, "third")
        want = {name: lm.ask(name, "?", store, max_tokens=5) for name in ("other", "third")}
        dying = readings.dying(stop)
        with monkeypatch.context() as patch, suppress(SystemExit):
            for where, name in ((module, "write_folder"), (names, "write_file")):
                patch.setattr(where, name, dying(getattr(where, name)))
            for name in ("unlink", "rename"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            store.forget("first")
        if "first" in store.names():
            store.forget("first")
        store.prune()
        assert holding(store, ids[150:200]) == []
        assert {name: lm.ask(name, "?", store, max_tokens=5) for name in want} == want
        for name in store.names():
            store.forget(name)
        store.prune()
        assert store.nbytes == 0


@pytest.mark.parametrize("policy", ["full", "int8"])
def test_windowed_layers_are_cut_with_the_others(windowed, store, policy):
    """Their part holds a few tokens more than a window, so that another text can end the shared beginning there."""
    ids = text(0)
    windowed.read(ids, store, "first", policy=policy)
    (about,) = (one for one in store.parts() if one.length == len(ids))
    assert about.rewind > 2
    other = [*ids[:-2], *[7, 9] * 20]
    windowed.read(other, store, "other", policy=policy)
    want = windowed.ask("other", "?", store, max_tokens=9)
    store.forget("first")
    assert holding(store, ids[-3:]) == [] and {one.length for one in store.parts()} >= {198, 238}
    assert windowed.ask("other", "?", store, max_tokens=9) == want
    fresh = Store(store.folder / "fresh")
    windowed.read(other, fresh, "other", policy=policy)
    assert windowed.ask("other", "?", fresh, max_tokens=9) == want


@pytest.mark.parametrize("kind", ["full", "windowed"])
def test_any_order_of_reading_and_forgetting(lm, tmp_path, kind):
    """No reading has another's keys, none is lost but by eviction, and nothing stays that only forgotten texts had."""
    if kind == "windowed":
        lm = readings.windowed(lm, 40)
    draw = np.random.default_rng(0)
    fresh = Store(tmp_path / "fresh")
    for round in range(2):
        limit = int(lm.model.config.spec.cache_bytes(1, 4) * 700) if round % 2 else 1 << 30
        store, texts = Store(tmp_path / f"round{round}", limit=limit), dict[str, list[int]]()
        every = list[list[int]]()  # all texts that were ever read
        for step in range(18):
            what = draw.integers(10)
            if what < 5 or not texts:
                old = every[draw.integers(len(every))] if every and draw.integers(4) else []
                shared = int(draw.integers(64, len(old) + 1)) if len(old) >= 64 else 0
                new = draw.integers(1, 500, draw.integers(0 if shared else 70, 120)).tolist()
                ids = [*old[:shared], *new]
                with suppress(CapacityError):
                    name = f"text-{step}"
                    lm.read(ids, store, name)
                    texts[name] = ids
                    every.append(ids)
            elif what < 9:
                store.forget(name := list(texts)[draw.integers(len(texts))])
                del texts[name]
            else:
                store.prune()
            for name, ids in texts.items():
                number, length = store.names()[name]
                if not (store.folder / "parts" / number).exists():
                    assert limit < 1 << 30, "lost without an eviction"
                    continue
                got = store.open(number).part(length)
                assert got.tokens.tolist() == ids
                want = fresh.find(got.identity, torch.tensor(ids))
                if want is None or want.length < len(ids):
                    want = lm.read(ids, Store(tmp_path / "fresh" / str(hash(tuple(ids)))), "x")
                for spans, plain in zip(got.spans, want.spans, strict=True):
                    held = torch.cat([span.keys for span in spans], dim=2)
                    true = torch.cat([span.keys for span in plain], dim=2)
                    both = min(held.shape[2], true.shape[2])  # of a windowed layer the last ones
                    held, true = (keys[:, :, keys.shape[2] - both :] for keys in (held, true))
                    torch.testing.assert_close(held, true, rtol=1e-3, atol=1e-3)
            store.prune()
            left = {tuple(ids[at : at + 8]) for ids in texts.values() for at in range(len(ids) - 7)}
            for ids in every:
                gone = [at for at in range(0, len(ids) - 7, 8) if tuple(ids[at : at + 8]) not in left]
                for at in gone[:: max(1, len(gone) // 3)]:
                    assert holding(store, ids[at : at + 8]) == [], (step, name)
