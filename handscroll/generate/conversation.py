"""`Conversation`: one text that grows by turns; its keys and values are kept between the turns.

Under a length-dependent scaling (`Scaling.bucket`) a conversation can outgrow the length bucket that its keys were
rotated for. Then the whole text is read again.
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
    """A conversation with a plain language model: `say` appends a text and yields the model's reply.

    `LM.conversation` makes one. `ids` are all tokens so far. The declared length is that of all tokens so far, the new
    text and its max_tokens; when it leaves the length bucket, everything is read again, and the result stays exact.
    `budget` (bytes, "2GiB", or a share of the full cache of the whole context) bounds the cache. The cache is exact
    while the text fits. After that everything is read again under the policy that `generate/budget.py` chooses for the
    whole context with `guard`. `on_note` receives a note about each such event. `afford(demand, policy, chunk)` is
    called before a turn is read, and raises if the memory is too small.

    Limits: there is one row. Each text is encoded by itself, so that no token crosses the border of a turn. An end
    token ends a reply and is not part of the text.
    """

    model: Model
    tokenizer: Tokenizer
    on_note: Callable[[str], None] | None = None
    ids: list[int] = field(default_factory=list)
    tokens_read: int = 0  # by all forwards so far, including replies
    budget: str | int | None = None
    guard: float = GUARD
    afford: Callable[[Demand, str, int], None] | None = None
    choice: Choice | None = None  # the chosen cache, once it is no longer exact
    _cache: Cache | None = None
    _declared: int = 0

    @property
    def approximate(self) -> bool:
        """Whether the cache now rounds or evicts."""
        return self.choice is not None

    def say(self, text: str, sampling: Sampling, constraint: Constraint | None = None) -> Iterator[str]:
        """Append `text` and yield the reply piece by piece; each yielded piece has become part of the text.

        If there is a `constraint`, the reply follows it.

        Raises:
            CapacityError: all tokens so far, the new text and max_tokens exceed the context or the memory.
            DataError: the text is empty.
        """
        new = self.tokenizer.encode(text, special=not self.ids)
        if not new:
            raise DataError("the text has no tokens; give some text")
        total = len(self.ids) + len(new) + sampling.max_tokens
        if total > self.model.config.context:
            raise CapacityError(
                f"the conversation has {len(self.ids)} tokens, {len(new)} are new and {sampling.max_tokens} may "
                f"follow: {total} in all, but the model's context is {self.model.config.context}; ask for fewer new "
                "tokens, begin a new conversation, or lengthen the model (handscroll extend)"
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
        """Choose a cache for the whole context when the exact cache of `total` tokens exceeds the budget."""
        if self.budget is None or self.choice is not None:
            return
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        if full.held(total - 1) <= allowed and allowed >= full.held(BLOCK):
            return
        demand = Demand(ids, context - len(ids), grows=True)
        self.choice = choose(self.model, self.tokenizer, demand, allowed, self.guard)
        self._cache = None
        self._note(f"approximate: {total} tokens outgrow the budget, so all are read again; {self.choice.report()}")

    def _new_cache(self, total: int) -> Cache:
        if self.choice is not None:
            return self.model.new_cache(self.model.config.context - 1, cache_of(self.choice.policy))
        if self.budget is None:
            return self.model.new_cache(capacity=total)
        # The buffer is reserved at once: one that doubles would exceed the budget.
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        return self.model.new_cache(bisect(range(1, context + 1), allowed, key=full.held))

    @property
    def _full(self) -> Footprint:
        """The footprint of the full cache."""
        return footprint("full", self.model.config, self.model.cache_dtype.itemsize)

    def _forward(self, token: int, cache: Cache) -> Tensor:
        marks = Marks.run(cache.length, 1)
        self.tokens_read += 1
        embedded = self.model.embed(torch.tensor([[token]], device=self.model.device), marks)
        return self.model.hidden(embedded, marks, self.model.mask(), cache, self._declared)

    def _declare(self, total: int) -> None:
        """Declare `total` tokens for the scaling; the cache is dropped if the length bucket changes."""
        spec = self.model.spec
        before = self._declared
        after = max(before, spec.declared(total))  # the declared length never shrinks
        if self._cache is None or spec.bucket(before) == spec.bucket(after):
            self._declared = after
            return
        count, self._declared = self._cache.length, after
        self._cache = None
        self._note(f"{total} tokens outgrow the bucket of {before}: all {count} are read again")

    def _note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)
