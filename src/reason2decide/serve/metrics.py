"""Prometheus metrics: counts, depths and times. No text, label, caller's name or id."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # ours
CALLS = (1, 2, 4, 8, 16, 32, 64)  # ours


class Metrics:
    """The server's metrics, in a separate registry.

    Args:
        admitted: returns the number of requests accepted and not yet answered; called at each scrape.
    """

    def __init__(self, admitted: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        depth = Gauge("r2d_queue_depth", "Requests accepted and not yet answered", registry=self.registry)
        depth.set_function(admitted)
        self._requests = Counter(
            "r2d_requests", "Requests by route and status", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "r2d_request_seconds",
            "Seconds from a request's head to its answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch_calls = Histogram(
            "r2d_batch_calls", "Calls per batch", ("model", "kind"), buckets=CALLS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "r2d_batch_seconds", "Seconds per batch", ("model", "kind"), buckets=SECONDS, registry=self.registry
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the pattern of its path, status 499 means the client disconnected."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, model: str, kind: str, calls: int, seconds: float) -> None:
        """Count a batch of calls of a model."""
        self._batch_calls.labels(model, kind).observe(calls)
        self._batch_seconds.labels(model, kind).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
