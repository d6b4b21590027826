"""Faults of the system itself, below Python: strace injects errors and false successes, a small disk fills up.

`test_runs.py` replaces functions of `os` in one process; here nothing of Python's is replaced.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# One traced parent forks a child per case, since a start under strace costs a third of a second. strace counts calls
# per process, and a rule "fail call number WHEN" is the same for all: so a child first makes WHEN - k harmless calls,
# and then the k-th call of its save is the one that fails. The parent itself must stay below WHEN; its start opens
# and closes some 160 files.
COMMON = """
import errno, json, mmap, os, shutil, signal, sys, time
from pathlib import Path
from handscroll.base.errors import CheckpointError
from handscroll.base.runs import checkpoint_step, commit_checkpoint, latest_checkpoint, verify_folder, write_chunks

base = Path(sys.argv[1])
settings = json.loads(sys.argv[2])
"""

PLAIN = """
def content(step):
    return {
        "model.safetensors": lambda path: write_chunks(path, [b"%d" % step * 3000, b"m" * step, b"end"]),
        "state.json": b'{"step": %d}' % step,
    }

def save(run, step):
    commit_checkpoint(run, step, content(step))

def check_content(folder):
    step = checkpoint_step(folder)
    assert (folder / "model.safetensors").read_bytes() == b"%d" % step * 3000 + b"m" * step + b"end", "wrong content"
    assert (folder / "state.json").read_bytes() == b'{"step": %d}' % step, "wrong content"
"""

TENSORS = """
import torch
from handscroll.train.checkpoint import load_checkpoint, save_checkpoint
torch.set_num_threads(1)
SIZES = {"model": 20_000, "optimizer": 9_000}

def tensors(step):
    return {stem: {"a": torch.arange(size) + float(step), "b": torch.ones(7)} for stem, size in SIZES.items()}

def save(run, step):
    save_checkpoint(run, step, tensors(step), {"step": step})

def check_content(folder):
    step, (back, state) = checkpoint_step(folder), load_checkpoint(folder)
    assert state == {"step": step}
    for stem, named in tensors(step).items():
        for name, tensor in named.items():
            assert torch.equal(back[stem][name], tensor), "wrong content"
"""

INJECTED = """
null = os.open("/dev/null", os.O_RDWR)
here = os.open("/", os.O_RDONLY)
HARMLESS = {
    "openat": lambda: os.open("/absent", os.O_RDONLY),
    "write": lambda: os.write(null, b"12345"),
    "fsync": lambda: os.fsync(null),
    "close": lambda: os.close(9999),
    "mkdir": lambda: os.mkdir("/"),
    "rename": lambda: os.rename("/absent", "/absent2"),
    "unlink": lambda: os.unlink("/absent"),
    "unlinkat": lambda: os.unlink("absent", dir_fd=here),
    "rmdir": lambda: os.rmdir("/absent"),
    "read": lambda: os.read(null, 1),
}
board = mmap.mmap(-1, 65536)

def strikes(call):
    "Whether this harmless call was the one to fail."
    try:
        result = HARMLESS[call]()
        return call == "write" and result != 5
    except OSError as error:
        return error.errno == settings["code"]

def in_fork(function, *arguments):
    board[:] = bytes(len(board))
    child = os.fork()
    if child == 0:
        try:
            text = json.dumps(function(*arguments)).encode()
        except BaseException as error:
            text = json.dumps({"broken": repr(error)}).encode()
        # Shared memory, because a pipe needs the very calls that fail.
        board[: len(text)] = text
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a child ended with status {status}: {arguments}"
    told = json.loads(bytes(board).rstrip(b"\\0"))
    assert not isinstance(told, dict) or "broken" not in told, told
    return told

def count(call, run):
    save(run, 300)
    for number in range(settings["when"][call]):
        if strikes(call):
            return settings["when"][call] - number - 1
    return 0

def attempt(call, at, run):
    for _ in range(settings["when"][call] - at):
        assert not strikes(call), "the fault came too early"
    begin, message, code = time.monotonic(), None, None
    signal.alarm(10)  # what hangs is ended here
    try:
        save(run, 300)
    except CheckpointError as error:
        message, code = str(error), getattr(error.__cause__, "errno", None)
    seconds = time.monotonic() - begin
    struck = settings["for_ever"] or not any(strikes(call) for _ in range(settings["when"][call] - at + 5))
    return {"message": message, "code": code, "seconds": seconds, "struck": struck}

