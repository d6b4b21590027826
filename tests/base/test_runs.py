"""Kills, faults, flipped bits: whatever happens to a save, what was saved before is still there and valid."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.lock import RunLock
from handscroll.base.runs import (
    checkpoint_step,
    commit_checkpoint,
    latest_checkpoint,
    rewind,
    verify_folder,
    write_chunks,
    write_file,
    write_folder,
)
from tests.naming import naming

CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")

# The campaigns below run in a child without pytest and torch, where a fork takes a millisecond. The text is shared:
# what a step contains, and what must hold after any kill.
COMMON = """
import json, os, random, signal, sys, time
from pathlib import Path
from handscroll.base.records import RecordWriter, read_records
from handscroll.base.runs import checkpoint_step, commit_checkpoint, latest_checkpoint, verify_folder, write_chunks

def content(step):
    return {
        "model.safetensors": lambda path: write_chunks(path, [b"%d" % step * 5000, b"m" * step]),
        "optimizer.safetensors": b"o" * 3000 + b"%d" % step,
        "state.json": json.dumps({"step": step, "offset": offset_of(step)}).encode(),
    }

def offset_of(step):
    return sum(len(json.dumps({"step": s}) + "\\n") for s in range(1, step + 1))

def check(run, acknowledged):
    found = latest_checkpoint(run)
    for path in run.iterdir():
        if path.name.startswith("step-") and ".tmp-" not in path.name:
            verify_folder(path)
    if found is None:
        assert acknowledged == 0, "lost everything"
        return 0
    step = checkpoint_step(found)
    assert acknowledged <= step <= acknowledged + 1, (acknowledged, step)
    for name, data in content(step).items():
        if isinstance(data, bytes):
            assert (found / name).read_bytes() == data
    assert (found / "model.safetensors").read_bytes() == b"%d" % step * 5000 + b"m" * step
    if (run / "latest").exists():
        verify_folder(run / (run / "latest").read_text().strip())
    return step
"""

RANDOM_KILLS = """
def loop(run, step, pipe):
    with RecordWriter(run / "records.jsonl", offset=offset_of(step)) as records:
        while True:
            step += 1
            records.append({"step": step})
            records.sync()
            commit_checkpoint(run, step, content(step))
            os.write(pipe, b"%d\\n" % step)

run, trials, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(7)
run.mkdir()
step = 0
for trial in range(trials):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loop(run, step, write)
        finally:
            os._exit(1)
    os.close(write)
    time.sleep(rng.uniform(0.001, 0.08))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed by itself"
    with os.fdopen(read) as pipe:
        told = [int(line) for line in pipe]
    step = check(run, told[-1] if told else step)
    steps = [record["step"] for record in read_records(run / "records.jsonl")] if step else []
    assert steps[:step] == list(range(1, step + 1)) and len(steps) <= step + 1
