"""The compiled kernels: built once per machine with the installed C++ compiler, loaded through ctypes.

The sources are compiled for this machine's processor (`-march=native`) and kept in the user's cache folder under a hash
of sources, flags, compiler, processor and torch, beside their size and SHA-256. A library that was cut or changed would
end the process when it is loaded: it is built again. OpenMP is taken from torch's own library, so that both share one
pool of threads. Without a compiler, on another system, or with HANDSCROLL_NATIVE=0, there is no library, and plain
torch computes every operation (`reason()` says why).
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock

from handscroll.base.errors import CheckpointError
from handscroll.base.runs import is_valid, write_folder

COMPILE = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp", "-c")
LINK = ("-shared",)  # without -fopenmp: the OpenMP symbols are those that torch has loaded
LIBRARY = "kernels.so"
COMPILERS = ("c++", "g++", "clang++")
# The arguments of the functions, in order: i an int, f a float, p a pointer (an address, an array or None).
ARGUMENTS = {
    "decode": "pipfppp",
    "paged": "iipfppppppp",
    "join": "pppppp",
    "prefill": "ipppfppp",
    "has_prefill": "",
    "product": "iippppp",
    "widen": "iippp",
    "formats": "",
    "fewer": "i",
    "many": "iippppp",
    "norm": "ippfpp",
    "turn": "ipppppp",
    "gate": "iipppp",
    "before": "pppppppp",
    "after": "ppppp",
    "step": "pipppp",
}
TYPES = {"i": ctypes.c_int, "f": ctypes.c_float, "p": ctypes.c_void_p}
SWITCH = "HANDSCROLL_NATIVE"


def library() -> ctypes.CDLL | None:
    """The library, built at the first call; None if it cannot be built."""
    return _loaded()[0]


def reason() -> str:
    """The path of the library, or the reason why there is none."""
    return _loaded()[1]


def build(folder: Path, compiler: str) -> Path:
    """Compile into `folder` unless an undamaged library is there; return the library's path.

    Raises:
        OSError: the compiler failed; the message holds its output.
        CheckpointError: the library could not be written.
    """
    here = Path(__file__).parent
    sources, headers = (sorted(here.glob(f"*.{kind}")) for kind in ("cpp", "h"))
    texts = [path.read_bytes() for path in (*sources, *headers)]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    about = [version, " ".join(COMPILE + LINK).encode(), _processor().encode(), torch.__version__.encode()]
    name = hashlib.sha256(b"\0".join([*texts, *about])).hexdigest()[:16]
    target = folder / f"kernels-{name}"
    if not is_valid(target):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not is_valid(target):
                with TemporaryDirectory(dir=folder) as work:
                    objects = [str(Path(work) / f"{source.stem}.o") for source in sources]
                    for source, made in zip(sources, objects, strict=True):
                        _run([compiler, *COMPILE, str(source), "-o", made])
                    linked = Path(work) / LIBRARY
                    _run([compiler, *LINK, *objects, "-o", str(linked)])
                    write_folder(target, {LIBRARY: linked.read_bytes()})
    return target / LIBRARY


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH, "1") == "0":
        return None, f"switched off by {SWITCH}=0"
    if not sys.platform.startswith("linux"):
        return None, f"the compiled kernels are built on Linux only, this is {sys.platform}"
    compiler = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if compiler is None:
        return None, f"no C++ compiler found ({', '.join(COMPILERS)})"
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = build(root / "handscroll", compiler)
        found = ctypes.CDLL(str(path))
        for name, kinds in ARGUMENTS.items():
            getattr(found, f"handscroll_{name}").argtypes = [TYPES[kind] for kind in kinds]
    except (OSError, RuntimeError, CheckpointError) as error:  # RuntimeError: no home folder, no locks
        return None, str(error)
    return found, str(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return "".join(sorted({line for line in text.splitlines() if line.startswith(wanted)}))
