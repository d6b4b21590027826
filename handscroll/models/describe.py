"""The facts of a checkpoint, as lines for `info` and for reports."""

from pathlib import Path

from handscroll.base.gguf import is_gguf
from handscroll.base.spec import Positions
from handscroll.models.gguf.load import ignored_keys
from handscroll.models.peft import read_adapter
from handscroll.models.positions import notes
from handscroll.models.weights import read_config, read_json, settled_config, weight_sizes
from handscroll.nn.positions.rotary import Rotary

PLAIN = {"F64", "F32", "F16", "BF16"}  # names of formats that are not quantised


def facts(source: Path) -> list[tuple[str, str]]:
    """Lines (name, value) about a checkpoint, read only from its configuration and the headers of its weights."""
    kind, config = settled_config(source)
    parameters, dtype, stored = weight_sizes(source)
    if config.spec.recurrent:
        return _recurrent(config, parameters, dtype, stored) + _labels(config) + _ignored(source)
    spec = config.spec
    layers = " + ".join(str(len(side)) for side in (spec.encoder, spec.layers) if side)
    lines = [
        ("family", kind.name),
        ("parameters", f"{parameters:,} ({dtype}, {stored / 1e6:.1f} MB on disk)"),
        ("layers x width", f"{layers} x {config.width}, {config.heads} heads, {config.kv_heads} kv heads"),
        ("vocabulary", f"{config.vocab:,}"),
        ("context", f"{config.context:,} tokens"),
        ("trained length", f"{config.trained:,} tokens"),
        ("positions", config.describe_positions()),
    ]
    lines += _position_notes(source, spec.positions)
    mixed = next((layer for layer in spec.layers if layer.experts), None)
    if mixed is not None:
        count = sum(layer.experts > 0 for layer in spec.layers)
        read = f"{mixed.chosen} of {mixed.experts} read a token in {count} of {config.layers} layers"
        lines.append(("experts", f"{read}; a token meets {spec.active:,} parameters"))
    windows = spec.windows
    if any(windows):
        sizes = sorted({w for w in windows if w is not None})
        count = sum(w is not None for w in windows)
        side = "on each side and the own one, " if any(layer.ahead for layer in spec.layers) else ""
        sizes = [size - 1 for size in sizes] if side else sizes
        told = f"{', '.join(map(str, sizes))} tokens {side}in {count} of {config.layers} layers"
        lines.append(("attention window", told))
    quantised = not set(dtype.split("/")) <= PLAIN
    return lines + _cache(config, quantised) + _labels(config) + _ignored(source)


def _cache(config, quantised: bool) -> list[tuple[str, str]]:
    """What a full cache takes, in the dtype that models so stored keep on a CPU; an encoder has none."""
    spec = config.spec
    if not spec.cached:
        return []
    sizes = (("float16", 2), ("float32", 4)) if quantised else (("float32", 4), ("bfloat16", 2))
    each = ", ".join(f"{spec.cache_bytes(1, size):,} bytes in {name}" for name, size in sizes)
    name, usual = sizes[0]
    longest = max((window for window in spec.windows if window is not None), default=0)
    if longest:  # past the longest window only the layers without windows grow
        further = spec.cache_bytes(longest + 1, usual) - spec.cache_bytes(longest, usual)
        each += f"; {further:,} bytes in {name} behind token {longest:,}"
    full = spec.cache_bytes(config.context, usual)
    return [("KV cache per token", each), ("KV cache, full context", f"{full / 1e6:,.1f} MB in {name}")]


def adapter_facts(folder: Path) -> list[tuple[str, str]]:
    """Lines about an adapter folder."""
    found = read_adapter(folder)
    return [("adapter", found.describe()), ("adapter of", found.base or "a base that it does not name")]


def _position_notes(source: Path, positions: tuple[Positions, ...]) -> list[tuple[str, str]]:
    """What was concluded from the position settings of a folder."""
    rotary = [one for one in positions if isinstance(one, Rotary)]
    if is_gguf(source) or not rotary:
        return []
    return [("position settings", note) for note in notes(read_json(source / "config.json"), rotary[0])]


def _ignored(source: Path) -> list[tuple[str, str]]:
    """The keys of a file that change nothing here."""
    if is_gguf(source):
        title, names = "metadata not used", ignored_keys(source)
    else:
        title, names = "config keys not used", read_config(source)[0].ignored(read_json(source / "config.json"))
    return [(title, ", ".join(names))] if names else []


def _labels(config) -> list[tuple[str, str]]:
    """The head, where it is another one than that for the next token, and its labels."""
    spec = config.spec
    if spec.head is not None:
        labels = spec.head.labels
        return [("head", spec.head.words), *([("labels", ", ".join(labels))] if labels else [])]
    if spec.both_ways:
        return [("head", "hidden tokens (masked)" if spec.predicts else "none (a bare encoder, for vectors of texts)")]
    return []


def _recurrent(config, parameters: int, dtype: str, stored: int) -> list[tuple[str, str]]:
    """The lines of a model that keeps a state instead of a cache."""
    return [
        ("family", config.family),
        ("parameters", f"{parameters:,} ({dtype}, {stored / 1e6:.1f} MB on disk)"),
        ("layers x width", f"{config.layers} x {config.width}"),
        ("vocabulary", f"{config.vocab:,}"),
        ("context", "any length"),
        ("trained length", f"{config.trained:,} tokens"),
        ("positions", config.describe_positions()),
        ("state", f"{config.spec.cache_bytes(1, 4):,} bytes in float32, whatever the length"),
    ]
