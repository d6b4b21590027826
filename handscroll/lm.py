"""`LM`: a model, its tokenizer and what people do with them: encode, logits, nll, generate, save."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError, nearest
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.base.runs import write_file
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.reading import Reading
from handscroll.cache.reading.store import Store
from handscroll.generate import blanks, score
from handscroll.generate.admission import (
    admit,
    afford_demand,
    afford_engine,
    begun,
    choose_cache,
    identity_of,
    settled,
)
from handscroll.generate.ask import QUESTION, AskSettings, Question, asked
from handscroll.generate.beam import Beams, Early
from handscroll.generate.budget import GUARD, Choice, Demand
from handscroll.generate.continuation import Continuation, continuations, searched, streamed
from handscroll.generate.conversation import Conversation
from handscroll.generate.draft import DraftModel, Drafts
from handscroll.generate.engine.engine import Engine, EngineSettings
from handscroll.generate.likelihood import Likelihood, loglikelihood, split_pair
from handscroll.generate.read import ROOM, ToRead, read
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.settings import SamplingSettings, Settings
from handscroll.models.documents import classified
from handscroll.models.gguf.save import save_gguf
from handscroll.models.model import Decoder
from handscroll.models.sentences import framed
from handscroll.models.weights import PROVENANCE, load_model, locate, read_provenance, save_model
from handscroll.nn.quantised import PROJECTIONS, Quantised, quantise
from handscroll.text.gguf_out import metadata_of
from handscroll.text.tokenizer import Tokenizer

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
WEIGHTS = ("", "float", *PROJECTIONS)


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

    def logits(self, text_or_ids: str | Sequence[int] | Tensor, length: int | None = None) -> Tensor:
        """Logits (T, V) in float32 of every position (`generate/score.py`); T x V floats are the caller's memory."""
        return score.logits(self.model, self._ids(text_or_ids), length)

    def nll(self, text_or_ids: str | Sequence[int] | Tensor, window: int | None = None) -> Tensor:
        """Negative log-likelihood (T - 1,) in nats of tokens 1 .. T-1, float32 on the CPU.

        Exact. Memory grows only by the KV cache. With `window`, every token is read anew in windows that
        overlap by half: it sees at least window / 2 and fewer than `window` tokens before it, whatever the
        length of the text; memory is then constant and the model never leaves `window` positions.

        Raises:
            DataError: fewer than two tokens. CapacityError: past a learned position table without `window`.
            ConfigError: an encoder, which has seen the tokens that it would be asked for.
        """
        return score.nll(self.model, self._ids(text_or_ids), window)

    def loglikelihood(
        self, pairs: Sequence[tuple[str | Sequence[int], str | Sequence[int]]], beyond: bool = False
    ) -> list[Likelihood]:
        """How likely each continuation is after its context, and whether it is what greedy decoding gives.

        Exact, many at once; a long context that several continuations share is read once (`generate/likelihood.py`).
        Where both are texts, they are encoded together, so that a token never depends on where the cut is written: the
        tokens after those of the context (without the blanks at its end) are the continuation's.
        """
        return loglikelihood(self.model, [split_pair(self.tokenizer, *pair) for pair in pairs], beyond)

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

    def generate(self, prompt: str | Sequence[int], **settings: Unpack[Settings]) -> str:
        """The text with which the model continues `prompt`.

        An encoder-decoder reads `prompt` as its source and writes a text of its own; `store`, `draft` and caches other
        than "full" are refused there. `settings` are explained in `generate/settings.py`.

        Raises:
            CapacityError: prompt + max_tokens exceed the context or the memory, or no cache within the budget is near
                enough to the exact one. ConfigError: an unknown or impossible setting.
        """
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str | Sequence[int], **settings: Unpack[Settings]) -> Iterator[str]:
        """`generate`, piece by piece; what is impossible is refused at the call."""
        return streamed(self.model, self.tokenizer, admit(self.model, self.tokenizer, prompt, settings))

    def continuations(
        self,
        prompt: str | Sequence[int],
        samples: int = 1,
        logprobs: int | None = None,
        **settings: Unpack[Settings],
    ) -> list[Continuation]:
        """`samples` continuations of a prompt that is read once, with tokens, finish reasons and log-probabilities.

        Sample 0 is what `generate` gives; the others have random streams of their own. `logprobs` is how many of the
        likeliest tokens are given with each (0: only the chosen one's). Otherwise as `generate`.
        """
        request = admit(self.model, self.tokenizer, prompt, settings, samples, logprobs)
        return continuations(self.model, self.tokenizer, request)

    def beams(
        self,
        prompt: str | Sequence[int],
        beams: int = 4,
        count: int = 1,
        length_penalty: float = 1.0,
        early: Early = "bound",
        **settings: Unpack[Settings],
    ) -> list[Continuation]:
        """The `count` best continuations that beam search finds (`generate/beam.py`), best first, with their scores.

        Of the settings of `generate` it takes max_tokens, ignore_eos, beyond and store.
        """
        self.model.spec.require("beam search", one_text=True)
        request = settled(self.model, self.tokenizer, prompt, settings, count)
        afford_demand(self.model, Demand.of(request)._replace(samples=beams), request.policy)
        return searched(self.model, self.tokenizer, request, Beams(beams, length_penalty, early))

    def fill(self, text: str, **settings: Unpack[SamplingSettings]) -> str:
        """`text` with its blanks filled, for models of blank infilling: "[MASK]" stands for a span, "[gMASK]" for all
        that follows (appended where there is neither); other special tokens written in it are ordinary characters.
        max_tokens is of each blank, as many as the table holds if not given.

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
        draft: Drafts | None = None,
        beyond: bool = False,
    ) -> Choice:
        """The cache that stays within `kv_budget` for a request and is nearest to the exact one (`generate/budget.py`).

        `kv_budget` is bytes, a size such as "2GiB", or a share of the full cache such as "50%"; `kv_guard` the most
        mean KL divergence, nats per token, that it may cost. The result is for `generate(kv_budget=...)`.

        Raises:
            ConfigError: no such size, or one below 64 tokens. CapacityError: prompt + max_tokens exceed the context,
                or nothing fits and is near enough; says what would.
        """
        ids, sampling = begun(self.model, self.tokenizer, prompt), Sampling.parse({"max_tokens": max_tokens}, "budget")
        request = Request(ids, sampling, samples, draft=draft, beyond=beyond)
        return choose_cache(self.model, self.tokenizer, request, kv_budget, kv_guard)

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
        return Conversation(
            self.model,
            self.tokenizer,
            on_note,
            budget=kv_budget,
            guard=kv_guard,
            afford=lambda demand, policy, chunk: afford_demand(self.model, demand, policy, chunk),
        )

    def engine(self, memory: int, **settings: Unpack[EngineSettings]) -> Engine:
        """An engine over `memory` bytes of keys and values, refused (CapacityError) where they are not free."""
        afford_engine(self.model, memory, settings)
        return Engine(self.model, self.tokenizer, memory=memory, **settings)

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

        `room` tokens are declared for question and answer. `on_read(done, all)` is called after every chunk. Errors:
        those of `generate/read.py: read`.
        """
        source = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
        text = ToRead(self._ids(text_or_ids), source, name, room, beyond, policy, on_read)
        return read(self.model, self.tokenizer, store, text)

    def ask(
        self, name: str, question: str, store: Store, template: str = QUESTION, **settings: Unpack[AskSettings]
    ) -> str:
        """The answer to a question about the text that was read under `name`.

        `template` is what is appended to the text, with {question} in it. Errors: those of `generate/ask.py: asked`.
        """
        return "".join(self.ask_stream(name, question, store, template, **settings))

    def ask_stream(
        self, name: str, question: str, store: Store, template: str = QUESTION, **settings: Unpack[AskSettings]
    ) -> Iterator[str]:
        """`ask`, piece by piece; what is impossible is refused at the call."""
        request = asked(self.model, self.tokenizer, store, Question(name, question, template), settings)
        return streamed(self.model, self.tokenizer, request)

    def draft(self, other: "LM") -> DraftModel:
        """Another model of the same tokens as the draft of speculative decoding, for `generate(draft=...)`."""
        if other.tokenizer.fingerprint != self.tokenizer.fingerprint and other.tokenizer.words != self.tokenizer.words:
            raise ConfigError(
                f"{other.source} has another vocabulary than {self.source}: a draft needs the same tokens"
            )
        return DraftModel(other.model)

    def identity(self, length: int, policy: str = "full") -> Identity:
        """What a text read in a request of `length` tokens belongs to."""
        return identity_of(self.model, self.tokenizer, length, policy)

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer, and `handscroll.json`."""
        folder = Path(folder)
        self._check_whole()
        save_model(self.model, folder, pad=self.tokenizer.pad)
        self.tokenizer.save(folder)
        if self.provenance:
            text = json.dumps(self.provenance, indent=2, ensure_ascii=False) + "\n"
            write_file(folder / PROVENANCE, text.encode())
        return folder

    def _several(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        if isinstance(texts, str):
            raise ConfigError("expected a list of texts; for one text give [text]")
        return [self.encode(text, special=special) for text in texts]

    def export_gguf(self, path: str | Path, weights: str = "f16") -> Path:
        """Write a GGUF file that llama.cpp reads, with matrices as f32, f16, bf16, q8_0 or q4_0."""
        self._check_whole()
        tokens = metadata_of(self.tokenizer, self.model.config.vocab, self.model.config.eos)
        return save_gguf(self.model, tokens, Path(path), weights, self.provenance)

    def _check_whole(self) -> None:
        if any(isinstance(module, Quantised) for module in self.model.modules()):
            raise ConfigError(f"the weights of {self.source} were rounded at loading: load it with weights='float'")

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
