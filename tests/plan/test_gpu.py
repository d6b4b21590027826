"""GPU memory as planned, beside what was measured on a card (an H200, torch 2.11, `python -m bench.gpu`, 2026-11)."""

import pytest

from handscroll.base.errors import CapacityError
from handscroll.base.workload import Workload
from handscroll.plan.choose import check, fits
from handscroll.plan.forecast import predict
from handscroll.plan.machine import Machine
from tests.plan.conftest import llama

SPECS = {
    "8b": llama(
        vocab=128256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_size=128,
        mlp_width=14336,
        tied=False,
    ),
    "0.5b": llama(
        vocab=151936,
        width=896,
        layers=24,
        heads=14,
        kv_heads=2,
        head_size=64,
        mlp_width=4864,
        tied=True,
    ),
}
# GiB that torch had allocated at most, and seconds
MEASURED = {
    ("8b", "chunk-outer", 300_032, 2048, 1024): (130.36, 240.5),
    ("8b", "layer-outer", 350_208, 8192, 0): (104.87, 296.9),
    ("0.5b", "chunk-outer", 750_016, 8192, 0): (43.17, 259.1),
    ("8b", "layer-outer", 65_536, 8192, 0): (33.05, 16.0),
    ("8b", "chunk-outer", 65_536, 2048, 1024): (43.13, 18.8),
}


def workload(name, strategy, length, chunk, tile):
    frozen = "bfloat16" if name == "8b" else "float32"
    return Workload(
        device="cuda",
        spec=SPECS[name],
        lora=8 if name == "8b" else 0,
        strategy=strategy,
        length=length,
        chunk=chunk,
        mlp_tile=tile,
        precision="bfloat16",
        frozen=frozen,
        optimizer="sgd",
    )


def machine(gpu):
    return Machine(memory=10**12, disk=10**12, gpu=gpu)


@pytest.mark.parametrize("case", MEASURED)
def test_long_steps_are_forecast_as_they_were_measured(case):
    forecast, (peak, seconds) = predict(workload(*case), machine(10**12)), MEASURED[case]
    parts = forecast.parts
    asked = sum(size for name, size in parts.items() if name not in ("base", "heap")) / 2**30
    assert asked == pytest.approx(peak, rel=0.01)
    assert sum(parts.values()) / 2**30 < 1.06 * peak
    assert forecast.seconds == pytest.approx(seconds, rel=0.25)


def test_what_a_card_cannot_hold_is_refused_with_what_fits():
    long = workload("8b", "chunk-outer", 300_032, 2048, 1024)
    assert fits(predict(long, machine(150_000_000_000)), machine(150_000_000_000))
    assert not fits(predict(long, machine(80_000_000_000)), machine(80_000_000_000))
    with pytest.raises(CapacityError, match=r"\b20"):
        check(long, machine(20_000_000_000))


def test_bfloat16_weights_halve_what_is_frozen_and_what_flows():
    half = workload("8b", "layer-outer", 65_536, 8192, 0)
    full = half.changed(frozen="float32")
    ours, theirs = (predict(one, machine(10**12)).parts for one in (half, full))
    assert 1.99 < theirs["weights"] / ours["weights"] <= 2
    assert theirs["inputs"] == 2 * ours["inputs"]
