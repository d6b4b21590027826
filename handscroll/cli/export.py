"""`handscroll export`: write a checkpoint as a GGUF file, an ONNX graph or a folder, with adapters merged into it."""

from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.errors import ConfigError, nearest
from handscroll.cli.options import Adapter, Model
from handscroll.cli.screen import screen

FOLDER_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
GRAPH = ".onnx"


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The GGUF file, or the folder, to write; it must not exist.")],
    kind: Annotated[
        str,
        typer.Option("--type", help="Matrices: f32, f16, bf16; file: q8_0, q4_0 [f16]; folder: int8, int4 [as MODEL]."),
    ] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write a folder with an ONNX graph (float32).")] = False,
    length: Annotated[
        int | None, typer.Option(help="With --onnx: tokens of a request, for scalings that depend on it. [the context]")
    ] = None,
    adapter: Adapter = None,
) -> None:
    """Write MODEL as a GGUF file, which llama.cpp and this package read, as an ONNX graph, or as a folder."""
    from handscroll.base.gguf import SUFFIX
    from handscroll.lm import load

    if out.exists():
        raise ConfigError(f"{out} exists; give a new name, so that nothing is overwritten")
    if length is not None and not onnx:
        raise ConfigError("--length belongs to --onnx: other forms serve requests of every length")
    if onnx:
        _graph(model, out, kind, length, adapter)
        return
    if out.suffix == SUFFIX:
        load(model, weights="float", adapter=adapter).merge().export_gguf(out, kind or "f16")
    elif out.suffix == GRAPH:
        raise ConfigError(f"{out}: a graph comes with its tokenizer; give the name of a folder, and --onnx")
    else:
        _folder(model, out, kind, adapter)
    _say(out)


def _say(out: Path) -> None:
    size = sum(path.stat().st_size for path in (out.iterdir() if out.is_dir() else [out]))
    screen().print(f"written: {out} ({size / 1e6:,.1f} MB)")


def _graph(model: str, out: Path, kind: str, length: int | None, adapter: list[str] | None) -> None:
    """Write a folder with an ONNX graph, and say how far it is from the model."""
    from handscroll.base.gguf import SUFFIX
    from handscroll.lm import load

    if kind not in ("", "f32"):
        raise ConfigError(f"--type {kind}: a graph is written in f32, in which it was compared; leave out --type")
    if out.suffix in (SUFFIX, GRAPH):
        raise ConfigError(f"{out}: --onnx writes a folder, with the tokenizer beside the graph; give its name")
    lm = load(model, dtype="float32", weights="float", adapter=adapter).merge()
    found = lm.export_onnx(out, length)
    _say(out)
    screen().print(
        f"onnxruntime's outputs are the model's to {found.largest:.1e} ({found.numbers:,} numbers compared)",
    )


def _folder(model: str, out: Path, kind: str, adapter: list[str] | None) -> None:
    """Write a folder in a float dtype, or with rounded weights."""
    import torch

    from handscroll.base.gguf import SUFFIX
    from handscroll.lm import load
    from handscroll.models.adapters import over_base, weighted
    from handscroll.models.locate import locate
    from handscroll.models.weights import loaded_dtype
    from handscroll.nn.quantised import PROJECTIONS, quantise

    allowed = (*FOLDER_TYPES, *PROJECTIONS)
    if kind and kind not in allowed:
        raise ConfigError(
            f"--type {kind} for the folder {out}: {nearest(kind, allowed)}; other types are for files that end in "
            f"{SUFFIX}"
        )
    base, adapters = over_base(model, weighted(adapter))
    if kind in PROJECTIONS and not adapters:
        lm = load(model, weights=kind)  # rounded while it is read
    else:
        lm = load(model, weights="float", adapter=adapter).merge()
        if kind in PROJECTIONS:
            quantise(lm.model, kind)
        else:
            stored = loaded_dtype(locate(base), "cuda")  # a CPU would widen float16
            lm.model.to(getattr(torch, FOLDER_TYPES[kind]) if kind else stored)
    lm.save(out)


def register(app: typer.Typer) -> None:
    app.command()(export)
