"""The keyword arguments of `LM`'s methods, with their types; `prepare.py` turns them into a `Request`."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from handscroll.base.errors import ConfigError, nearest
from handscroll.cache.reading.store import Store
from handscroll.generate.budget import Choice
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import Drafts
from handscroll.generate.sample import Sampling


class SamplingSettings(TypedDict, total=False):
    """The settings of `Sampling`, where they are explained.

    What is left out comes from the checkpoint (`generation_config.json`: `defaults.py`), unless `plain` is set.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    ignore_eos: bool
    plain: bool


class Settings(SamplingSettings, total=False):
    """The settings of a generation.

    A request longer than the context is refused unless `beyond` is set. A beginning of the prompt that `store` holds is
    not read again, and the tokens are the same. `policy` is the cache policy (docs/generate.md says which are
    approximate). `kv_budget` chooses the policy instead (`LM.choose_cache`; its result may be given too), and
    `kv_guard` is the largest mean KL divergence that it may cost, in nats per token. `constraint` is a grammar that the
    new text follows (`constrain.py`). `bias` is added to the logits of tokens, by id. `ends` are the ids of the tokens
    that end the text, the model's own unless given (`Speaker.ends` for an answer in a chat). `draft` guesses tokens by
    look-up (`Lookup`) or with a smaller model (`LM.draft`); the distribution stays the same. `on_report` is called
    with the cost of a budget before the prompt is read, and with the report of the cache at the end. `on_finish` is
    called with why the text ended: "eos", "stop", "complete" (under a constraint) or "length" (`max_tokens`).
    """

    beyond: bool
    store: Store | None
    policy: str
    kv_budget: str | int | Choice | None
    kv_guard: float
    constraint: Constraint | None
    bias: Mapping[int, float] | None
    ends: Collection[int] | None
    draft: Drafts | None
    on_report: Callable[[str], None] | None
    on_finish: Callable[[str], None] | None


class ChatSettings(SamplingSettings, total=False):
    """The settings of an answer in a chat.

    Without `max_tokens` an answer may have 256 tokens, or what the context leaves. `template` is a name among the
    model's chat templates, or the source of another one. `tools` are JSON schemas of functions, and `variables` are
    whatever else the template reads (`documents`, `enable_thinking`). `store` holds saved readings that the messages
    may begin with. `on_thinking` is called with what a reasoning model thinks before it answers, `on_note` with what
    should be known: a message that the template leaves out, turns that are read again. The others are as in `Settings`.
    """

    template: str
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any] | None
    beyond: bool
    store: Store | None
    kv_budget: str | int | None
    kv_guard: float
    constraint: Constraint | None
    on_thinking: Callable[[str], None] | None
    on_note: Callable[[str], None] | None


def sampling_of(settings: Mapping[str, Any], others: Iterable[str] = ()) -> Sampling:
    """The keyword arguments that belong to `Sampling`.

    Raises:
        ConfigError: an argument is neither such a setting nor one of `others`; the message names the nearest one.
    """
    known = {*Sampling.model_fields, *others}
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(f"unknown setting '{unknown[0]}': {nearest(unknown[0], known)}")
    return Sampling.parse({name: settings[name] for name in Sampling.model_fields if name in settings}, "generate")
