"""The measurements of a probe on this machine, kept in the user's cache: memory of a bare process, and speeds."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

from pydantic import Field, ValidationError

from handscroll.base.config import Config
from handscroll.base.runs import write_file

FORMAT = 5


class Calibration(Config):
    """The measured numbers of one machine and torch version. The defaults were measured on a two-core AVX-512 server.

    base: bytes of a process that has trained a tiny model for a step (code, libraries, threads).
    The other numbers are seconds per unit of work (`plan/duration.py`). The units are a floating-point operation of a
    matrix product and of attention (in float32 and under bfloat16 autocast), one of a product with weights in a number
    format, a byte of activations, a call of a layer, a byte of optimiser traffic, and a byte of weights or cache that a
    new token reads.
    """

    base: int = Field(default=347 << 20, gt=0)
    product: float = Field(default=5.4e-12, gt=0)
    product_narrow: float = Field(default=1.6e-12, gt=0)
    product_quantised: float = Field(default=2.7e-12, gt=0)
    attention: float = Field(default=4.4e-12, gt=0)
    attention_narrow: float = Field(default=1.7e-12, gt=0)
    activation: float = Field(default=2.1e-10, ge=0)
    call: float = Field(default=8e-4, ge=0)
    traffic: float = Field(default=3e-11, ge=0)
    weights: float = Field(default=4.5e-11, gt=0)
    threads: int = Field(default=1, ge=1)
    measured: bool = False


# An H200 under bfloat16 autocast, fitted to 20 random steps of 0.03 to 3 s and 8 long ones (2026-11, torch 2.11). The
# median error is 11 %, and 6 % for the long steps. No other GPU was measured.
GPU = Calibration(
    product=1.9e-15,
    product_narrow=9.2e-16,
    product_quantised=9.2e-16,  # not measured: a GPU dequantises them for a product in bfloat16
    attention=1.9e-15,
    attention_narrow=1.26e-15,
    activation=1.15e-14,
    call=1.56e-3,
    traffic=1.16e-12,
    weights=1.7e-12,
    measured=True,
)


def cache_file(threads: int = 0) -> Path:
    """The path `$XDG_CACHE_HOME/handscroll/plan-*.json`.

    There is one file for each processor, torch version and number of threads.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    count = os.cpu_count() or 1
    name = f"{platform.machine()}-{count}cpu-{_processor()}-torch{version}-{threads or count}threads"
    return root / "handscroll" / f"plan-{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.json"


def load_calibration(threads: int = 0, path: Path | None = None) -> Calibration | None:
    """The saved calibration. None if there is none or it has another format, since a cache never causes an error."""
    try:
        values = json.loads((path or cache_file(threads)).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            return None
        return Calibration.model_validate(values)
    except (OSError, ValueError, RecursionError, ValidationError):
        return None


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Save a calibration atomically. Returns the path of its file."""
    path = path or cache_file(calibration.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **calibration.model_dump()}, indent=2) + "\n"
    write_file(path, text.encode())
    return path


def _processor() -> str:
    """The processor's name, if the system gives one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")
