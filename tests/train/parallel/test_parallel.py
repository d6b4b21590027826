"""Two gloo ranks on this machine: the loss and gradients of one, checkpoints that fit any number of ranks, deaths."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from handscroll.base.errors import ConfigError
from handscroll.nn.noise import Noise
from handscroll.train.parallel.shard import gathered
from handscroll.train.parallel.world import ALONE, Parallel, World, join_world
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.plain import Plain
from tests.naming import naming
from tests.train.parallel.ranks import CASES, built, objective
from tests.train.strategies.common import batch, distance, llama

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "tiny" / "llama.toml"
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}


def launch(count, *command):
    """torchrun on this machine; its own process group, so that nothing outlives the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*launcher, *address, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )


def finished(process, seconds=240):
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        pytest.fail(f"still running after {seconds} s:\n{text[-3000:]}")
    return process.returncode, text


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Loss and gradients of every case, as two ranks made them."""
    file = tmp_path_factory.mktemp("ranks") / "gradients.safetensors"
    status, text = finished(launch(2, "-m", "tests.train.parallel.ranks", str(file)))
    assert status == 0, text[-3000:]
    return load_file(file)


@pytest.mark.promise("R8")
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_ranks_give_the_loss_and_gradients_of_one(two_ranks, case, dtype):
    _, _, _, kind, name = case
    model = built(name, dtype)
    noise = Noise(0.1, seed=3, update=4)
    loss = Step(Plain())(model, [batch(kind), batch("plain")], objective(name), noise=noise)
    wanted = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    start = "|".join(map(str, [dtype, *case])) + "|"
    found = {name.removeprefix(start): t for name, t in two_ranks.items() if name.startswith(start)}
    assert float(found.pop("loss")) == pytest.approx(float(loss.total), rel=LIMITS[dtype])
    assert distance({name: t.double() for name, t in found.items()}, wanted) <= LIMITS[dtype]


@pytest.mark.promise("R14")
def test_any_flipped_bit_in_a_copy_is_found(two_ranks):
    """50 of 50 in weights and states of the optimiser, and no alarm once each is flipped back."""
    assert two_ranks["flipped"].tolist() == [50, 0]


def train(count, folder, *settings, resume=False):
    extra = [part for setting in settings for part in ("--set", setting)]
    where = "--resume" if resume else "--out"
    command = ["-m", "handscroll", "train", str(RECIPE), where, str(folder), "--set", "threads=1", *extra]
    return launch(count, *command)


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def wait_for(process, condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            pytest.fail(process.communicate()[0][-3000:])
        time.sleep(0.1)


def reached(run):
    return int((run / "latest").read_text().split("-")[1]) if (run / "latest").exists() else 0


@pytest.mark.promise("R22")
@pytest.mark.long  # a minute and a half on two cores
def test_a_run_may_go_on_with_another_number_of_ranks(tmp_path):
    """1 -> 2 -> 2 -> 1 ranks, stopped politely in between: the losses and weights of one rank all along."""
    chunked = ["memory.strategy=staged", "memory.stage_layers=1", "memory.chunk=64", "loop.average=0.9"]
    long = ["stages.1.steps=400", "loop.save_every=5", "loop.evaluate_every=0", "optimizer.name=adamw"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    status, text = finished(train(1, alone, *chunked, *long))
    assert status == 0, text[-3000:]
    for count, share in ((1, 1), (2, 2), (2, 1)):
        before = reached(moved)
        process = train(count, moved, *chunked, *long, f"parallel.context={share}", resume=before > 0)
        wait_for(process, lambda before=before: reached(moved) > before)
        os.killpg(process.pid, signal.SIGTERM)
        status, text = finished(process)
        assert before < reached(moved) < 410, text[-3000:]
    status, text = finished(train(1, moved, *chunked, *long, resume=True))
    assert status == 0, text[-3000:]
    want, got = records(alone), records(moved)
    assert [one["step"] for one in got] == list(range(1, 411))
    for one, other in zip(want, got, strict=True):
        assert other["count"] == one["count"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3 if one["step"] < 100 else 0.05)


@pytest.mark.promise("R21")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)], ids=lambda how: how.name
)
def test_a_dead_or_stopped_rank_ends_the_run_by_name_and_the_run_resumes(how, tmp_path):
    """The rest of the run ends in the same way for both, so that it is resumed after one of them alone."""
    run = tmp_path / "run"
    process = train(2, run, "loop.save_every=2", "stages.1.steps=3000")
    try:
        wait_for(process, lambda: reached(run) > 0)
        victim = json.loads((run / "ranks" / "rank-1.json").read_text())["process"]
        os.kill(victim, how)
        status, text = finished(process)
        assert status != 0
        assert not psutil.pid_exists(victim) or psutil.Process(victim).status() == psutil.STATUS_ZOMBIE
        assert "rank 1" in text or "rank      : 1" in text, text[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if how == signal.SIGSTOP:
        return
    before = reached(run)
    again = train(2, run, "loop.save_every=2", "stages.1.steps=3000", resume=True)
    wait_for(again, lambda: reached(run) > before)
    os.killpg(again.pid, signal.SIGTERM)
    finished(again)
    assert [one["step"] for one in records(run)] == list(range(1, len(records(run)) + 1))


def test_two_ranks_that_validate_averaged_weights_and_save_at_the_same_steps_train_as_one(tmp_path):
    both = ["loop.average=0.9", "loop.evaluate_every=4", "loop.save_every=4", "optimizer.name=adamw"]
    short = ["stages.0.steps=6", "stages.1.steps=6"]
    for count in (1, 2):
        status, text = finished(train(count, tmp_path / str(count), *both, *short))
        assert status == 0, text[-3000:]
    want, got = records(tmp_path / "1"), records(tmp_path / "2")
    assert len(want) == len(got) == 12
    for one, other in zip(want, got, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"loss", "validation_loss"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    weights = [load_file(tmp_path / count / "model" / "model.safetensors") for count in ("1", "2")]
    assert distance(*({name: t.double() for name, t in one.items()} for one in reversed(weights))) < 1e-3


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    """What each of two ranks decided where they saw different things."""
    folder = tmp_path_factory.mktemp("agreed")
    status, text = finished(launch(2, "-m", "tests.train.parallel.agreeing", str(folder)), 120)
    assert status == 0, text[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_with_different_machines_take_one_plan_that_fits_all_of_them(agreed):
    first, second = (found["plan"] for found in agreed)
    assert first == second != "plain"


def test_a_plan_that_does_not_fit_one_rank_is_refused_on_all(agreed):
    first, second = (found["refusal"] for found in agreed)
    assert first == second and "--force" in first


def test_validation_losses_that_differ_between_ranks_lead_to_one_decision(agreed):
    assert agreed[0]["validation"] == agreed[1]["validation"] == [[0.9, 2, 0], [0.9, 2, 1], [0.9, 2, 2], True]


def test_what_is_not_sharded_is_gathered_without_a_copy():
    """A checkpoint copies tensors from a GPU to the host one at a time, while they are written."""
    here, elsewhere = torch.ones(3), torch.ones(3, device="meta", requires_grad=True)
    found = gathered({"here": here, "elsewhere": elsewhere}, ALONE)
    assert found["here"].data_ptr() == here.data_ptr()
    assert found["elsewhere"].device.type == "meta" and not found["elsewhere"].requires_grad


def test_wrong_sharing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="torchrun"):
        join_world(Parallel(context=2))
    with pytest.raises(ConfigError, match="chunks"):
        build_strategy(Memory(strategy="checkpoint"), llama(), tmp_path, World(0, 2, 2))
    with pytest.raises(ConfigError, match=naming("3 rows", "2 data-parallel ranks")):
        World(0, 2, 1).rows(batch("plain", rows=3))
    assert World(1, 4, 2).cut(0, 7) == [0, 3, 7]
