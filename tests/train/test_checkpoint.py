"""A training run that stops and goes on is, bit for bit, the run that never stopped."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from handscroll.base.errors import CheckpointError
from handscroll.base.runs import latest_checkpoint
from handscroll.train.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from tests.naming import naming

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and left[name].shape == right[name].shape, name
        assert torch.equal(bits(left[name]), bits(right[name])), name


def all_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5, generator=generator) * 4).to(dtype) for dtype in DTYPES}
    return {
        **tensors,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "名字": torch.tensor([float("nan"), float("-inf"), -0.0, 5e-324]),
    }


# ---- files -----------------------------------------------------------------------------------------------------


def test_tensors_and_state_come_back(tmp_path):
    state = {"cursor": {"file": 3, "offset": 2**60}, "loss": 0.1 + 0.2, "text": "山水\u2028", "none": None}
    folder = save_checkpoint(tmp_path, 200, {"model": all_kinds(), "optimizer": {}}, state)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    tensors, back = load_checkpoint(folder)
    assert back == state and tensors["optimizer"] == {}
    assert_same(tensors["model"], all_kinds())
    assert latest_checkpoint(tmp_path) == folder


def test_the_file_is_what_the_safetensors_library_reads_and_writes(tmp_path):
    folder = save_checkpoint(tmp_path, 1, {"model": all_kinds()}, {})
    assert_same(load_file(folder / "model.safetensors"), all_kinds())
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % all_kinds()[name].element_size() == 0, f"{name} is not aligned"
    for dtype in DTYPES:
        named = {name: torch.ones(shape).to(dtype) for name, shape in [("b", (2, 3)), ("a", (7,)), ("c", ())]}
        folder = save_checkpoint(tmp_path / str(dtype), 1, {"model": named}, {})
        ours, theirs = (folder / "model.safetensors").read_bytes(), save(named, metadata={"format": "pt"})
        assert ours[8:].partition(b"}}")[2] == theirs[8:].partition(b"}}")[2]
        assert ours == theirs


def test_views_and_tied_tensors(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    named = {
        "embed.weight": table,
        "head.weight": table,
        "transposed": table.t(),
        "column": table[:, 1],
        "row": table[1],
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(table.view(12)),
    }
    folder = save_checkpoint(tmp_path, 1, {"model": named}, {})
    assert "head.weight" not in load_file(folder / "model.safetensors")
    tensors, _ = load_checkpoint(folder)
    assert_same(tensors["model"], {name: tensor.detach() for name, tensor in named.items()})
    assert tensors["model"]["head.weight"] is tensors["model"]["embed.weight"]
    tensors["model"]["row"].zero_()
    assert torch.equal(tensors["model"]["embed.weight"], table)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_what_cannot_be_stored_is_refused(tmp_path, tensor):
    with pytest.raises(CheckpointError, match="odd"):
        save_checkpoint(tmp_path / "run", 1, {"model": {"odd": tensor}}, {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, float("nan"), {1, 2}, b"bytes", torch.ones(1), "\udc80"],
    ids=lambda value: repr(value)[:12],
)
def test_a_state_that_json_would_change_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="state"):
        save_checkpoint(tmp_path / "run", 1, {}, {"value": value})


def test_damage_and_a_newer_format_are_refused(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path, 1, {"model": {"a": torch.ones(100)}}, {})
    whole = (folder / "model.safetensors").read_bytes()
    for place in range(0, len(whole), 17):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_checkpoint(folder)
    monkeypatch.setattr("handscroll.train.checkpoint._FORMAT", 2)
    newer = save_checkpoint(tmp_path, 2, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 1"):
        load_checkpoint(newer)


# ---- optimizers ------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two matrices only, so that Muon takes all of it; in float32 or bfloat16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8, bias=False, dtype=dtype)
        self.second = nn.Linear(8, 4, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.dropout(torch.tanh(self.first(x)), 0.3))


def groups(net: Net) -> list[dict]:
    return [{"params": [net.first.weight]}, {"params": [net.second.weight], "weight_decay": 0.3}]


OPTIMIZERS = {
    "adamw": lambda net: torch.optim.AdamW(groups(net), lr=0.01),
    "adamw-amsgrad": lambda net: torch.optim.AdamW(groups(net), lr=0.01, amsgrad=True, foreach=True),
    "adamw-fused": lambda net: torch.optim.AdamW(groups(net), lr=0.01, fused=True),
    "adamw-tensor-lr": lambda net: torch.optim.AdamW(groups(net), lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda net: torch.optim.SGD(groups(net), lr=0.01),
    "sgd-momentum": lambda net: torch.optim.SGD(groups(net), lr=0.01, momentum=0.9, nesterov=True),
    "muon": lambda net: torch.optim.Muon(groups(net), lr=0.01),
}


def train(net, optimizer, schedule, steps: int) -> list[float]:
    """Inputs and dropout come from the global generator: it must be restored too."""
    losses = []
    for _ in range(steps):
        loss = net(torch.randn(5, 6, dtype=net.first.weight.dtype)).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def fresh(make, dtype):
    net = Net(dtype)
    optimizer = make(net)
    return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_five_steps_and_five_more_are_ten(tmp_path, make, dtype):
    torch.manual_seed(1)
    straight, optimizer, schedule = fresh(make, dtype)
    begin = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    after_init = torch.get_rng_state()
    losses = train(straight, optimizer, schedule, 10)
    expected, _ = optimizer_tensors(optimizer)

    torch.set_rng_state(after_init)
    net, optimizer, schedule = fresh(make, dtype)
    net.load_state_dict(begin)
    torch.set_rng_state(after_init)
    assert train(net, optimizer, schedule, 5) == losses[:5]
    moments, described = optimizer_tensors(optimizer)
    state = {"optimizer": described, "rng": rng_state(), "schedule": schedule.last_epoch}
    folder = save_checkpoint(tmp_path, 5, {"model": net.state_dict(), "optimizer": moments}, state)

    torch.manual_seed(999)
    net, optimizer, schedule = fresh(make, dtype)
    tensors, state = load_checkpoint(folder)
    net.load_state_dict(tensors["model"])
    restore_optimizer(optimizer, tensors["optimizer"], state["optimizer"])
    schedule.last_epoch = state["schedule"]
    restore_rng(state["rng"])
    assert train(net, optimizer, schedule, 5) == losses[5:]
    assert_same(dict(net.state_dict()), dict(straight.state_dict()))
    assert_same(optimizer_tensors(optimizer)[0], expected)


def test_step_counters_are_exact(tmp_path):
    net, optimizer, schedule = fresh(OPTIMIZERS["adamw"], torch.float32)
    train(net, optimizer, schedule, 7)
    tensors, state = optimizer_tensors(optimizer)
    assert tensors["0.step"].item() == tensors["1.step"].item() == 7
    assert sorted(tensors) == [f"{i}.{name}" for i in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")]
    assert json.loads(json.dumps(state)) == state


def test_float32_moments_of_bfloat16_parameters_stay_float32():
    net, optimizer, _ = fresh(OPTIMIZERS["sgd-momentum"], torch.bfloat16)
    optimizer.state[net.first.weight]["momentum_buffer"] = torch.full((8, 6), 0.1)
    tensors, state = optimizer_tensors(optimizer)
    net, optimizer, _ = fresh(OPTIMIZERS["sgd-momentum"], torch.bfloat16)
    restore_optimizer(optimizer, tensors, state)
    restored = optimizer.state[net.first.weight]["momentum_buffer"]
    assert restored.dtype == torch.float32
    assert torch.equal(restored, torch.full((8, 6), 0.1))
    restored.zero_()
    assert tensors["0.momentum_buffer"].count_nonzero() == 48, "a restored tensor is a copy"


def test_a_different_optimizer_is_refused_and_left_alone():
    net, optimizer, schedule = fresh(OPTIMIZERS["adamw"], torch.float32)
    train(net, optimizer, schedule, 2)
    tensors, state = optimizer_tensors(optimizer)

    def refused(message, optimizer, tensors=tensors, state=state):
        before = optimizer_tensors(optimizer)[1]
        with pytest.raises(CheckpointError, match=message):
            restore_optimizer(optimizer, tensors, state)
        assert optimizer_tensors(optimizer)[1] == before

    def adamw(**settings):
        return torch.optim.AdamW(groups(Net(torch.float32)), **{"lr": 0.01, **settings})

    refused(naming("AdamW", "Muon"), torch.optim.Muon(groups(Net(torch.float32))))
    refused(naming("betas", "[0.9, 0.999]", "[0.9, 0.95]"), adamw(betas=(0.9, 0.95)))
    refused("weight_decay", adamw(weight_decay=0.2))
    refused(naming("amsgrad", "False", "True"), adamw(amsgrad=True))
    refused("shapes", torch.optim.AdamW(nn.Linear(6, 8, bias=False).parameters(), lr=0.01))
    refused(naming("[1, 1]", "[2]"), torch.optim.AdamW(Net(torch.float32).parameters(), lr=0.01))
    refused(naming("'0.step'"), adamw(), {k: v for k, v in tensors.items() if k != "0.step"})
    refused(naming("'2.step'"), adamw(), {**tensors, "2.step": torch.ones(())})
    unknown = json.loads(json.dumps(state))
    unknown["groups"][0]["settings"]["cautious"] = True
    refused("cautious", adamw(), state=unknown)
    restore_optimizer(adamw(foreach=True, lr=0.5), tensors, state)


def test_the_learning_rate_is_restored_not_checked():
    net, optimizer, schedule = fresh(OPTIMIZERS["adamw"], torch.float32)
    train(net, optimizer, schedule, 4)
    tensors, state = optimizer_tensors(optimizer)
    _, other, _ = fresh(lambda net: torch.optim.AdamW(groups(net), lr=0.5), torch.float32)
    restore_optimizer(other, tensors, state)
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert other.param_groups[0]["initial_lr"] == 0.01


def test_state_that_is_neither_tensor_nor_value_is_refused():
    net = Net(torch.float32)
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(CheckpointError, match="LBFGS"):
        optimizer_tensors(optimizer)


# ---- random numbers --------------------------------------------------------------------------------------------


def test_generators_go_on_where_they_were():
    named = {"data": random.Random(3), "dropout": torch.Generator().manual_seed(4)}

    def draw():
        return [
            torch.randn(3).tolist(),
            torch.rand(1).item(),
            random.random(),
            random.gauss(0, 1),
            named["data"].gauss(0, 1),
            torch.rand(2, generator=named["dropout"]).tolist(),
        ]

    draw()
    state = json.loads(json.dumps(rng_state(named)))
    expected = draw()
    draw()
    restore_rng(state, named)
    assert draw() == expected


def test_a_different_set_of_generators_is_refused():
    state = rng_state({"data": random.Random(3)})
    with pytest.raises(CheckpointError, match=naming("'data'", "'sampler'")):
        restore_rng(state, {"sampler": random.Random(3)})
    with pytest.raises(CheckpointError, match="99 CUDA devices"):
        restore_rng({**state, "cuda": ["00"] * 99}, {"data": random.Random(3)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_generators_and_fused_steps(tmp_path):
    torch.manual_seed(5)
    net = Net(torch.float32).cuda()
    optimizer = torch.optim.AdamW(groups(net), lr=0.01, fused=True)
    for _ in range(2):
        net(torch.randn(5, 6, device="cuda")).square().mean().backward()
        optimizer.step()
    moments, described = optimizer_tensors(optimizer)
    state = {"rng": rng_state(), "optimizer": described}
    folder = save_checkpoint(tmp_path, 2, {"optimizer": moments}, state)
    expected = torch.randn(4, device="cuda")
    tensors, state = load_checkpoint(folder)
    restore_rng(state["rng"])
    assert torch.equal(torch.randn(4, device="cuda"), expected)
    other = torch.optim.AdamW(groups(Net(torch.float32).cuda()), lr=0.01, fused=True)
    restore_optimizer(other, tensors["optimizer"], state["optimizer"])
    again, _ = optimizer_tensors(other)
    assert all(again[name].device == moments[name].device for name in moments)
    assert_same({name: t.cpu() for name, t in again.items()}, {name: t.cpu() for name, t in moments.items()})
