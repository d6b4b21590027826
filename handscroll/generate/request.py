"""`Request`: one prompt and how it is continued; `LM.generate` and the engine hand it down to `decode`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from handscroll.base.errors import ConfigError
from handscroll.cache.reading.reading import Reading
from handscroll.cache.table import DEFAULT, cache_of, kind_of, listed
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import Drafts
from handscroll.generate.sample import Sampling
from handscroll.models.model import Model

GREEDY = Sampling()
BIAS = 1e20  # at most: under the coldest temperature and the largest penalty, too, a logit stays finite in float32

# What messages call the fields that not everything follows.
CALLED = {
    "samples": "several samples",
    "draft": "a draft",
    "chunk": "a chunk of its own",
    "reading": "a saved reading",
    "on_report": "a report of the cache",
    "on_finish": "on_finish",
}


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt and how it is continued. Code that does not support a field refuses it; no field is ever ignored.

    Args:
        prompt: token ids; an empty prompt begins with the model's bos.
        sampling: how tokens are chosen, how many at most, and the strings that end the text.
        samples: continuations of the prompt, which is read once. Each has a random stream of its own.
        logprobs: how many of the likeliest tokens are given with each new one (0: only its own log-probability).
        constraint: a grammar that the new text follows (`constrain.py`).
        bias: what is added to the logits of tokens, by id, before all settings of `sampling`.
        draft: guesses tokens for speculative decoding (`speculative.py`).
        beyond: allow prompt + max_tokens past the model's context, on your own responsibility.
        policy: what the cache keeps (`cache/table.py`), with options; those that are not exact say so.
        chunk: prompt tokens of one forward; the default suits the device.
        reading: the saved beginning of the prompt, which is not read again.
        ends: the end tokens; the model's own unless given. None of them counts under `sampling.ignore_eos`.
        on_report: called at the end with the report of the cache (for retrieval, its recall).
        on_finish: called for each row that ends with the reason: "eos", "stop", "complete" or "length".

    Raises:
        ConfigError: a number out of range, an unknown policy, or fields that exclude each other.
    """

    prompt: Sequence[int]
    sampling: Sampling = GREEDY
    samples: int = 1
    logprobs: int | None = None
    constraint: Constraint | None = None
    bias: Mapping[int, float] | None = None
    draft: Drafts | None = None
    beyond: bool = False
    policy: str = DEFAULT
    chunk: int | None = None
    reading: Reading | None = None
    ends: frozenset[int] | None = None
    on_report: Callable[[str], None] | None = None
    on_finish: Callable[[str], None] | None = None

    def __post_init__(self):
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"the prefill chunk is {self.chunk} tokens; it must be at least 1 (1024 is usual)")
        if self.samples < 1 or (self.logprobs is not None and self.logprobs < 0):
            raise ConfigError(f"samples is {self.samples} and logprobs {self.logprobs}; they must be at least 1 and 0")
        cache_of(self.policy)  # refuses an unknown one
        if (self.samples > 1 or self.draft is not None) and not kind_of(self.policy).rewinds:
            raise ConfigError(
                f"several samples and drafts need a cache that can be shared and cut back ({listed('rewinds')}), not "
                f"'{self.policy}'"
            )
        if self.constraint is not None and (self.sampling.stop or self.sampling.ignore_eos):
            raise ConfigError("a constraint says how the text ends; remove stop strings and ignore_eos")
        for token, value in (self.bias or {}).items():
            if not -BIAS <= value <= BIAS:
                raise ConfigError(
                    f"the bias of token {token} is {value}; it must be a number from -1e20 to 1e20 (-100 is as good as "
                    "never)"
                )

    def refuse(self, who: str, *names: str) -> None:
        """Refuse (ConfigError) those of the fields `names`, which `who` does not follow, that are given."""
        given = [name for name in names if getattr(self, name) != getattr(Request, name)]
        if given:
            cache = f"the cache '{self.policy}' (it keeps keys and values itself)"
            called = [cache if name == "policy" else CALLED[name] for name in given]
            raise ConfigError(f"{who} answers without {', '.join(called)}: leave it out, or use generate")

    def end_tokens(self, model: Model) -> frozenset[int]:
        """The tokens that end a row."""
        if self.sampling.ignore_eos:
            return frozenset()
        return frozenset(model.config.eos) if self.ends is None else self.ends
