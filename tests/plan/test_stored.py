"""Weights that stay in number formats are counted as they are stored."""

from handscroll.lm import load
from handscroll.models.weights import weight_sizes
from handscroll.plan.memory import weight_bytes
from handscroll.plan.workloads import checkpoint_workload
from tests.conftest import ROOT


def test_the_weights_of_a_gguf_file_take_what_the_file_holds(tmp_path):
    starter = ROOT / "handscroll" / "starter"
    path = load(starter).export_gguf(tmp_path / "starter.gguf", "q4_0")
    values = {"kind": "generate", "length": 100, "new": 10, "precision": "float32"}
    small = checkpoint_workload(str(path), values)
    assert weight_bytes(small) == weight_sizes(path)[2] < path.stat().st_size
    assert weight_bytes(small) < weight_bytes(checkpoint_workload(str(starter), values)) / 5
