"""A plan on paper for eight billion parameters, by hand."""

import pytest

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Shape, Workload
from handscroll.plan.paper import Cluster, on_paper
from tests.naming import naming

LLAMA_8B = Shape(
    family="llama", layers=32, width=4096, heads=32, kv_heads=8, head_size=128, mlp_width=14_336, vocab=128_256
)


def run(**changes) -> Workload:
    values = {"shape": LLAMA_8B, "length": 8192, "precision": "bfloat16", "rung": "checkpoint", "steps": 1000}
    return Workload.model_validate(values | changes)


def test_eight_billion_parameters_by_hand():
    assert LLAMA_8B.parameters == 8_030_261_248
    found = on_paper(run(), Cluster(nodes=8, gpus=8, gpu="h100-80gb", price=2.0))
    assert found.parts["weights"] == pytest.approx(4 * 8_030_261_248 / 64)
    assert found.parts["gradients"] == pytest.approx(4 * 8_030_261_248 / 64)
    assert found.parts["optimizer"] == pytest.approx(8 * 8_030_261_248 / 64)
    # A token: 8 operations a number of the layers' matrices (one forward more), 6 a number of the head; attention:
    # 8192 / 2 keys, 4096 wide, 32 layers, 4 + 4 + 10 operations. 40 % of 989 TFLOP/s.
    layers, head = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14_336), 128_256 * 4096
    operations = 8192 * (8 * layers + 6 * head + 8192 / 2 * 4096 * 32 * 18)
    assert found.compute == pytest.approx(operations / (0.4 * 989e12))
    assert found.exchange == pytest.approx(8 * 8_030_261_248 * 63 / 64 / 50e9)
    assert found.tokens == 64 * 8192
    assert found.tokens_a_day == pytest.approx(64 * 8192 * 86_400 / found.seconds)
    assert found.day_price == pytest.approx(64 * 24 * 2.0)
    assert found.run_price == pytest.approx(1000 * found.seconds / 3600 * 64 * 2.0)
    assert found.fits


def test_context_parallel_divides_what_grows_with_the_row():
    alone, shared = (
        on_paper(run(length=131_072), Cluster(nodes=8, gpus=8, gpu="h100-80gb", context_parallel=ranks))
        for ranks in (1, 8)
    )
    assert not alone.fits and shared.fits
    assert shared.parts["kept"] == pytest.approx(alone.parts["kept"] / 8, rel=0.01)
    assert shared.parts["weights"] == alone.parts["weights"]
    assert shared.compute == pytest.approx(alone.compute / 8)
    assert shared.tokens == alone.tokens / 8


def test_rung_auto_is_the_first_that_fits():
    rungs = [
        on_paper(run(length=length, rung="auto"), Cluster(nodes=8, gpus=8, gpu="h200")).rung
        for length in (512, 16_384, 163_840)
    ]
    assert rungs == ["plain", "checkpoint", "layer-outer"]


def test_impossible_clusters_are_refused():
    with pytest.raises(ConfigError, match=naming("--context-parallel", 3, "8 GPUs")):
        on_paper(run(), Cluster(nodes=1, gpus=8, gpu="h100-80gb", context_parallel=3))
    with pytest.raises(ConfigError, match=r"node of 4"):
        on_paper(run(), Cluster(nodes=2, gpus=4, gpu="h100-80gb", context_parallel=8))
    with pytest.raises(ConfigError, match="'h200'"):
        on_paper(run(), Cluster(nodes=1, gpus=8, gpu="h20"))
    sourced = run().shape.model_copy(update={"encoder_layers": 2})
    with pytest.raises(ConfigError, match="shared"):
        on_paper(run(shape=sourced), Cluster(nodes=1, gpus=8, gpu="h200"))
    encoder = run().shape.model_copy(update={"both_ways": True})
    assert (
        on_paper(run(shape=encoder, length=1 << 22, rung="auto"), Cluster(nodes=1, gpus=8, gpu="h200")).rung
        == "layer-outer"
    )