def check(call, run, told):
    assert told["struck"] and told["seconds"] < 10, told
    if told["message"]:
        assert str(run) in told["message"], told
        # What fails in reading (a listing, the reading back) needs no room.
        assert "cannot write" in told["message"] or call in ("openat", "close", "read"), told
        if "cannot write" in told["message"]:
            assert "needed: " in told["message"] and "free: " in told["message"], told
            assert "free: unknown" not in told["message"], told
    verify_folder(run / "step-000200")
    for path in run.iterdir():
        if path.name.startswith("step-") and ".tmp-" not in path.name:
            check_content(path)
    found = latest_checkpoint(run)
    assert found == run / "step-000300" or (told["message"] and found == run / "step-000200"), (found, told)
    if not settings["for_ever"] and told["message"]:
        assert not [path for path in run.iterdir() if ".tmp-" in path.name], "a leftover"
    save(run, 300)
    check_content(run / "step-000300")
    assert latest_checkpoint(run) == run / "step-000300"
    return None

run, cases, refused, codes = base / "run", {}, {}, set()
in_fork(lambda: [save(run, step) for step in (100, 200)] and None)
for call in settings["when"]:
    copy = base / call
    in_fork(lambda: shutil.copytree(run, copy) and None)
    cases[call] = in_fork(count, call, copy)
    for at in range(1, cases[call] + 1):
        copy = base / f"{call}-{at}"
        in_fork(lambda: shutil.copytree(run, copy) and None)
        told = in_fork(attempt, call, at, copy)
        try:
            in_fork(check, call, copy, told)
        except AssertionError as error:
            raise AssertionError(f"{call}, number {at}: {error}") from None
        refused[call] = refused.get(call, 0) + (told["message"] is not None)
        codes.add(told["code"])
        in_fork(lambda: shutil.rmtree(copy))
print(json.dumps({"cases": cases, "refused": refused, "codes": sorted(code for code in codes if code)}))
"""

FILLED = """
import re
run, filler, page = base / "run", base / "filler", 4096
for step in (100, 200):
    save(run, step)

def refused(what):
    begin = time.monotonic()
    try:
        save(run, 300)
    except CheckpointError as error:
        assert time.monotonic() - begin < 10
        assert error.__cause__.errno == errno.ENOSPC and str(run) in str(error), error
        told = re.search(r"needed: ([\\d,]+) bytes, free: ([\\d,]+) bytes", str(error))
        needed, free = (int(text.replace(",", "")) for text in told.groups())
        assert free == shutil.disk_usage(base).free, error
        assert ("Free some space" if what == "bytes" else "more files (inodes)") in str(error), error
        if needed == 12:
            # Room for the checkpoint but not for the pointer: it counts, and is found.
            assert latest_checkpoint(run) == run / "step-000300"
            check_content(run / "step-000300")
            shutil.rmtree(run / "step-000300")
        else:
            assert 29_000 * 4 < needed < 29_000 * 4 + 1000, error
            assert what == "inodes" or needed + 5 * page > free, error
        assert sorted(os.listdir(run)) == ["latest", "step-000100", "step-000200"], os.listdir(run)
        assert latest_checkpoint(run) == run / "step-000200"
        return True
    return False

def fill(free):
    "Fill the disk but for `free` pages."
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(base).free - free * page))
    assert shutil.disk_usage(base).free == free * page

pages = 0
fill(0)
while refused("bytes"):
    pages += 1
    fill(pages)
check_content(latest_checkpoint(run))
assert latest_checkpoint(run) == run / "step-000300"
filler.unlink()
shutil.rmtree(run)
for step in (100, 200):
    save(run, step)
plugs = []
while os.statvfs(base).f_favail:
    plugs.append(base / f"plug-{len(plugs)}")
    plugs[-1].touch()
inodes = 0
while refused("inodes"):
    inodes += 1
    plugs.pop().unlink()
