"""`LM`: a model with its tokenizer, and the operations on them: encode, logits, nll, generate, save."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any, Unpack

import torch
from torch import Tensor

from handscroll.base.allocator import trim
from handscroll.base.errors import CapacityError, ConfigError, nearest
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.reading import Document, Reading
from handscroll.cache.reading.store import Store
from handscroll.cache.table import DEFAULT
from handscroll.generate import blanks, score
from handscroll.generate.ask import AskSettings, Opening, Question, answers, opening
from handscroll.generate.beam import Beams, Early
from handscroll.generate.budget import GUARD, Choice, Demand
from handscroll.generate.chat import Chat, Reply, Speaker, begin, said
from handscroll.generate.continuation import Continuation, continuations, searched, streamed
from handscroll.generate.conversation import Conversation
from handscroll.generate.defaults import Defaults
from handscroll.generate.draft import DraftModel, Drafts
from handscroll.generate.engine.engine import Engine, EngineSettings
from handscroll.generate.likelihood import Likelihood, loglikelihood, split_pair
from handscroll.generate.prefill import CHUNK
from handscroll.generate.prepare import afford_demand, afford_engine, begun, choose_cache, identity_of, prepare, settled
from handscroll.generate.read import ROOM, ToRead, read
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.settings import ChatSettings, SamplingSettings, Settings, sampling_of
from handscroll.models.adapters import One, Weighted, adapt, merge, over_base, task_of, weighted, write_task
from handscroll.models.gguf.save import save_gguf
from handscroll.models.labels import Answer, Tag, answered, probabilities, scored, tagged
from handscroll.models.locate import locate
from handscroll.models.model import Decoder
from handscroll.models.onnx import Differences, graph_of, save_onnx
from handscroll.models.sentence_folder import Sentences, write_recipe
from handscroll.models.vectors import How, vectors
from handscroll.models.weights import load_model, read_provenance, save_model, write_provenance, written_dtype
from handscroll.nn.quantised import PROJECTIONS
from handscroll.text.chat.messages import Message
from handscroll.text.framed import Text
from handscroll.text.gguf_out import metadata_of
from handscroll.text.tokenizer import Tokenizer

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
WEIGHTS = ("", "float", *PROJECTIONS)


@dataclass(eq=False)
class LM:
    """A language model with its tokenizer; `handscroll.load` makes one.

    `provenance` is the content of `handscroll.json` in the folder: the record of how the checkpoint was made.
    `defaults` are the settings that the checkpoint recommends, under those that a call gives. `adapters` are those that
    are on the model and not merged. `stored` is the dtype of the numbers that `save` writes: that of the files, if the
    model was loaded with dtype "auto" (None: the model's). `sentences` is the recipe of a sentence encoder, `task` the
    content of the `task.json` of a model that was tuned for a task.
    """

    model: Decoder
    tokenizer: Tokenizer
    source: str
    provenance: dict[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    adapters: tuple[Weighted, ...] = ()
    stored: torch.dtype | None = None
    sentences: Sentences | None = None
    task: bytes | None = None
    _chat: tuple[tuple[Any, ...], Chat] | None = field(default=None, init=False, repr=False)  # that of `chat`, kept

    @property
    def context(self) -> int:
        """The number of tokens that the checkpoint may be used with now."""
        return self.model.config.context

    @property
    def trained(self) -> int:
        """The number of tokens it was trained with before any lengthening, as far as the folder records it."""
        return self.provenance.get("trained") or self.model.config.trained

    def sampling(self, **settings: Unpack[SamplingSettings]) -> Sampling:
        """The given settings over those that the checkpoint recommends (`plain=True` leaves the latter out)."""
        return sampling_of(self.defaults.under(settings))

    def encode(self, text: str, special: bool = True, follows: bool = False) -> list[int]:
        """Encode a text; `special` adds the tokens that the tokenizer puts around a text (mostly a BOS token).

        `follows`: another text stands before it, and no blank is put between the two.
        """
        return self.tokenizer.encode(text, special=special, follows=follows)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids into text, without special tokens."""
        return self.tokenizer.decode(list(ids))

    def logits(self, text_or_ids: str | Sequence[int] | Tensor, length: int | None = None) -> Tensor:
        """Logits (T, V) in float32 of every position (`generate/score.py`); they need memory for T x V floats."""
        return score.logits(self.model, self._ids(text_or_ids), length)

    def nll(self, text_or_ids: str | Sequence[int] | Tensor, window: int | None = None) -> Tensor:
        """Negative log-likelihood (T - 1,) in nats of tokens 1 .. T-1, float32 on the CPU.

        The result is exact, and memory grows only by the KV cache. With `window`, the text is read again in windows
        that overlap by half: each token sees at least window / 2 and fewer than `window` tokens before it. Memory is
        then constant for any length of the text, and the model never leaves `window` positions.

        Raises:
            DataError: the text has fewer than two tokens. CapacityError: without `window`, the text is longer than a
                learned position table. ConfigError: the model is an encoder, which sees the tokens to be predicted.
        """
        return score.nll(self.model, self._ids(text_or_ids), window)

    def loglikelihood(
        self, pairs: Sequence[tuple[str | Sequence[int], str | Sequence[int]]], beyond: bool = False
    ) -> list[Likelihood]:
        """The likelihood of each continuation after its context, and whether greedy decoding gives it.

        The results are exact. Many pairs are read at once, and a long context that several continuations share is
        read once (`generate/likelihood.py`). If both parts are texts, they are encoded together, so that the tokens do
        not depend on the place of the cut. The tokens after those of the context (without the blanks at its end)
        belong to the continuation; where one token would belong to both, each part is encoded by itself.
        """
        return loglikelihood(self.model, [split_pair(self.tokenizer, *pair) for pair in pairs], beyond)

    def embed(self, texts: Sequence[str], pooling: str | None = None, **how: Unpack[How]) -> Tensor:
        """Vectors (N, D) of N texts by an encoder, in float32 on the CPU (`models/vectors.py`).

        The recipe of a sentence encoder decides what is not given: pooling, scaling, prompts, and the length at which
        texts are cut (said by the logger `handscroll.sentences`).
        """
        return vectors(self.model, self.tokenizer, self.sentences, texts, pooling, how)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the head of the model tells apart, in the order of its outputs; empty if it has no such head."""
        head = self.model.spec.head
        return () if head is None else head.labels

    def scores(self, texts: Sequence[Text], windows: bool = False) -> Tensor:
        """The outputs (N, labels) of a head for whole texts or pairs, as they are (`models/labels.py: scored`).

        They are logits of labels, or rewards and other numbers. With `windows` a text that is longer than the context
        is read in windows, whose outputs are averaged; otherwise it is refused.
        """
        return scored(self.model, self.tokenizer, texts, windows)

    def classify(self, texts: Sequence[Text], windows: bool = False) -> Tensor:
        """Probabilities (N, labels) of `labels` by a classifier (`models/labels.py: probabilities`)."""
        return probabilities(self.model, self.tokenizer, texts, windows)

    def tag(self, texts: Sequence[str], windows: bool = False) -> list[list[Tag]]:
        """The label of every token of each text, with its place (`models/labels.py: tagged`; `entities` joins them)."""
        return tagged(self.model, self.tokenizer, texts, windows)

    def answers(self, question: str, text: str, count: int = 1, windows: bool = False) -> list[Answer]:
        """The best parts of a text as answers to a question, by a head that was trained so (`models/labels.py`)."""
        return answered(self.model, self.tokenizer, question, text, count, windows)

    def generate(self, prompt: str | Sequence[int], **settings: Unpack[Settings]) -> str:
        """The text with which the model continues `prompt`.

        An encoder-decoder reads `prompt` as its source and writes a new text; it refuses `store`, `draft` and
        approximate caches. `generate/settings.py` explains the `settings`.

        Raises:
            CapacityError: prompt + max_tokens exceed the context or the memory, or no cache within the budget is close
                enough to the exact one. ConfigError: a setting is unknown or impossible.
        """
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str | Sequence[int], **settings: Unpack[Settings]) -> Iterator[str]:
        """Like `generate`, but yields the text piece by piece; impossible requests are refused at the call."""
        request = prepare(self.model, self.tokenizer, prompt, self._settled(settings))
        return streamed(self.model, self.tokenizer, request)

    def continuations(
        self,
        prompt: str | Sequence[int],
        samples: int = 1,
        logprobs: int | None = None,
        **settings: Unpack[Settings],
    ) -> list[Continuation]:
        """Continue a prompt `samples` times, with tokens, finish reasons and log-probabilities.

        The prompt is read once. Sample 0 is the text of `generate`; each other sample has its own random stream.
        `logprobs` is the number of likeliest tokens to report at each place (0: only the chosen token). The rest is as
        in `generate`.
        """
        request = prepare(self.model, self.tokenizer, prompt, self._settled(settings), samples, logprobs)
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
        """The `count` best continuations that beam search finds, best first, with their scores (`generate/beam.py`).

        It takes these settings of `generate`: max_tokens, ignore_eos, beyond and store. What the checkpoint
        recommends for drawing tokens plays no part.
        """
        self.model.spec.require("beam search", one_text=True)
        request = settled(self.model, self.tokenizer, prompt, self._settled({**settings, "plain": True}), count)
        afford_demand(self.model, Demand.of(request)._replace(samples=beams), request.policy)
        return searched(self.model, self.tokenizer, request, Beams(beams, length_penalty, early))

    def fill(self, text: str, **settings: Unpack[SamplingSettings]) -> str:
        """Fill the blanks of `text` by a model of blank infilling and return the whole text.

        "[MASK]" stands for a span and "[gMASK]" for all that follows; "[gMASK]" is appended if the text has neither.
        Other special tokens written in the text are ordinary characters. max_tokens limits each blank; by default it
        is the number that the table holds.

        Raises:
            ConfigError: the model does not fill blanks. CapacityError: the text exceeds its learned tables.
        """
        return self.decode(blanks.filled(self.model, self.tokenizer, text, self._settled(settings)))

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
        """Choose the cache within `kv_budget` that is closest to the exact one (`generate/budget.py`).

        `kv_budget` is a number of bytes, a size such as "2GiB", or a share of the full cache such as "50%". `kv_guard`
        is the largest mean KL divergence that the cache may cost, in nats per token. Pass the result to
        `generate(kv_budget=...)`.

        Raises:
            ConfigError: the size cannot be read or holds fewer than 64 tokens. CapacityError: prompt + max_tokens
                exceed the context, or no cache fits and is close enough; the message says what would be.
        """
        ids, sampling = begun(self.model, self.tokenizer, prompt), Sampling.parse({"max_tokens": max_tokens}, "budget")
        request = Request(ids, sampling, samples, draft=draft, beyond=beyond)
        return choose_cache(self.model, self.tokenizer, request, kv_budget, kv_guard)

    def chat(
        self, messages: Sequence[Message], stream: bool = False, **settings: Unpack[ChatSettings]
    ) -> Reply | Iterator[str]:
        """The assistant's answer to `messages` ({"role": ..., "content": ...}), by the model's own chat template.

        The result is a text with its `thinking`, `finish` and counts of tokens (`generate/chat.py: Reply`); with
        `stream`, an iterator over the pieces of the answer. What the messages share with those of the call before is
        not read again, so a conversation that grows costs only its new turn. Special tokens written in a message are
        ordinary text. `generate/settings.py` explains the `settings`.

        Raises:
            ConfigError: the model has no chat template, or a setting is unknown. DataError: the template refuses the
                messages. CapacityError: they do not fit into the context or the memory.
        """
        sampling = sampling_of(self._settled(settings), ChatSettings.__optional_keys__)
        store, tools = settings.get("store"), bool(settings.get("tools"))
        key = (settings.get("template", ""), tools, settings.get("kv_budget"), settings.get("kv_guard", GUARD), store)
        if self._chat is None or self._chat[0] != key or self._chat[1].busy:
            self._chat = key, self.chatting(*key)
        answer = begin(self._chat[1], messages, sampling, settings)
        pieces = said(answer, settings.get("on_thinking"))
        return pieces if stream else answer.whole(pieces)

    def chatting(
        self,
        template: str = "",
        tools: bool = False,
        kv_budget: str | int | None = None,
        kv_guard: float = GUARD,
        store: Store | None = None,
    ) -> Chat:
        """Begin a chat that keeps what was read, from the saved readings of `store` on if it has a beginning.

        `template` is a name among the model's templates, or the source of another one; `tools` takes the one for tools.
        """
        talk = self.conversation(None, kv_budget, kv_guard)
        speaker = Speaker(self.tokenizer, template, self.source, tools)
        if store is not None:
            if kv_budget is not None:
                raise ConfigError("kv_budget chooses how the cache is kept, but saved readings lie in their files")
            talk.find = lambda ids, total: store.find(self.identity(total), torch.tensor(ids[:-1]))
        return Chat(speaker, talk)

    def conversation(
        self,
        on_note: Callable[[str], None] | None = None,
        kv_budget: str | int | None = None,
        kv_guard: float = GUARD,
    ) -> Conversation:
        """Begin a text that grows by turns.

        No token is read twice, unless a length-dependent scaling requires it. `kv_budget` bounds the cache, which stays
        exact while the text fits; a share such as "50%" refers to the full cache of the whole context.
        """
        self.model.spec.require("a conversation", one_text=True, forward=True)
        return Conversation(
            self.model,
            self.tokenizer,
            on_note,
            budget=kv_budget,
            guard=kv_guard,
            afford=lambda demand, policy, chunk, freed: afford_demand(self.model, demand, policy, chunk, freed=freed),
        )

    def engine(self, memory: int, **settings: Unpack[EngineSettings]) -> Engine:
        """An engine with `memory` bytes for keys and values.

        Raises:
            CapacityError: that much memory is not free.
        """
        afford_engine(self.model, memory, settings)
        return Engine(self.model, self.tokenizer, memory=memory, **settings)

    def read(
        self,
        text_or_ids: str | Sequence[int] | Tensor | Opening,
        store: Store,
        name: str = "",
        room: int = ROOM,
        beyond: bool = False,
        policy: str | Choice = DEFAULT,
        on_read: Callable[[int, int], None] | None = None,
    ) -> Reading:
        """Read a text once and save the reading, from which `ask` and `generate(store=...)` continue.

        If the model has a chat template, a text is read as the beginning of a user's turn, and questions follow in
        it; ids (`lm.encode(text)`) are read as they are. `room` is the number of tokens declared for question and
        answer. `policy` may be a `Choice`. `on_read(done, all)` is called after every chunk. The
        errors are those of `generate/read.py: read`.
        """
        source = str(Path(self.source).resolve()) if Path(self.source).exists() else self.source
        adapters = tuple(str(one.resolved()) for one in self.adapters)
        begun = (self.opening(text_or_ids) or text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
        ids, document = begun if isinstance(begun, Opening) else (begun, None)
        policy, chunk = (policy, CHUNK) if isinstance(policy, str) else (policy.policy, policy.chunk)
        text = ToRead(self._ids(ids), source, name, room, beyond, policy, on_read, adapters, document, chunk)
        return read(self.model, self.tokenizer, store, text)

    def opening(self, text: str) -> Opening | None:
        """How `read` begins a text within the chat template; None where there is no template, or no text."""
        if not text or not self.tokenizer.settings.get("chat_template"):
            return None
        return opening(Speaker(self.tokenizer), Document(text, time()))

    def ask(self, name: str, question: str, store: Store, template: str = "", **settings: Unpack[AskSettings]) -> str:
        """Answer a question about the text of the saved reading `name`.

        `template` contains {question} and is appended to the text, within the user's turn if there is one. The errors
        are those of `generate/ask.py: answers`.
        """
        return "".join(self.ask_stream(name, question, store, template, **settings))

    def ask_stream(
        self, name: str, question: str, store: Store, template: str = "", **settings: Unpack[AskSettings]
    ) -> Iterator[str]:
        """Like `ask`, but yields the answer piece by piece; impossible requests are refused at the call."""
        about = Question(name, question, template)
        return answers(self.model, self.tokenizer, store, about, self._settled(settings))

    def draft(self, other: "LM") -> DraftModel:
        """Use another model with the same vocabulary as the draft of speculative decoding (`generate(draft=...)`)."""
        if other.tokenizer.fingerprint != self.tokenizer.fingerprint and other.tokenizer.words != self.tokenizer.words:
            raise ConfigError(
                f"{other.source} has another vocabulary than {self.source}: a draft model needs the same tokens"
            )
        return DraftModel(other.model)

    def identity(self, length: int, policy: str = DEFAULT) -> Identity:
        """The identity that a reading made in a request of `length` tokens belongs to."""
        return identity_of(self.model, self.tokenizer, length, policy)

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer, and `handscroll.json`.

        Quantised weights are written as they lie; only this package reads such a folder (`weights="float"` writes one
        that others read).
        """
        folder = Path(folder)
        self._check_merged()
        save_model(self.model, folder, pad=self.tokenizer.pad, stored=self.stored)
        return self._beside(folder)

    def export_onnx(self, folder: str | Path, length: int | None = None) -> Differences:
        """Write a folder with an ONNX graph for requests of up to `length` tokens; returns how far its outputs are."""
        self._check_merged()
        found = save_onnx(graph_of(self.model, self.sentences, length), Path(folder), self.provenance)
        self._beside(Path(folder))
        return found

    def _beside(self, folder: Path) -> Path:
        """Write tokenizer, settings, recipe and provenance; those that another model left in the folder are removed."""
        self.tokenizer.save(folder)
        config = self.model.config
        self.defaults.write(folder, config.bos, config.eos, self.tokenizer.pad)
        write_recipe(self.sentences, folder, self.model.config.width)
        write_provenance(self.provenance, folder)
        write_task(self.task, folder)
        return folder

    def merge(self) -> "LM":
        """Add the adapters to the weights, in place and in their dtype; `save` then writes a plain checkpoint.

        Raises:
            ConfigError: the weights are quantised (load the model with weights='float').
        """
        merge(self.model)
        if self.adapters:
            self.provenance |= {"merged": [*self.provenance.get("merged", ()), *map(str, self.adapters)]}
        self.adapters = ()
        return self

    def _settled(self, settings: Any) -> Any:
        """The settings of a call over those that the checkpoint recommends."""
        return self.defaults.under(settings)

    def export_gguf(self, path: str | Path, weights: str = "f16") -> Path:
        """Write a GGUF file that llama.cpp reads, with matrices as f32, f16, bf16, q8_0 or q4_0."""
        self._check_merged()
        tokens = metadata_of(self.tokenizer, self.model.config.vocab, self.model.config.eos)
        return save_gguf(
            self.model, tokens | self.defaults.metadata(), Path(path), weights, self.provenance, self.sentences
        )

    def _check_merged(self) -> None:
        if self.adapters:
            raise ConfigError(
                f"{self.source} has an adapter over it ({', '.join(map(str, self.adapters))}): call merge() first"
            )

    def _ids(self, text_or_ids: str | Sequence[int] | Tensor) -> Tensor:
        return score.ids_of(self.model, self.tokenizer, text_or_ids)


def check_numbers(dtype: str, weights: str) -> None:
    """Refuse a dtype or a format of the weights that `load` does not know, by a ConfigError."""
    if weights not in WEIGHTS:
        raise ConfigError(f"unknown format of the weights '{weights}': {nearest(weights, WEIGHTS[1:])}")
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"unknown dtype '{dtype}': {nearest(dtype, ('auto', *DTYPES))}")


