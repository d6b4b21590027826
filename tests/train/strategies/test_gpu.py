"""The strategies on a GPU: the certificate in float64 and float32, and half precision near the plain step."""

import copy

import pytest
import torch

from handscroll.data.batch import Batch
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.objectives.causal import Causal
from handscroll.train.lora import LoRA, add_lora
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.certificate import certify
from handscroll.train.strategies.plain import Plain

if not torch.cuda.is_available():
    pytest.skip("needs CUDA", allow_module_level=True)

STRATEGIES = {
    "checkpoint": {"strategy": "checkpoint"},
    "chunk-outer": {"strategy": "chunk-outer", "mlp_tile": 128},
    "layer-outer": {"strategy": "layer-outer"},
    "host": {"strategy": "chunk-outer", "offload": "host"},
    "disk": {"strategy": "staged", "stage_layers": 2, "offload": "disk"},
}


def model(adapted=False, dtype=torch.float32):
    torch.manual_seed(0)
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 4096, "trained": 4096}
    sizes = {"vocab": 131, "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 192}
    made = Llama(LlamaConfig(**sizes, positions=positions)).to("cuda", dtype)
    if adapted:
        add_lora(made, LoRA(rank=4))
        for name, parameter in made.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(parameter, std=0.1)
    return made


def batch(rows=1, length=2048):
    tokens = torch.randint(0, 131, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_certificate_passes(strategy, adapted, tmp_path):
    certificate = certify(model(adapted), Memory(**STRATEGIES[strategy]), batch(), Causal(), tmp_path)
    assert certificate.passed


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_half_precision_is_as_near_as_the_plain_step(strategy, autocast, tmp_path):
    found = {}
    wide = model(dtype=torch.float64)
    for name in ("plain", strategy):
        one = copy.deepcopy(wide).to(torch.float32 if autocast else torch.bfloat16)
        made = Plain() if name == "plain" else build_strategy(Memory(**STRATEGIES[strategy]), one, tmp_path)
        Step(made, autocast=autocast)(one, [batch()], Causal())
        found[name] = torch.cat([p.grad.flatten().double() for p in one.parameters()])
    Step(Plain())(wide, [batch()], Causal())
    want = torch.cat([p.grad.flatten() for p in wide.parameters()])
    apart = {name: float((grad - want).norm() / want.norm()) for name, grad in found.items()}
    assert apart[strategy] < 1.5 * apart["plain"] + 1e-3, apart
