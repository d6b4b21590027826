"""Damage to a checkpoint folder of a real model and optimizer: every case is found, and the one before it is used."""

import hashlib
import itertools
import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from handscroll.base.errors import CheckpointError
from handscroll.base.runs import MANIFEST, commit_checkpoint, latest_checkpoint, verify_folder
from handscroll.train.checkpoint import load_checkpoint, optimizer_tensors, rng_state, save_checkpoint
from tests.naming import naming

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
FLIPS, CUTS, ZEROS = 2_000, 500, 100


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A run of two checkpoints, steps 100 and 200, whose files differ pairwise but are of the same sizes."""
    run = tmp_path_factory.mktemp("damage") / "run"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 50))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in (100, 200):
        net(torch.arange(50)).logsumexp(-1).sum().backward()
        optimizer.step()
        moments, described = optimizer_tensors(optimizer)
        # Without the generators' 20 KB the state is a file of common size, and flips spread over all its parts.
        state = {"optimizer": described, "rng": hashlib.sha256(str(rng_state()).encode()).hexdigest(), "at": step}
        save_checkpoint(run, step, {"model": net.state_dict(), "optimizer": moments}, state)
    for name in FILES:
        old, new = ((run / f"step-000{step}" / name).read_bytes() for step in (100, 200))
        assert old != new and len(old) == len(new), name
    return run


@pytest.fixture
def run(pristine, tmp_path, caplog) -> Path:
    # Each fallback warns; thousands of warnings would only be kept in memory.
    caplog.set_level(logging.CRITICAL, "handscroll.runs")
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def check_found(run: Path) -> None:
    """Step 200 is damaged: loading it is refused, and the search for the newest gives step 100."""
    with pytest.raises(CheckpointError, match="step-000200"):
        load_checkpoint(run / "step-000200")
    assert latest_checkpoint(run) == run / "step-000100"


@contextmanager
def overwritten(path: Path, place: int, data: bytes) -> Iterator[None]:
    """The bytes at `place` replaced in the file itself, as a disk would; put back afterwards."""
    descriptor = os.open(path, os.O_RDWR)
    before = os.pread(descriptor, len(data), place)
    try:
        os.pwrite(descriptor, data, place)
        yield
        os.pwrite(descriptor, before, place)
    finally:
        os.close(descriptor)


@contextmanager
def cut(path: Path, length: int) -> Iterator[None]:
    """The file cut to `length` bytes; put back afterwards without a truncation to nothing, which a disk writes out."""
    whole = path.read_bytes()
    os.truncate(path, length)
    yield
    with path.open("r+b") as file:
        file.seek(length)
        file.write(whole[length:])


def random_place(folder: Path, draw: random.Random) -> tuple[Path, int, str]:
    """A file, a place in it, and its part; headers and data of the tensors get an equal share."""
    path = folder / draw.choice(FILES)
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return path, draw.randrange(size), path.name
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    assert 8 < data < size
    if draw.random() < 0.5:
        return path, draw.randrange(data), f"{path.name} header"
    return path, draw.randrange(data, size), f"{path.name} data"


def flip(run: Path, trials: int, seed: int) -> Counter:
    draw, found = random.Random(seed), Counter()
    for _ in range(trials):
        path, place, part = random_place(run / "step-000200", draw)
        with path.open("rb") as file:
            file.seek(place)
            flipped = file.read(1)[0] ^ 1 << draw.randrange(8)
        with overwritten(path, place, bytes([flipped])):
            check_found(run)
        found[part] += 1
    assert latest_checkpoint(run) == run / "step-000200"
    load_checkpoint(run / "step-000200")
    return found


@pytest.mark.promise("R5")
def test_flipped_bits_are_found(run):
    found = flip(run, FLIPS, seed=1)
    assert found.total() == FLIPS and len(found) == 6 and min(found.values()) > FLIPS / 10


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_flipped_bits_are_found(run, seed):
    assert flip(run, 10_000, seed).total() == 10_000


@pytest.mark.promise("R5")
def test_cuts_are_found(run):
    draw = random.Random(2)
    for trial in range(CUTS):
        path = run / "step-000200" / FILES[trial % len(FILES)]
        size = path.stat().st_size
        # The last bytes of a file are where a length that is merely rounded would go unseen.
        with cut(path, size - 1 - trial // 40 if trial % 40 < 4 else draw.randrange(size)):
            check_found(run)
    assert latest_checkpoint(run) == run / "step-000200"


@pytest.mark.promise("R5")
def test_zeroed_and_appended_blocks_are_found(run):
    draw, zeroed = random.Random(3), 0
    while zeroed < ZEROS:
        path, place, _ = random_place(run / "step-000200", draw)
        length = min(draw.choice([16, 512, 4096]), path.stat().st_size - place)
        if any(path.read_bytes()[place : place + length]):
            with overwritten(path, place, bytes(length)):
                check_found(run)
            zeroed += 1
    for name, length in itertools.product(FILES, (1, 8, 4096)):
        path = run / "step-000200" / name
        whole = path.read_bytes()
        for tail in (bytes(length), whole[:length], b" " * length, b"\n" * length):
            path.write_bytes(whole + tail)
            check_found(run)
        path.write_bytes(whole)
    assert latest_checkpoint(run) == run / "step-000200"


@pytest.mark.promise("R5")
def test_any_mixture_of_two_steps_is_found(run):
    """Stale files of equal size in every combination, the manifest among them."""
    old, new = run / "step-000100", run / "step-000200"
    mixtures = [names for size in (1, 2, 3) for names in itertools.combinations(FILES, size)]
    assert len(mixtures) == 14
    for names in mixtures:
        whole = {name: (new / name).read_bytes() for name in names}
        for name in names:
            shutil.copy2(old / name, new / name)
        check_found(run)
        for name in names:
            (new / name).write_bytes(whole[name])
    assert latest_checkpoint(run) == new


def test_swapped_missing_and_extra_files_are_found(run):
    new = run / "step-000200"

    def swap(one: str, two: str) -> None:
        (new / one).rename(new / "aside")
        (new / two).rename(new / one)
        (new / "aside").rename(new / two)

    for one, two in itertools.combinations(FILES, 2):
        swap(one, two)
        check_found(run)
        swap(one, two)
    for name in FILES:
        (new / name).rename(run / "aside")
        check_found(run)
        (run / "aside").rename(new / name)
    for name in ("model-00002.safetensors", ".hidden", "state.json.tmp", "MANIFEST.json"):
        shutil.copy(new / "state.json", new / name)
        check_found(run)
        (new / name).unlink()
    (new / "folder").mkdir()
    check_found(run)
    (new / "folder").rmdir()
    assert latest_checkpoint(run) == new


def test_a_whole_folder_of_an_older_step_is_refused(run):
    """The manifest agrees with such files; only the state knows what step it is."""
    shutil.rmtree(run / "step-000200")
    shutil.copytree(run / "step-000100", run / "step-000200")
    with pytest.raises(CheckpointError, match=naming("step-000200", "step 100")):
        load_checkpoint(run / "step-000200")
    shutil.copytree(run / "step-000100", run / "mine")
    assert load_checkpoint(run / "mine")[1]["at"] == 100


def test_a_damaged_pointer_never_leads_to_another_checkpoint(run):
    """Every flipped bit, pair of bits and cut of `latest`, and what it held before."""
    pointer = run / "latest"
    whole = pointer.read_bytes()
    single = [1 << bit for bit in range(8 * len(whole))]
    masks = single + [one | two for one, two in itertools.combinations(single, 2)]
    contents = [bytes(a ^ b for a, b in zip(whole, mask.to_bytes(12, "big"), strict=True)) for mask in masks]
    assert len(whole) == 12 and len(contents) == 96 + 96 * 95 // 2
    for content in [*contents, b"step-000100\n"]:
        with overwritten(pointer, 0, content):
            assert latest_checkpoint(run) == run / "step-000200"
    for length in range(len(whole)):
        with cut(pointer, length):
            assert latest_checkpoint(run) == run / "step-000200"
    (run / "step-000200" / "state.json").write_bytes(b"damaged")
    for content in contents[: len(single)]:
        with overwritten(pointer, 0, content):
            assert latest_checkpoint(run) == run / "step-000100"


def test_a_damaged_checkpoint_is_never_pruned_for(run):
    """The next save keeps the last valid one, whatever was done to the newest."""
    for name in FILES:
        here = Path(shutil.copytree(run, run.with_name(name)))
        os.truncate(here / "step-000200" / name, 20)
        commit_checkpoint(here, 300, {"state.json": b"{}"})
        verify_folder(here / "step-000100")
        with pytest.raises(CheckpointError):
            verify_folder(here / "step-000200")
        assert (here / "step-000300" / MANIFEST).exists()
