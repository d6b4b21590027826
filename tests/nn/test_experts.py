"""A mixture of experts: which experts read a token, what they give, what they learn, and what the planner counts."""

import pytest
import torch
import torch.nn.functional as F

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Workload
from handscroll.nn.mlp import Experts
from handscroll.plan.memory import fixed_parts
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter, stands_apart
from tests.conformance.families import FORMS


def experts(normed: bool = True) -> Experts:
    torch.manual_seed(0)
    return Experts(16, 24, experts=5, chosen=2, normed=normed).double()


@pytest.mark.parametrize("normed", [True, False])
def test_each_token_is_read_by_its_likeliest_experts(normed):
    made, x = experts(normed), torch.randn(3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = made(x)
        for row in range(3):
            for place in range(7):
                token = x[row, place]
                odds = F.softmax(made.router(token), dim=-1)
                best = odds.argsort(descending=True)[:2].tolist()
                shares = [float(odds[number]) / (float(odds[best].sum()) if normed else 1.0) for number in best]
                want = sum(
                    share * made.experts[number](token[None, None]) for share, number in zip(shares, best, strict=True)
                )
                assert (found[row, place] - want).abs().max() < 1e-12


def test_an_expert_that_nobody_chose_gets_a_gradient_of_zero():
    made = experts()
    made(torch.randn(1, 1, 16, dtype=torch.float64)).sum().backward()
    untouched = [one for one in made.experts if not one.down.weight.grad.any()]
    assert len(untouched) == 3
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_spec_counts_all_experts_and_those_that_read_a_token():
    form = FORMS["qwen3_moe"]
    spec, model = form.config.spec, form.build()
    idle = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) // 6 * 3
    assert spec.parameters - spec.active == idle
    assert [layer.experts for layer in spec.layers] == [6, 0, 6]
    assert spec.layers[0].read.mlp_width == 3 * 32 and spec.layers[1].read == spec.layers[1]


def test_the_planner_holds_every_expert_and_computes_with_the_chosen():
    spec = FORMS["mixtral"].config.spec
    more = spec.model_copy(update={"layers": tuple(one.model_copy(update={"experts": 8}) for one in spec.layers)})
    few, many = (Workload(spec=one, length=64, strategy="plain") for one in (spec, more))
    added = sum(4 * (3 * one.width * one.mlp_width + one.width) for one in spec.layers)
    assert fixed_parts(many)["weights"] - fixed_parts(few)["weights"] == 4 * added
    from handscroll.plan.duration import count

    assert count(many).products == count(few).products
    assert count(few.changed(lora=2, lora_targets=7)).products > 0


def test_lora_of_experts_is_merged_since_peft_cannot_name_them(tmp_path):
    model, tokens = FORMS["mixtral"].build(torch.float32), torch.arange(30, 42)[None]
    settings = LoRA(rank=2, targets=("query", "gate", "down"))
    add_lora(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.fill_(0.05)
        want = model(tokens)
    assert not stands_apart(model)
    with pytest.raises(ConfigError, match="merge the update"):
        save_adapter(model, settings, tmp_path, "base")
    merge_lora(model)
    with torch.no_grad():
        assert (model(tokens) - want).abs().max() < 1e-4
