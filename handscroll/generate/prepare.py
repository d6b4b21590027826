"""Prepares requests: turns the arguments of `LM` into a `Request`, and refuses what model or memory cannot hold."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.store import Store
from handscroll.cache.table import DEFAULT, cache_of, footprint, kind_of, listed
from handscroll.generate.budget import GUARD, Choice, Demand, check_guard, choose, size_of, size_text
from handscroll.generate.check import check_length, started
from handscroll.generate.engine.engine import EngineSettings, workload
from handscroll.generate.prefill import prefill_chunk
from handscroll.generate.request import Request
from handscroll.generate.settings import Settings, sampling_of
from handscroll.models.fingerprint import identity
from handscroll.models.model import Model
from handscroll.plan.choose import afford, afford_pool
from handscroll.plan.machine import spare
from handscroll.text.tokenizer import Tokenizer

# A request is not planned if its cache, full and as asked for, is so many times smaller than the free memory.
SMALL = 16


def prepare(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: Settings,
    samples: int = 1,
    logprobs: int | None = None,
) -> Request:
    """The settled request for a prompt; refused (CapacityError) if the memory does not suffice."""
    request = settled(model, tokenizer, prompt, settings, samples, logprobs)
    afford_request(model, request)
    return request


def settled(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: Settings,
    samples: int = 1,
    logprobs: int | None = None,
) -> Request:
    """The request for a prompt: its cache is chosen, and what was read before is found.

    Raises:
        CapacityError: under a budget, prompt + max_tokens exceed the context, or no cache within the
            budget is near enough to the exact one. ConfigError: an unknown or impossible setting.
    """
    ends = settings.get("ends")
    request = Request(
        prompt=begun(model, tokenizer, prompt),
        sampling=sampling_of(settings, Settings.__optional_keys__),
        samples=samples,
        logprobs=logprobs,
        constraint=settings.get("constraint"),
        bias=settings.get("bias"),
        draft=settings.get("draft"),
        beyond=settings.get("beyond", False),
        policy=settings.get("policy", DEFAULT),
        ends=None if ends is None else frozenset(ends),
        on_report=settings.get("on_report"),
        on_finish=settings.get("on_finish"),
    )
    store = settings.get("store")
    check_guard(settings.get("kv_guard", GUARD), settings.get("kv_budget"))
    if (budget := settings.get("kv_budget")) is not None:
        if request.policy != DEFAULT or store is not None:
            other = "saved readings lie in their files" if store is not None else f"the policy is '{request.policy}'"
            raise ConfigError(f"kv_budget chooses how the cache is kept, but {other}: leave out one of the two")
        request = _within(model, tokenizer, request, budget, settings.get("kv_guard", GUARD))
    if store is not None:
        request = after_reading(model, tokenizer, request, store)
    return request


def begun(model: Model, tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """The ids of a prompt; the bos of the model, if it has one, for an empty one."""
    ids = tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)
    return ids or ([] if model.config.bos is None else [model.config.bos])


def choose_cache(
    model: Model, tokenizer: Tokenizer, request: Request, budget: str | int, guard: float = GUARD, saved: bool = False
) -> Choice:
    """The cache that stays within `budget` for a request and is nearest to the exact one (`budget.py`).

    With `saved`, of those that a reading can be kept in.

    Raises:
        ConfigError: no such size, or one below 64 tokens. CapacityError: prompt + max_tokens exceed the context,
            or nothing fits and is near enough; says what would.
    """
    model.spec.require("a budget of keys and values", one_text=True, keys=True)
    ids = started(model, 0, request.prompt)
    check_length(model, 0, len(ids), request.sampling.max_tokens, request.beyond)
    demand = Demand.of(replace(request, prompt=ids))._replace(saved=saved)
    return choose(model, tokenizer, demand, budget, guard)


def choose_reading(
    model: Model, tokenizer: Tokenizer, text: Sequence[int], room: int, budget: str | int, guard: float = GUARD
) -> Choice:
    """`choose_cache` for a text that is read and kept; `LM.read(policy=...)` takes the result."""
    sampling = sampling_of({"max_tokens": room})
    return choose_cache(model, tokenizer, Request(text, sampling, beyond=True), budget, guard, saved=True)


def context_bytes(model: Model, budget: str | int) -> int:
    """Bytes of a size such as "2GiB"; a share such as "50%" is one of the full cache of the whole context."""
    full = footprint(DEFAULT, model.config, model.cache_dtype.itemsize)
    return size_of(budget, full.held(model.config.context))


def keep_within(model: Model, name: str, request: Request, budget: str | int) -> None:
    """Refuse a question about the reading `name` whose keys and values exceed `budget`, or a share of the full cache.

    Raises:
        CapacityError: they do. The reading decides how they are kept, so nothing is chosen here.
    """
    demand = Demand.of(request)
    chunk = prefill_chunk(model.device)
    need, full = demand.bytes(request.policy, model, chunk), demand.bytes(DEFAULT, model, chunk)
    allowed = size_of(budget, full)
    if need > allowed:
        raise CapacityError(
            f"'{name}' is kept in '{request.policy}' and takes {size_text(need)} with question and answer, more than "
            f"the budget of {size_text(allowed)}: read the text again within it (handscroll read --kv-budget {allowed})"
        )


def after_reading(model: Model, tokenizer: Tokenizer, request: Request, store: Store) -> Request:
    """The request with the saved beginning of its prompt, if the store has one."""
    if not kind_of(request.policy).saved:
        raise ConfigError(
            f"saved readings are kept in {listed('saved')}, so the store has none for '{request.policy}': generate "
            "without the store, or in one of these"
        )
    model.spec.require("a saved reading", one_text=True, keys=True)
    ids = request.prompt
    if len(ids) < 2:
        return request
    about = identity_of(model, tokenizer, len(ids) + request.sampling.max_tokens, request.policy)
    # The last token is read anyway: the first new one is predicted from it.
    return replace(request, reading=store.find(about, torch.tensor(ids[:-1])))


def afford_request(model: Model, request: Request, others: Sequence[str] | None = None) -> None:
    """Refuse a request that does not fit into the free memory beside the model, and say what would.

    `others` are the policies that may be named instead; those that suit the request unless given.

    Raises:
        CapacityError: it does not fit.
    """
    demand = Demand.of(request)
    afford_demand(
        model, demand, request.policy, request.chunk, demand.others(request.policy) if others is None else others
    )


def afford_demand(
    model: Model, demand: Demand, policy: str, chunk: int | None = None, others: Sequence[str] = (), freed: int = 0
) -> None:
    """The same check for a `Demand`, before which `freed` bytes will be given back."""
    chunk = chunk or prefill_chunk(model.device)
    free, disk = spare(model.device)
    free += freed
    grows = demand.prompt and not model.spec.recurrent  # a recurrent state has a constant size
    largest = max(demand.bytes(name, model, chunk) for name in (DEFAULT, policy)) + demand.beside if grows else 0
    if largest * SMALL > free:
        known = {f"--cache {name}": demand.workload(name, model) for name in others}
        afford(demand.workload(policy, model, chunk), free, disk, known)
    hosted = demand.hosted(policy, model)
    if hosted and hosted > (there := spare(torch.device("cpu"))[0]):
        raise CapacityError(
            f"the cache '{policy}' puts {size_text(hosted)} into the memory of the host, where {size_text(there)} are "
            "free: give a shorter prompt or fewer new tokens, or keep the tokens on disk (offload:place=disk)"
        )


def afford_engine(model: Model, memory: int, settings: EngineSettings) -> None:
    """Refuse (CapacityError) an engine over `memory` bytes of keys and values that are not free."""
    afford_pool(workload(model, memory, settings), memory, spare(model.device)[0])


def identity_of(model: Model, tokenizer: Tokenizer, length: int, policy: str = DEFAULT) -> Identity:
    """The identity of a text that is read in a request of `length` tokens; all exact policies give the same."""
    cache_of(policy)  # refuses an unknown one
    return identity(model, tokenizer.fingerprint, length, DEFAULT if kind_of(policy).exact else policy)


def _within(model: Model, tokenizer: Tokenizer, request: Request, budget: str | int | Choice, guard: float) -> Request:
    """The request with the cache that was chosen for its budget."""
    if not isinstance(budget, Choice):
        budget = choose_cache(model, tokenizer, request, budget, guard)
        if request.on_report is not None and budget.loss is not None:
            request.on_report(f"approximate: {budget.report()}")
    return replace(request, policy=budget.policy, chunk=budget.chunk)
