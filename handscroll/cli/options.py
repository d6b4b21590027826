"""Options that several verbs share."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handscroll.base.errors import ConfigError
from handscroll.cli.screen import error_screen

if TYPE_CHECKING:
    from handscroll.lm import LM
    from handscroll.text.readers import Reader

Model = Annotated[str, typer.Argument(help="The model: a checkpoint folder, a GGUF file or a hub id.")]
Beyond = Annotated[bool, typer.Option("--beyond", help="Allow more tokens than the model's context.")]
Device = Annotated[str, typer.Option(help="Device: cpu, or cuda for a GPU (docs/gpu.md).")]
Dtype = Annotated[
    str,
    typer.Option(help="Dtype: auto (as the checkpoint is stored), float32, bfloat16, float16 or float64."),
]
Weights = Annotated[
    str, typer.Option(help="int8 or int4 rounds the weights (approximate); float widens quantised ones.")
]
Guard = Annotated[
    float | None, typer.Option("--kv-guard", help="Largest mean KL divergence for --kv-budget, in nats. [0.01]")
]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0 is greedy. [the checkpoint's, or greedy]")
]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability mass.")]
FILES = "Text, code, HTML, PDF, Word, EPUB, JSON lines, CSV, Parquet: files, folders or globs."
Key = Annotated[str, typer.Option(help="JSON key or table column that holds the text. [text, else content]")]
Encoding = Annotated[str, typer.Option(help="Encoding of text files, such as big5. [recognised]")]
SkipPictures = Annotated[
    bool, typer.Option("--skip-pictures", help="Leave out pages of PDF files that are only pictures.")
]
Adapter = Annotated[
    list[str] | None,
    typer.Option(help="Adapter folder (LoRA of PEFT's form) over the model; FOLDER=0.5 takes half of it; repeatable."),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Leave out the settings that the checkpoint recommends (docs/generate.md).")
]


def text_or_input(text: str) -> str:
    """A text of the command line; "-" stands for standard input, whose encoding is recognised as that of a file.

    Raises:
        DataError: standard input is empty, or no text.
    """
    if text != "-":
        return text
    from handscroll.text.encodings import decode

    return decode(sys.stdin.buffer.read(), "standard input")[0]


def given(**options: Any) -> Any:
    """The options that were given, as settings; the others are left to the checkpoint."""
    return {name: value for name, value in options.items() if value is not None}


def given_options(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line, without their dashes."""
    return {
        one.opts[0].lstrip("-")
        for one in context.command.params
        if (source := context.get_parameter_source(one.name or "")) is not None and source.name == "COMMANDLINE"
    }


def refuse_idle(context: typer.Context, *rules: tuple[Any, tuple[str, ...], str]) -> None:
    """Refuse options that would do nothing. A rule has a condition, the options that need it, and what to do."""
    stated = given_options(context)
    for used, names, instead in rules:
        idle = [name for name in names if name in stated]
        if idle and not used:
            raise ConfigError(f"--{idle[0]} does nothing here: {instead}")


def one_cache(cache: str, kv_budget: str, kv_guard: float | None) -> None:
    """Refuse settings of the cache that exclude each other."""
    if kv_budget and cache:
        raise ConfigError(f"--kv-budget chooses the cache and --cache {cache} names one: leave out one of the two")
    if kv_guard is not None and not kv_budget:
        raise ConfigError("--kv-guard belongs to --kv-budget: give --kv-budget SIZE too, or leave it out")


def rounds(weights: str) -> bool:
    """Whether `--weights` makes a model approximate; "float" is exact."""
    return weights not in ("", "float")


def say_weights(weights: str) -> None:
    """Say on standard error that rounded weights are approximate."""
    if rounds(weights):
        error_screen().print(f"approximate: --weights {weights} (docs/generate.md says how far)")


def say_cache(policy: str, why: str) -> None:
    """Say on standard error that a cache is approximate, if it is; `why` it is used."""
    from handscroll.cache.table import kind_of

    if not kind_of(policy).exact:
        error_screen().print(f"approximate: {why} (docs/generate.md says how far)")


def say_defaults(lm: "LM", settings: Any) -> None:
    """Name the settings that come from the checkpoint, on standard error."""
    from handscroll.generate.defaults import told

    if taken := lm.defaults.taken(settings):
        error_screen().print(f"as the checkpoint recommends: {told(taken)} (--plain leaves it out)")


def say_cut(max_tokens: int) -> Callable[[str], None]:
    """What says on standard error, once the answer has ended, that it was cut."""

    def told(finish: str) -> None:
        if finish == "length":
            error_screen().print(f"\n[cut after {max_tokens:,} tokens: --max-tokens]", style="dim")

    return told


def reader(key: str, encoding: str, skip_pictures: bool, whole_rows: bool = False) -> "Reader":
    """How the files of a verb are read, from its options."""
    from handscroll.text.readers import Reader

    return Reader(key or None, encoding or None, skip_pictures, whole_rows)


def numbers(text: str, kind: type, option: str) -> list[Any]:
    """The numbers of an option that takes several.

    Raises:
        ConfigError: one is no number of this kind.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers separated by commas, such as 512,1024") from None


@dataclass(frozen=True)
class Loading:
    """The options of a verb that measures a model on texts: how the model is loaded, and how the files are read."""

    dtype: Dtype = "auto"
    device: Device = "cpu"
    adapter: Adapter = None
    key: Key = ""
    encoding: Encoding = ""
    skip_pictures: SkipPictures = False

    def model(self, name: str) -> "LM":
        from handscroll.lm import load

        return load(name, self.device, self.dtype, adapter=self.adapter)

    def reader(self) -> "Reader":
        return reader(self.key, self.encoding, self.skip_pictures)


LOADING = Loading()  # the default of a verb's parameter


def with_loading(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb for typer: in the place of its parameter `loading` stand the options of `Loading`."""
    options = list(signature(Loading).parameters.values())
    own = [(options if one.name == "loading" else [one]) for one in signature(verb).parameters.values()]

    @wraps(verb)
    def told(**given: Any) -> None:
        loading = Loading(**{option.name: given.pop(option.name) for option in options})
        verb(**given, loading=loading)

    told.__signature__ = Signature([one for part in own for one in part])  # type: ignore[attr-defined]
    return told
