"""Specs and machines made of plain numbers."""

from typing import Any

import pytest

from handscroll.base.spec import ModelSpec
from handscroll.base.workload import Workload
from handscroll.models.llama import LlamaConfig
from handscroll.plan.calibration import Calibration
from handscroll.plan.machine import Machine

POSITIONS: Any = {"base": 1e4, "scaling": {"name": "none"}, "context": 4096, "trained": 4096}
SIZES: Any = {"layers": 6, "width": 256, "heads": 8, "kv_heads": 4, "head_size": 32, "mlp_width": 688, "vocab": 1024}


def llama(**changes: Any) -> ModelSpec:
    """The spec of a small Llama with other sizes."""
    return LlamaConfig(**{"tied": True, "positions": POSITIONS} | SIZES | changes).spec


@pytest.fixture
def workload():
    def make(**changes) -> Workload:
        values = {"spec": llama(), "length": 2048, "strategy": "plain", "steps": 2} | changes
        return Workload.model_validate(values)

    return make


@pytest.fixture
def machine():
    def make(megabytes: int, disk: int = 10**12, base: int = 340) -> Machine:
        calibration = Calibration(base=base * 10**6)
        return Machine(memory=megabytes * 10**6, disk=disk, processors=2, calibration=calibration)

    return make
