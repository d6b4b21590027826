"""The models of `bench.lengthening`, trained on rows of `SHORT` tokens and lengthened to `LONG`."""

from dataclasses import dataclass
from typing import Any

from handscroll.nn.positions.lengthen_learned import LEARNED
from handscroll.objectives.causal import NextToken
from handscroll.objectives.masked import MaskedTokens
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.objectives.span_corruption import SpanCorruption

SHORT, LONG = 128, 1024


@dataclass(frozen=True)
class Family:
    """What is trained: sizes, objective and special tokens; how it is lengthened; the baseline without lengthening.

    `chosen` methods have several candidates, of which the best on held-out text of its own is taken. `rows` are those
    of an update in pre-training, `most` the updates after which a model of this size begins to know its text by heart.
    """

    sizes: dict[str, Any]
    task: ObjectiveSettings
    special: tuple[str, ...]
    methods: tuple[str, ...]
    baseline: str
    windows: int
    chosen: tuple[str, ...] = ()
    rows: int = 128
    most: int = 8000
    sentinels: int = 0
    initialise: str = "normal"


SIZES = {"width": 256, "layers": 4, "heads": 4, "mlp_width": 1024, "context": SHORT}
FAMILIES = {
    "bert": Family(
        SIZES,
        MaskedTokens(rate=0.3),  # more to learn from a text (Wettig et al. 2023); measured with a seventh hidden
        ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
        tuple(LEARNED),
        f"blocks of {SHORT}",
        windows=24,
        initialise="mimetic",
    ),
    "gpt2": Family(
        SIZES,
        NextToken(),
        ("<|endoftext|>",),
        tuple(LEARNED),
        f"sliding window of {SHORT}",
        windows=64,
        rows=64,
        most=3000,
    ),
    "t5": Family(
        SIZES | {"layers": 2, "encoder_layers": 4, "head_size": 64, "mlp_width": 512},
        SpanCorruption(density=0.5, mean_span=12),  # more to learn from a text, and words rather than letters
        ("<pad>", "</s>"),
        ("none", "reach", "divide"),
        f"blocks of {SHORT}",
        windows=320,
        rows=256,
        sentinels=64,
        initialise="mimetic",
    ),
    "glm": Family(
        SIZES | {"kv_heads": 2, "head_size": 64, "mlp_width": 704, "tied": True},
        NextToken(),
        ("<|endoftext|>",),
        ("none", "pi", "ntk", "yarn"),
        f"sliding window of {SHORT}",
        windows=64,
        chosen=("ntk", "yarn"),
        rows=64,
        most=3000,
    ),
    "lstm": Family(  # the recurrent baseline of the other two that predict the next token
        {"width": 448, "layers": 2},
        NextToken(),
        ("<|endoftext|>",),
        ("none",),
        f"sliding window of {SHORT}",
        windows=64,
        rows=64,
        most=3000,
        initialise="xavier",
    ),
}
