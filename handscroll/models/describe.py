"""The facts of a checkpoint, as lines for `info` and for reports."""

from pathlib import Path

from handscroll.base.gguf import is_gguf
from handscroll.models.gguf.load import ignored_keys
from handscroll.models.weights import read_config, read_json, weight_sizes


def facts(source: Path) -> list[tuple[str, str]]:
    """Lines (name, value) about a checkpoint, read only from its configuration and the headers of its weights."""
    kind, config = read_config(source)
    parameters, dtype, stored = weight_sizes(source)
    if config.spec.recurrent:
        return _recurrent(config, parameters, dtype, stored) + _labels(config) + _ignored(source)
    per_token = {name: config.cache_bytes_per_token(size) for name, size in (("float32", 4), ("bfloat16", 2))}
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
    windows = spec.windows
    if any(windows):
        sizes = sorted({w for w in windows if w is not None})
        count = sum(w is not None for w in windows)
        lines.append(("attention window", f"{', '.join(map(str, sizes))} tokens in {count} of {config.layers} layers"))
    each = ", ".join(f"{size:,} bytes in {name}" for name, size in per_token.items())
    if any(windows):  # past the longest window only the layers without windows grow
        longest = max(w for w in windows if w is not None)
        further = spec.cache_bytes(longest + 1, 4) - spec.cache_bytes(longest, 4)
        each += f"; {further:,} bytes in float32 behind token {longest:,}"
    full = spec.cache_bytes(config.context, 4)
    lines.append(("KV cache per token", each))
    lines.append(("KV cache, full context", f"{full / 1e6:,.1f} MB in float32"))
    return lines + _labels(config) + _ignored(source)


def _ignored(source: Path) -> list[tuple[str, str]]:
    """The keys of a file that change nothing here."""
    if is_gguf(source):
        title, names = "metadata not used", ignored_keys(source)
    else:
        title, names = "config keys not used", read_config(source)[0].ignored(read_json(source / "config.json"))
    return [(title, ", ".join(names))] if names else []


def _labels(config) -> list[tuple[str, str]]:
    found = config.spec.labels
    return [("labels", ", ".join(found))] if found else []


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
