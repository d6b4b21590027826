"""Heads that say something of a text instead of predicting its tokens: what foreign files call them.

`headed` gives a family of decoders all of them. Families of encoders read and write their own with the functions here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.models.classes import SUFFIXES, named_head
from handscroll.models.foreign import Entry, Family, Foreign
from handscroll.models.model import Decoder
from handscroll.nn.linear import Linear

PROBLEMS = {
    "single_label_classification": "one",
    "multi_label_classification": "several",
    "regression": "number",
}
# Tensors of heads, by name, and what they are for. The first that matches is taken.
PARTS = (
    (r"v_head\.", "the value head of reinforcement learning"),
    (r"multiple_choice_head\.", "a head for multiple choice"),
    (r"qa_outputs\.", "a head for question answering"),
    (r"discriminator_predictions\.", "a head that finds replaced tokens"),
    (r"(lm_head|embed_out|cls\.predictions|generator_\w+|vocab_\w+)\.", "a head for tokens"),
    (r"decoder\.(weight|bias)$", "a head for tokens"),
    (r"cls\.seq_relationship\.", "a head for next sentences"),
    (r"(pre_classifier|score|classifier|classification_head)\.", "a head for classification"),
    (r"pooler\.", "a pooler"),
)


# The keys of `config.json` that tell of heads.
HEAD_KEYS = frozenset("architectures id2label label2id num_labels problem_type pad_token_id".split())


def part_of_head(name: str) -> str:
    """What the foreign tensor `name` is for if it belongs to a head, else nothing."""
    return next((words for pattern, words in PARTS if re.match(rf"(\w+\.)?{pattern}", name)), "")


def read_head(foreign: Foreign, kind: str, pool: str = "first", **more: Any) -> HeadSpec | None:
    """The head of a kind with the labels of `config.json`; None for the kind "". `more` are fields of `HeadSpec`.

    Raises:
        ConfigError: labels, their number or the problem contradict each other or are unknown.
    """
    if not kind:
        return None
    if kind in ("answer", "none"):
        return HeadSpec.parse({"kind": kind, "pool": pool} | more, "config.json")
    labels, problem = labels_of(foreign), foreign.get("problem_type")
    if problem is not None and problem not in PROBLEMS:
        raise ConfigError(f"config.json: problem_type is {problem!r}; known are {', '.join(PROBLEMS)}")
    known = PROBLEMS[problem] if problem else "one"
    if kind == "text" and len(labels) == 1 and known == "one":
        known = "number"  # the reference library trains one output as a regression, and rewards are written so
    fields = {"kind": kind, "labels": labels, "problem": known if kind == "text" else "one", "pool": pool}
    return HeadSpec.parse(fields | more, "config.json")


def labels_of(foreign: Foreign) -> tuple[str, ...]:
    """The labels in the order of their numbers; two by default, as in the reference library."""
    named, count = foreign.get("id2label"), foreign.get("num_labels")
    back = foreign.get("label2id")
    if not named and isinstance(back, dict) and len(set(map(str, back.values()))) == len(back):
        named = {number: label for label, number in back.items()}
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(f"config.json: num_labels is {count!r}; expected a positive whole number")
    if not named:  # an empty table says nothing
        return tuple(f"LABEL_{number}" for number in range(count or 2))
    numbers = list(named) if isinstance(named, dict) else []
    if not numbers or not all(str(number).isdecimal() for number in numbers):
        raise ConfigError(f"config.json: id2label is {named!r}; expected a table from numbers to labels")
    ordered = sorted(numbers, key=int)
    if [int(number) for number in ordered] != list(range(len(ordered))):
        raise ConfigError(
            f"config.json: id2label has the numbers {', '.join(map(str, ordered))}; expected 0, 1, 2, ..."
        )
    if count not in (None, len(ordered)):
        raise ConfigError(f"config.json: num_labels is {count}, but id2label names {len(ordered)} labels; keep one")
    return tuple(str(named[number]) for number in ordered)


def written_head(head: HeadSpec) -> Foreign:
    """The keys of `config.json` that tell the labels of a head."""
    if not head.labels:
        return {}
    written: Foreign = {
        "id2label": {str(number): label for number, label in enumerate(head.labels)},
        "label2id": {label: number for number, label in enumerate(head.labels)},
    }
    if head.problem == "several" or (head.problem == "number" and len(head.labels) > 1):
        written["problem_type"] = next(theirs for theirs, ours in PROBLEMS.items() if ours == head.problem)
    return written


@dataclass(frozen=True)
class Places:
    """Where the heads of a family of decoders lie in foreign files.

    `prefix` begins the names of its classes. The other fields are modules ("": the family has no such head), and which
    kinds have a bias. `base` is the prefix of the layers' tensors, and `answer_base` that beside a head for answers.
    """

    prefix: str
    text: str = "score"
    tokens: str = "score"
    answer: str = "qa_outputs"
    base: str = "model."
    answer_base: str = "model."
    biased: tuple[str, ...] = ("tokens", "answer")
    bare: str = ""  # the bare class, where its name has another prefix
    forms: Mapping[str, Foreign] = field(default_factory=dict)

    def module(self, kind: str) -> str:
        return {"text": self.text, "tokens": self.tokens, "answer": self.answer, "none": ""}[kind]

    def architecture(self, kind: str) -> str:
        return self.bare if kind == "none" and self.bare else self.prefix + SUFFIXES[kind]


def headed(kind: Family, places: Places) -> Family:
    """The family with all the heads of decoders: each reads the state of the last token, or of every token.

    A bare model with an untied head for tokens is told from a whole one by its weights.
    """
    forms = {name: {**kind.forms[""], **form} for name, form in places.forms.items()}
    gguf = kind.gguf and replace(kind.gguf, write=_no_gguf(kind.gguf.write))
    return replace(
        kind,
        keys=kind.keys | HEAD_KEYS,
        build=lambda config: _build(kind, config),
        read=lambda foreign: _read(kind, places, foreign),
        write=lambda config: _write(kind, places, config),
        entries=lambda config: _entries(kind, places, config),
        copies=lambda config: _copies(kind, config),
        settle=lambda config, tensor: _settle(kind, config, tensor),
        forms={**kind.forms, **forms},
        gguf=gguf,
    )


def _build(kind: Family, config: Any) -> Decoder:
    model = kind.build(config)
    if config.head is not None:
        model.projection, model.silent = None, True
        if config.head.outputs:
            model.classifier = Linear(config.width, config.head.outputs, bias=config.head.bias)
    return model


def _read(kind: Family, places: Places, foreign: Foreign) -> Any:
    config = kind.read(foreign)
    named = named_head(foreign, kind.name)
    if not named or (named == "none" and config.tied):  # a tied head is there in any case
        return config
    if named != "none" and not places.module(named):  # `Family.parse` refuses it
        return config
    pad = foreign.get("pad_token_id") if named == "text" else None
    head = read_head(foreign, named, "last", pad=pad, bias=named in places.biased)
    return config.parse(config.model_dump() | {"head": head}, "config.json")


def _settle(kind: Family, config: Any, tensor: Callable[[str], Tensor | None]) -> Any:
    """A model that is named bare has its head for tokens if the file holds it; one that reads both ways may lack it."""
    config = config if kind.settle is None else kind.settle(config, tensor)
    head, whole = config.head, config.model_copy(update={"head": None})
    unsure = config.spec.both_ways if head is None else head.kind == "none"
    if config.tied or not unsure:
        return config
    theirs = next(entry.theirs for entry in kind.entries(whole) if entry.ours == ("projection.weight",))
    bare = tensor(theirs) is None
    return config.model_copy(update={"head": HeadSpec(kind="none", pool="last", bias=False)}) if bare else whole


def _write(kind: Family, places: Places, config: Any) -> Foreign:
    foreign = kind.write(config)
    if config.head is None:
        return foreign
    foreign |= {"architectures": [places.architecture(config.head.kind)]} | written_head(config.head)
    return foreign if config.head.pad is None else foreign | {"pad_token_id": config.head.pad}


def _entries(kind: Family, places: Places, config: Any) -> list[Entry]:
    entries, head = kind.entries(config), config.head
    if head is None:
        return entries
    base = {"answer": places.answer_base, "none": ""}.get(head.kind, places.base)
    found = [
        replace(entry, theirs=base + entry.theirs.removeprefix(places.base))
        for entry in entries
        if entry.ours != ("projection.weight",)
    ]
    parts = ("weight", "bias") if head.bias else ("weight",)
    module = places.module(head.kind)
    return found + [Entry(f"{module}.{part}", (f"classifier.{part}",)) for part in parts if module]


def _copies(kind: Family, config: Any) -> Mapping[str, str | None]:
    """Tensors that files may hold besides; a head for tokens is not read beside another one."""
    found = kind.copies(config)
    if config.head is None:
        return found
    tied = kind.copies(config.model_copy(update={"tied": True}))
    return {**found, **{theirs: None for theirs, ours in tied.items() if ours == "embedding.weight"}}


def _no_gguf(write: Callable[[Any, Foreign], Any]) -> Callable[[Any, Foreign], Any]:
    def checked(config: Any, foreign: Foreign) -> Any:
        if config.head is not None or config.spec.both_ways:
            what = "a model that reads both ways" if config.head is None else f"a head for {config.head.words}"
            raise ConfigError(f"GGUF files of family '{config.family}' hold no {what}: save a folder")
        return write(config, foreign)

    return checked
