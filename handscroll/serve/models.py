"""The models of a server: loaded one after the other beside the requests, and found by the names that these give."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from handscroll.base.errors import ConfigError, HandscrollError, nearest
from handscroll.cache.table import DEFAULT, footprint
from handscroll.data.infill import Infill
from handscroll.generate.chat import Speaker
from handscroll.generate.constrain import Constraint
from handscroll.generate.engine.engine import Engine
from handscroll.lm import LM, load
from handscroll.models.describe import facts
from handscroll.models.fingerprint import fingerprint
from handscroll.models.locate import locate
from handscroll.plan.machine import spare
from handscroll.serve.errors import ApiError
from handscroll.serve.settings import ModelSource, ServeSettings
from handscroll.serve.worker import Worker
from handscroll.text.spelling import spelling

State = Literal["waiting", "loading", "ready", "failed"]
GRAMMARS = 64  # compiled constraints that are kept for each model
FAILURES = (HandscrollError, RuntimeError, OSError, MemoryError)  # of a model, its files, the disk or the memory
TWICE = 2  # a decoder's blocks hold so many texts of its whole context, if half of the free memory does
_log = logging.getLogger("handscroll.serve")


@dataclass(eq=False)
class Served:
    """A model under the name that requests give it. `lm` is there once it is ready, `engine` if it writes text."""

    name: str
    source: ModelSource
    state: State = "waiting"
    error: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    seconds: float = 0.0  # that loading took
    lm: LM | None = None
    engine: Engine | None = None
    _speakers: dict[bool, Speaker] = field(default_factory=dict)
    _grammars: OrderedDict[str, Constraint] = field(default_factory=OrderedDict)

    @property
    def loaded(self) -> LM:
        """The model.

        Raises:
            ApiError: it is not loaded yet, or could not be.
        """
        if self.lm is not None:
            return self.lm
        if self.state == "failed":
            raise ApiError(503, f"the model '{self.name}' could not be loaded: {self.error}", "model_failed")
        raise ApiError(503, f"the model '{self.name}' is being loaded", "model_loading", headers={"Retry-After": "5"})

    @property
    def writing(self) -> Engine:
        """The engine of a model that writes text.

        Raises:
            ApiError: it does not.
        """
        lm = self.loaded
        if self.engine is None:
            why = f"the model '{self.name}' ({lm.model.config.family}) gives vectors, not text: use /v1/embeddings"
            raise ApiError(400, why, "wrong_model", "model")
        return self.engine

    @property
    def embedding(self) -> LM:
        """The model, if it is an encoder.

        Raises:
            ApiError: it is none.
        """
        lm = self.loaded
        if self.engine is not None:
            raise ApiError(400, f"the model '{self.name}' writes text and gives no vectors", "wrong_model", "model")
        return lm

    def speaker(self, tools: bool = False) -> Speaker:
        """What renders messages.

        Raises:
            ConfigError: the model has no chat template.
        """
        if tools not in self._speakers:
            self._speakers[tools] = Speaker(self.loaded.tokenizer, where=f"the model '{self.name}'", tools=tools)
        return self._speakers[tools]

    def kept_free(self, room: int) -> int:
        """Tokens of the window for question and answer, of a short one at most a quarter, or nothing would fit."""
        return min(room, self.loaded.context // 4)

    @property
    def talks(self) -> bool:
        """Whether it has a chat template."""
        return bool(self.loaded.tokenizer.settings.get("chat_template"))

    @cached_property
    def fills(self) -> bool:
        """Whether it has tokens for filling in the middle."""
        try:
            return bool(self.infill)
        except ConfigError:
            return False

    @cached_property
    def infill(self) -> Infill:
        """Its tokens for filling in the middle.

        Raises:
            ConfigError: it has none.
        """
        return Infill.of(self.loaded.tokenizer)

    @cached_property
    def spelling(self) -> list[bytes | None]:
        """The bytes of each token; empty if tokens have none of their own."""
        try:
            return spelling(self.loaded.tokenizer)
        except ConfigError:
            return []

    @cached_property
    def longest(self) -> int:
        """The most characters that one token can stand for."""
        return max((len(word) for word in self.loaded.tokenizer.words if word), default=1)

    @property
    def fingerprint(self) -> str:
        """A short name of its weights."""
        return fingerprint(self.loaded.model)[:16]

    def constraint(self, key: str, make: Callable[[], Constraint]) -> Constraint:
        """A compiled grammar, kept for the next request with the same `key`."""
        found = self._grammars.pop(key, None) or make()
        self._grammars[key] = found
        while len(self._grammars) > GRAMMARS:
            self._grammars.popitem(last=False)
        return found

    def record(self) -> dict[str, Any]:
        """The model as an entry of /v1/models."""
        about: dict[str, Any] = {"id": self.name, "object": "model", "created": self.created, "owned_by": "handscroll"}
        about["state"] = self.state
        if self.source.adapter:
            about["parent"] = self.name.partition(":")[0]
        if self.lm is not None:
            about |= {"context": self.lm.context, "kind": "decoder" if self.engine is not None else "encoder"}
            about["chat"] = self.engine is not None and self.talks
            about["infill"] = self.engine is not None and self.fills
        return about

    @cached_property
    def facts(self) -> dict[str, str]:
        """What its files say of it, as `handscroll info` shows it."""
        return dict(facts(Path(locate(self.source.source))))


class Models:
    """All models of a server, in the order in which they were named."""

    def __init__(self, settings: ServeSettings, worker: Worker, on_ready: Callable[[Served], None] = lambda one: None):
        self._settings, self._worker, self._on_ready = settings, worker, on_ready
        self.on_failed: Callable[[], None] = lambda: None  # called if none of them could be loaded
        self.all = {source.name: Served(source.name, source) for source in settings.models}
        self._loader = threading.Thread(target=self._load, name="handscroll-load", daemon=True)

    def start(self) -> None:
        """Load them in a thread of their own; `on_ready` is called there with each."""
        self._loader.start()

    def find(self, name: str) -> Served:
        """The model of that name.

        Raises:
            ApiError: there is none.
        """
        if name not in self.all:
            raise ApiError(404, f"no model '{name}' is served: {nearest(name, self.all)}", "model_not_found", "model")
        return self.all[name]

    def first(self) -> Served:
        """The first decoder, where a request names no model.

        Raises:
            ApiError: none is loaded.
        """
        found = next((one for one in self.all.values() if one.engine is not None), None)
        return found or next(iter(self.all.values()))

    @property
    def context(self) -> int:
        """Tokens of the longest context that is loaded; 0 while there is none."""
        return max((one.lm.context for one in self.all.values() if one.lm is not None), default=0)

    def encoder(self) -> Served | None:
        """The first encoder that is loaded, by which documents are searched."""
        return next((one for one in self.all.values() if one.lm is not None and one.engine is None), None)

    @property
    def state(self) -> State:
        """What they are all together: "loading" until the last is ready or failed, "failed" if none is ready."""
        states = {one.state for one in self.all.values()}
        if states & {"waiting", "loading"}:
            return "loading"
        return "ready" if "ready" in states else "failed"

    def _load(self) -> None:
        for served in self.all.values():
            if self._worker.stopping:
                return
            served.state, begun = "loading", time.monotonic()
            _log.info("loading %s from %s", served.name, served.source.source)
            try:
                self._make(served)
            except FAILURES as error:
                served.state, served.error = "failed", str(error)
                _log.error("%s could not be loaded: %s", served.name, error)
                continue
            served.seconds = time.monotonic() - begun
            served.state = "ready"
            kind = "decoder" if served.engine is not None else "encoder"
            _log.info("%s is ready: %s, %s tokens, after %.1f s", *_about(served, kind), served.seconds)
            try:
                self._on_ready(served)
            except FAILURES as error:  # the other models are loaded all the same
                _log.error("what %s has not read yet could not be taken up: %s", served.name, error)
        if self.state == "failed":
            self.on_failed()

    def _make(self, served: Served) -> None:
        settings, source = self._settings, served.source
        lm = load(source.source, settings.device, settings.dtype, settings.weights, source.adapter or None)
        if not lm.model.spec.both_ways:
            memory = settings.memory or room(lm)
            engine = lm.engine(memory, most=settings.most)
            fingerprint(lm.model)  # now, and not within the first request
            served.engine = engine
            self._worker.add(engine)
        else:
            fingerprint(lm.model)
        served.lm = lm


def _about(served: Served, kind: str) -> tuple[str, str, str]:
    assert served.lm is not None
    return served.name, kind, f"{served.lm.context:,}"


def room(lm: LM) -> int:
    """Bytes of keys and values for texts of the whole context, within half of the free memory."""
    whole = footprint(DEFAULT, lm.model.config, lm.model.cache_dtype.itemsize).held(lm.context)
    return max(1, min(TWICE * whole, spare(lm.model.device)[0] // 2))


def sources(given: Sequence[str], adapters: Sequence[str]) -> tuple[ModelSource, ...]:
    """Models from what a user writes: PATH or NAME=PATH; adapters NAME=FOLDER, or BASE:NAME=FOLDER.

    Raises:
        ConfigError: a name stands for two models, or an adapter for a base that is not served.
    """
    found: dict[str, ModelSource] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or Path(one).exists():
            name, path = Path(one).name.removesuffix(".gguf") or one, one
        _add(found, ModelSource(name=name, source=path))
    bases = list(found)
    for one in adapters:
        name, equals, folder = one.partition("=")
        if not equals or not name or not folder:
            raise ConfigError(f"--adapter {one}: write NAME=FOLDER, or BASE:NAME=FOLDER")
        base, colon, own = name.partition(":")
        base, own = (base, own) if colon else (bases[0], name)
        if base not in bases:
            raise ConfigError(f"--adapter {one}: no model '{base}' is served: {nearest(base, bases)}")
        _add(found, ModelSource(name=f"{base}:{own}", source=found[base].source, adapter=folder))
    return tuple(found.values())


def _add(found: dict[str, ModelSource], source: ModelSource) -> None:
    if source.name in found:
        raise ConfigError(f"'{source.name}' names two models: write NAME=PATH to tell them apart")
    found[source.name] = source
