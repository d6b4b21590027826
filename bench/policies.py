"""What rounded caches and weights cost: bytes freed and distance from the exact model, on a real text.

python -m bench.policies MODEL TEXT [--tokens 4096] [--dtype bfloat16]

The text is read in chunks of 64 tokens, so that nearly every key is read from the cache. Bytes are those of the cache
(or of the weights) against the same in the dtype of the exact run. KL is the mean and the worst divergence of the
next-token distribution from the exact one, in nats; "same" is the share of positions with the same likeliest token.
"""

import argparse
from pathlib import Path

import torch

from handscroll.cache.table import cache_of
from handscroll.generate.prefill import hidden_chunks
from handscroll.lm import LM, load
from handscroll.nn.marks import Marks


@torch.no_grad()
def read(lm: LM, ids: torch.Tensor, policy: str) -> tuple[torch.Tensor, int]:
    """Log-probabilities (T, V) after every token, and the bytes of the cache."""
    cache = lm.model.new_cache(len(ids), cache_of(policy))
    marks, parts = Marks.run(0, len(ids)), []
    for _, _, hidden in hidden_chunks(lm.model, ids[None], marks, cache, len(ids), 64):
        parts.append(lm.model.logits(hidden)[0].float().log_softmax(-1))
    return torch.cat(parts), cache.nbytes


def weight_bytes(lm: LM) -> int:
    tensors = {t.data_ptr(): t.nbytes for t in (*lm.model.parameters(), *lm.model.buffers())}
    return sum(tensors.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=0, help="0: the model's context")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    lms = {name: load(options.model, dtype=options.dtype, weights=name) for name in ("", "int8", "int4")}
    exact_lm = lms[""]
    ids = torch.tensor(exact_lm.encode(options.text.read_text(encoding="utf-8")))[: options.tokens or exact_lm.context]
    exact, cache_bytes = read(exact_lm, ids, "full")
    target = ids[1:, None]
    loss = -exact[:-1].gather(1, target).mean()
    print(f"{len(ids):,} tokens, {options.dtype}; exact: {loss:.4f} nats per token")
    print(
        f"{'cache':<8} {'weights':<9} {'cache':>7} {'weights':>8} {'KL mean':>9} {'worst':>8} {'loss':>9} {'same':>7}"
    )
    for policy in ("full", "int8", "int4"):
        for name, lm in lms.items():
            if policy == "full" and lm is exact_lm:
                continue
            got, size = read(lm, ids, policy)
            apart = (exact.exp() * (exact - got)).sum(-1)
            change = -got[:-1].gather(1, target).mean() - loss
            same = (exact.argmax(-1) == got.argmax(-1)).float().mean()
            shares = f"{size / cache_bytes:>7.0%} {weight_bytes(lm) / weight_bytes(exact_lm):>8.0%}"
            distance = f"{apart.mean():>9.1e} {apart.max():>8.1e} {change:>+9.4f} {same:>7.1%}"
            print(f"{policy:<8} {name or options.dtype:<9} {shares} {distance}")


if __name__ == "__main__":
    main()
