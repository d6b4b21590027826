"""Mixed precision reaches every form of attention."""

import torch

from handscroll.models.llama import Llama, LlamaConfig


def test_query_and_key_norms_under_bfloat16_autocast():
    """Norms with float32 weights give float32 under autocast; queries and keys must meet the values in bfloat16."""
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 64, "trained": 64}
    sizes = {"vocab": 64, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 16, "mlp_width": 96}
    model = Llama(LlamaConfig(**sizes, tied=True, query_key_norm=True, positions=positions))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    tokens = torch.randint(0, 64, (1, 40), generator=draw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(tokens)
        narrow.float().logsumexp(-1).sum().backward()
    assert model.layers[0].attention.query_norm.weight.grad.abs().sum() > 0
    wide = model(tokens)
    assert (narrow.float() - wide).norm() / wide.norm() < 0.05
