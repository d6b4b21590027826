"""What a recipe can teach besides the next token: its rows, its objective, and the new models that it belongs to."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.data.blanks import Blanks, BlankTokens
from handscroll.data.labelled import Labelled
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Stream
from handscroll.models.glm_blank import BlankGLM, BlankGLMConfig
from handscroll.models.lstm import LSTM, LSTMConfig
from handscroll.models.model import Decoder
from handscroll.objectives.blanks import Infill
from handscroll.objectives.causal import Causal
from handscroll.objectives.classify import Classify
from handscroll.objectives.objective import Objective
from handscroll.text.tokenizer import Tokenizer

ObjectiveName = Literal["causal", "classify", "blanks"]
OBJECTIVES: dict[str, ObjectiveName] = {"labelled": "classify", "blanks": "blanks"}  # of a kind of rows; else causal


class LabelledData(Config):
    """Whole documents with labels, from a `.tsv` or `.jsonl` file (`data/labelled.py`)."""

    kind: Literal["labelled"]
    file: str
    labels: tuple[str, ...] = Field(min_length=2)

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        return Labelled.read(self.file, self.labels, tokenizer, length, seed)


class BlanksData(Config):
    """Pieces of the text with spans blanked (`data/blanks.py`)."""

    kind: Literal["blanks"]
    share: float = Field(default=0.15, gt=0, le=0.5, description="of the tokens that are blanked")
    mean: float = Field(default=3.0, gt=0, description="tokens of a span, about")
    document: float = Field(default=0.0, ge=0, le=1, description="share of pieces whose whole rest is blanked")
    longest: int = Field(default=0, ge=0, description="tokens of a piece; 0: as many as fit")

    def stream(self, text: TokenSource, tokenizer: Tokenizer, length: int, seed: int) -> Stream[Row]:
        return Blanks(text, BlankTokens.of(tokenizer), length, seed, **self.model_dump(exclude={"kind"}))


def check_data(objective: str, mixed: dict[str, Any], validated: bool) -> None:
    """Whether the rows that a recipe mixes are what its objective learns from.

    Raises:
        ValueError: they are not; says which and why.
    """
    for name, data in mixed.items():
        wanted = OBJECTIVES.get(data.kind, "causal")
        if wanted != objective:
            raise ValueError(f"data.{name} is '{data.kind}', which goes with objective '{wanted}', not '{objective}'")
    if len({data.labels for data in mixed.values() if isinstance(data, LabelledData)}) > 1:
        raise ValueError("labelled data with different labels cannot train one classifier")
    if objective != "causal" and validated:
        raise ValueError(f"validation scores tokens one by one, objective '{objective}' does not; leave it out")


def labels_of(data: Iterable[Any]) -> tuple[str, ...]:
    """The labels of a recipe's data; none without labelled rows."""
    return next((one.labels for one in data if isinstance(one, LabelledData)), ())


def objective_of(
    name: str, model: Decoder, labels: tuple[str, ...], smoothing: float, by_position: bool = False
) -> Objective:
    """What a run learns.

    Raises:
        ConfigError: the model does not predict that.
    """
    own = tuple(getattr(model.config, "labels", ()))
    if own != (labels if name == "classify" else ()):
        raise ConfigError(
            f"objective '{name}' with labels {list(labels)}, but the model tells apart {list(own)}; a classifier "
            "learns by objective 'classify' from labelled rows, and only its own labels"
        )
    if (name == "blanks") != isinstance(model, BlankGLM):
        raise ConfigError(
            f"objective '{name}' and family '{model.config.family}' do not fit: 'blanks' is how 'glm-blank' learns, "
            "and it learns nothing else"
        )
    if name == "classify":
        return Classify.of(model, smoothing)
    return Infill(smoothing) if name == "blanks" else Causal(smoothing, by_position=by_position)


def new_lstm(values: dict[str, Any], labels: tuple[str, ...], longest: int, where: str) -> LSTM:
    """An LSTM of a recipe's sizes, to learn from rows of `longest` tokens; with labels a classifier."""
    return LSTM(LSTMConfig.parse({"trained": longest, "labels": labels} | values, where))


def new_blank_glm(values: dict[str, Any], tokenizer: Tokenizer, longest: int, where: str) -> BlankGLM:
    """A GLM of a recipe's sizes: tables for rows of `longest` tokens unless they say otherwise."""
    context = values.get("context", longest)
    tables = {"context": context, "inside": context} | vars(BlankTokens.of(tokenizer))
    return BlankGLM(BlankGLMConfig.parse(tables | values, where))
