"""The identity of a reading, and the fingerprint of the weights of a model."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import torch

from handscroll.cache.reading.identity import Identity
from handscroll.cache.table import DEFAULT
from handscroll.models.model import Model

_known: WeakKeyDictionary[Model, tuple[Any, str]] = WeakKeyDictionary()


def identity(model: Model, tokenizer: str, length: int, policy: str = DEFAULT) -> Identity:
    """The identity of a reading that `model` makes in a request of `length` tokens; `tokenizer` is its fingerprint."""
    spec = model.spec
    return Identity(
        model=fingerprint(model),
        positions=json.dumps([one.model_dump(mode="json") for one in spec.positions], sort_keys=True),
        bucket=spec.bucket(spec.declared(length)),
        tokenizer=tokenizer,
        dtype=str(model.dtype).removeprefix("torch."),
        policy=policy,
        kept="" if model.cache_dtype == model.dtype else str(model.cache_dtype).removeprefix("torch."),
    )


def fingerprint(model: Model) -> str:
    """SHA-256 over the configuration and the names, shapes and bytes of all weights.

    The result is kept until a weight is changed or replaced.
    """
    weights = sorted(model.state_dict(keep_vars=True).items())
    config = model.config.model_dump_json(exclude={"positions", "bos", "eos"})
    version = [config, [(id(t), t.data_ptr(), t._version, t.dtype) for _, t in weights]]
    kept = _known.get(model)
    if kept is not None and kept[0] == version:
        return kept[1]

    def digest(tensor: torch.Tensor) -> bytes:
        return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).digest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashlib lets other threads run
        digests = list(pool.map(digest, (tensor for _, tensor in weights)))
    whole = hashlib.sha256(config.encode())
    for (name, tensor), found in zip(weights, digests, strict=True):
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + found)
    _known[model] = (version, whole.hexdigest())
    return whole.hexdigest()
