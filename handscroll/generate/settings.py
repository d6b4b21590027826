"""The keyword arguments of `LM`'s methods, with their types; `admission.py` makes a `Request` of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from handscroll.base.errors import ConfigError, nearest
from handscroll.cache.reading.store import Store
from handscroll.generate.budget import Choice
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import Drafts
from handscroll.generate.sample import Sampling


class SamplingSettings(TypedDict, total=False):
    """The settings of `Sampling`, which says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    ignore_eos: bool


class Settings(SamplingSettings, total=False):
    """What a generation may set.

    A request past the context is refused unless `beyond`. What `store` holds of the prompt's beginning is not read
    again; the tokens are the same. `policy` is what the cache keeps (docs/generate.md says which are approximate).
    `kv_budget` chooses the policy instead (`LM.choose_cache`, whose result may be given too); `kv_guard` is the most
    mean KL divergence, nats per token, that it may cost. `constraint` is a grammar that the new text follows
    (`constrain.py`). `draft` guesses tokens ahead, by look-up (`Lookup`) or with a smaller model (`LM.draft`); the
    distribution stays the same. `on_report` hears, before anything is read, what a budget costs, and at the end what
    the cache has to say.
    """

    beyond: bool
    store: Store | None
    policy: str
    kv_budget: str | int | Choice | None
    kv_guard: float
    constraint: Constraint | None
    draft: Drafts | None
    on_report: Callable[[str], None] | None


def sampling_of(settings: Mapping[str, Any], others: Iterable[str] = ()) -> Sampling:
    """The part of keyword arguments that says how tokens are chosen.

    Raises:
        ConfigError: an argument that is neither such a setting nor one of `others`; names the nearest that there is.
    """
    known = {*Sampling.model_fields, *others}
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(f"unknown setting '{unknown[0]}': {nearest(unknown[0], known)}")
    return Sampling.parse({name: settings[name] for name in Sampling.model_fields if name in settings}, "generate")
