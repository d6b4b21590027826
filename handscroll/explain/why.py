"""Why this answer: the passages of a document that caused it, found by attention and proved by leaving them out.

Attention proposes and leaving out decides (Jain and Wallace 2019, "Attention is not explanation"). The passages to
which the answer attends most are hidden one by one from question and answer, and the answer's log-probability tells
what that costs (Cohen-Wang et al. 2024, "ContextCite", on a cached text). What was read after a passage has seen it
and is not read again, so a cause that later passages repeat is underestimated; that is the price of branching a reading
instead of repeating it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.explain.look import Look, by_passage
from handscroll.explain.passages import Passage, passages
from handscroll.generate.ask import Asked, AskSettings, Question, asked
from handscroll.generate.continuation import continuations
from handscroll.generate.request import Request
from handscroll.lm import LM
from handscroll.metrics.numbers import spearman
from handscroll.objectives.head import chunk_rows

FELT = 0.1  # nats that the answer must lose without a passage before it is marked

OnLook = Callable[[int, int], None]  # looks done, and in all


class Explaining(Config):
    """How an answer is explained. A look reads question and answer once; a passage that is tried costs one look."""

    passage: int = Field(default=64, ge=16, description="the most tokens of a passage")
    tried: int = Field(default=3, ge=0, description="passages that are left out in turn, those of most attention first")
    alternatives: int = Field(default=3, ge=0, description="other tokens shown at each place of the answer")
    max_tokens: int = Field(default=256, ge=1, description="the most tokens of an answer that is not given")


USUAL = Explaining()


@dataclass(frozen=True)
class Mark:
    """A passage: characters `start` to `end` of the document.

    `attention` is its share of the answer's attention among all passages. `effect` is what the answer's log-probability
    loses without it, in nats; None where it was not tried. `marked`: the loss is large enough to be a cause.
    """

    start: int
    end: int
    text: str
    attention: float
    effect: float | None = None

    @property
    def marked(self) -> bool:
        return self.effect is not None and self.effect >= FELT


@dataclass(frozen=True)
class Step:
    """A token of the answer as text, its probability, and the likeliest tokens at its place with theirs."""

    text: str
    probability: float
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Explanation:
    """Why an answer was given.

    `marks` are all passages in the order of the document. `rests` is what the answer's log-probability loses without
    the whole document, in nats, and `together` what it loses without all marked passages. `agreement` is Spearman's
    correlation of attention and effect over the passages that were tried (None for fewer than three, or equal ones).
    `read` are the tokens of the reading, which was not read again, and `looked` those that the looks read. `finish` is
    why the model's own answer ended ("eos", "length"); empty for an answer that was given.
    """

    answer: str
    marks: tuple[Mark, ...]
    steps: tuple[Step, ...]
    likelihood: float
    rests: float
    together: float
    agreement: float | None
    read: int
    looked: int
    finish: str = ""

    @property
    def causes(self) -> tuple[Mark, ...]:
        """The marked passages, the largest effect first."""
        return tuple(sorted((one for one in self.marks if one.marked), key=lambda one: -(one.effect or 0.0)))

    def record(self) -> dict[str, Any]:
        """The explanation as JSON."""
        marks = [{**vars(one), "marked": one.marked} for one in self.marks]
        steps = [{**vars(one), "others": [list(pair) for pair in one.others]} for one in self.steps]
        return {"kind": "explanation", **vars(self), "marks": marks, "steps": steps}


def explain(
    lm: LM,
    question: Question,
    store: Store,
    answer: str = "",
    how: Explaining = USUAL,
    on_look: OnLook = lambda done, total: None,
    plain: bool = False,
) -> Explanation:
    """Explain the answer to a question about a saved reading.

    Without `answer`, the model's own is explained, as `ask` gives it with temperature 0: under the repetition penalty
    that the checkpoint recommends, unless `plain`.

    Raises:
        ConfigError: the model keeps no keys, or the errors of `generate/ask.py: asked`. DataError: the answer is empty,
            or the document does not stand among the tokens as it is.
    """
    lm.model.spec.require("an explanation", forward=True, one_text=True, keys=True, head=True)
    own = tuple(lm.tokenizer.encode(answer, special=False, follows=True)) if answer else ()
    given = lm.defaults.under({"max_tokens": len(own) or how.max_tokens, "temperature": 0.0, "plain": plain})
    found = asked(lm.model, lm.tokenizer, store, question, cast(AskSettings, given))
    if found.request.reading is None:
        raise ConfigError(f"'{question.name}' does not serve this request: read the text again with more room")
    ids = found.request.prompt[: found.request.reading.length]
    document = lm.tokenizer.decode(ids) if found.document is None else found.document.text
    tokens, finish = (own, "") if own else _answer(lm, found)
    return replace(explained(lm, found.request, document, tokens, how, on_look), finish=finish)


def explained(
    lm: LM, request: Request, document: str, answer: tuple[int, ...], how: Explaining, on_look: OnLook
) -> Explanation:
    """Explain an answer (token ids) to a request that continues a reading of `document`.

    Raises:
        ConfigError: the model keeps no keys, or nothing of the document was read before. DataError: the document does
            not stand among the tokens as it is.
    """
    lm.model.spec.require("an explanation", forward=True, one_text=True, keys=True, head=True)
    if request.reading is None:
        raise ConfigError("an explanation needs a reading of the document: read it first")
    places = read_before(passages(lm.tokenizer, request.prompt, document, how.passage), request.reading.length)
    return _explained(lm, Look(lm.model, request, answer), places, document, (how, on_look))


def read_before(places: Sequence[Passage], length: int) -> list[Passage]:
    """The passages as far as their tokens are among the first `length`, which a reading holds.

    The last tokens of a document may be read with the question, since a token may reach over the border. Their text
    belongs to the last passage that is kept, so that the passages together still are the document.

    Raises:
        ConfigError: nothing of the document was read before.
    """
    kept = [replace(one, last=min(one.last, length)) for one in places if one.first < length]
    if not kept:
        raise ConfigError("nothing of the document was read before: read it first")
    return [*kept[:-1], replace(kept[-1], end=places[-1].end)]


def _answer(lm: LM, found: Asked) -> tuple[tuple[int, ...], str]:
    """The tokens of the model's own answer, and why it ended."""
    (made,) = continuations(lm.model, lm.tokenizer, found.request)
    ends = found.request.end_tokens(lm.model)
    tokens = made.tokens[:-1] if made.tokens and made.tokens[-1] in ends else made.tokens
    if not tokens:
        raise DataError("the model gives an empty answer, which nothing explains: ask otherwise, or give an --answer")
    return tokens, made.finish


