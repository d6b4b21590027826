"""`Conversation`: one text that grows by turns; what was read of it is kept between them.

Under a scaling that depends on the length (`Scaling.bucket`) a conversation can outgrow the bucket that its keys were
rotated for. Then it is read again.
"""

from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, DataError
from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.table import BLOCK, cache_of, footprint
from handscroll.generate.budget import GUARD, Choice, Demand, choose, size_of
from handscroll.generate.chooser import Chooser, finite, next_tokens
from handscroll.generate.constrain import Constraint
from handscroll.generate.prefill import CHUNK, prefill
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.model import Model
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Conversation:
    """A conversation with a plain language model: `say` appends a text and returns how the model goes on.

    `ids` are all tokens so far. When the declared length (all tokens so far, the new text and its max_tokens) leaves
    the bucket, everything is read again, which is exact. `budget` (bytes, "2GiB", or a share of a full cache of the
    whole context) bounds the cache: it is exact as long as it fits; then everything is read again under what
    `generate/budget.py` takes for the whole context, with the `guard` given there. `on_note` hears of this. `afford`
    is asked before anything is read, with what a turn demands of the cache, its policy and the tokens of a chunk; it
    raises where the memory does not suffice. Made by `LM.conversation`.

    Limits: one row. A text is encoded by itself, so that tokens never reach over a turn's border. An end token ends a
    reply and is no part of the text.
    """

    model: Model
    tokenizer: Tokenizer
    on_note: Callable[[str], None] | None = None
    ids: list[int] = field(default_factory=list)
    tokens_read: int = 0  # by all forwards so far, replies included
    budget: str | int | None = None
    guard: float = GUARD
    afford: Callable[[Demand, str, int], None] | None = None
    choice: Choice | None = None  # of the cache, once it is no longer exact
    _cache: Cache | None = None
    _declared: int = 0

    @property
    def approximate(self) -> bool:
        """Whether the cache is one that rounds or evicts."""
        return self.choice is not None

    def say(self, text: str, sampling: Sampling, constraint: Constraint | None = None) -> Iterator[str]:
        """Append `text`; yields the reply piece by piece. What is yielded has become part of the text.

        The reply follows `constraint`, where one is given.

        Raises:
            CapacityError: all tokens so far, the text and max_tokens exceed the context, or the memory. DataError: the
                text is empty.
        """
        new = self.tokenizer.encode(text, special=not self.ids)
        if not new:
            raise DataError("nothing was said: the text has no tokens")
        total = len(self.ids) + len(new) + sampling.max_tokens
        if total > self.model.config.context:
            raise CapacityError(
                f"the conversation has {len(self.ids)} tokens, {len(new)} are new and {sampling.max_tokens} may "
                f"follow: {total} in all, but the model's context is {self.model.config.context}; ask for fewer new "
                "tokens, begin anew, or lengthen the model (handscroll extend)"
            )
        self._stay_within(total, [*self.ids, *new])
        if self.afford is not None:
            past = 0 if self._cache is None else self._cache.length
            policy, chunk = ("full", CHUNK) if self.choice is None else (self.choice.policy, self.choice.chunk)
            self.afford(Demand([*self.ids, *new], sampling.max_tokens, grows=True, past=past), policy, chunk)
        return self._reply(Request([*self.ids, *new], sampling, constraint=constraint))

    @torch.no_grad()
    def _reply(self, request: Request) -> Iterator[str]:
        self._declare(len(request.prompt) + request.sampling.max_tokens)
        self.ids = list(request.prompt)
        cache, first = self._cache, 0 if self._cache is None else self._cache.length
        if cache is None:
            cache = self._cache = self._new_cache(len(self.ids) + request.sampling.max_tokens)
        chooser = Chooser(request, self.model, tokenizer=self.tokenizer)
        tokens = torch.tensor([self.ids[first:]], device=self.model.device)
        chunk = CHUNK if self.choice is None else self.choice.chunk
        hidden = prefill(self.model, tokens, Marks.run(first, tokens.shape[1]), cache, self._declared, chunk)
        self.tokens_read += tokens.shape[1]
        while True:
            logits = finite(self.model.logits(hidden)[:, -1])
            new = chooser.take(*next_tokens([chooser], logits), logits[0])
            if new.finish != "eos":
                self.ids.append(new.token)
            yield new.text
            if new.finish is not None:
                return
            hidden = self._forward(new.token, cache)

    def _stay_within(self, total: int, ids: list[int]) -> None:
        """Choose a cache for the whole context once `total` tokens do not fit the budget exactly."""
        if self.budget is None or self.choice is not None:
            return
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        if full.held(total - 1) <= allowed and allowed >= full.held(BLOCK):
            return
        demand = Demand(ids, context - len(ids), grows=True)
        self.choice = choose(self.model, self.tokenizer, demand, allowed, self.guard)
        self._cache = None
        self._note(f"approximate: {total} tokens outgrow the budget, all are read again; {self.choice.report()}")

    def _new_cache(self, total: int) -> Cache:
        if self.choice is not None:
            return self.model.new_cache(self.model.config.context - 1, cache_of(self.choice.policy))
        if self.budget is None:
            return self.model.new_cache(capacity=total)
        # All at once: a buffer that doubles would leave the budget.
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        return self.model.new_cache(bisect(range(1, context + 1), allowed, key=full.held))

    @property
    def _full(self) -> Footprint:
        """What the full cache takes."""
        return footprint("full", self.model.config, self.model.dtype.itemsize)

    def _forward(self, token: int, cache: Cache) -> Tensor:
        marks = Marks.run(cache.length, 1)
        self.tokens_read += 1
        embedded = self.model.embed(torch.tensor([[token]], device=self.model.device), marks)
        return self.model.hidden(embedded, marks, self.model.mask(), cache, self._declared)

    def _declare(self, total: int) -> None:
        """Fix the scaling for `total` tokens; what is cached is thrown away where its bucket is another."""
        spec = self.model.spec
        before = self._declared
        after = max(before, spec.declared(total))  # what was promised before is kept
        if self._cache is None or spec.bucket(before) == spec.bucket(after):
            self._declared = after
            return
        count, self._declared = self._cache.length, after
        self._cache = None
        self._note(f"{total} tokens outgrow the bucket of {before}: all {count} are read again")

    def _note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)
