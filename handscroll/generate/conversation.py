"""`Conversation`: one text that grows by turns; its keys and values are kept between the turns.

Under a length-dependent scaling (`Scaling.bucket`) a conversation can outgrow the length bucket that its keys were
rotated for. Then the whole text is read again.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, DataError
from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.reading.reading import Reading
from handscroll.cache.table import BLOCK, DEFAULT, cache_of, footprint, kind_of
from handscroll.generate.budget import GUARD, Choice, Demand, check_guard, choose, size_of
from handscroll.generate.check import check_tokens
from handscroll.generate.chooser import Chooser, NewToken, next_tokens
from handscroll.generate.constrain import Constraint
from handscroll.generate.likelihood import Likelihood, logprobs_of
from handscroll.generate.prefill import CHUNK, hidden_chunks, prefill, shared_beginning
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.stream import Decodes
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Conversation:
    """A conversation with a plain language model: `say` appends a text and yields the model's reply.

    `LM.conversation` makes one. `ids` are all tokens so far. The declared length is that of all tokens so far, the new
    text and its max_tokens; when it leaves the length bucket, everything is read again, and the result stays exact.
    `budget` (bytes, "2GiB", or a share of the full cache of the whole context) bounds the cache. The cache is exact
    while the text fits. After that everything is read again under the policy that `generate/budget.py` chooses for the
    whole context with `guard`. `on_note` receives a note about each such event. `afford(demand, policy, chunk, freed)`
    is called before a turn is read and anything is changed, and raises if the memory is too small, `freed` bytes of the
    cache included that will be given up. `find(ids, total)` gives the saved reading that a text of `total` tokens
    begins with.

    Limits: there is one row. Each text is encoded by itself, as one that follows, so that no token crosses the border
    of a turn. An end
    token ends a reply and is not part of the text.
    """

    model: Model
    tokenizer: Tokenizer
    on_note: Callable[[str], None] | None = None
    ids: list[int] = field(default_factory=list)
    tokens_read: int = 0  # by all forwards so far, including replies
    budget: str | int | None = None
    guard: float = GUARD
    afford: Callable[[Demand, str, int, int], None] | None = None
    find: Callable[[list[int], int], Reading | None] | None = None
    reused: int = 0  # tokens of the last prompt that were not read again
    choice: Choice | None = None  # the chosen cache, once it is no longer exact
    _cache: Cache | None = None
    _declared: int = 0

    def __post_init__(self):
        check_guard(self.guard, self.budget)

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
        new = self.tokenizer.encode(text, special=not self.ids, follows=bool(self.ids))
        if not new:
            raise DataError("the text has no tokens; give some text")
        return (item.text for item in self.reply(Request([*self.ids, *new], sampling, constraint=constraint)))

    def reply(self, request: Request, shown: Decodes | None = None) -> Iterator[NewToken]:
        """Make the request's prompt the text so far, and yield the tokens of the reply.

        What the prompt shares with the text so far is not read again, if the cache can be cut back to it. `shown`
        decodes the reply instead of the tokenizer. The errors are those of `say`, ConfigError for fields that a
        conversation does not follow, and DataError for a bias or an end token that the model does not have.
        """
        request.refuse("a conversation", "samples", "draft", "policy", "chunk", "reading", "on_report")
        check_tokens(self.model, request)
        self._admit(list(request.prompt), request.sampling.max_tokens, request.beyond)
        return self._reply(request, shown or self.tokenizer)

    @torch.no_grad()
    def likelihood(self, prompt: Sequence[int], continuation: Sequence[int]) -> Likelihood:
        """How likely `continuation` is after `prompt`; both together become the text so far.

        As in `reply`, what the prompt shares with the text so far is not read again.

        Raises:
            DataError: prompt or continuation is empty. CapacityError: they exceed the context or the memory.
        """
        if not len(prompt) or not len(continuation):
            raise DataError(f"{len(prompt)} tokens and {len(continuation)} that follow: give at least one of each")
        ids = [*prompt, *continuation]
        self._admit(list(prompt), len(continuation), False)
        cache = self._begin(list(prompt), len(ids))
        self.ids, first = ids, cache.length
        tokens = torch.tensor([ids[first:-1]], device=self.model.device)
        chunk, kept = CHUNK if self.choice is None else self.choice.chunk, list[Tensor]()
        marks, wanted = Marks.run(first, tokens.shape[1]), len(prompt) - 1 - first
        for begin, _, hidden in hidden_chunks(self.model, tokens, marks, cache, self._declared, chunk):
            kept.append(hidden[0, max(wanted - begin, 0) :])
        self.tokens_read += tokens.shape[1]
        logprobs, likeliest = logprobs_of(self.model, torch.cat(kept), torch.tensor(list(continuation)))
        return Likelihood(float(logprobs.sum()), bool(likeliest.all()), len(continuation))

    def _admit(self, ids: list[int], new: int, beyond: bool) -> None:
        """Refuse a prompt after which `new` tokens may follow, where context or memory are too small for it."""
        total, context = len(ids) + new, self.model.config.context
        if total > context and not beyond:
            raise CapacityError(
                f"the conversation has {len(self.ids)} tokens, {len(ids)} with the new ones, and {new} may follow: "
                f"{total} in all, but the model's context is {context}; ask for fewer new tokens, begin a new "
                "conversation, or lengthen the model (handscroll extend)"
            )
        choice = self._within(total, ids)
        past = self._kept(ids) if choice is self.choice else 0
        if self.afford is not None:
            policy, chunk = (DEFAULT, CHUNK) if choice is None else (choice.policy, choice.chunk)
            freed = 0 if past or self._cache is None else self._cache.nbytes
            self.afford(Demand(ids, new, grows=True, past=past), policy, chunk, freed)
        if choice is not None and choice is not self.choice:
            self.choice, self._cache = choice, None
            self._note(f"approximate: {total} tokens outgrow the budget, so all are read again; {choice.report()}")

    def _begin(self, ids: list[int], total: int) -> Cache:
        """Make `ids` the text so far, and give the cache of what need not be read again."""
        self._cut_back(ids)
        self._declare(total)
        self.ids = ids
        if self._cache is None:
            self._cache = self._new_cache(total)
        self._cache.reserve(total)
        self.reused = self._cache.length
        return self._cache

    def _kept(self, ids: list[int]) -> int:
        """How many of the first `ids` the cache keeps, or can be cut back to; the last of them is always read."""
        if self._cache is None:
            return 0
        shared = shared_beginning(self.ids[: self._cache.length], ids[:-1])
        whole = shared == self._cache.length
        able = kind_of(DEFAULT if self.choice is None else self.choice.policy).rewinds and not self.model.spec.recurrent
        return shared if whole or (able and shared >= self._cache.least) else 0

    def _cut_back(self, ids: list[int]) -> None:
        """Keep of the cache what the text `ids` begins with."""
        kept = self._kept(ids)
        if not kept:
            self._cache, self._declared = None, 0
        elif self._cache is not None and kept < self._cache.length:
            self._cache.trim(kept)

    @torch.no_grad()
    def _reply(self, request: Request, shown: Decodes) -> Iterator[NewToken]:
        cache = self._begin(list(request.prompt), len(request.prompt) + request.sampling.max_tokens)
        first = self.reused
        chooser = Chooser(request, self.model, tokenizer=shown)
        tokens = torch.tensor([self.ids[first:]], device=self.model.device)
        chunk = CHUNK if self.choice is None else self.choice.chunk
        hidden = prefill(self.model, tokens, Marks.run(first, tokens.shape[1]), cache, self._declared, chunk)
        self.tokens_read += tokens.shape[1]
        while True:
            logits = finite(self.model.logits(hidden)[:, -1])
            new = chooser.take(*next_tokens([chooser], logits), logits[0])
            if new.finish != "eos":
                self.ids.append(new.token)
            yield new
            if new.finish is not None:
                return
            hidden = self._forward(new.token, cache)

    def _within(self, total: int, ids: list[int]) -> Choice | None:
        """The cache of `total` tokens: when the exact one exceeds the budget, it is chosen for the whole context."""
        if self.budget is None or self.choice is not None:
            return self.choice
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        if full.held(total - 1) <= allowed and allowed >= full.held(BLOCK):
            return None
        demand = Demand(ids, context - len(ids), grows=True)
        return choose(self.model, self.tokenizer, demand, allowed, self.guard)

    def _new_cache(self, total: int) -> Cache:
        if self.choice is not None:
            return self.model.new_cache(self.model.config.context - 1, cache_of(self.choice.policy))
        if self.budget is None:
            reading = None if self.find is None else self.find(self.ids, total)
            if reading is None:
                return self.model.new_cache(capacity=total)
            return self.model.new_cache(capacity=total - reading.length, **reading.past(self.model.device))
        # The buffer is reserved at once: one that doubles would exceed the budget.
        context, full = self.model.config.context, self._full
        allowed = size_of(self.budget, full.held(context - 1))
        return self.model.new_cache(bisect(range(1, context + 1), allowed, key=full.held))

    @property
    def _full(self) -> Footprint:
        """The footprint of the full cache."""
        return footprint(DEFAULT, self.model.config, self.model.cache_dtype.itemsize)

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