def _explained(lm: LM, look: Look, places: list[Passage], document: str, how: tuple[Explaining, OnLook]) -> Explanation:
    settings, on_look = how
    states, attention = look.watched()
    shares = by_passage(attention, [(one.first, one.last) for one in places])
    tried = sorted(range(len(places)), key=lambda at: -shares[at])[: settings.tried]
    total, done = len(tried) + 3, 1
    on_look(done, total)

    def cost(hidden: list[int]) -> float:
        nonlocal done
        ranges = [(places[at].first, places[at].last) for at in sorted(hidden)]
        lost = whole - float(look.likelihood(ranges).sum())
        done += 1
        on_look(done, total)
        return lost

    steps, whole = _steps(lm, states, look.answer, settings.alternatives)
    effects = {at: cost([at]) for at in tried}
    marks = tuple(
        Mark(one.start, one.end, document[one.start : one.end], shares[at], effects.get(at))
        for at, one in enumerate(places)
    )
    causes = [at for at, one in enumerate(marks) if one.marked]
    return Explanation(
        answer=lm.tokenizer.decode(look.answer),
        marks=marks,
        steps=steps,
        likelihood=whole,
        rests=cost(list(range(len(places)))),
        together=effects[causes[0]] if len(causes) == 1 else cost(causes) if causes else 0.0,
        agreement=_agreement([shares[at] for at in tried], [effects[at] for at in tried]),
        read=look.before,
        looked=done * len(look.fed),
    )


@torch.no_grad()
def _steps(lm: LM, states: torch.Tensor, answer: tuple[int, ...], count: int) -> tuple[tuple[Step, ...], float]:
    """The tokens of the answer with their alternatives, and the log-probability of all."""
    decode, steps, total = lm.tokenizer.decode, list[Step](), 0.0
    rows = chunk_rows(lm.model.config.vocab, len(answer), states.device.type)
    for first in range(0, len(answer), rows):
        part = lm.model.logits(states[None, first : first + rows])[0].float().log_softmax(dim=-1)
        best = part.topk(count + 1, dim=-1)
        for at, token in enumerate(answer[first : first + rows]):
            likeliest = zip(best.indices[at].tolist(), best.values[at].exp().tolist(), strict=True)
            others = [(decode([one], special=True), share) for one, share in likeliest if one != token]
            steps.append(Step(decode([token], special=True), float(part[at, token].exp()), tuple(others[:count])))
            total += float(part[at, token])
    return tuple(steps), total


def _agreement(attention: list[float], effects: list[float]) -> float | None:
    if len(attention) < 3 or len(set(attention)) == 1 or len(set(effects)) == 1:
        return None
    return spearman(attention, effects).value
