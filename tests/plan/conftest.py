"""Shapes and machines made of plain numbers."""

import pytest

from handscroll.base.workload import Shape, Workload
from handscroll.plan.calibration import Calibration
from handscroll.plan.machine import Machine

SMALL = Shape(
    family="llama", layers=6, width=256, heads=8, kv_heads=4, head_size=32, mlp_width=688, vocab=1024, tied=True
)


@pytest.fixture
def workload():
    def make(**changes) -> Workload:
        values = {"shape": SMALL, "length": 2048, "rung": "plain", "steps": 2} | changes
        return Workload.model_validate(values)

    return make


@pytest.fixture
def machine():
    def make(megabytes: int, disk: int = 10**12, base: int = 340) -> Machine:
        calibration = Calibration(base=base * 10**6)
        return Machine(memory=megabytes * 10**6, disk=disk, processors=2, calibration=calibration)

    return make
