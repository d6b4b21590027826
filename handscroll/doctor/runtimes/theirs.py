"""Models of the library `transformers` as a runtime (an optional dependency; nothing here imports it by itself)."""

import inspect
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.gguf import is_gguf
from handscroll.doctor.facts import Turning, facts_of
from handscroll.doctor.finding import Absent, Cannot
from handscroll.doctor.runtime import Ids, Runtime, Tables, Trial, Words
from handscroll.doctor.runtimes.ours import Ours, source_ids
from handscroll.lm import load
from handscroll.models.weights import read_json
from handscroll.text.chat.template import named_templates

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_ANSWERS = ("prediction_logits", "logits", "last_hidden_state")
_HEADS = "model.safetensors"


class Theirs(Runtime):
    """`model` of `transformers` with its tokenizer (or none).

    It is held to `settings`, the content of a `config.json`; without them, to its own `model.config`. `folder` is where
    it was loaded from, if that is known.
    """

    kind = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any = None, settings: Mapping[str, Any] | None = None, folder: Path | None = None
    ):
        self.model, self.folder = model.eval(), folder
        own, written = model.config.to_dict(), json.loads(model.config.to_json_string())
        self.source = str(folder or own.get("_name_or_path") or type(model).__name__)
        self.facts = facts_of(settings or written, own)
        self.tokenizer: Any = None
        if tokenizer is not None:
            self.take(tokenizer)
        chosen = getattr(model, "generation_config", None)
        self.generation = {} if chosen is None else chosen.to_diff_dict()
        self.stops = frozenset(_ids(self.generation.get("eos_token_id")) or _ids(own.get("eos_token_id")))
        self.rounding = _ROUNDING.get(model.dtype, 6e-2)
        self._takes = set(inspect.signature(model.forward).parameters)
        self._under_source = bool(own.get("is_encoder_decoder"))

    def take(self, tokenizer: Any) -> None:
        """Look at this tokenizer as that of the model."""
        self.tokenizer, self.words = tokenizer, TheirWords(tokenizer)

    def read(self, how: Trial) -> list[Tensor]:
        if how.packed:
            return self._packed(how)
        tokens, mask = _rows(how.rows, how.pad)
        if how.pieces:
            return [self._in_pieces(tokens, how)[0]]
        given: dict[str, Any] = {"input_ids": tokens}
        if not bool(mask.all()):
            given |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        elif how.shift:
            self._needs("position_ids")
            given["position_ids"] = (torch.arange(tokens.shape[1]) + how.shift)[None]
        said, longest = self._said(how, given), tokens.shape[1]
        sizes = [len(row) for row in how.rows]
        first = [0 if how.pad == "right" else longest - size for size in sizes]
        return [row[at : at + size] for row, at, size in zip(said, first, sizes, strict=True)]

    def following(self, rows: Sequence[Ids]) -> list[Tensor]:
        if self.facts is not None and self.facts.reads != "forward":
            raise Absent("it does not continue texts")
        side = str(getattr(self.tokenizer, "padding_side", "left"))
        tokens, mask = _rows(rows, side)
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        return list(self._said(Trial(tuple(rows)), given)[:, -1])

    def tables(self, turning: Turning, positions: Sequence[int], length: int) -> Tables:
        rotary = self._rotary()
        where = next(iter(rotary.buffers())).device
        places = torch.tensor([list(positions)], device=where)
        like = torch.zeros(1, 1, 1, dtype=torch.float32, device=where)
        more = {}
        if "layer_type" in inspect.signature(type(rotary).forward).parameters:
            types = (self.facts.settings.get("layer_types") if self.facts else None) or []
            more["layer_type"] = turning.kind or (types[turning.layers[0]] if types else None)
        found = self._asked(lambda: rotary(like, places, **more))
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, Tensor) for one in found)):
            raise Cannot("its rotary module gives no cosines and sines")
        return Tables(*(_pairs(np.asarray(one[0].double().cpu())) for one in found))

    def felt(self, ids: Ids, layer: int, at: int) -> Tensor:
        if self._under_source:
            raise Cannot("the layers of an encoder-decoder cannot be looked at one by one")
        module = self._layers()[layer]
        kept: list[Tensor] = []

        def move(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            moved = x.clone()
            noise = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))
            moved[0, at] += noise.to(moved) * x.std()
            return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

        def keep(_: Any, args: Any, out: Any) -> None:
            kept.append(out[0] if isinstance(out, tuple) else out)

        how = Trial((ids,))
        given = {"input_ids": torch.tensor([ids])}
        for moving in (False, True):
            hooks = [module.register_forward_hook(keep)]
            if moving:
                hooks.append(module.register_forward_pre_hook(move, with_kwargs=True))
            try:
                self._said(how, given)
            finally:
                for hook in hooks:
                    hook.remove()
        before, after = kept
        return (after - before)[0].double().norm(dim=-1).cpu()

    def head(self) -> tuple[Tensor, Tensor]:
        table, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if head is None:
            raise Absent("the model has no head for tokens")
        return table.weight, head.weight

    def stored_head(self) -> bool:
        if self.folder is None or not (self.folder / _HEADS).is_file():
            raise Cannot("it was not loaded from one file of safetensors that could be looked into")
        from safetensors import safe_open

        with safe_open(self.folder / _HEADS, framework="pt") as file:
            names = set(file.keys())
        head = next((name for name, one in self.model.named_modules() if one is self.model.get_output_embeddings()), "")
        return f"{head}.weight" in names

    def answers_at(self, position: int) -> bool:
        self._needs("position_ids")
        given = {"input_ids": torch.tensor([[1]]), "position_ids": torch.tensor([[position]])}
        try:
            self._said(Trial(((1,),)), given)
        except Cannot:
            return False
        return True

    def other(self) -> Runtime:
        if self.facts is None or self.facts.spec is None:
            why = self.facts.refused if self.facts is not None else "its configuration is not known"
            raise Cannot(f"there is no second implementation here: {why}")
        if self.folder is not None and not is_gguf(self.folder):
            return Ours(load(self.folder, dtype="float32"), self.facts.settings, self.folder)
        with tempfile.TemporaryDirectory(prefix="handscroll-doctor-") as made:
            with _quietly():
                self._asked(lambda: self.model.save_pretrained(made))
            return in_memory(Path(made))

    def _said(self, how: Trial, given: dict[str, Any]) -> Tensor:
        return self._call(how, given)[0].float()

    @torch.no_grad()
    def _call(self, how: Trial, given: dict[str, Any]) -> tuple[Tensor, Any]:
        if self._under_source:
            source = torch.tensor([source_ids(self.model.config.vocab_size)])
            renamed = {"input_ids": "decoder_input_ids", "attention_mask": "decoder_attention_mask"}
            given = {renamed.get(key, key): value for key, value in given.items()}
            given["input_ids"] = source.expand(len(given["decoder_input_ids"]), -1)
        where = self.model.device
        given = {key: value.to(where) if isinstance(value, Tensor) else value for key, value in given.items()}
        given = {key: value for key, value in given.items() if key in self._takes}
        out = self._asked(lambda: self.model(**given))
        if "start_logits" in out:
            return torch.stack([out["start_logits"], out["end_logits"]], dim=-1), out
        return next(out[name] for name in _ANSWERS if out.get(name) is not None), out

    def _asked(self, call: Any) -> Any:
        try:
            with torch.no_grad():
                return call()
        except Exception as error:  # the code is the caller's
            said = str(error).strip().splitlines() or [""]
            raise Cannot(f"the model fails: {type(error).__name__}: {said[0][:200]}") from error

    def _packed(self, how: Trial) -> list[Tensor]:
        """Documents are told by positions that begin anew, to the classes that make their masks from positions."""
        self._needs("position_ids")
        both = self.facts is not None and self.facts.reads == "both"
        if both or not hasattr(sys.modules[type(self.model).__module__], "create_causal_mask"):
            raise Cannot("its class does not tell documents apart by their positions: do not pack rows for it")
        sizes = [len(row) for row in how.rows]
        tokens = torch.tensor([[one for row in how.rows for one in row]])
        places = torch.cat([torch.arange(size) for size in sizes])[None]
        given = {"input_ids": tokens, "position_ids": places, "use_cache": False}
        return list(self._said(how, given)[0].split(sizes))

    def _in_pieces(self, tokens: Tensor, how: Trial) -> Tensor:
        """Read over the library's own cache, which counts the positions itself unless they are shifted."""
        if "past_key_values" not in self._takes or (self.facts is not None and self.facts.reads in ("both", "blanks")):
            raise Absent("it keeps nothing of a text")
        said, first, past = [], 0, None
        for size in how.pieces:
            part = tokens[:, first : first + size]
            given: dict[str, Any] = {"input_ids": part, "past_key_values": past, "use_cache": True}
            if how.shift:
                self._needs("position_ids")
                given["position_ids"] = (torch.arange(first, first + size) + how.shift)[None]
            logits, out = self._call(how, given)
            past = out.get("past_key_values")
            if past is None:
                raise Cannot("it returns no cache")
            said.append(logits.float())
            first += size
        return torch.cat(said, dim=1)

    def _needs(self, argument: str) -> None:
        if argument not in self._takes or self._under_source:
            raise Cannot(f"its forward takes no {argument}")

    def _rotary(self) -> nn.Module:
        for module in self.model.modules():
            names = [name for name, _ in module.named_buffers(recurse=False)]
            if any(name.endswith("inv_freq") for name in names):
                return module
        raise Cannot("no module of it holds rotary frequencies (inv_freq)")

    def _layers(self) -> nn.ModuleList:
        count = self.facts.layers if self.facts is not None else 0
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise Cannot(f"it has no list of {count} layers")