commit_checkpoint(run, step + 1, content(step + 1))
left = sorted(path.name for path in run.iterdir() if ".tmp-" in path.name)
assert not left, left
print(json.dumps({"kills": trials, "step": step}))
"""

EVERY_CALL = """
def patch(name, count, at, after):
    real = getattr(os, name)
    def call(*args, **kwargs):
        count[0] += 1
        if count[0] == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        if count[0] == at and name == "write":
            args = (args[0], bytes(args[1][: len(args[1]) // 2]))
        result = real(*args, **kwargs)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(os, name, call)

base, calls, kills = Path(sys.argv[1]), sys.argv[2:], 0
os.fsync = lambda descriptor: None  # a kill, unlike a power failure, takes nothing from the kernel
base.mkdir()
for after in (False, True):
    at = 0
    while True:
        at += 1
        run = base / f"{at}-{after}"
        for step in (1, 2):
            commit_checkpoint(run, step, content(step))
        child = os.fork()
        if child == 0:
            count = [0]
            for name in calls:
                patch(name, count, at, after)
            commit_checkpoint(run, 3, content(3))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        kills += 1
        check(run, 2)
        step = checkpoint_step(latest_checkpoint(run)) + 1
        commit_checkpoint(run, step, content(step))
        assert not [path for path in run.iterdir() if ".tmp-" in path.name]
print(json.dumps({"kills": kills}))
"""

FILE_SIZE_LIMIT = """
import errno, resource
from handscroll.base.errors import CheckpointError
run, cases = Path(sys.argv[1]), 0
for step in (1, 2):
    commit_checkpoint(run, step, content(step))
for limit in [0, 1, 5, 6, 100, 2999, 3000, 3001, 3002, 4096, 4999, 5000, 5002]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        commit_checkpoint(run, 3, content(3))
        error = None
    except CheckpointError as caught:
        error = caught
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert error is not None and error.__cause__.errno == errno.EFBIG and "ulimit -f" in str(error), (limit, error)
    assert checkpoint_step(latest_checkpoint(run)) == 2
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step-000001", "step-000002"]
    cases += 1
commit_checkpoint(run, 3, content(3))
print(json.dumps({"cases": cases}))
"""

FULL_DISK = """
from handscroll.base.errors import CheckpointError
run, errors, fitted = Path(sys.argv[1]), [], 0
for step in range(1, 9):
    try:
        commit_checkpoint(run, step, {"big.bin": bytes(step * 20_000)})
    except CheckpointError as error:
        errors.append(str(error))
        last = checkpoint_step(latest_checkpoint(run))
        assert last >= step - 1 or last == fitted, os.listdir(run)
        fitted = last
        assert not [path for path in run.iterdir() if ".tmp-" in path.name]
assert errors and all("ENOSPC" in error and "needed" in error and "free" in error for error in errors), errors
print(json.dumps({"errors": errors}))
"""


def in_child(script: str, *arguments: object, before: tuple[str, ...] = ()) -> dict:
    command = [*before, sys.executable, "-c", COMMON + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def content(step: int) -> dict:
    return {
        "model.safetensors": lambda path: write_chunks(path, [b"%d" % step * 100, memoryview(b"chunk")]),
        "state.json": b'{"step": %d}' % step,
    }


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.fixture
def run(tmp_path) -> Path:
    for step in (100, 200):
        commit_checkpoint(tmp_path / "run", step, content(step))
    return tmp_path / "run"


class Faults:
    """Count the calls of `os` functions; the one numbered `at` fails, and with `for_ever` all later ones too."""

    def __init__(self, monkeypatch, code: int, at: int, for_ever: bool) -> None:
        self.count, self.code, self.at, self.for_ever = 0, code, at, for_ever
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at or (self.for_ever and self.count > self.at):
                if name == "close":
                    real(*args)
                raise OSError(self.code, os.strerror(self.code))
            # A real sync takes milliseconds and proves nothing about faults.
            return None if name == "fsync" else real(*args, **kwargs)

        return call


# ---- writing ---------------------------------------------------------------------------------------------------


def test_write_file_replaces_and_leaves_nothing_else(tmp_path):
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", b"new")
    write_file(tmp_path / "b", lambda path: path.write_text("by hand") and None)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "b"]


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "a", b"old")

    def half(path):
        path.write_bytes(b"half")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_file(tmp_path / "a", half)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    write_folder(tmp_path / "f", {"a": bytes(range(256)), "b": lambda path: write_chunks(path, [b"x" * 99, b"y"])})
    assert (tmp_path / "f" / "a").read_bytes() == bytes(range(256))
    assert (tmp_path / "f" / "b").read_bytes() == b"x" * 99 + b"y"


@pytest.mark.promise("R3")
def test_every_file_and_folder_is_synced_before_its_name_counts(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename, real_replace = os.fsync, os.rename, os.replace
    path_of = lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".tmp-")[0]  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(f"sync {path_of(d)}"), real_sync(d))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"rename {b.name}"), real_rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"rename {b.name}"), real_replace(a, b))[1])
    commit_checkpoint(tmp_path / "run", 100, content(100))
    assert events[1:] == [
        "sync model.safetensors",
        "sync state.json",
        "sync manifest.json",
        "sync step-000100",
        "rename step-000100",
        "sync run",
        "sync latest",
        "rename latest",
        "sync run",
    ]


def test_a_folder_that_reads_back_differently_does_not_keep_the_name(tmp_path, monkeypatch):
    import handscroll.base.runs as runs

    def verify(path):
        raise CheckpointError("the disk lies")

    monkeypatch.setattr(runs, "verify_folder", verify)
    with pytest.raises(CheckpointError, match="lies"):
        write_folder(tmp_path / "f", {"a": b"1"})
    assert names(tmp_path) == []


def test_commit_again(run):
    commit_checkpoint(run, 200, content(200))
    with pytest.raises(CheckpointError, match="checkpoint"):
        commit_checkpoint(run, 200, content(201))
    (run / "step-000200" / "state.json").write_bytes(b"damaged")
    commit_checkpoint(run, 200, content(201))
    assert (run / "step-000200" / "state.json").read_bytes() == b'{"step": 201}'
    assert names(run) == ["latest", "step-000100", "step-000200"]


def test_a_commit_before_a_newer_checkpoint_needs_a_rewind(run):
    with pytest.raises(CheckpointError, match=naming("step 150", "rewind")):
        commit_checkpoint(run, 150, content(150))
    assert rewind(run, 100) == run / "step-000100"
    commit_checkpoint(run, 150, content(150))
    assert latest_checkpoint(run) == run / "step-000150"
    with pytest.raises(CheckpointError, match="step-000140"):
        rewind(run, 140)
    assert names(run) == ["latest", "step-000100", "step-000150"]


# ---- reading ---------------------------------------------------------------------------------------------------


def test_latest_is_none_only_for_a_run_without_checkpoints(tmp_path, run):
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / "empty") is None
    for step in (100, 200):
        (run / f"step-000{step}" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        latest_checkpoint(run)
    shutil.rmtree(run / "step-000100")
    shutil.rmtree(run / "step-000200")
    with pytest.raises(CheckpointError, match="step 200"):
        latest_checkpoint(run)


def test_falling_back_is_told(run, caplog):
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(run) == run / "step-000200"
        assert not caplog.records
        (run / "step-000200" / "model.safetensors").unlink()
        assert latest_checkpoint(run) == run / "step-000100"
    assert "falling back" in caplog.text and "model.safetensors is missing" in caplog.text
    caplog.clear()
    shutil.rmtree(run / "step-000200")
    assert latest_checkpoint(run) == run / "step-000100"
    assert "names step 200, which is not there" in caplog.text


def test_a_damaged_pointer_costs_a_warning(run, caplog):
    for damage in (b"", b"step-1", b"\xff\xfe", b"../step-000200", b"step-000200\n\n\0"):
        (run / "latest").write_bytes(damage)
        caplog.clear()
        assert latest_checkpoint(run) == run / "step-000200"
        assert "unreadable" in caplog.text


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (999_999, 1_000_000, 1_000_001):
        commit_checkpoint(tmp_path, step, content(step))
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000001"
    assert checkpoint_step(tmp_path / "step-000200") == 200
    with pytest.raises(CheckpointError, match="step-000200"):
        checkpoint_step(tmp_path / "final")


def test_every_flipped_bit_and_every_cut_is_found(run):
    folder, rng = run / "step-000200", random.Random(3)
    found = {"flip": 0, "cut": 0}
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                verify_folder(folder)
            found["flip"] += 1
        for length in range(0, len(whole), 2):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                verify_folder(folder)
            found["cut"] += 1
        path.write_bytes(whole)
        verify_folder(folder)
    assert found["flip"] > 500 and found["cut"] > 200


def test_the_damaged_missing_or_extra_file_is_named(run):
    folder = run / "step-000200"
    state, other = (folder / "state.json"), (run / "step-000100" / "state.json")
    whole = state.read_bytes()

    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            verify_folder(folder)

    state.unlink()
    refused(naming("state.json", "missing"))
    state.symlink_to(other)
    refused("state.json")
    state.unlink()
    state.mkdir()
    refused("state.json")
    state.rmdir()
    shutil.copy(other, state)
    refused(naming("state.json", "SHA-256"))
    state.write_bytes(whole + b"\0")
    refused(naming("state.json", 14, 13))
    state.write_bytes(b"\0" * len(whole))
    refused(naming("state.json", "SHA-256"))
    state.write_bytes(whole)
    (folder / "notes.txt").write_text("mine")
    refused(naming("notes.txt", "manifest.json"))
    (folder / "notes.txt").unlink()
    verify_folder(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 2, "files": {}}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"../../etc/passwd": {"size": 1, "sha256": "0"}}}',
        b'{"format": 1, "files": {"state.json": {"size": Infinity, "sha256": 3}}}',
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda manifest: str(manifest[:50]),
)
def test_a_strange_manifest_is_refused(run, manifest):
    (run / "step-000200" / "manifest.json").write_bytes(manifest)
    with pytest.raises(CheckpointError, match="step-000200"):
        verify_folder(run / "step-000200")


def test_a_manifest_has_one_spelling(run):
    path = run / "step-000200" / "manifest.json"
    whole = path.read_bytes()
    entries = json.loads(whole)["files"]
    spelled = {
        "written": [whole + b" ", whole.replace(b'"format"', b'"Format": 0,\n "format"')],
        naming("format 2", 1): [whole.replace(b'"format": 1', b'"format": 2')],
    }
    hostile = {"files": {**entries, "../state.json": entries["state.json"]}, "format": 1}
    spelled["written"].append((json.dumps(hostile, indent=1, sort_keys=True) + "\n").encode())
    for message, manifests in spelled.items():
        for manifest in manifests:
            path.write_bytes(manifest)
            with pytest.raises(CheckpointError, match=message):
                verify_folder(path.parent)


# ---- pruning ---------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest(tmp_path):
    for step in range(1, 8):
        commit_checkpoint(tmp_path, step, content(step), keep=3)
    assert names(tmp_path) == ["latest", "step-000005", "step-000006", "step-000007"]
    for keep in (1, 0, -1):
        with pytest.raises(ConfigError, match="at least 2"):
            commit_checkpoint(tmp_path, 8, content(8), keep=keep)


@pytest.mark.promise("R6")
def test_a_damaged_checkpoint_does_not_count_as_kept(run):
    (run / "step-000200" / "state.json").write_bytes(b"damaged")
    commit_checkpoint(run, 300, content(300))
    assert {"step-000100", "step-000300"} <= set(names(run))
    commit_checkpoint(run, 400, content(400))
    assert names(run) == ["latest", "step-000300", "step-000400"]


def test_leftovers_of_the_dead_are_swept_and_of_the_living_left(run):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftovers = [f"step-000300.tmp-{dead.pid}-01234567", f"latest.tmp-{dead.pid}-01234567"]
    (run / leftovers[0]).mkdir()
    (run / leftovers[0] / "model.safetensors").write_bytes(b"half")
    (run / leftovers[1]).write_bytes(b"half")
    earlier_container = run / f"step-000300.tmp-{os.getpid()}-01234567"
    earlier_container.mkdir()
    living = run / f"step-000300.tmp-{os.getppid()}-01234567"
    living.mkdir()
    (run / "notes.tmp-mine").mkdir()
    commit_checkpoint(run, 300, content(300))
    assert names(run) == ["latest", "notes.tmp-mine", "step-000200", "step-000300", living.name]


# ---- kills and faults ------------------------------------------------------------------------------------------


@pytest.mark.promise("R1")
def test_kill_at_random_moments(tmp_path):
    assert in_child(RANDOM_KILLS, tmp_path / "run", 50)["kills"] == 50


@pytest.mark.promise("R2")
def test_kill_before_and_after_every_call(tmp_path):
    assert in_child(EVERY_CALL, tmp_path / "runs", *CALLS)["kills"] > 50


@pytest.mark.promise("R4")
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for_ever"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG], ids=os.strerror)
def test_an_error_at_every_call(run, tmp_path, code, for_ever):
    cases = saved = 0
    while True:
        cases += 1
        here = tmp_path / f"case-{cases}"
        shutil.copytree(run, here)
        error = None
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, code, cases, for_ever)
            try:
                commit_checkpoint(here, 300, content(300))
            except CheckpointError as caught:
                error = caught
        if faults.count < cases:
            break
        saved += error is None
        check_after_a_fault(here, error, code, for_ever)
    assert cases > 30 and saved < cases / 2


def check_after_a_fault(here: Path, error: CheckpointError | None, code: int, for_ever: bool) -> None:
    if error is None:
        assert latest_checkpoint(here) == here / "step-000300"
    else:
        assert errno.errorcode[code] in str(error) and "needed: " in str(error) and "free: " in str(error)
        assert str(here) in str(error)
        if not for_ever:
            assert not [name for name in names(here) if ".tmp-" in name]
    verify_folder(here / "step-000200")
    for name in names(here):
        if name.startswith("step-") and ".tmp-" not in name:
            verify_folder(here / name)
    verify_folder(here / (here / "latest").read_text().strip())
    found = latest_checkpoint(here)
    assert found is not None
    assert (found / "state.json").read_bytes() == b'{"step": %d}' % checkpoint_step(found)
    commit_checkpoint(here, 300, content(300))
    assert latest_checkpoint(here) == here / "step-000300"
    assert [name for name in names(here) if ".tmp-" not in name] == ["latest", "step-000200", "step-000300"]


def test_file_size_limit(tmp_path):
    assert in_child(FILE_SIZE_LIMIT, tmp_path / "run")["cases"] == 13


def test_a_disk_that_is_really_full(tmp_path):
    mount = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=256k tmpfs {tmp_path} && exec "$0" "$@"')
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    errors = in_child(FULL_DISK, tmp_path / "run", before=mount)["errors"]
    assert "Free some space" in errors[0] and "bytes, free: " in errors[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="write"):
        commit_checkpoint(tmp_path / "run", 1, content(1))


# ---- the lock --------------------------------------------------------------------------------------------------

HOLD = """
from handscroll.base.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()  # until it is killed, or the test ends
"""


@pytest.mark.promise("R6")
def test_a_second_writer_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
    run = tmp_path / "deep" / "run"
    for _ in range(3):
        command = [sys.executable, "-c", COMMON + HOLD, str(run)]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=Path(__file__).parents[2]) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=naming("process", holder.pid)):
                RunLock(run).acquire()
            assert holder.poll() is None, "it is refused while the other lives, and not when it ends"
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with RunLock(run, wait=0.0):
                pass  # at once


def test_one_process_cannot_lock_twice(tmp_path):
    with RunLock(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        RunLock(tmp_path, wait=0.0).acquire()
    lock = RunLock(tmp_path)
    lock.acquire()
    inner = lock._lock  # held on to, since a lock that nobody holds on to frees itself
    lock.release()
    lock.release()
    with RunLock(tmp_path):
        assert inner is not None and not inner.is_locked
