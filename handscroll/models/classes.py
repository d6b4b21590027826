"""Names of classes in `config.json` (`architectures`): which head a model has."""

import re
from collections.abc import Mapping
from typing import Any

from handscroll.base.errors import ConfigError

SUFFIXES = {
    "text": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
    "none": "Model",
}
# Classes with heads of pre-training; the name of a class is free up to here.
TOKENS = ("ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction")
TOKENS += ("ForConditionalGeneration", "LMHeadModel")


def named_head(foreign: Mapping[str, Any], name: str) -> str:
    """The kind of head (`HeadSpec.kind`) that `architectures` names; empty for one of tokens, or if nothing is said.

    Raises:
        ConfigError: the head is not known here.
    """
    made = architecture(foreign)
    head = re.search(r"For([A-Z]\w*)$", made)
    if made.endswith(TOKENS) or (head is None and not made.endswith(SUFFIXES["none"])):
        return ""
    if head is None:
        return "none"
    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    if head[0] not in kinds:
        known = ", ".join(suffix for suffix in (*SUFFIXES.values(), *TOKENS) if suffix.startswith("For"))
        raise ConfigError(
            f"config.json of family '{name}' names the class {made}, whose head ({head[1]}) is not known here. Known "
            f"are {known}; the encoder or decoder alone is loaded if 'architectures' names its bare class (...Model) "
            "and the tensors of the head are left out"
        )
    return kinds[head[0]]


def architecture(foreign: Mapping[str, Any]) -> str:
    """The class that `config.json` names first, or nothing."""
    named = foreign.get("architectures") or [""]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise ConfigError(f"config.json: architectures is {named!r}; expected a list of names")
    return named[0]