class TheirWords(Words):
    """A tokenizer of `transformers`."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        names = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
        self.roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in names}
        added = tokenizer.added_tokens_decoder
        self.special = {str(token): number for number, token in added.items() if token.special}
        source = getattr(tokenizer, "chat_template", None)
        self.template = named_templates({"chat_template": source}).get("default", "") if source else ""
        stated = tokenizer.init_kwargs
        wanted = stated.get("add_bos_token", getattr(tokenizer, "add_bos_token", None))
        self.wants_bos = wanted if isinstance(wanted, bool) else None
        self.pads = str(stated.get("padding_side") or "")
        self.beyond = len(added)

    def encode(self, text: str, frame: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=frame, verbose=False)["input_ids"])

    def trusted(self, text: str) -> list[int]:
        return self.encode(text, frame=False)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, number: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(number))

    def render(self, messages: list[dict[str, str]], answer: bool = True) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
        except Exception as error:  # the code is the caller's
            raise Cannot(f"the template fails: {type(error).__name__}: {error}") from error

    @property
    def size(self) -> int:
        return len(self.tokenizer)


def opened(path: Path, dtype: str = "float32", device: str = "cpu") -> Theirs:
    """The runtime of a folder or a GGUF file, loaded by `transformers`.

    Raises:
        ConfigError: the library is not installed. CheckpointError: it does not load the model.
    """
    _installed()
    import transformers

    where = {"pretrained_model_name_or_path": str(path)}
    settings: dict[str, Any] | None = None
    if is_gguf(path):
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    else:
        settings = read_json(path / "config.json")
    try:
        named = ((settings or {}).get("architectures") or [""])[0]
        kind: Any = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
        with _quietly():
            model = kind.from_pretrained(**where, dtype=getattr(torch, dtype)).to(device)
    except Exception as error:  # noqa: BLE001  the code is the caller's
        raise CheckpointError(f"transformers does not load {path}: {type(error).__name__}: {error}") from None
    made = Theirs(model, None, settings, path)
    try:
        made.take(transformers.AutoTokenizer.from_pretrained(**where))
    except Exception as error:  # noqa: BLE001  the code is the caller's
        made.wordless = f"transformers does not load the tokenizer: {type(error).__name__}: {error}"
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's progress bars, which are left as they were; that of GGUF files cannot be switched off."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def second(path: Path) -> Theirs:
    """The weights of a folder in `transformers`, as the second implementation for a model of ours."""
    if find_spec("transformers") is None:
        raise Cannot("transformers is not installed: pip install transformers")
    try:
        return opened(path)
    except CheckpointError as error:
        raise Cannot(str(error)) from None


def in_memory(folder: Path) -> Ours:
    """A model of ours from a folder that is about to be deleted."""
    from handscroll.generate.defaults import Defaults
    from handscroll.lm import LM
    from handscroll.models.weights import load_model
    from handscroll.text.tokenizer import Tokenizer

    model = load_model(folder, torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    bare = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    lm = LM(model, Tokenizer(bare), "the same weights", defaults=Defaults())
    return Ours(lm, read_json(folder / "config.json"))


def _installed() -> None:
    if find_spec("transformers") is None:
        raise ConfigError("transformers is not installed: pip install transformers")


def _rows(rows: Sequence[Ids], side: str) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask (B, T) of rows that are padded on a side (with token 0, which the mask hides)."""
    longest = max(map(len, rows))
    tokens, mask = torch.zeros(2, len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        here = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        tokens[number, here], mask[number, here] = torch.tensor(row), 1
    return tokens, mask


def _pairs(table: Any) -> Any:
    """One number a pair, from tables that hold each twice: as two halves, or side by side."""
    half = table.shape[-1] // 2
    if half and np.array_equal(table[:, :half], table[:, half:]):
        return table[:, :half]
    if half and np.array_equal(table[:, ::2], table[:, 1::2]):
        return table[:, ::2]
    return table


def _ids(value: Any) -> tuple[int, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(one for one in several if isinstance(one, int))
