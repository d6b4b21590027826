"""Generation on a GPU: the tokens of the CPU, whatever keeps the keys."""

import pytest
import torch

from handscroll.cache.reading.store import Store
from handscroll.cache.table import POLICIES
from handscroll.generate.engine.engine import Engine
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import load

if not torch.cuda.is_available():
    pytest.skip("needs CUDA", allow_module_level=True)

PROMPT = "def read(path):\n    return path" * 12


def test_greedy_tokens_are_those_of_the_cpu(tiny_folder):
    want = load(tiny_folder).generate(PROMPT, max_tokens=20, temperature=0, beyond=True)
    found = load(tiny_folder, device="cuda").generate(PROMPT, max_tokens=20, temperature=0, beyond=True)
    assert found == want


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs(tiny_folder, policy):
    options = {"policy": policy + (":budget=64" if policy in ("window", "sinks", "snapkv", "h2o", "tova") else "")}
    want = load(tiny_folder).generate(PROMPT, max_tokens=12, temperature=0, beyond=True, **options)
    found = load(tiny_folder, device="cuda").generate(PROMPT, max_tokens=12, temperature=0, beyond=True, **options)
    assert found == want


def test_half_precision_samples_beams_and_readings_run(tiny_folder, tmp_path):
    lm = load(tiny_folder, device="cuda", dtype="bfloat16")
    assert len(lm.continuations(PROMPT, samples=3, max_tokens=12, seed=1, beyond=True)) == 3
    assert lm.beams(PROMPT, beams=2, max_tokens=8, beyond=True)
    store = Store(tmp_path)
    lm.read(PROMPT, store, "book", beyond=True)
    alone = lm.generate(PROMPT + "x", max_tokens=12, temperature=0, beyond=True)
    assert lm.generate(PROMPT + "x", max_tokens=12, temperature=0, beyond=True, store=store) == alone


def test_an_engine_answers_about_a_reading(tiny_folder, tmp_path):
    """Several requests at once, about two parts of one reading."""
    answers, sampling = {}, Sampling(max_tokens=12, ignore_eos=True)
    for device in ("cpu", "cuda"):
        lm, store = load(tiny_folder, device=device), Store(tmp_path / device)
        ids = lm.encode(PROMPT)
        reading = lm.read(ids, store, beyond=True)
        parts = (reading, reading.part(reading.length - 3))
        engine = Engine(lm.model, blocks=40)
        jobs = [
            engine.submit(Request([*ids[: one.length], 5, 6, 7], sampling, beyond=True, reading=one)) for one in parts
        ]
        for _ in engine.run():
            pass
        answers[device] = [job.answer for job in jobs]
    assert answers["cuda"] == answers["cpu"]
