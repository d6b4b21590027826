"""What offloading costs in time, and retrieval in distance: a real text, then token by token with the caches in turn.

python -m bench.retrieval MODEL TEXT [--tokens 8192] [--new 64] [--dtype bfloat16] [--policies A B ...]

The last --new tokens are given one at a time. "memory" is what the cache holds in memory, "read" how many tokens a new
one reads at most. KL is the mean and worst divergence of the next-token distribution from that with the full cache, in
nats; recall the share of the exact attention's mass, over layers and heads, and in the worst layer.
"""

import argparse
import time
from pathlib import Path

import torch

from handscroll.cache.cache import Cache
from handscroll.cache.retrieval import RetrievalCache
from handscroll.cache.table import cache_of
from handscroll.generate.prefill import prefill
from handscroll.lm import LM, load
from handscroll.nn.marks import Marks

POLICIES = ("full", "offload", *(f"retrieval:blocks={n}" for n in (16, 32, 64, 128)))


@torch.no_grad()
def read(lm: LM, ids: torch.Tensor, new: int, cache: Cache) -> tuple[torch.Tensor, float]:
    """Log-probabilities (new, V) after each of the last tokens, and the median seconds of one."""
    first, parts, times = len(ids) - new, [], []
    prefill(lm.model, ids[None, :first], Marks.run(0, first), cache, len(ids))
    for at in range(first, len(ids)):
        started, marks = time.perf_counter(), Marks.run(at, 1)
        embedded = lm.model.embed(ids[None, at : at + 1], marks)
        hidden = lm.model.hidden(embedded, marks, lm.model.mask(), cache, len(ids))
        parts.append(lm.model.logits(hidden)[0].float().log_softmax(-1))
        times.append(time.perf_counter() - started)
    return torch.cat(parts), sorted(times)[new // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    options = parser.parse_args()
    lm = load(options.model, dtype=options.dtype)
    ids = torch.tensor(lm.encode(options.text.read_text(encoding="utf-8")))[: options.tokens]
    print(f"{len(ids):,} tokens, {options.dtype}; the last {options.new} one at a time")
    print(f"{'cache':<24} {'memory':>9} {'read':>7} {'ms':>6} {'KL mean':>8} {'worst':>8} {'same':>7}  recall  worst")
    exact = None
    for policy in options.policies:
        cache = lm.model.new_cache(len(ids), cache_of(policy))
        if isinstance(cache, RetrievalCache):
            cache.measure = 8
        got, seconds = read(lm, ids, options.new, cache)
        exact = got if exact is None else exact
        apart = (exact.exp() * (exact - got)).sum(-1)
        same = (exact.argmax(-1) == got.argmax(-1)).float().mean()
        recall = cache.recall if isinstance(cache, RetrievalCache) else None
        reads = f"{cache.reads:>7,}" if isinstance(cache, RetrievalCache) else f"{len(ids):>7,}"
        shares = f"{recall.mean:>7.1%} {recall.worst:>6.1%}" if recall else ""
        line = f"{policy:<24} {cache.nbytes / 1e6:>6.2f} MB {reads} {1e3 * seconds:>6.1f} {apart.mean():>8.1e}"
        print(f"{line} {apart.max():>8.1e} {same:>7.1%} {shares}", flush=True)


if __name__ == "__main__":
    main()
