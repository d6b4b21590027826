"""T5 of the reference library, small and random, in all its forms."""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SIZES = {"vocab_size": 97, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 3, "num_heads": 6}


SIZES |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


FORMS = {
    "v1.0": ("T5", {"feed_forward_proj": "relu"}),
    "v1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "silu, shallow decoder": (
        "T5",
        {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_decoder_layers": 2},
    ),
    "mt5": ("MT5", {}),
    "few buckets": ("T5", {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}),
}


def reference(form: str, seed: int = 0):
    """A random model with weights large enough to make attention matter."""
    kind, extra = FORMS[form]
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(**SIZES, **extra)
    ).eval()
    if form not in ("v1.0", "few buckets"):  # version 5 of the library ties every new T5, which published ones are not
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(0.0, 1.0)
    return model


def save(form: str, folder: Path):
    """The folder of a reference model, with the head as published files have it."""
    model = reference(form)
    model.save_pretrained(folder)
    if form not in ("v1.0", "few buckets"):
        state = {name: t.clone().contiguous() for name, t in model.state_dict().items() if "embed_tokens" not in name}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed + length))


@torch.no_grad()
def theirs_at(model, source, target, source_lengths=None):
    mask = None
    if source_lengths is not None:
        mask = (torch.arange(source.shape[1])[None] < source_lengths[:, None]).long()
    return model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
