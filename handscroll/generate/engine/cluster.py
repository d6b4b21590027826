"""Answers many requests on the machines of a Ray cluster: every worker is an engine of its own, in its own process.

Groups of lines go to the workers, whose records come back one by one. When a worker dies, another one is started, and
what the dead one had not answered is asked again; its other answers are kept.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.generate.engine.batch import Asked, Line, Named, Reader, answered, identity
from handscroll.generate.engine.engine import Engine
from handscroll.text.tokenizer import Tokenizer

HERE = "local"  # the address of a cluster that is started on this machine, for this run
GROUP = 32  # lines that a worker gets at a time; its engine answers them together
DEATHS = 3  # workers that may die over a line before it is blamed
PATIENCE = 1800.0  # seconds until a worker has started and loaded the model

Start = Callable[[], tuple[Engine, Tokenizer]]


class Worker:
    """An engine in a process of its own (a Ray actor)."""

    def __init__(self, start: Start, beyond: bool):
        self.engine, self.tokenizer = start()
        self.reader = Reader(self.engine.model, self.tokenizer, beyond)

    def identity(self) -> str:
        """`batch.identity` of its engine."""
        return identity(self.engine)

    def answer(self, lines: list[tuple[int, Line, str]]) -> Iterator[dict[str, Any]]:
        """The records of numbered lines with their digests, in order."""
        named = [Named(Asked(number, line, self.reader.request(line)), digest) for number, line, digest in lines]
        for ready in answered(self.engine, self.tokenizer, named):
            for record in ready:  # noqa: UP028  (Ray sends into generators, and a list takes nothing)
                yield record


class _Task(NamedTuple):
    """What a worker is at: the places of the lines that it has not answered yet, in order."""

    worker: Any
    places: deque[int]


@dataclass(eq=False)
class Cluster:
    """The workers of a cluster. `start` makes a worker's engine, and is called in the worker's process.

    `workers` is their number (None: one a machine); each gets its share of the processors of its machine, and with
    `gpu` one GPU. `expected` is `identity` of the engine whose answers are wanted.

    Limits: Ray's own protocol is not encrypted and runs what it is sent, so a cluster belongs into a network of its
    own. Every machine needs the model under the same path, and the same version of this package.
    """

    address: str
    start: Start
    expected: str
    workers: int | None = None
    beyond: bool = False
    gpu: bool = False
    died: list[str] = field(default_factory=list)  # why workers died, for whoever wants to tell

    def __call__(self, named: Sequence[Named]) -> Iterator[list[dict[str, Any]]]:
        """The records of all answers in order, as soon as all before them are there.

        Raises:
            ConfigError: Ray is not installed or not reached, or a worker has another model. CapacityError: workers die
                over the same line again and again.
        """
        if not named:
            return
        ray = _ray()
        _connect(ray, self.address)
        try:
            made = self._begin(ray)
            yield from _in_order(self._records(ray, named, made))
        finally:
            ray.shutdown()

    def _begin(self, ray: Any) -> Callable[[], Any]:
        """Start the workers; returns what starts one."""
        machines = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
        self.workers = self.workers or len(machines)
        each = -(-self.workers // len(machines))
        share = {"num_cpus": max(1, int(min(machines) // each)), "num_gpus": int(self.gpu)}
        kind = ray.remote(Worker).options(scheduling_strategy="SPREAD", **share)
        return lambda: kind.remote(self.start, self.beyond)

    def _records(
        self, ray: Any, named: Sequence[Named], made: Callable[[], Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The places of answers and their records, as they come."""
        assert self.workers is not None
        size = max(1, min(GROUP, -(-len(named) // self.workers)))
        groups = deque(deque(range(first, min(first + size, len(named)))) for first in range(0, len(named), size))
        begun = [made() for _ in range(min(self.workers, len(groups)))]  # they load the model at the same time
        free = [self._checked(ray, worker) for worker in begun]
        running: dict[Any, _Task] = {}
        deaths: Counter[int] = Counter()
        while groups or running:
            while groups and free:
                task = _Task(free.pop(), groups.popleft())
                lines = [(named[at].asked.number, named[at].asked.line, named[at].digest) for at in task.places]
                running[task.worker.answer.options(num_returns="streaming").remote(lines)] = task
            (stream,), _ = ray.wait(list(running), num_returns=1)
            task = running[stream]
            try:
                record = ray.get(next(stream))
            except StopIteration:
                del running[stream]
                free.append(task.worker)
            except ray.exceptions.RayActorError as error:
                del running[stream]
                self.died.append(str(error))
                if task.places:
                    deaths.update([task.places[0]])
                    self._blame(named[task.places[0]].asked.number, deaths[task.places[0]], error)
                    groups.appendleft(task.places)
                free.append(self._checked(ray, made()))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            else:
                yield task.places.popleft(), record

    def _checked(self, ray: Any, worker: Any) -> Any:
        """The worker, once it has loaded the model that is expected."""
        try:
            found = ray.get(worker.identity.remote(), timeout=PATIENCE)
        except ray.exceptions.GetTimeoutError:
            raise ConfigError(
                f"no worker started within {PATIENCE / 60:g} minutes: the cluster has no processors free, or the model "
                "takes longer to load; see `ray status`, or give fewer --workers"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise ConfigError(f"a worker could not start: {error}") from None
        if found != self.expected:
            raise ConfigError(
                f"a worker has another model than this machine ({found}; here {self.expected}): its answers would not "
                "be those of a plain run; put the same files under the same path on every machine"
            )
        return worker

    def _blame(self, line: int, count: int, error: Exception) -> None:
        if count >= DEATHS:
            raise CapacityError(
                f"line {line}: {count} workers died over it, so it is not tried again ({error}); what was answered is "
                "kept. Most often a machine runs out of memory: give less --memory, or take the line out"
            )


def _in_order(found: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Runs of records that follow those before them, from records in any order with their places."""
    early: dict[int, dict[str, Any]] = {}
    following = 0
    for at, record in found:
        early[at] = record
        ready = []
        while following in early:
            ready.append(early.pop(following))
            following += 1
        if ready:
            yield ready


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports] - optional
    except ImportError:
        raise ConfigError(
            "a cluster needs the package ray, which is not installed: pip install 'handscroll[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    here = {"include_dashboard": False} if address == HERE else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False, **here)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"no Ray cluster at {address} ({error}); start one (ray start --head), and give its address as HOST:6379, "
            f"'auto' on one of its machines, or '{HERE}' for one of this machine alone"
        ) from None
