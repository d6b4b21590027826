"""`handscroll info`: the facts of a checkpoint, without loading its weights, and the kernels that run it."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.cli.options import Adapter, refuse_idle
from handscroll.cli.screen import screen


def info(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file or hub id; optional with --kernels.")] = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="Show which kernels run here, and why.")] = False,
    dtype: Annotated[str, typer.Option(help="Dtype of the model for --kernels.")] = "auto",
    device: Annotated[str, typer.Option(help="Device of the model for --kernels.")] = "cpu",
    weights: Annotated[str, typer.Option(help="Rounded weights for --kernels: int8 or int4.")] = "",
    vllm: Annotated[bool, typer.Option("--vllm", help="Show the command that serves a folder on vLLM.")] = False,
    adapter: Adapter = None,
) -> None:
    """Show family, parameters, context, position method and bytes per token of KV cache."""
    from handscroll.base.errors import ConfigError
    from handscroll.models.adapters import over_base, weighted
    from handscroll.models.describe import adapter_facts, facts
    from handscroll.models.locate import locate
    from handscroll.models.weights import is_adapter

    refuse_idle(
        context,
        (kernels, ("dtype", "device", "weights"), "give --kernels too"),
        (not kernels, ("vllm",), "--kernels shows kernels only, so leave one of the two out"),
        (not vllm, ("adapter",), "--vllm shows how a folder is served, so leave it out"),
        (model, ("adapter",), "it changes a model, so name one"),
    )
    if kernels:
        _kernels(model, dtype, device, weights, adapter)
        return
    if vllm and model:
        _vllm(Path(locate(model)))
        return
    if not model:
        raise ConfigError("no model was given: name a checkpoint folder, or give --kernels")
    source, adapters = over_base(model, weighted(adapter))
    if is_adapter(Path(source)):  # its base is not here
        lines = adapter_facts(Path(source))
    else:
        path = Path(locate(source))
        lines = [*facts(path), *_recommended(path)]
    for name, value in lines + [line for one in adapters for line in adapter_facts(one.folder)]:
        screen().print(f"{name:<22} {value}")


def _recommended(path: Path) -> list[tuple[str, str]]:
    """What the checkpoint says about its continuations: end tokens and settings."""
    from handscroll.base.errors import CheckpointError
    from handscroll.generate.defaults import Defaults, told
    from handscroll.models.weights import read_config
    from handscroll.text.tokenizer import Tokenizer

    defaults, (_, config) = Defaults.load(path), read_config(path)
    ends, lines = defaults.ends(config.vocab) or config.eos, []
    try:
        tokenizer = Tokenizer.load(path)
        named = [f"{number} {tokenizer.token(number)}" for number in ends]
        if tokenizer.settings.get("chat_template"):
            lines.append(("chat template", "yes: handscroll chat, generate --chat"))
    except CheckpointError:  # the facts of a model are shown without its tokenizer too
        named = [str(number) for number in ends]
    lines += [("end tokens", ", ".join(named))] if ends else []
    taken, unused = defaults.taken({}), defaults.unused()
    lines += [("sampling", f"{told(taken)} (recommended by the checkpoint)")] if taken else []
    return lines + ([("generation, not used", told(unused))] if unused else [])


def _vllm(folder: Path) -> None:
    from handscroll.models.vllm import serving

    found = serving(folder)
    for line in (found.command, *found.notes):
        screen().print(line)


def _kernels(model: str, dtype: str, device: str, weights: str, adapter: list[str] | None) -> None:
    from handscroll import lm
    from handscroll.evaluate.kernels import lines, usual
    from handscroll.models.weights import check_device
    from handscroll.nn.quantised import PROJECTIONS, quantise

    if model:
        loaded = lm.load(model, device, dtype, weights, adapter).model
    else:
        lm.check_numbers(dtype, weights)
        check_device(device)
        loaded = usual(lm.DTYPES["bfloat16" if dtype == "auto" else dtype]).to(device)
        loaded = quantise(loaded, weights) if weights in PROJECTIONS else loaded
    for line in lines(loaded):  # type: ignore[arg-type]
        screen().print(line)


def register(app: typer.Typer) -> None:
    app.command()(info)
