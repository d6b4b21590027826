"""`LM`: a model, its tokenizer and what people do with them: encode, logits, nll, generate, save."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError, nearest
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.base.runs import write_file
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.reading import Reading
from handscroll.cache.reading.store import Store, check_name
from handscroll.cache.table import EVICTING, SAVED, cache_of
from handscroll.generate import blanks
from handscroll.generate.beam import Early, beam_search
from handscroll.generate.budget import GUARD, Choice, Request, choose
from handscroll.generate.constrain import Constraint
from handscroll.generate.continuation import Continuation, continuations, streamed, text_of
from handscroll.generate.conversation import Conversation
from handscroll.generate.decode import check_length, started
from handscroll.generate.draft import DraftModel, Drafts
from handscroll.generate.engine.engine import Engine, workload
from handscroll.generate.prefill import hidden_chunks, prefill_chunk
from handscroll.generate.read import read_into
from handscroll.generate.sample import Sampling
from handscroll.models.documents import classified
from handscroll.models.fingerprint import identity
from handscroll.models.model import Decoder
from handscroll.models.sentences import framed
from handscroll.models.weights import PROVENANCE, load_model, locate, read_provenance, save_model
from handscroll.nn.marks import Marks
from handscroll.nn.quantised import PROJECTIONS, Quantised, Rounded, quantise
from handscroll.objectives.head import token_losses
from handscroll.objectives.windowed import windowed_losses
from handscroll.plan.choose import afford, afford_pool
from handscroll.plan.machine import spare
from handscroll.text.tokenizer import Tokenizer

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
WEIGHTS = ("", "float", *PROJECTIONS)
SMALL = 16  # a request whose full cache is so many times smaller than the free memory is not planned
ROOM = 1024  # tokens kept free for question and answer when a text is read
QUESTION = "\n\nQuestion: {question}\nAnswer:"


@dataclass(eq=False)
class LM:
    """A language model with its tokenizer. Made by `handscroll.load`.

    `provenance` is what `handscroll.json` in the folder says of how the checkpoint came to be.
    """

    model: Decoder
    tokenizer: Tokenizer
    source: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Tokens that the checkpoint may be used to."""
        return self.model.config.context

    @property
    def trained(self) -> int:
        """Tokens it was trained to before any lengthening, as far as the folder tells."""
        return self.provenance.get("trained") or self.model.config.trained

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text (a BOS token, mostly)."""
        return self.tokenizer.encode(text, special=special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids))

    @torch.no_grad()
    def logits(self, text_or_ids: str | Sequence[int] | Tensor, length: int | None = None) -> Tensor:
        """Logits (T, V) in float32 of every position; T x V floats are the caller's memory.

        Of an encoder (BERT): of the token at each place itself, by the masked-LM head. May run past the trained length
        (learned position tables refuse). `length` declares that of the request for a scaling that asks; T unless given.
        """
        self.model.spec.require("logits", one_text=True)
        ids = self._ids(text_or_ids)
        if not len(ids):
            raise DataError("no tokens: logits are of each token of a text, and this one has none")
        parts = [self.model.logits(h)[0].float().cpu() for _, _, h in self._chunks(ids, length)]
        return torch.cat(parts)

    @torch.no_grad()
    def nll(self, text_or_ids: str | Sequence[int] | Tensor, window: int | None = None) -> Tensor:
        """Negative log-likelihood (T - 1,) in nats of tokens 1 .. T-1, float32 on the CPU.

        Exact. Memory grows only by the KV cache. With `window`, every token is read anew in windows that
        overlap by half: it sees at least window / 2 and fewer than `window` tokens before it, whatever the
        length of the text; memory is then constant and the model never leaves `window` positions.

        Raises:
            DataError: fewer than two tokens. CapacityError: past a learned position table without `window`.
            ConfigError: an encoder, which has seen the tokens that it would be asked for.
        """
        self.model.spec.require("a likelihood", one_text=True, forward=True)
        ids = self._ids(text_or_ids)
        if len(ids) < 2:
            raise DataError(f"a loss needs at least two tokens, got {len(ids)}")
        if window is None or len(ids) <= window:
            parts = []
            for first, last, hidden in self._chunks(ids[:-1], len(ids)):
                targets = ids[first + 1 : last + 1].to(hidden.device)
                parts.append(token_losses(hidden[0], self.model.head, targets, cap=self.model.logit_cap).float().cpu())
            return torch.cat(parts)
        if window < 2:
            raise ConfigError(f"a window of {window} tokens sees nothing; give at least 2")
        return windowed_losses(self.model, ids, window)

    def embed(
        self, texts: Sequence[str], pooling: str = "mean", normalise: bool = True, windows: bool = False
    ) -> Tensor:
        """One vector (N, D) a text by an encoder, float32 on the CPU: see `models/sentences.py: framed`; `normalise`
        makes them of length 1, so that a product of two is their cosine."""
        ids = self._several(texts, special=False)
        found = framed(self.model, ids, self.tokenizer.frame(), pooling, windows)
        return torch.nn.functional.normalize(found, dim=1) if normalise else found

    def classify(self, texts: Sequence[str]) -> Tensor:
        """Probabilities (N, labels) of `model.config.labels` by a classifier: see `models/documents.py: classified`."""
        return classified(self.model, self._several(texts))

    def generate(  # noqa: PLR0913 - what is asked, how it is kept and chosen
        self,
        prompt: str | Sequence[int],
        stream: bool = False,
        beyond: bool = False,
        store: Store | None = None,
        policy: str = "full",
        kv_budget: str | int | Choice | None = None,
        kv_guard: float = GUARD,
        constraint: Constraint | None = None,
        draft: Drafts | None = None,
        on_report: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> "str | Iterator[str]":
        """Continue `prompt`; returns the new text, or yields it piece by piece with `stream`.

        An encoder-decoder reads `prompt` as its source and writes a text of its own; `store`, `draft` and caches other
        than "full" are refused there.

        `settings` are those of `Sampling`: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
        seed, stop. A request past the context is refused unless `beyond`. What `store` holds of the prompt's beginning
        is not read again; the tokens are the same. `policy` is what the cache keeps (docs/generate.md says which are
        approximate); `on_report` is called at the end with what it has to say of it. `kv_budget` chooses the policy
        instead (`choose_cache`, whose result may be given too) and reports, before anything is read, what that costs.
        `constraint` is a grammar that the new text follows (`generate/constrain.py`). `draft` guesses tokens ahead, by
        look-up (`Lookup`) or with a smaller model (`self.draft(other)`); the distribution stays the same.

        Raises:
            CapacityError: prompt + max_tokens exceed the context or the memory, or no cache within the budget is near
                enough to the exact one. ConfigError: an unknown or impossible setting.
        """
        sampling = Sampling.of(settings)
        ids = self._started(prompt)
        request = Request(ids, sampling.max_tokens, rewinds=draft is not None)
        kept = self._kept(request, policy, kv_budget, kv_guard, store, beyond, on_report)
        how = {"beyond": beyond, **kept, "constraint": constraint, "drafts": draft, "on_report": on_report}
        pieces = streamed(self.model, self.tokenizer, ids, sampling, how)
        return pieces if stream else "".join(pieces)

    def continuations(  # noqa: PLR0913 - `generate` with two more
        self,
        prompt: str | Sequence[int],
        samples: int = 1,
        logprobs: int | None = None,
        beyond: bool = False,
        store: Store | None = None,
        policy: str = "full",
        kv_budget: str | int | Choice | None = None,
        kv_guard: float = GUARD,
        constraint: Constraint | None = None,
        draft: Drafts | None = None,
        on_report: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> list[Continuation]:
        """`samples` continuations of a prompt that is read once, with tokens, finish reasons and log-probabilities.

        Sample 0 is what `generate` gives; the others have random streams of their own. `logprobs` is how many of the
        likeliest tokens are told with each (0: only the chosen one's). Otherwise as `generate`.
        """
        sampling = Sampling.of(settings)
        ids = self._started(prompt)
        request = Request(ids, sampling.max_tokens, samples, rewinds=draft is not None)
        kept = self._kept(request, policy, kv_budget, kv_guard, store, beyond, on_report)
        how = {"beyond": beyond, **kept, "constraint": constraint, "drafts": draft, "on_report": on_report}
        return continuations(self.model, self.tokenizer, ids, sampling, samples, logprobs=logprobs, **how)

    def beams(  # noqa: PLR0913 - settings of the search and of the request
        self,
        prompt: str | Sequence[int],
        beams: int = 4,
        max_tokens: int = 256,
        count: int = 1,
        length_penalty: float = 1.0,
        early: Early = "bound",
        beyond: bool = False,
        store: Store | None = None,
    ) -> list[Continuation]:
        """The `count` best continuations that beam search finds (`generate/beam.py`), best first, with their scores."""
        self.model.spec.require("beam search", one_text=True)
        ids, ends = self._started(prompt), self.model.config.eos
        reading = self._known(ids, max_tokens, store, "full")
        self._afford(Request(ids, max_tokens, beams).after(reading), "full", others=())
        found = beam_search(
            self.model, ids, beams, max_tokens, ends, count, length_penalty, early, beyond, reading=reading
        )
        return [
            Continuation(text_of(self.tokenizer, ids, item.tokens), item.tokens, item.finish, score=item.score)
            for item in found
        ]

    def fill(self, text: str, **settings: Any) -> str:
        """`text` with its blanks filled, for models of blank infilling: "[MASK]" stands for a span, "[gMASK]" for all
        that follows (appended where there is neither); other special tokens written in it are ordinary characters.
        `settings` are those of `generate`; max_tokens is of each blank, as many as the table holds if not given.

        Raises:
            ConfigError: the model fills no blanks. CapacityError: more than its learned tables hold.
        """
        return self.decode(blanks.filled(self.model, self.tokenizer, text, settings))

    def choose_cache(
        self,
        prompt: str | Sequence[int],
        kv_budget: str | int,
        max_tokens: int = 256,
        kv_guard: float = GUARD,
        samples: int = 1,
        drafts: bool = False,
        beyond: bool = False,
    ) -> Choice:
        """The cache that stays within `kv_budget` for a request and is nearest to the exact one (`generate/budget.py`).

        `kv_budget` is bytes, a size such as "2GiB", or a share of the full cache such as "50%"; `kv_guard` the most
        mean KL divergence, nats per token, that it may cost. The result is for `generate(kv_budget=...)`.

        Raises:
            ConfigError: no such size, or one below 64 tokens. CapacityError: prompt + max_tokens exceed the context,
                or nothing fits and is near enough; says what would.
        """
        self.model.spec.require("a budget of keys and values", one_text=True, keys=True)
        ids = started(self.model, 0, self._started(prompt))
        check_length(self.model, 0, len(ids), max_tokens, beyond)
        request = Request(ids, max_tokens, samples, rewinds=drafts)
        return choose(self.model, self.tokenizer, request, kv_budget, kv_guard)

    def conversation(
        self,
        on_note: Callable[[str], None] | None = None,
        kv_budget: str | int | None = None,
        kv_guard: float = GUARD,
    ) -> Conversation:
        """A text that grows by turns, of which nothing is read twice, unless a scaling by length makes that wrong.

        `kv_budget` bounds its cache, which is exact as long as it fits; a share is one of the whole context's.
        """
        self.model.spec.require("a conversation", one_text=True, forward=True)
        kept: dict[str, Any] = {"budget": kv_budget, "guard": kv_guard, "afford": partial(self._afford, others=())}
        return Conversation(self.model, self.tokenizer, on_note, **kept)

    def engine(self, memory: int, **settings: Any) -> Engine:
        """An engine over `memory` bytes of keys and values, refused (CapacityError) where they are not free."""
        afford_pool(workload(self.model, memory, **settings), memory, spare(self.model.device)[0])
        return Engine(self.model, memory=memory, **settings)

    def read(
        self,
        text_or_ids: str | Sequence[int] | Tensor,
        store: Store,
        name: str = "",
        room: int = ROOM,
        beyond: bool = False,
        policy: str = "full",
        on_read: Callable[[int, int], None] | None = None,
    ) -> Reading:
        """Read a text once and save what was read; `ask` and `generate(store=...)` go on from it.

        What the store already holds of its beginning is not read again. `room` tokens are declared for question and
        answer (a length-dependent scaling is fixed by it). `on_read(done, all)` is called after every chunk.

        Raises:
            CapacityError: text and room exceed the context (unless `beyond`), or the store's limit.
            ConfigError: a policy whose cache is not saved. DataError: no text.
            CheckpointError: the disk refused, or a saved beginning is damaged.
        """
        self.model.spec.require("a saved reading", one_text=True, forward=True, keys=True)
        ids = self._ids(text_or_ids)
        cache_of(policy)  # refuses an unknown one
        if policy not in SAVED:
            raise ConfigError(f"a reading is not kept in '{policy}': {nearest(policy, SAVED)}")
        if not len(ids):
            raise DataError("there is nothing to read: the text is empty")
        if len(ids) + room > self.context and not beyond:
            raise CapacityError(
                f"the text has {len(ids)} tokens and {room} are kept free for question and answer: "
                f"{len(ids) + room} in all, but the model's context is {self.context}; read less, or lengthen the "
                f"model first (handscroll extend ... --to {len(ids) + room})"
            )
        if name:
            check_name(name)
        source = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
        about = self.identity(len(ids) + room, policy)
        number = read_into(store, self.model, about, ids, self.model.spec.declared(len(ids) + room), source, on_read)
        if name:
            store.name(name, number, len(ids))
        return store.open(number).part(len(ids))

    def ask(
        self,
        name: str,
        question: str,
        store: Store,
        template: str = QUESTION,
        stream: bool = False,
        again: bool = False,
        beyond: bool = False,
        **settings: Any,
    ) -> "str | Iterator[str]":
        """Answer a question about the text that was read under `name`.

        `template` is what is appended to the text, with {question} in it.

        Raises:
            ConfigError: no such name, or it was read with another model, positions, tokenizer or dtype; or, under a
                scaling that depends on the length, for shorter requests than this one (unless it may be read `again`).
            CheckpointError: what was saved is damaged, or was evicted. CapacityError: the memory does not suffice.
        """
        sampling = Sampling.of(settings)
        if "{question}" not in template:
            raise ConfigError(f"the template {template!r} has no {{question}} in it")
        about, length = store.named(name)
        differ = about.identity.differences(self.identity(length, about.identity.policy))
        if wrong := [field for field in differ if field != "bucket"]:
            raise ConfigError(f"'{name}' was read with another {', '.join(wrong)} ({about.source}): read it again")
        read = store.tokens(about.number)[:length].tolist()
        ids = read + self.encode(template.replace("{question}", question), special=False)
        total, policy = len(ids) + sampling.max_tokens, about.identity.policy
        same = self.identity(total, policy).bucket == about.identity.bucket
        if not same and not again:
            raise ConfigError(
                f"'{name}' was read for shorter requests than {total} tokens, and the model's scaling depends on the "
                "length: ask for fewer new tokens, read the text with more room, or let it be read again"
            )
        reading = store.open(about.number).part(length) if same else None
        self._afford(Request(ids, sampling.max_tokens).after(reading), policy, others=())
        pieces = streamed(
            self.model, self.tokenizer, ids, sampling, {"beyond": beyond, "reading": reading, "policy": policy}
        )
        return pieces if stream else "".join(pieces)

    def _several(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        if isinstance(texts, str):
            raise ConfigError("expected a list of texts; for one text give [text]")
        return [self.encode(text, special=special) for text in texts]

    def _started(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return ids or ([] if self.model.config.bos is None else [self.model.config.bos])

    def _kept(
        self,
        request: Request,
        policy: str,
        kv_budget: str | int | Choice | None,
        kv_guard: float,
        store: Store | None,
        beyond: bool,
        on_report: Callable[[str], None] | None,
    ) -> dict[str, Any]:
        """Policy, chunk and reading of a request, as `decode` takes them; refuses what does not fit the memory."""
        chunk = prefill_chunk(self.model.device)
        if kv_budget is not None:
            if policy != "full" or store is not None:
                other = "saved readings lie in their files" if store is not None else f"the policy is '{policy}'"
                raise ConfigError(f"kv_budget chooses how the cache is kept, but {other}: leave out one of the two")
            if not isinstance(kv_budget, Choice):
                ids, new, samples, drafts, *_ = request
                kv_budget = self.choose_cache(ids, kv_budget, new, kv_guard, samples, drafts, beyond)
                if on_report is not None and kv_budget.loss is not None:
                    on_report(f"approximate: {kv_budget.report()}")
            policy, chunk = kv_budget.policy, kv_budget.chunk
        reading = self._known(request.prompt, request.new, store, policy)
        self._afford(request.after(reading), policy, chunk)
        return {"policy": policy, "chunk": chunk, "reading": reading}

    def _afford(self, request: Request, policy: str, chunk: int = 0, others: Sequence[str] | None = None) -> None:
        """Refuse what does not fit into the free memory beside the model, and say what would."""
        chunk = chunk or prefill_chunk(self.model.device)
        free, disk = spare(self.model.device)
        grows = request.prompt and not self.model.spec.recurrent  # a state is kept, whatever the length
        if grows and request.bytes("full", self.model, chunk) * SMALL > free:
            names = request.others(policy) if others is None else others
            known = {f"--cache {name}": request.workload(name, self.model) for name in names}
            afford(request.workload(policy, self.model, chunk), free, disk, known)

    def _known(self, ids: Sequence[int], new: int, store: Store | None, policy: str) -> Reading | None:
        """What the store holds of the beginning of a prompt."""
        if store is None:
            return None
        if policy.partition(":")[0] in EVICTING:
            raise ConfigError(f"saved readings keep every token, '{policy}' does not: generate without the store")
        self.model.spec.require("a saved reading", one_text=True, keys=True)
        # The last token is read anyway: the first new one is predicted from it.
        return store.find(self.identity(len(ids) + new, policy), torch.tensor(ids[:-1])) if len(ids) > 1 else None

    def draft(self, other: "LM") -> DraftModel:
        """Another model of the same tokens as the draft of speculative decoding, for `generate(draft=...)`."""
        if other.tokenizer.fingerprint != self.tokenizer.fingerprint and other.tokenizer.words != self.tokenizer.words:
            raise ConfigError(
                f"{other.source} has another vocabulary than {self.source}: a draft needs the same tokens"
            )
        return DraftModel(other.model)

    def identity(self, length: int, policy: str = "full") -> Identity:
        """What a text read in a request of `length` tokens belongs to."""
        cache_of(policy)  # refuses an unknown one
        return identity(self.model, self.tokenizer.fingerprint, length, policy)

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer, and `handscroll.json`."""
        folder = Path(folder)
        if any(isinstance(module, Rounded | Quantised) for module in self.model.modules()):
            raise ConfigError(f"the weights of {self.source} were rounded at loading: load it with weights='float'")
        save_model(self.model, folder, pad=self.tokenizer.pad)
        self.tokenizer.save(folder)
        if self.provenance:
            text = json.dumps(self.provenance, indent=2, ensure_ascii=False) + "\n"
            write_file(folder / PROVENANCE, text.encode())
        return folder

    def _ids(self, text_or_ids: str | Sequence[int] | Tensor) -> Tensor:
        if isinstance(text_or_ids, str):
            text_or_ids = self.encode(text_or_ids)
        ids = torch.as_tensor(text_or_ids).flatten()
        if ids.is_floating_point() and len(ids):
            raise DataError(f"token ids are whole numbers, not {ids.dtype}")
        ids = ids.to(torch.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.model.config.vocab:
            raise DataError(f"token ids reach {int(ids.max())}; the vocabulary has {self.model.config.vocab}")
        return ids

    def _chunks(self, ids: Tensor, length: int | None) -> Iterator[tuple[int, int, Tensor]]:
        tokens = ids[None].to(self.model.device)
        if not self.model.spec.cached:  # nothing to keep between chunks: the text is read at once
            marks = Marks.run(0, len(ids))
            hidden = self.model.hidden(self.model.embed(tokens, marks), marks, self.model.mask(), length=length)
            return iter([(0, len(ids), hidden)])
        cache, marks = self.model.new_cache(capacity=len(ids)), Marks.run(0, len(ids))
        return hidden_chunks(self.model, tokens, marks, cache, length or len(ids), prefill_chunk(tokens.device))


def load(source: str | Path, device: str = "cpu", dtype: str = "auto", weights: str = "") -> LM:
    """Load a checkpoint: a local folder, a GGUF file or a hub id (safetensors only, no remote code, no pickle).

    `dtype` "auto" is what the checkpoint is stored in (float32 on a CPU for float16 and for quantised weights).
    `weights`: "" keeps quantised matrices of a GGUF file as they are, "float" dequantises them, as training needs.
    "int8" or "int4" rounds all projections, token table and head to int8 in both cases (approximate; for reading and
    decoding, not for training or saving).

    Raises:
        CheckpointError: the folder is incomplete or damaged. ConfigError: an unknown dtype, family or setting.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"unknown form of the weights '{weights}': {nearest(weights, WEIGHTS[1:])}")
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"unknown dtype '{dtype}': {nearest(dtype, ('auto', *DTYPES))}")
    path = locate(source)
    _held = read_gguf(path) if is_gguf(path) else None  # so that its header is read once
    tokenizer = Tokenizer.load(path)
    model = load_model(path, DTYPES.get(dtype), device, as_stored=not weights)
    if tokenizer.vocab_size > model.config.vocab:
        raise CapacityError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab}; "
            "the tokenizer belongs to another checkpoint"
        )
    if weights in PROJECTIONS and model.spec.recurrent:
        raise ConfigError(f"family '{model.config.family}' has no projections to round: load it without weights")
    if weights in PROJECTIONS:
        quantise(model, weights)
    return LM(model, tokenizer, str(source), read_provenance(path))
