"""Reading a text into the store, from where the store already knows it."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.store import Store
from handscroll.cache.table import cache_of
from handscroll.generate.prefill import hidden_chunks
from handscroll.models.model import Model
from handscroll.nn.marks import Marks


@torch.no_grad()
def read_into(
    store: Store,
    model: Model,
    about: Identity,
    ids: Int[Tensor, "T"],
    declared: int,
    source: str,
    on_read: Callable[[int, int], None] | None = None,
) -> str:
    """Read what the store does not hold of `ids` and keep it; returns the number of the reading that holds all.

    `about` says what the reading belongs to and the policy of its cache, `declared` is the length that is declared to
    the model's scaling, `source` where the model came from. `on_read(done, all)` is called after every chunk.

    Raises:
        CapacityError: the store's limit. CheckpointError: the disk refused, or a saved beginning is damaged.
    """
    before = store.find(about, ids)
    first = 0 if before is None else before.length
    if before is not None and first >= len(ids):
        return before.number
    element = 1 if about.policy == "int8" else model.dtype.itemsize
    store.afford(model.config.cache_bytes_per_token(element) * (len(ids) - first))
    kind = cache_of(about.policy)
    if before is None:
        cache = kind(model.config.layers, capacity=len(ids))
    else:
        cache = before.cache(len(ids) - first, model.device, kind)
    marks, tokens = Marks.run(first, len(ids) - first), ids[None, first:].to(model.device)
    for _, last, _ in hidden_chunks(model, tokens, marks, cache, declared):
        if on_read is not None:
            on_read(first + last, len(ids))
    return store.save(about, ids, cache, before, source)
