"""Figures of the server for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qwenvl_jax.serving.status import EngineStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATHS = ("/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics", "/")  # others count as "other"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts requests, and shows the state of the engine whenever it is asked."""

    def __init__(self, status: Callable[[], EngineStatus | None], is_ready: Callable[[], bool]):
        """Begins at zero.

        Args:
          status: gives the state of the engine, None before there is one.
          is_ready: whether questions are answered.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "qwenvl_requests", "Requests by path and status.", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "qwenvl_request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "qwenvl_first_token_seconds",
            "Seconds from the arrival of a question at the engine to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineFigures(status, is_ready))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        known = path if path in _PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Counts the time to the first token of an answer."""
        self._first.observe(seconds)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    def __init__(self, status: Callable[[], EngineStatus | None], is_ready: Callable[[], bool]):
        self._status = status
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("qwenvl_ready", "Whether questions are answered.", value=float(self._is_ready()))
        if status is None:
            return
        yield GaugeMetricFamily("qwenvl_slots", "Answers that can be written at once.", value=status.slots)
        yield GaugeMetricFamily("qwenvl_active", "Answers that are being written.", value=status.active)
        yield GaugeMetricFamily("qwenvl_waiting", "Questions that wait for a slot.", value=status.waiting)
        answers = CounterMetricFamily("qwenvl_answers", "Answers by the reason of their end.", labels=("reason",))
        for reason, count in status.finished.items():
            answers.add_metric((reason,), count)
        yield answers
        for name, help_text, value in (
            ("qwenvl_prompt_tokens", "Tokens of prompts.", status.prompt_tokens),
            ("qwenvl_new_tokens", "Tokens of answers.", status.new_tokens),
            ("qwenvl_failures", "Steps of the model that failed.", status.failures),
            ("qwenvl_pictures_encoded", "Pictures that went through the ViT.", status.pictures_encoded),
            ("qwenvl_pictures_reused", "Pictures whose features were there already.", status.pictures_reused),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
