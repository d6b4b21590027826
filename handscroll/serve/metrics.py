"""What the server counts, in the text form of Prometheus. No text, name of a document or key is in it."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
Gauges = Callable[[], Iterator[tuple[str, str, dict[str, str], float]]]  # name, help, labels, value


class Metrics:
    """The counters of one server. `live` gives what is asked for only when somebody looks."""

    def __init__(self, live: Gauges):
        self.registry = made = CollectorRegistry()
        self._requests = Counter(
            "handscroll_requests", "Requests by endpoint and status", ["route", "status"], registry=made
        )
        self._seconds = Histogram(
            "handscroll_request_seconds", "Until the end", ["route"], buckets=SECONDS, registry=made
        )
        self._first = Histogram(
            "handscroll_first_token_seconds", "Until the first", ["model"], buckets=SECONDS, registry=made
        )
        self._tokens = Counter(
            "handscroll_tokens", "Tokens: prompt, cached (of those), answer", ["model", "kind"], registry=made
        )
        self._gone = Counter("handscroll_disconnects", "Answers that nobody waited for", registry=made)
        self.lag = Gauge("handscroll_event_loop_lag_seconds", "Last delay of the event loop", registry=made)
        self.registry.register(_Live(live))

    @contextmanager
    def request(self, route: str) -> Iterator[Callable[[int], None]]:
        """Times a request; the block says its status."""
        begun, status = monotonic(), [0]
        try:
            yield lambda number: status.__setitem__(0, number)
        finally:
            self._requests.labels(route, str(status[0])).inc()
            self._seconds.labels(route).observe(monotonic() - begun)

    def first(self, model: str, seconds: float) -> None:
        self._first.labels(model).observe(seconds)

    def tokens(self, model: str, prompt: int, cached: int, answer: int) -> None:
        for kind, count in (("prompt", prompt), ("cached", cached), ("answer", answer)):
            self._tokens.labels(model, kind).inc(count)

    def gone(self) -> None:
        self._gone.inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Live(Collector):
    """Values that are read when they are asked for."""

    def __init__(self, live: Gauges):
        self._live = live

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, words, labels, value in self._live():
            if name not in families:
                families[name] = GaugeMetricFamily(name, words, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        peak = GaugeMetricFamily("handscroll_peak_memory_bytes", "Most memory that the process has held")
        peak.add_metric([], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        yield from families.values()
        yield peak
