"""What a configuration promises: the sizes, positions and windows that the checks hold a runtime to.

The numbers are read from the content of `config.json` (a GGUF file's header says the same under other names), and not
from the runtime. Where the family is known here, what a file leaves open has its published value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.errors import HandscrollError
from handscroll.base.spec import ModelSpec
from handscroll.doctor.angles import Rope
from handscroll.models.table import FAMILIES
from handscroll.models.table import family as family_of

Settings = Mapping[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
_ROPE = ("rope_parameters", "rope_scaling")
_BASES = ("rope_theta", "rotary_emb_base", "global_rope_theta")
_LOCAL = ("rope_local_base_freq", "local_rope_theta")


@dataclass(frozen=True)
class Turning:
    """The rotary settings of the layers of one kind; `layers` are their numbers."""

    kind: str
    rope: Rope
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """The promises of a configuration.

    `spec` is what this package understands of it (None: the family is not known, or `refused` says why not). `rows` are
    those of a learned table of positions (None: there is none, or it is not known).
    """

    settings: Settings
    layers: int
    vocab: int
    context: int
    trained: int
    windows: tuple[int | None, ...]
    turnings: tuple[Turning, ...]
    tied: bool
    spec: ModelSpec | None = None
    refused: str = ""
    special: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """How the model reads ("forward" unless it says otherwise): see `base/spec.py: ModelSpec`."""
        if self.spec is not None:
            return self.spec.reads
        if self.settings.get("is_encoder_decoder"):
            return "source"
        return "forward"

    @property
    def rows(self) -> int | None:
        return None if self.spec is None else self.spec.limit

    @property
    def relative(self) -> bool:
        """Whether only the distance of tokens counts, so that a text may stand at any position."""
        if self.spec is None:
            return bool(self.turnings)
        return self.spec.limit is None and not any(one.rows for one in self.spec.positions)

    @property
    def by_length(self) -> bool:
        return any(one.rope.by_length for one in self.turnings)


def facts_of(settings: Settings, more: Settings | None = None) -> Facts:
    """The promises of the content of a `config.json`; `more` says what the file leaves open (a library's defaults)."""
    settings = {**settings, **(settings.get("text_config") or {})}
    spec, refused, whole = _understood(settings)
    look = _over({**whole, **(more or {})}, settings)
    layers = int(_first(look, "num_hidden_layers", "n_layer", "num_layers") or (len(spec.layers) if spec else 0))
    turnings = _turnings(look, layers, spec)
    context = int(_first(look, "max_position_embeddings", "n_positions") or 0)
    trained = turnings[0].rope.original if turnings else context
    if spec is not None and not turnings:
        context, trained = spec.limit or context, spec.positions[0].trained
    reach = max((one.rope.reach for one in turnings), default=0)
    return Facts(
        settings=look,
        layers=layers,
        vocab=int(look.get("vocab_size") or (spec.vocab if spec else 0)),
        context=max(context, reach) or trained,
        trained=trained or context,
        windows=spec.windows if spec is not None else _windows(look, layers),
        turnings=turnings,
        tied=spec.tied if spec is not None else bool(look.get("tie_word_embeddings", False)),
        spec=spec,
        refused=refused,
        special={role: _ids(look.get(f"{role}_token_id")) for role in ("bos", "eos", "pad")},
    )


def _understood(settings: Settings) -> tuple[ModelSpec | None, str, Settings]:
    """The spec of a known family, and the configuration with nothing left open; else the reason why not."""
    name = settings.get("model_type")
    if name not in FAMILIES:
        return None, f"the family {name!r} is not known here", {}
    kind = family_of(name)
    try:
        config = kind.parse(dict(settings))
        return config.spec, "", kind.write(config)
    except HandscrollError as error:
        return None, str(error), {}


def _over(left: Settings, settings: Settings) -> dict[str, Any]:
    """The file over what it leaves open; of several forms of rope settings only that of the file stays."""
    given = {key: value for key, value in settings.items() if value is not None}
    tables = _tables(given)
    gone: set[str] = set()
    if tables or _first(given, *_BASES) is not None:
        gone |= set(_ROPE)
    if _first(given, *_BASES) is not None or any("rope_theta" in table for table in tables.values()):
        gone |= set(_BASES)
    if _first(given, *_LOCAL) is not None or len(tables) > 1:
        gone |= set(_LOCAL)
    return {key: value for key, value in left.items() if key not in gone} | given


def _tables(settings: Settings) -> dict[str, Settings]:
    """The rope tables of a file by the kind of layers ("" where all are alike)."""
    found: dict[str, Settings] = {}
    for key in reversed(_ROPE):
        table = settings.get(key)
        if not isinstance(table, Mapping) or not table:
            continue
        inner = {kind: value for kind, value in table.items() if isinstance(value, Mapping)}
        found |= inner or {"": table}
    if len(found) > 1:
        found.pop("", None)
    return found


def _turnings(settings: Settings, layers: int, spec: ModelSpec | None) -> tuple[Turning, ...]:
    if spec is not None and not spec.rotates:
        return ()
    tables = _tables(settings)
    base, local = _first(settings, *_BASES), _first(settings, *_LOCAL)
    if not tables and base is None and spec is None:
        return ()
    heads = int(_first(settings, "num_attention_heads", "n_head") or 1)
    size = int(settings.get("head_dim") or int(_first(settings, "hidden_size", "n_embd") or 0) // heads)
    found = []
    kinds = _kinds(settings, layers, spec)
    for kind, numbers in kinds.items():
        table = tables.get(kind, tables.get("", {}) if kind != SLIDING or local is None else {})
        theta = table.get("rope_theta") or (local if kind == SLIDING and local is not None else base)
        share = _first(table, "partial_rotary_factor") or _first(settings, "partial_rotary_factor", "rotary_pct") or 1.0
        rope = _rope(table, settings, float(theta or 10_000.0), int(size * float(share)))
        found.append(Turning(kind if len(kinds) > 1 else "", rope, numbers))
    return tuple(found)


def _kinds(settings: Settings, layers: int, spec: ModelSpec | None) -> dict[str, tuple[int, ...]]:
    """The kinds of layers that rotate alike, with the numbers of their layers."""
    numbers = range(layers)
    if spec is not None:
        numbers = [number for number in numbers if spec.layers[number].rotated]
        separate = len({spec.layers[number].positions for number in numbers}) > 1
    else:
        separate = bool(_first(settings, *_LOCAL)) or len(_tables(settings)) > 1
    types = settings.get("layer_types")
    if not separate or not types:
        return {FULL: tuple(numbers)}
    return {kind: tuple(n for n in numbers if types[n] == kind) for kind in dict.fromkeys(types[n] for n in numbers)}


def _rope(table: Settings, settings: Settings, base: float, rotated: int) -> Rope:
    kind = str(table.get("rope_type") or table.get("type") or "default")
    stated = int(settings.get("max_position_embeddings") or 0)
    original = table.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    if kind == "linear" and original is None:
        original = max(1, round(stated / float(table.get("factor") or 1.0)))
    kind = {"su": "longrope"}.get(kind, kind)
    return Rope(base, rotated, kind, dict(table), stated, int(original or stated) if kind != "dynamic" else stated)


def _windows(settings: Settings, layers: int) -> tuple[int | None, ...]:
    """The window of each layer of a family that is not known here, where the file is plain about it."""
    window, types = settings.get("sliding_window"), settings.get("layer_types")
    if not isinstance(window, int) or settings.get("use_sliding_window") is False:
        return (None,) * layers
    return tuple(window if types is None or types[number] == SLIDING else None for number in range(layers))


def _first(settings: Settings, *keys: str) -> Any:
    return next((settings[key] for key in keys if settings.get(key) is not None), None)


def _ids(value: Any) -> tuple[int, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(one for one in several if isinstance(one, int) and not isinstance(one, bool) and one >= 0)
