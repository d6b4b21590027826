"""Masks, heads, rows and models that several tests of layers share."""

import torch

from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Everything, SameSegment, Window
from tests.masks import First

MASKS = {
    "causal": Causal(),
    "everything": Everything(),
    "window": Causal() & Window(5),
    "window+sinks": Causal() & (Window(5) | First(2)),
    "prefix": First(7) | Causal(),
    "packed": Causal() & SameSegment(),
}


def heads(batch, tokens, keys, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, 8, tokens, 16, generator=generator, dtype=dtype)
    k, v = (torch.randn(batch, 2, keys, 16, generator=generator, dtype=dtype) for _ in range(2))
    return q, k, v


def packed_marks(batch, tokens):
    index = torch.arange(tokens).expand(batch, -1).clone()
    index[0, -4:] = -1  # padding in one row only
    segment = (torch.arange(tokens) >= tokens // 3).long().expand(batch, -1)
    return Marks.of(index, segment)


SELF_EXTEND = {"name": "self-extend", "factor": 4.0, "original": 64, "window": 20, "group": 6}


def model_with(scaling, dtype=torch.float64, windows=()):
    positions = {"base": 500.0, "scaling": scaling, "context": 256, "trained": 64 if scaling["name"] != "none" else 256}
    sizes = {"vocab": 97, "width": 48, "layers": 3, "heads": 6, "kv_heads": 2, "head_size": 16, "mlp_width": 80}
    torch.manual_seed(0)
    model = Llama(LlamaConfig.parse(sizes | {"positions": positions, "windows": windows}, "test")).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.1))
            parameter.add_(1.0 if parameter.dim() == 1 else 0.0)
    return model
