"""Weights that stay in number formats are counted as they are stored."""

from handscroll.cache.table import footprint
from handscroll.lm import load
from handscroll.models.weights import weight_sizes
from handscroll.plan.memory import loss_bytes, weight_bytes
from handscroll.plan.workloads import checkpoint_workload
from tests.conftest import ROOT


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