assert latest_checkpoint(run) == run / "step-000300"
print(json.dumps({"pages": pages, "inodes": inodes}))
"""

WHEN = {"openat": 400, "close": 400, "read": 400} | dict.fromkeys(
    ("write", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir"), 120
)
# Others than reading; and those that the import of torch does not make by the thousand.
CHANGING = [call for call in WHEN if call != "read"]
FEW = [call for call in CHANGING if call not in ("openat", "close")]
CODES = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a folder: injected errors need no disk, and a sync costs nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


def child(script: str, folder: Path, settings: dict, before: tuple[str, ...]) -> dict:
    command = [*before, sys.executable, "-c", COMMON + script, str(folder), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def injected(folder: Path, script: str, fault: str, calls: list[str], code: int = 0, for_ever: bool = False) -> dict:
    """Save with `fault` at every system call of the kinds `calls`, in strace's words; once, or from there on."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    when = {call: WHEN[call] for call in calls}
    rules = [f"-einject={call}:{fault}:when={number}{'+' * for_ever}" for call, number in when.items()]
    strace = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", f"-etrace={','.join(calls)}", *rules)
    if subprocess.run([*strace, "true"], capture_output=True).returncode:
        pytest.skip("this kernel or strace does not allow injected faults")
    return child(script + INJECTED, folder, {"when": when, "code": code, "for_ever": for_ever}, strace)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_an_error_of_the_kernel_at_every_call(folder, code):
    found = injected(folder, PLAIN, f"error={errno.errorcode[code]}", CHANGING, code)
    assert sum(found["cases"].values()) > 50 and found["codes"] == [code]
    assert all(found["cases"][call] for call in ("openat", "write", "fsync", "close", "mkdir", "rename"))
    # An error of fsync is never passed over, in whatever file or folder. Only the removal of old saves may fail.
    for call in ("write", "fsync", "mkdir"):
        assert found["refused"][call] == found["cases"][call], call
    assert found["refused"]["rename"] == 2


@pytest.mark.long
@pytest.mark.parametrize("script", [PLAIN, TENSORS], ids=["plain", "tensors"])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for_ever"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_every_error_of_the_kernel_at_every_call(folder, code, for_ever, script):
    calls = CHANGING if script is PLAIN else FEW
    found = injected(folder, script, f"error={errno.errorcode[code]}", calls, code, for_ever)
    assert sum(found["cases"].values()) > (50 if script is PLAIN else 20)
    assert found["refused"]["write"] == found["cases"]["write"] and found["refused"]["fsync"] == found["cases"]["fsync"]


@pytest.mark.promise("R3")
@pytest.mark.parametrize("claimed", [1, 7, 1_000_000], ids=["one", "seven", "all"])
def test_bytes_that_were_taken_and_lost(folder, claimed):
    """The kernel says it wrote so many bytes and wrote none: no such checkpoint may pass as valid."""
    found = injected(folder, PLAIN, f"retval={claimed}", ["write"])
    assert found["cases"]["write"] == found["refused"]["write"] == 6 and found["codes"] == [errno.EIO]


def test_a_disk_that_takes_nothing_and_says_no_error(folder):
    found = injected(folder, PLAIN, "retval=0", ["write"], for_ever=True)
    assert found["cases"]["write"] == found["refused"]["write"] == 6


@pytest.mark.parametrize(("fault", "code"), [("error=ENOSPC", errno.ENOSPC), ("retval=5000000", errno.EIO)])
def test_a_checkpoint_of_tensors(folder, fault, code):
    calls = ["write", "fsync", "rename"] if "error" in fault else ["write"]
    found = injected(folder, TENSORS, fault, calls, code if "error" in fault else 0)
    assert found["cases"]["write"] == found["refused"]["write"] == 9 and found["codes"] == [code]


def test_errors_of_reading_back(folder):
    """What was written cannot be read: no success is reported, and the checkpoint before is used."""
    found = injected(folder, PLAIN, "error=EIO", ["read"], errno.EIO)
    assert found["cases"]["read"] > 10 and found["refused"]["read"] > 3


@pytest.mark.promise("R4")
def test_a_disk_with_room_for_every_number_of_pages_and_files(tmp_path):
    options = "size=1m,nr_inodes=60"
    mount = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o {options} tmpfs {tmp_path} && exec "$0" "$@"')
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    found = child(TENSORS + FILLED, tmp_path, {}, mount)
    assert found["pages"] > 29_000 * 4 / 4096 and found["inodes"] == 6
