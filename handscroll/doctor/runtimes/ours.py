"""Models of this package as a runtime: folders and GGUF files loaded with `handscroll.load`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, HandscrollError
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.doctor.angles import SEVERAL
from handscroll.doctor.facts import Turning, facts_of
from handscroll.doctor.finding import Absent, Cannot
from handscroll.doctor.runtime import Ids, Runtime, Tables, Trial, Words
from handscroll.generate.chat import Speaker
from handscroll.generate.prefill import prefill
from handscroll.lm import LM
from handscroll.models.gguf.load import side_of
from handscroll.models.gguf.side import Header
from handscroll.models.model import Model
from handscroll.models.table import ARCHITECTURES
from handscroll.models.table import family as family_of
from handscroll.models.weights import read_json
from handscroll.nn.marks import PADDING, Marks
from handscroll.nn.mask import Mask, SameSegment
from handscroll.nn.quantised import quantised
from handscroll.text.chat.template import template_in
from handscroll.text.tokenizer import Tokenizer

SOURCE = 12  # tokens of the text that an encoder-decoder reads before the probe
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
QUANTISED = 6e-2  # of rounded weights: their products round the activations too


class Ours(Runtime):
    """`lm` as it runs here. `settings` is the content of its `config.json`; without it, what the model would save."""

    kind = "handscroll"

    def __init__(self, lm: LM, settings: Mapping[str, Any] | None = None, folder: Path | None = None):
        self.lm, self.model, self.folder = lm, lm.model, folder
        self.source = lm.source
        config = lm.model.config
        self.facts = facts_of(settings or family_of(config.family).write(config))
        self.words = OurWords(lm.tokenizer, folder)
        self.generation = lm.defaults.foreign
        self.stops = frozenset(config.eos)
        if self.words.speaker is not None:
            self.stops = self.words.speaker.ends(lm.model)
        self.rounding = QUANTISED if quantised(lm.model) else _ROUNDING.get(lm.model.dtype, 6e-2)

    @torch.no_grad()
    def read(self, how: Trial) -> list[Tensor]:
        model = self._under(how)
        if how.packed:
            return self._packed(model, how)
        sizes = [len(row) for row in how.rows]
        longest = max(sizes)
        tokens, index = self._rows(how.rows, how.pad)
        if how.pieces:
            return [self._in_pieces(model, tokens, how)[0]]
        if how.shift or len(set(sizes)) > 1:
            marks = Marks.of(index, positions=index.clamp_min(0) + how.shift)
        else:
            marks = Marks.run(0, longest)
        said = self._said(model, tokens, marks, model.mask(), how.declared)
        first = [0 if how.pad == "right" else longest - size for size in sizes]
        return [row[at : at + size] for row, at, size in zip(said, first, sizes, strict=True)]

    @torch.no_grad()
    def following(self, rows: Sequence[Ids]) -> list[Tensor]:
        if self.model.spec.reads != "forward":
            raise Absent("it does not continue texts")
        tokens, index = self._rows(rows, "right")
        length = tokens.shape[1] + 1
        hidden = prefill(self.model, tokens, Marks.of(index), self.model.new_cache(capacity=length), length)
        return list(self._logits(self.model, hidden)[:, 0])

    def logprobs(self, ids: Ids) -> Tensor:
        self.model.spec.require("a likelihood", one_text=True, forward=True, head=True)
        return -self.lm.nll(list(ids)).double()

    def tables(self, turning: Turning, positions: Sequence[int], length: int) -> Tables:
        if turning.rope.kind in SEVERAL:
            raise Cannot(f"'{turning.rope.kind}' reads its keys at several distances, so there is no one table")
        spec = self.model.spec
        rotating = [number for number in turning.layers if spec.layers[number].rotated]
        index = torch.arange(len(positions))[None]
        marks = Marks.of(index, positions=torch.tensor([list(positions)]))
        like = torch.empty(0, dtype=torch.float32)
        made = self.model.rotations(marks, length, like)[spec.layers[rotating[0]].positions]
        factor = made.attention_factor
        return Tables(*(np.asarray(one[0].double().cpu()) * factor for one in (made.cosine, made.sine)))

    @torch.no_grad()
    def felt(self, ids: Ids, layer: int, at: int) -> Tensor:
        spec = self.model.spec
        if spec.recurrent or spec.reads in ("source", "blanks"):
            raise Cannot("its layers cannot be run one by one")
        tokens = torch.tensor([ids], device=self.model.device)
        marks = Marks.run(0, len(ids))
        x = self.model.embed(tokens, marks)
        moved = x.clone()
        moved[0, at] += torch.randn(x.shape[2], generator=torch.Generator().manual_seed(0)).to(x) * x.std()
        context = self.model.context(x, marks, self.model.mask(), len(ids))
        before, after = (self.model.layers[layer](one, context) for one in (x, moved))
        return (after - before)[0].double().norm(dim=-1).cpu()

    def head(self) -> tuple[Tensor, Tensor]:
        if not self.model.spec.predicts:
            raise Absent("the model has no head for tokens")
        head = self.model.head
        return (head if self.model.projection is None else self.model.embedding.weight), head

    def answers_at(self, position: int) -> bool:
        try:
            self.model.embed(torch.zeros(1, 1, dtype=torch.int64, device=self.model.device), Marks.run(position, 1))
        except CapacityError:
            return False
        return True

    def other(self) -> Runtime:
        from handscroll.doctor.runtimes.theirs import second

        if self.folder is None:
            raise Cannot("it was not loaded from files that another library reads")
        return second(self.folder)

    def _under(self, how: Trial) -> Model:
        """The model, or its decoder under a source."""
        if self.model.spec.reads != "source":
            return self.model
        source = torch.tensor([source_ids(self.model.spec.vocab)], device=self.model.device)
        return self.model.under(self.model.encode(source.expand(1 if how.packed else len(how.rows), -1)))

    def _rows(self, rows: Sequence[Ids], pad: str) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        tokens, index = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), PADDING)
        for number, row in enumerate(rows):
            here = slice(0, len(row)) if pad == "right" else slice(longest - len(row), longest)
            tokens[number, here], index[number, here] = torch.tensor(row), torch.arange(len(row))
        return tokens.to(self.model.device), index.to(self.model.device)

    def _packed(self, model: Model, how: Trial) -> list[Tensor]:
        sizes = [len(row) for row in how.rows]
        tokens = torch.tensor([[one for row in how.rows for one in row]], device=self.model.device)
        segment = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])[None]
        positions = torch.cat([torch.arange(size) for size in sizes])[None]
        marks = Marks.of(*(one.to(tokens.device) for one in (torch.arange(sum(sizes))[None], segment, positions)))
        said = self._said(model, tokens, marks, model.mask() & SameSegment(), how.declared)
        return list(said[0].split(sizes))

    def _in_pieces(self, model: Model, tokens: Tensor, how: Trial) -> Tensor:
        """Read over a cache; where the cache ends is what the next piece begins with."""
        if self.model.spec.reads in ("both", "blanks"):
            raise Absent("it reads a text in both directions, so nothing is kept of it")
        edges = np.cumsum([0, *how.pieces]).tolist()
        assert edges[-1] == tokens.shape[1], (edges, tokens.shape)
        cache, said = model.new_cache(), []
        for first, last in pairwise(edges):
            if how.shift:
                index = torch.arange(cache.length, cache.length + last - first, device=tokens.device)[None]
                marks = Marks.of(index, positions=index + how.shift)
            else:
                marks = Marks.run(cache.length, last - first)
            part = tokens[:, first:last]
            hidden = model.hidden(model.embed(part, marks), marks, model.mask(), cache, how.declared)
            said.append(self._logits(model, hidden))
        return torch.cat(said, dim=1)

    def _said(self, model: Model, tokens: Tensor, marks: Marks, mask: Mask, length: int) -> Tensor:
        return self._logits(model, model.hidden(model.embed(tokens, marks), marks, mask, length=length))

    def _logits(self, model: Model, hidden: Tensor) -> Tensor:
        return (model.logits(hidden) if self.model.spec.predicts and not self.model.silent else hidden).float()


class OurWords(Words):
    """A tokenizer of this package, with the chat template of its model."""

    def __init__(self, tokenizer: Tokenizer, folder: Path | None = None):
        self.tokenizer = tokenizer
        self.roles = {role: getattr(tokenizer, role) for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")}
        self.special = tokenizer.written
        self.template = template_in(tokenizer.settings) or ""
        self.speaker = Speaker(tokenizer) if self.template else None
        self.wants_bos = _wanted(tokenizer, folder)
        self.pads = str(tokenizer.settings.get("padding_side") or "")
        self.beyond = tokenizer.vocab_size - tokenizer.ordinary

    def encode(self, text: str, frame: bool = True) -> list[int]:
        return self.tokenizer.encode(text, special=frame)

    def trusted(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False, parse=True)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def token(self, number: int) -> str:
        return self.tokenizer.token(number) or ""

    def render(self, messages: list[dict[str, str]], answer: bool = True) -> str:
        assert self.speaker is not None
        try:
            return self.speaker.template.render(messages, answer)
        except HandscrollError as error:
            raise Cannot(str(error)) from None

    @property
    def size(self) -> int:
        return self.tokenizer.vocab_size


def loaded(lm: LM, path: Path) -> Ours:
    """The runtime of a model that was loaded from a folder or a GGUF file; the file is what it is held to."""
    if is_gguf(path):
        header = Header(read_gguf(path))
        kind = family_of(ARCHITECTURES.get(header.file.architecture, header.file.architecture))
        return Ours(lm, header.foreign(side_of(kind, path), kind.name), path)
    return Ours(lm, read_json(path / "config.json"), path)


def source_ids(vocab: int) -> list[int]:
    """The text that an encoder-decoder reads before every probe."""
    return [vocab // 2 + number for number in range(min(SOURCE, vocab // 2))]


def _wanted(tokenizer: Tokenizer, path: Path | None) -> bool | None:
    """Whether the files say that a text begins with BOS."""
    stated = tokenizer.settings.get("add_bos_token")
    if path is not None and is_gguf(path):
        stated = read_gguf(path).metadata.get("tokenizer.ggml.add_bos_token")
    return stated if isinstance(stated, bool) else None
