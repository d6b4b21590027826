"""Describes a machine: the memory that a process may still take, the free disk, and the measured speeds."""

import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.plan.calibration import Calibration, load_calibration

GPU_SAFETY = 0.97  # share of a GPU's memory that a plan may use
WATTS = "HANDSCROLL_WATTS"
RAPL = "/sys/class/powercap/intel-rapl:{}/constraint_0_power_limit_uw"  # microwatts of a processor's long-term limit
SAFETY = 0.9  # share of the available memory that a plan may use; the worst forecast of 80 was 8 % too low


class Machine(Config):
    """The numbers of a machine that a plan needs.

    `memory`: bytes that our process may take in total. `disk`: free bytes of the disk with the run folder.
    """

    memory: int = Field(gt=0)
    disk: int = Field(ge=0)
    gpu: int | None = Field(default=None, ge=0, description="bytes of one GPU; None: no GPU was seen")
    processors: int = Field(default=1, ge=1)
    watts: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="what it draws while it computes; 0: unknown"
    )
    calibration: Calibration = Calibration()

    @property
    def usable(self) -> int:
        """The memory that a plan may use."""
        return int(self.memory * SAFETY)


def this_machine(folder: Path = Path(), threads: int = 0, gpu: int | None = None) -> Machine:
    """The current state of this machine.

    Its memory is the minimum of MemAvailable and of the rest that the control groups and RLIMIT_AS leave.
    """
    return Machine(
        memory=available_memory(),
        disk=shutil.disk_usage(_existing(folder)).free,
        gpu=gpu,
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        watts=drawn_watts(),
        calibration=load_calibration(threads) or Calibration(),
    )


def drawn_watts(read: Callable[[str], str | None] | None = None) -> float:
    """The power in watts that this machine draws while it computes; 0 means that it is not known.

    It is what HANDSCROLL_WATTS says, or the sum of the limits that the processors tell (Linux, Intel's and AMD's RAPL),
    which is more than they draw on average. A virtual machine tells none. `read` is as in `available_memory`.

    Raises:
        ConfigError: HANDSCROLL_WATTS is not a number of watts.
    """
    given = os.environ.get(WATTS, "")
    if given:
        try:
            return Machine(memory=1, disk=0, watts=float(given)).watts
        except ValueError:
            raise ConfigError(f"{WATTS}={given}: give a number of watts, such as {WATTS}=45") from None
    read, total = read or _read, 0.0
    for number in range(64):  # one a processor of the machine
        limit = read(RAPL.format(number))
        if limit is None:
            break
        total += int(limit) / 1e6
    return total


def available_memory(read: Callable[[str], str | None] | None = None) -> int:
    """The bytes that this process may take, including its own resident pages.

    `read(path)` returns the text of a system file, or None (tests pass their own function). Without /proc (macOS) the
    result is the physical memory.
    """
    read = read or _read
    own = _field(read("/proc/self/status"), "VmRSS:") or 0
    free = _field(read("/proc/meminfo"), "MemAvailable:")
    if free is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [free, *_group_room(read)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(0, soft - (_field(read("/proc/self/status"), "VmSize:") or 0)))
    return own + min(limits)


def spare(device: Any = None) -> tuple[int, int]:
    """The bytes that this process may still take: of memory, and of the disk with the temporary files.

    If the torch `device` is a GPU, the memory is that of the GPU.
    """
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0], disk
    return max(0, available_memory() - resident_bytes()), disk


def peak_bytes() -> int:
    """The peak of this process's resident memory so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise CapacityError("/proc/self/status has no VmHWM: peak memory can be measured on Linux only")


def resident_bytes() -> int:
    """The current resident memory of this process. 0: /proc does not give it."""
    return _field(_read("/proc/self/status"), "VmRSS:") or 0


def _group_room(read: Callable[[str], str | None]) -> list[int]:
    """The memory that the control groups above this process leave (versions 1 and 2)."""
    rooms = []
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = "/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                "/sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([base, *parts[:depth]])
            limit, used = (read(f"{folder}/{name}") for name in names[:2])
            if limit is None or used is None or not limit.strip().isdigit():
                continue
            cache = _stat(read(f"{folder}/memory.stat"), names[2])
            rooms.append(max(0, int(limit) - int(used) + cache))
    return rooms


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return None


def _field(text: str | None, name: str) -> int | None:
    """The bytes in a line `name  123 kB`."""
    for line in (text or "").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None


def _stat(text: str | None, name: str) -> int:
    """The bytes of file pages that the system drops when memory is short. The group counts them as used."""
    return next((int(line.split()[1]) for line in (text or "").splitlines() if line.split()[0] == name), 0)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
