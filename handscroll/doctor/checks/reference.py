"""Are the logits those of the same weights in a second implementation, token by token?

A model of `transformers` is held against this package's, and the other way round. Where they differ and the second
implementation is ours, known mistakes are tried on it: the one that makes both equal is the diagnosis.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from handscroll.base.errors import HandscrollError
from handscroll.doctor.angles import USUAL
from handscroll.doctor.facts import Facts
from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import probe, room
from handscroll.doctor.runtime import Ids, Runtime, Trial, close, rows_apart
from handscroll.doctor.runtimes.ours import Ours
from handscroll.models.table import family as family_of
from handscroll.plan.machine import available_memory

TOKENS = 120
NEAR = 10  # times what rounding leaves: two implementations add their numbers in another order
COPY = 6  # bytes of memory that a parameter of the second copy takes while it is loaded in float32
LARGEST = 300_000_000  # parameters of a model that is copied to try a mistake on it
Mistake = Callable[[Any], Any]


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is not None and facts.reads == "blanks":
        raise Absent("it reads a text and fills its blanks")
    _afford(facts)
    other = runtime.other()
    windows = [window for window in (facts.windows if facts is not None else ()) if window and window <= 1024]
    count = TOKENS + max(windows, default=0)
    ids = probe(runtime, room(runtime, count))
    (found,), (wanted,) = runtime.read(Trial((ids,))), other.read(Trial((ids,)))
    if found.shape != wanted.shape:
        raise Cannot(f"one gives numbers of the form {tuple(found.shape)}, the other {tuple(wanted.shape)}")
    off, near = rows_apart(found, wanted), NEAR * max(runtime.rounding, other.rounding)
    what = f"{len(ids)} tokens in {runtime.kind} and {other.kind}: {close(float(off.max()), near)}"
    wrong = torch.nonzero(off > near).flatten()
    if not len(wrong):
        return Seen(what, numbers={"difference": float(off.max())})
    first = int(wrong[0])
    most = float(off.max())
    says = f"its logits leave those of {other.kind} at token {first}, by up to {most:.2g} of their spread"
    named = _named(other, ids, found, near) if isinstance(other, Ours) else ""
    fault = Fault(
        says + (f"; they equal those of a model in which {named}" if named else ""),
        "from this token on, and everywhere behind it, the model says something else than its weights mean"
        + (": the first token is right because it sees only itself" if first == 1 else ""),
        f"mend this in the runtime or the conversion: {named}"
        if named
        else "compare the two layer by layer; update the library, or convert the weights again",
    )
    return Seen(what, (fault,), numbers={"first": first})


def _afford(facts: Facts | None) -> None:
    """Refuse a second copy of the weights that the memory does not hold.

    Raises:
        Cannot: it does not.
    """
    if facts is None or facts.spec is None:
        return
    needed, free = int(COPY * facts.spec.parameters), available_memory()
    if needed > free:
        raise Cannot(f"a second copy of the weights takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _named(other: Ours, ids: Ids, found: Tensor, near: float) -> str:
    """The known mistake under which the second implementation gives the numbers of the first; empty if none does."""
    model = other.lm.model
    if model.spec.parameters > LARGEST:
        return ""
    for says, mistaken in (*_settings(model), *_ORDERS.items()):
        try:
            (made,) = Ours(replace(other.lm, model=mistaken(model))).read(Trial((ids,)))
        except HandscrollError:  # an impossible configuration: no runtime has it
            continue
        if made.shape == found.shape and float(rows_apart(found, made).max()) <= near:
            return says
    return ""


def _settings(model: Any) -> Iterator[tuple[str, Mistake]]:
    """Mistakes in reading the configuration: what it says, changed, as another model of the same weights."""
    kind = family_of(model.config.family)
    written = kind.write(model.config)
    rope = written.get("rope_scaling") or {}
    tries: dict[str, Mapping[str, Any]] = {
        "the rope scaling is not applied": {"rope_scaling": None},
        f"rope_theta is lost (it is {USUAL:g})": {"rope_theta": USUAL},
        f"rope_theta and the rope scaling are lost (it is {USUAL:g})": {"rope_theta": USUAL, "rope_scaling": None},
        "windows are ignored": {"sliding_window": None, "use_sliding_window": False},
    }
    if rope.get("factor"):
        factor, original = float(rope["factor"]), rope.get("original_max_position_embeddings")
        twice: dict[str, Any] = {"rope_scaling": {**rope, "factor": factor**2}}
        if original:
            twice["max_position_embeddings"] = int(original * factor**2)
        tries |= {
            "the scaling is read as 'linear'": {"rope_scaling": {"rope_type": "linear", "factor": factor}},
            "the factor of the scaling is applied twice": twice,
            "the attention factor is left out": {"rope_scaling": {**rope, "attention_factor": 1.0}},
        }
    for says, changes in tries.items():

        def mistaken(model: Any, changes: Mapping[str, Any] = changes) -> Any:
            made = kind.build(kind.parse({**written, **changes})).to(model.dtype).eval()
            made.load_state_dict(model.state_dict())
            return made

        yield says, mistaken


def _reordered(order: Callable[[int], Tensor]) -> Mistake:
    """The rotated numbers of every query and key head in another order."""

    @torch.no_grad()
    def mistaken(model: Any) -> Any:
        made = deepcopy(model)
        for number, layer in enumerate(made.spec.layers):
            for name, parameter in made.layers[number].attention.named_parameters():
                if name.startswith(("query", "key")):
                    heads = parameter.view(-1, layer.head_size, *parameter.shape[1:])
                    heads[:, : layer.rotated] = heads[:, order(layer.rotated)].clone()
        return made

    return mistaken


_ORDERS: dict[str, Mistake] = {
    "the two halves of each rotated head are swapped, so that angles turn backwards": _reordered(
        lambda count: torch.arange(count).roll(count // 2)
    ),
    "rotated pairs are taken side by side instead of from two halves": _reordered(
        lambda count: torch.arange(count).view(2, -1).T.flatten()
    ),
    "rotated pairs are taken from two halves instead of side by side": _reordered(
        lambda count: torch.arange(count).view(-1, 2).T.flatten()
    ),
}
CHECK = Check("Are the logits those of the same weights in a second implementation?", run)
