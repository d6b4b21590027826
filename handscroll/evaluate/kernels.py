"""Records which kernels run a model on this machine, and why faster kernels were refused."""

from collections import Counter
from collections.abc import Callable, Iterator

import torch

from handscroll.kernels.native.library import reason
from handscroll.kernels.registry import Choice, recording
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.model import Decoder, Model
from handscroll.nn.compiled import stack
from handscroll.nn.marks import Marks

PROMPT, DRAFT = 32, 4  # tokens of a text, and of a draft that is read in one step after it
ONE = "one new token"
# Sizes of a decoder of the usual form, to see the kernels of this machine without a model of one's own.
USUAL = {"vocab": 256, "width": 256, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 64, "mlp_width": 512}
POSITIONS = {"base": 10000.0, "scaling": {"name": "none"}, "context": 256, "trained": 256}


def usual(dtype: torch.dtype) -> Decoder:
    """A small decoder of the usual form, with random weights."""
    return Llama(LlamaConfig.parse(USUAL | {"positions": POSITIONS}, "kernels")).to(dtype).eval()


def situations(model: Model) -> Iterator[tuple[str, Counter[Choice]]]:
    """(situation, chosen kernels) for a model that reads a text, a draft after it and one token, and that trains."""
    run = _runner(model)
    cache = model.new_cache() if model.spec.cached else None
    steps = [(f"reading {PROMPT} tokens", 0, PROMPT)]
    if cache is not None:
        steps.append((f"{DRAFT} new tokens after them (a draft)", PROMPT, DRAFT))
        # On a GPU the graph is captured at the third token.
        steps += [(ONE, PROMPT + DRAFT + n, 1) for n in range(3 if model.device.type == "cuda" else 1)]
    found: dict[str, Counter[Choice]] = {}
    for name, start, count in steps:
        with recording() as made, torch.no_grad():
            run(start, count, cache)
        found[name] = made
    yield from found.items()
    if all(parameter.requires_grad for parameter in model.parameters()) and not list(model.buffers()):
        with recording() as made:
            out = run(0, PROMPT, None)
            torch.autograd.grad(out.sum(), next(iter(model.parameters())), allow_unused=True)
        yield f"training on {PROMPT} tokens", made


def lines(model: Decoder) -> Iterator[str]:
    """`situations` as text: a line for each choice, and a line for each faster kernel that was refused.

    A compiled call of all layers computes products and attention itself; for a new token a further line says how.
    """
    yield f"compiled kernels: {reason()}"
    yield f"the model computes in {str(model.dtype).removeprefix('torch.')} on {model.device}"
    for name, made in situations(model):
        yield ""
        yield name
        for choice, count in made.items():
            yield f"  {choice.operation}: {choice.kernel} ({choice.why}){_times(count)}"
            for kernel, refusal in choice.refused:
                yield f"      not {kernel}: {refusal}"
            if (choice.kernel, name) == ("one call", ONE):
                yield f"      inside it: {stack.inside(model.layers)}"


def _times(count: int) -> str:
    return f", {count} times" if count > 1 else ""


def _runner(model: Model) -> Callable:
    """A function that runs a forward pass over `count` tokens from `start` on, with a cache."""
    tokens = torch.zeros(1, PROMPT, dtype=torch.int64, device=model.device)
    reader = model
    if model.spec.reads == "source":
        with torch.no_grad():
            reader = model.under(model.encode(tokens, Marks.run(0, PROMPT)))

    def run(start: int, count: int, cache) -> torch.Tensor:
        marks = Marks.run(start, count)
        hidden = reader.hidden(reader.embed(tokens[:, :count], marks), marks, reader.mask(), cache, 2 * PROMPT)
        return reader.logits(hidden) if model.spec.predicts else hidden

    return run
