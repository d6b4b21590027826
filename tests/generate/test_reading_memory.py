"""What the memory does not hold is refused before it is read; what a store holds already needs no memory on a CPU."""

import pytest

from handscroll.base.errors import CapacityError
from handscroll.cache.reading.store import Store
from handscroll.generate import read
from handscroll.generate.budget import Demand
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.plan.forecast import beside
from tests.generate import readings
from tests.generate.readings import text


@pytest.fixture
def lm(tiny_folder):
    return readings.roomy(tiny_folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def free(monkeypatch, size):
    """Let so many bytes be free."""
    monkeypatch.setattr("handscroll.generate.prepare.spare", lambda _: (size, 10**9))


def needed(lm, ids, past=0, policy="full"):
    """Bytes to read these tokens after `past` of them, as far as a plan may use them."""
    workload = Demand(ids, 0, past=past, saved=True).workload(policy, lm.model)
    return int(sum(beside(workload).values()) / 0.9) + 2


@pytest.mark.parametrize("policy", ["full", "int8"])
def test_a_text_that_memory_does_not_hold_is_refused_before_it_is_read(lm, store, monkeypatch, policy):
    ids, counted = text(3000), readings.reads(lm, monkeypatch)
    free(monkeypatch, needed(lm, ids, policy=policy) - 10)
    with pytest.raises(CapacityError, match=r"3,000 tokens of prompt would take .* a prompt of up to 2,9\d\d tokens"):
        lm.read(ids, store, "book", policy=policy)
    assert not counted and not list(store.parts()) and not store.names()
    free(monkeypatch, needed(lm, ids, policy=policy))
    assert lm.read(ids, store, "book", policy=policy).length == 3000


def test_a_refusal_names_the_cache_that_would_fit(lm, store, monkeypatch):
    ids = text(3000)
    free(monkeypatch, needed(lm, ids, policy="int8"))
    with pytest.raises(CapacityError, match="--cache int8 "):
        lm.read(ids, store)


def test_only_what_is_still_to_be_read_needs_memory(lm, store, monkeypatch):
    ids = text(3000)
    lm.read(ids[:2000], store, "part")
    assert needed(lm, ids, past=2000) < needed(lm, ids)
    free(monkeypatch, needed(lm, ids, past=2000) - 10)
    with pytest.raises(CapacityError, match=r"1,000 tokens .* up to 9\d\d tokens after the 2,000 that were"):
        lm.read(ids, store)
    free(monkeypatch, needed(lm, ids, past=2000))
    assert lm.read(ids, store, "book").length == 3000
    free(monkeypatch, 1000)
    with pytest.raises(CapacityError, match="Free some memory"):
        lm.read([4, *ids], store)
    assert lm.read(ids, store, "again").length == 3000  # all of it was read before


def test_a_model_with_windows_needs_memory_for_a_stretch(lm, store, monkeypatch):
    lm = readings.windowed(lm, 20)
    ids, stretch = text(3000), read.STRETCH * 20
    most = needed(lm, ids, past=3000 - stretch)
    assert most < needed(lm, ids)
    free(monkeypatch, most - 10)
    with pytest.raises(CapacityError, match=f"{stretch} tokens of prompt"):
        lm.read(ids, store)
    free(monkeypatch, most)
    assert lm.read(ids, store).length == 3000


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_reading_in_files_takes_memory_on_a_gpu(lm, store, device):
    """The device "meta" stands for a GPU: keys and values of a reading are copied there."""
    ids = text(1000)
    reading = lm.read(ids, store)
    request = Request([*ids, *text(20, seed=1)], Sampling(max_tokens=10), reading=reading)
    model = lm.model.to(device)
    cache = beside(Demand.of(request).workload("full", model))["cache"]
    each = lm.model.config.spec.cache_bytes(1, 4)
    assert cache == each * (29 if device == "cpu" else 1029)