def load(
    source: str | Path,
    device: str = "cpu",
    dtype: str = "auto",
    weights: str = "",
    adapter: One | Sequence[One] | None = None,
) -> LM:
    """Load a checkpoint from a local folder, a GGUF file or a hub id (safetensors only, no remote code, no pickle).

    `dtype` "auto" is the dtype of the stored checkpoint (float32 on a CPU for float16 and for quantised weights).
    `weights` "" keeps quantised matrices of a GGUF file as they are; "float" dequantises them, as training requires.
    "int8" or "int4" rounds all projections to that format, and token table and head to int8 in both cases. Rounded
    weights are approximate: they serve for reading and decoding, not for training.

    `adapter` is a folder in PEFT's form, "FOLDER=0.5" or (folder, 0.5) for a share of its change, or several of these
    (`models/adapters.py`). The base stays as it is, quantised weights included. A `source` that is an adapter is loaded
    over the base that it names, if that is here.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or an adapter belongs to another base.
        ConfigError: the dtype, family or a setting is unknown.
    """
    adapters = weighted(adapter)
    source, adapters = over_base(source, adapters)
    check_numbers(dtype, weights)
    path = locate(source)
    held = read_gguf(path) if is_gguf(path) else None  # held here, so that its header is read only once
    tokenizer = Tokenizer.load(path)
    model = load_model(path, DTYPES.get(dtype), device, not weights, weights if weights in PROJECTIONS else "")
    if tokenizer.ordinary > model.config.vocab:  # Gemma 3 has a token for pictures without a row, and others alike
        raise CapacityError(
            f"{path}: the tokenizer has {tokenizer.ordinary} tokens, the model only {model.config.vocab}; "
            "the tokenizer belongs to another checkpoint"
        )
    if weights in PROJECTIONS and model.spec.recurrent:
        raise ConfigError(f"family '{model.config.family}' has no projections to round: leave out weights")
    model = adapt(model, adapters)
    defaults = Defaults.load(path)
    if ends := defaults.ends(model.config.vocab):
        model.config = model.config.model_copy(update={"eos": ends})
    stored = written_dtype(path) if dtype == "auto" else None
    record, sentences, task = read_provenance(path), Sentences.read(path), task_of(path, adapters)
    del held
    trim()  # the free pages that the header and the making of the tokenizer left behind
    return LM(model, tokenizer, str(source), record, defaults, adapters, stored, sentences, task)
