"""A reading lies in files, and an engine may compute elsewhere. The device "meta" stands for a GPU here."""

import gc

import pytest
import torch

from handscroll.cache.reading import reading as module
from handscroll.generate.engine.engine import Engine
from handscroll.generate.engine.keepers import Rows, Run
from handscroll.generate.read import held
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.nn.marks import Marks
from tests.generate.material import Letters, loaded, prompts_of

META = torch.device("meta")


class Printed(Letters):
    fingerprint = "letters"


@pytest.fixture(params=["llama", "mistral-window"])
def model(request, tmp_path):
    return loaded(tmp_path, request.param)


@pytest.fixture
def copies(monkeypatch):
    """The tokens of each span that is copied to another device."""
    counted, moved = [], module._moved

    def spy(span, device):
        counted.append(span.marks.length)
        return moved(span, device)

    monkeypatch.setattr(module, "_moved", spy)
    return counted


def elsewhere(model, requests):
    """An engine whose keys and values lie on another device, and the jobs of these requests."""
    engine = Engine(model, blocks=20)
    pool, jobs = engine.pool, [engine.submit(request) for request in requests]
    pool.keys, pool.values = ([x.to(META) for x in some] for some in (pool.keys, pool.values))
    return engine, jobs


def read_by(model, engine):
    """What every layer reads for the chunks of the engine's next step."""
    kv, size = model.config.kv_heads, model.config.head_size
    found = []
    for job, first, last in engine._scheduler.plan().chunks:
        keeper, marks = Run(engine.pool, job, first, last, copy=False), Marks.run(first, last - first)
        new = torch.empty(1, kv, last - first, size, device=META)
        found.append([keeper.append(layer, new, new, marks) for layer in range(model.config.layers)])
    return found


def test_an_engine_reads_a_reading_on_its_own_device(model, copies):
    (first,) = prompts_of((40,))
    reading = held(model, Printed(), first, 60)
    engine, jobs = elsewhere(model, [Request([*first, 5, 6], Sampling(max_tokens=3), reading=reading)] * 2)
    for layers in read_by(model, engine):
        assert {span.keys.device for spans in layers for span in spans} == {META}
        assert {span.values.device for spans in layers for span in spans} == {META}
    rows = Rows(engine.pool, jobs, alike=False)
    new = torch.empty(2, model.config.kv_heads, 1, model.config.head_size, device=META)
    pages = rows.append(0, new, new, Marks.run(41, 1))
    assert all(span.keys.device == META for number in range(2) for span in pages.spans(number))
    assert len(copies) == sum(len(layer) for layer in reading.spans)  # both requests read one copy
    assert reading.past(torch.device("cpu"))["past"] is reading.spans


def test_parts_of_a_reading_share_its_copy_which_goes_with_the_last_request(model, copies):
    (first,) = prompts_of((40,))
    whole = held(model, Printed(), first, 60)
    requests = [
        Request([*first[:length], 5, 6, 7], Sampling(max_tokens=3), reading=whole.part(length)) for length in (40, 39)
    ]
    engine, jobs = elsewhere(model, requests)
    read_by(model, engine)
    assert len(copies) == sum(len(layer) for layer in whole.spans)
    engine.cancel(jobs[0])
    assert len(whole._there) == 1  # the other one still reads a part of it
    engine.cancel(jobs[1])
    gc.collect()
    assert not whole._there
