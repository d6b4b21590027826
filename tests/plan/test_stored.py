"""Weights that stay in number formats are counted as they are stored, and the tokenizer beside them."""

import subprocess
import sys

import pytest

from handscroll.cache.table import footprint
from handscroll.lm import load
from handscroll.models.weights import weight_sizes
from handscroll.plan.calibration import Calibration, load_calibration
from handscroll.plan.forecast import beside, predict
from handscroll.plan.inference import TOKEN
from handscroll.plan.machine import Machine
from handscroll.plan.memory import loss_bytes, weight_bytes
from handscroll.plan.workloads import checkpoint_workload
from tests.conftest import ROOT
from tests.models.gguf.material import FILES, real


def test_the_weights_of_a_gguf_file_take_what_the_file_holds(tmp_path):
    starter = ROOT / "handscroll" / "starter"
    path = load(starter).export_gguf(tmp_path / "starter.gguf", "q4_0")
    values = {"kind": "generate", "length": 100, "new": 10, "precision": "float32"}
    small = checkpoint_workload(str(path), values)
    assert weight_bytes(small) == weight_sizes(path)[2] < path.stat().st_size
    assert weight_bytes(small) < weight_bytes(checkpoint_workload(str(starter), values)) / 5


def test_the_cache_under_rounded_weights_is_counted_in_16_bits(tmp_path):
    starter = load(ROOT / "handscroll" / "starter", dtype="float32")
    values = {"kind": "generate", "length": 100, "new": 10, "precision": "float32"}
    kept = {}
    for weights in ("q4_0", "f32"):
        path = starter.export_gguf(tmp_path / f"{weights}.gguf", weights)
        kept[weights] = checkpoint_workload(str(path), values).cache.each
        model = load(path).model
        assert kept[weights] == footprint("full", model.config, model.cache_dtype.itemsize).each
    assert kept["f32"] == 2 * kept["q4_0"]


def test_a_lora_over_quantised_weights_counts_them_as_they_lie(workload):
    """And the head as the loss widens it."""
    floats = workload(lora=4)
    mapped = floats.changed(stored=1_000_000)
    assert weight_bytes(mapped) == 1_000_000 + 4 * floats.trainable < weight_bytes(floats)
    assert loss_bytes(mapped, 100) == loss_bytes(floats, 100) + 4 * floats.spec.table


def test_the_tokenizer_is_counted_with_the_model_and_not_with_a_request():
    values = {"kind": "generate", "length": 100, "new": 10, "precision": "float32"}
    asked = checkpoint_workload(str(ROOT / "handscroll" / "starter"), values)
    parts = predict(asked, Machine(memory=1 << 34, disk=1 << 34)).parts
    assert parts["tokenizer"] == TOKEN * asked.spec.vocab > 0
    assert "tokenizer" not in beside(asked) and "weights" not in beside(asked)


RUN = """
import sys
from handscroll.lm import load
lm = load(sys.argv[1])
ids = lm.encode("The quick brown fox jumps over the lazy dog. " * 500)[: int(sys.argv[2])]
lm.generate(ids, max_tokens=16, ignore_eos=True, plain=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_the_peak_of_a_real_model_is_as_forecast(name):
    """The peak of resident pages of the whole process, from its start on."""
    path = real(name)
    command = [sys.executable, "-c", RUN, str(path), "2500"]
    peak = 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    values = {"kind": "generate", "length": 2500, "new": 16, "precision": "float32"}
    machine = Machine(memory=1 << 34, disk=1 << 34, calibration=load_calibration() or Calibration())
    assert peak == pytest.approx(predict(checkpoint_workload(str(path), values), machine).host, rel=0.10)
