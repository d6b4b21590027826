"""A model of this package inside lm-evaluation-harness (Gao et al., the package `lm-eval`, an extra).

lm-eval 0.4.13 loads no plugins, so `handscroll evaluate harness` registers the model "handscroll" there and starts
lm-eval's own command. The scores are lm-eval's; what is different here: nothing is cut. A request that does not fit
raises with its numbers, where other backends drop its beginning. Contexts that several requests share are
read once, and requests are batched by their length.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handscroll.base.errors import CapacityError, ConfigError, nearest
from handscroll.base.records import RecordWriter
from handscroll.evaluate.certificate import Certificate, certify, together
from handscroll.generate.asked import NOW, replies
from handscroll.generate.chat import Speaker
from handscroll.generate.check import declared
from handscroll.generate.likelihood import WORTH, loglikelihood
from handscroll.generate.prefill import shared_beginning
from handscroll.generate.read import held
from handscroll.generate.request import Request
from handscroll.generate.settings import sampling_of
from handscroll.lm import load

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

NAME = "handscroll"
NEW = 256  # tokens of an answer where a task does not say, as in lm-eval's own models
TOGETHER = 8192  # most tokens of a batch of prompts, with padding and the tokens that may follow
_SAMPLES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_DEVICE = re.compile(r"""(?:^|[,{\s])["']?device["']?\s*[=:]""")
_log = logging.getLogger("handscroll.harness")

Pair = tuple[list[int], list[int]]


def main(arguments: Sequence[str]) -> None:
    """Run lm-eval's command with the model "handscroll" registered (and taken, unless --model names another).

    Raises:
        ConfigError: lm-eval is not installed.
    """
    adapter()
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments_of(arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def arguments_of(given: Sequence[str]) -> list[str]:
    """The arguments for lm-eval: where a run names no model it is ours, and where it names no device, as --device or
    in --model_args, the processor is taken (lm-eval's own default is a GPU, whether there is one or not).

    Raises:
        ConfigError: the device is named in both places, which lm-eval cannot read.
    """
    runs = given and (given[0].startswith("-") or given[0] == "run") and not {"-h", "--help"} & set(given)
    if not runs:
        return list(given)
    inside = any(map(_DEVICE.search, _model_args(given)))
    if inside and _names(given, "--device"):
        raise ConfigError("the device stands in --device and as device=... in --model_args: leave out one of the two")
    filled = list(given) if _names(given, "--model") else [*given, "--model", NAME]
    return filled if inside or _names(given, "--device") else [*filled, "--device", "cpu"]


def _names(given: Sequence[str], option: str) -> bool:
    return any(one == option or one.startswith(f"{option}=") for one in given)


def _model_args(given: Sequence[str]) -> Iterator[str]:
    """The words of --model_args: name=value with commas or blanks between them, or a JSON object."""
    within = False
    for word in given:
        if word.startswith("-"):
            option, _, rest = word.partition("=")
            within = option in ("--model_args", "-a")
            if within and rest:
                yield rest
        elif within:
            yield word


@cache
def adapter() -> type:
    """The class that lm-eval knows as "handscroll", registered there.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  (lists its own models)
        from lm_eval.api.model import LM as Base
        from lm_eval.api.registry import register_model
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this needs the package lm-eval ({error.name} is missing): pip install 'handscroll[harness]'"
        ) from None
    return register_model(NAME)(type("HandscrollLM", (_Answers, Base), {"__doc__": _Answers.__doc__}))


def __getattr__(name: str) -> Any:
    """`HandscrollLM`, for the entry point `lm_eval.models` of releases that load plugins."""
    if name == "HandscrollLM":
        return adapter()
    raise AttributeError(name)


class _Answers:
    """What lm-eval asks of a model: likelihoods of continuations and of whole texts, and continued texts.

    Arguments (--model_args): `path` of the model; `dtype`, `device`, `weights` and `adapter` as in `handscroll.load`;
    `max_length`: fewer tokens than the model's context; `add_bos_token`: whether texts begin as the tokenizer begins
    them (they do); `certificate`: a file to which tokens offered and seen are written, one JSON object for each kind of
    request.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        device: str = "cpu",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        **others: Any,
    ):
        super().__init__()
        allowed = {"weights": "", "adapter": None, "certificate": None, "batch_size": 1, "max_batch_size": None}
        if unknown := [name for name in others if name not in allowed]:
            names = ["path", "dtype", "device", "max_length", "add_bos_token", *allowed]
            raise ConfigError(f"unknown argument '{unknown[0]}' in --model_args: {nearest(unknown[0], names)}")
        given = allowed | others
        if str(given["batch_size"]) not in ("1", "auto") or given["max_batch_size"] not in (None, "None"):
            raise ConfigError(
                f"batches are made of requests of one length, by their tokens: leave --batch_size "
                f"{given['batch_size']} out"
            )
        self.model = load(path, str(device), dtype, given["weights"], given["adapter"])
        self.model.model.spec.require("a likelihood", one_text=True, forward=True, head=True)
        self.max_length = self._limit(max_length)
        self.bos = add_bos_token is None or bool(add_bos_token)
        self.file = None if given["certificate"] is None else Path(given["certificate"])

    def _limit(self, asked: int | None) -> int:
        context = self.model.context
        if asked is not None and not 1 < int(asked) <= context:
            raise ConfigError(f"max_length={asked}: the model's context is {context}; give 2 to {context}")
        return context if asked is None else int(asked)

    @property
    def tokenizer_name(self) -> str:
        return self.model.source.replace("/", "__")

    @property
    def prefix(self) -> int:
        """The token before a text that has nothing before it: bos, else eos.

        Raises:
            ConfigError: the model has neither.
        """
        config, tokenizer = self.model.model.config, self.model.tokenizer
        known = (tokenizer.bos, tokenizer.eos, config.bos, *config.eos)
        found = next((one for one in known if one is not None), None)
        if found is None:
            raise ConfigError(f"{self.model.source} has neither bos nor eos, so nothing can stand before a text")
        return found

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The ids of a text; special tokens in it count, as in a text that a chat template wrote.

        It begins as the tokenizer begins a text, unless it does so already.
        """
        tokenizer = self.model.tokenizer
        begun = text.startswith(tokenizer.token(self.prefix) or "\0")
        return tokenizer.encode(text, special=self.bos and not begun if special is None else special, parse=True)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "" if not chat_template else self._speaker(chat_template).template.source

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of messages; without `add_generation_prompt` it ends within the last message, which goes on."""
        template = self._speaker(True).template
        text = template.render(chat_history, answer=add_generation_prompt, now=NOW)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        return text[: text.rindex(last) + len(last)]

    def _speaker(self, name: bool | str) -> Speaker:
        return Speaker(self.model.tokenizer, name if isinstance(name, str) else "", self.model.source)

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The likelihood of each continuation after its context, and whether greedy decoding gives it.

        Raises:
            CapacityError: a context with its continuation does not fit; nothing is cut.
        """
        pairs = [self._pair(*request.args) for request in requests]
        found = self._scored(pairs, "loglikelihood")
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)  # pyright: ignore[reportAttributeAccessIssue]
        return found

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """The likelihood of whole texts. One that is longer than the context is scored in windows, as lm-eval defines
        it: each token once, the last window with as much before it as fits."""
        pairs, owners = list[Pair](), list[int]()
        for number, request in enumerate(requests):
            windows = list(rolling(self.encode(request.args[0]), self.prefix, self.max_length))
            pairs += windows
            owners += [number] * len(windows)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._scored(pairs, "loglikelihood_rolling"), strict=True):
            sums[owner] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)  # pyright: ignore[reportAttributeAccessIssue]
        return sums

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to its stop strings.

        Raises:
            CapacityError: a context and its answer do not fit. ConfigError: a setting that is not known here.
        """
        asked = [self._request(*request.args, number=number) for number, request in enumerate(requests)]
        self._certified([certify(one.prompt, len(one.prompt)) for one in asked], "generate_until")
        texts = [""] * len(asked)
        for alike in self._alike(asked):
            for batch in _batches(alike):
                said = replies(
                    self.model.model, self.model.tokenizer, [alike[number] for number in batch], None, [""] * len(batch)
                )
                for number, one in zip(batch, said, strict=True):
                    texts[number] = one.text
                    self.cache_hook.add_partial("generate_until", requests[number].args, one.text)  # pyright: ignore[reportAttributeAccessIssue]
        return texts

    def _alike(self, asked: Sequence[Request]) -> Iterator[dict[int, Request]]:
        """Requests with the same settings and rotary tables, by number. What all of them begin with is read once."""
        model, groups = self.model.model, dict[tuple[str, int], list[int]]()
        for number, one in enumerate(asked):
            total = len(one.prompt) + one.sampling.max_tokens
            groups.setdefault((repr(one.sampling), declared(model, total)[1]), []).append(number)
        for numbers in groups.values():
            first, *rest = [list(asked[number].prompt) for number in numbers]
            shared = min([shared_beginning(first, one) for one in rest] + [len(first) - 1])
            shared = min(shared, min(len(asked[number].prompt) for number in numbers) - 1)
            reading = None
            if rest and shared >= WORTH and model.spec.cached and not model.spec.recurrent:
                total = max(len(asked[number].prompt) + asked[number].sampling.max_tokens for number in numbers)
                reading = held(model, self.model.tokenizer, first[:shared], total)
            yield {number: replace(asked[number], reading=reading) for number in numbers}

    def _pair(self, context: str, continuation: str) -> Pair:
        """Both parts are encoded together; blanks at the end of the context go to the continuation."""
        if not context:
            ids = self.encode(continuation, special=False)
            return (ids[:1], ids[1:]) if ids[:1] == [self.prefix] else ([self.prefix], ids)
        kept = context.rstrip()
        whole, first = self.encode(context + continuation), self.encode(kept)
        return first or [self.prefix], whole[len(first) :]

    def _scored(self, pairs: Sequence[Pair], kind: str) -> list[tuple[float, bool]]:
        for number, (context, continuation) in enumerate(pairs):
            # The last token is only predicted, so it needs no place in the context.
            fed = len(context) + len(continuation) - 1
            if fed > self.max_length:
                raise CapacityError(
                    f"{kind}: request {number} has {len(context):,} tokens of context and {len(continuation):,} of "
                    f"continuation, but the model reads {self.max_length:,}. Nothing is cut: take fewer or shorter "
                    "examples (--num_fewshot), or lengthen the model (handscroll extend)"
                )
        found = loglikelihood(self.model.model, pairs, beyond=True)
        sizes = [(context + continuation, len(context) + len(continuation)) for context, continuation in pairs]
        self._certified([certify(ids, size) for ids, size in sizes], kind)
        return [(one.logprob, one.greedy) for one in found]

    def _request(self, context: str, settings: Mapping[str, Any], number: int) -> Request:
        given = dict(settings)
        until = given.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        most, drawn = given.pop("max_gen_toks", NEW), given.pop("do_sample", False)
        values = {name: given.pop(name) for name in _SAMPLES if name in given}
        if given:
            known = ("until", "max_gen_toks", "do_sample", *_SAMPLES)
            raise ConfigError(
                f"generation_kwargs: unknown setting '{next(iter(given))}': {nearest(next(iter(given)), known)}"
            )
        if not drawn:
            values = {name: value for name, value in values.items() if name == "repetition_penalty"}
        written = self.model.tokenizer.written
        ends = frozenset(self.model.model.config.eos) | {written[one] for one in until if one in written}
        stop = tuple(one for one in until if one and one not in written)
        ids = self.encode(context)
        if len(ids) + most > self.max_length:
            raise CapacityError(
                f"generate_until: request {number} has {len(ids):,} tokens and may be answered by {most:,}: "
                f"{len(ids) + most:,} in all, but the model reads {self.max_length:,}. Nothing is cut: ask for shorter "
                "answers (--gen_kwargs max_gen_toks=N), take fewer examples (--num_fewshot), or lengthen the model "
                "(handscroll extend)"
            )
        sampling = sampling_of({"max_tokens": most, "stop": stop, **values})
        return Request(ids or [self.prefix], sampling, ends=ends, beyond=True)

    def _certified(self, certificates: Sequence[Certificate], kind: str) -> None:
        """Say, and write where that was asked for, how many tokens were offered and fed."""
        whole = together(certificates)
        _log.info("%s: %s of %s tokens seen, sha256 %s", kind, whole.seen, whole.offered, whole.sha256)
        if self.file is not None:
            with RecordWriter(self.file) as file:
                about = {"kind": "harness", "model": self.model.source, "requests": kind, "count": len(certificates)}
                file.append(about | {"certificate": whole.record()})


def rolling(ids: Sequence[int], prefix: int, length: int) -> Iterator[Pair]:
    """(context, continuation) of the windows in which a text is scored when the model reads `length` tokens.

    Every token is in one continuation. A window after the first begins with the token before it; the last one with as
    many as fit.

    >>> list(rolling([1, 2, 3, 4, 5], 0, 2))
    [([0], [1, 2]), ([2], [3, 4]), ([3, 4], [5])]
    """
    tokens = list(ids)
    if tokens:
        yield [prefix], tokens[:length]
    for first in range(length, len(tokens), length):
        last = min(first + length, len(tokens))
        yield tokens[last - length - 1 : first], tokens[first:last]


def _batches(requests: Mapping[int, Request]) -> Iterator[list[int]]:
    """Numbers of requests that are answered together: those of similar length, the longest first."""
    batch: list[int] = []
    for number, one in sorted(requests.items(), key=lambda item: -len(item[1].prompt)):
        longest = requests[batch[0]] if batch else one
        before = 0 if one.reading is None else one.reading.length
        size = len(longest.prompt) - before + one.sampling.max_tokens
        if batch and size * (len(batch) + 1) > TOGETHER:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
