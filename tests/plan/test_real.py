"""Forecasts against real runs in fresh processes; bench/planner.py does sixty."""

import json

import pytest

from handscroll.base.errors import CapacityError
from handscroll.base.workload import BEST
from handscroll.models.gpt2 import GPT2Config
from handscroll.models.lstm import LSTMConfig
from handscroll.models.t5 import T5Config
from handscroll.plan.calibration import Calibration
from handscroll.plan.forecast import disk_bytes, predict
from handscroll.plan.machine import Machine
from handscroll.plan.memory import fixed_parts, phases
from handscroll.plan.workloads import recipe_workloads
from handscroll.train.optim import Optimizer
from handscroll.train.probe import build, measure
from handscroll.train.run import Loop, Run, save_best
from handscroll.train.schedule import Schedule
from handscroll.train.start import run_recipe
from tests.plan.conftest import llama

LLAMA = llama()
GPT2 = GPT2Config(vocab=8192, width=256, layers=4, heads=4, mlp_width=1024, context=1024).spec
T5 = T5Config(vocab=1024, width=256, layers=3, encoder_layers=4, heads=4, head_size=64, mlp_width=512, start=0).spec
LSTM = LSTMConfig(vocab=1024, width=256, layers=3, trained=64).spec
RUNS = [
    {"length": 1024, "rows": 2},
    {"length": 2048, "precision": "bfloat16", "packed": True, "optimizer": "adafactor"},
    pytest.param({"length": 3072, "strategy": "checkpoint"}, marks=pytest.mark.long),
    pytest.param(
        {"length": 4096, "strategy": "chunk-outer", "chunk": 512, "precision": "bfloat16"}, marks=pytest.mark.long
    ),
    pytest.param({"length": 4096, "strategy": "layer-outer", "chunk": 1024, "offload": "disk"}, marks=pytest.mark.long),
    {"spec": GPT2, "length": 1024, "optimizer": "muon"},
    pytest.param({"spec": LSTM, "length": 4096}, marks=pytest.mark.long),
    {"spec": T5, "length": 1536},
    {"spec": llama(vocab=32768, width=512, layers=2), "length": 512, "lora": 8, "tables": True},
    pytest.param({"spec": T5, "length": 4096, "strategy": "layer-outer", "chunk": 512}, marks=pytest.mark.long),
    {"spec": LSTM, "length": 8192, "packed": True, "strategy": "chunk-outer", "chunk": 1024},
]


def _name(settings):
    family = getattr(settings.get("spec"), "family", "llama")
    return "-".join([family, *(str(value) for name, value in settings.items() if name != "spec")])


@pytest.fixture(scope="module")
def here() -> Machine:
    """A machine whose bare process was measured by one tiny run."""
    from handscroll.base.workload import Workload

    spec = llama(layers=1, width=32, heads=1, kv_heads=1, mlp_width=32, vocab=64, tied=False)
    tiny = Workload(spec=spec, length=64, strategy="plain", steps=2, threads=1)
    held = sum(fixed_parts(tiny).values()) + max(sum(phase.values()) for phase in phases(tiny).values())
    base = measure(tiny).peak - held
    return Machine(memory=10**11, disk=10**12, calibration=Calibration(base=base))


@pytest.mark.promise("R20")
@pytest.mark.parametrize("settings", RUNS, ids=_name)
def test_memory_is_as_forecast(workload, here, settings):
    run = workload(**{"spec": LLAMA, "threads": 1} | settings)
    forecast, peaks = predict(run, here).host, []
    near = pytest.approx(forecast, rel=0.10)
    # Equal runs differ by up to 4 % (where the heap's holes come to lie), so what is outside is measured again.
    while len(peaks) < 3 and (not peaks or peaks[-1] != near):
        measured = measure(run)
        peaks.append(measured.peak)
        assert len(measured.seconds) == run.steps
    assert peaks[-1] == near, (forecast, peaks)


def test_a_run_that_dies_is_told(workload):
    with pytest.raises(CapacityError, match="status"):
        measure(workload(strategy="chunk-outer", chunk=0, stage_layers=0, offload="host"))


def test_a_recipe_takes_the_disk_it_was_told(recipe, tmp_path):
    settings = recipe("loop.save_every=100", "loop.keep=2", "loop.evaluate_every=0")
    planned = recipe_workloads(settings)
    assert [(one.length, one.rows, one.micro, one.packed) for one in planned] == [(32, 8, 1, True), (64, 4, 2, True)]
    run_recipe(settings, tmp_path / "run")
    checkpoint = next((tmp_path / "run").glob("step-*"))
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    saved = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    # Headers and the state of muon's counters are not forecast: some kilobytes on a model of 60,000 parameters.
    assert 3 * size + saved == pytest.approx(disk_bytes(planned[-1]), rel=0.05)
    vocab = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["vocab_size"]
    assert planned[0].spec.vocab == vocab


def test_a_recipe_tells_of_tables_and_of_the_best_weights(recipe):
    (*_, told) = recipe_workloads(recipe("lora.rank=2", "lora.tables=true", "loop.patience=9"))
    assert told.tables and told.best
    (*_, plain) = recipe_workloads(recipe("lora.rank=2"))
    assert not plain.tables and not plain.best


def test_the_best_weights_take_the_disk_they_were_told(workload, tmp_path):
    """As many copies as are kept beside two checkpoints, and one more that is being written."""
    told = workload(best=True, keep=4)
    run = Run(tmp_path, build(told), Optimizer(), Schedule(), Loop(steps=9, patience=1, evaluate_every=1))
    for step in range(1, 5):
        (tmp_path / f"step-{step:06d}").mkdir()
    copies = 4 + BEST
    for step in range(1, copies + 2):
        run.progress.step = step
        save_best(run)
    sizes = [path.stat().st_size for path in (tmp_path / "best").glob("*/*.safetensors")]
    assert len(sizes) == copies - 1
    assert copies * sizes[0] == pytest.approx(disk_bytes(told) - disk_bytes(told.changed(best=False)), rel=0.01)


@pytest.fixture
def recipe():
    from pathlib import Path

    from handscroll.base.config import read_recipe
    from handscroll.train.recipe import Recipe

    path = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"
    return lambda *overrides: Recipe.parse(read_recipe(path, ["threads=1", *overrides]), "recipe")
