"""The endpoint's metrics for Prometheus.

Owns the metrics' names, units and buckets, and their implementation in a single process. Under Ray
they are published through ``ray.util.metrics``; see ``cluster/metrics.py``. Labels are routes,
states and tiers, never subjects, names or keys, which are unbounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["METRICS", "MetricSpec", "Metrics", "PrometheusMetrics", "observe_stats"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class MetricSpec:
    """Name, meaning and labels of one metric."""

    def __init__(self, kind: str, name: str, meaning: str, labels: tuple[str, ...] = ()) -> None:
        self.kind, self.name, self.meaning, self.labels = kind, name, meaning, labels


METRICS = (
    MetricSpec("counter", "farm_http_requests", "Requests answered.", ("route", "status")),
    MetricSpec("histogram", "farm_http_seconds", "Time to the end of a response.", ("route",)),
    MetricSpec("counter", "farm_pictures", "Images requested, by outcome.", ("outcome",)),
    MetricSpec("histogram", "farm_picture_seconds", "An image's time by stage.", ("stage",)),
    MetricSpec("gauge", "farm_pictures_waiting", "Images requested and not yet answered."),
    MetricSpec("gauge", "farm_engine", "The engine's own numbers, by name.", ("fact",)),
)


class Metrics(Protocol):
    """Receives metrics. Unknown names are programming errors and raise KeyError."""

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        ...

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add to a histogram."""
        ...

    def text(self) -> bytes | None:
        """All metrics in Prometheus' text format; None if another port serves them."""
        ...


class PrometheusMetrics:
    """The metrics of one process, read at ``/metrics``."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for spec in METRICS:
            arguments = (spec.name, spec.meaning, spec.labels)
            if spec.kind == "counter":
                self._counters[spec.name] = Counter(*arguments, registry=self._registry)
            elif spec.kind == "gauge":
                self._gauges[spec.name] = Gauge(*arguments, registry=self._registry)
            else:
                self._histograms[spec.name] = Histogram(
                    *arguments, registry=self._registry, buckets=SECONDS
                )

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        metric = self._counters[name]
        (metric.labels(**labels) if labels else metric).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        metric = self._gauges[name]
        (metric.labels(**labels) if labels else metric).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        metric = self._histograms[name]
        (metric.labels(**labels) if labels else metric).observe(value)

    def total(self, name: str, **labels: str) -> int:
        """A counter's value."""
        return int(self._registry.get_sample_value(f"{name}_total", labels) or 0)

    def text(self) -> bytes | None:
        return generate_latest(self._registry)


def observe_stats(metrics: Metrics, stats: Mapping[str, object]) -> None:
    """Publish an engine's statistics, nested ones under dotted names."""
    for name, value in _numbers(stats):
        metrics.set("farm_engine", value, fact=name)


def _numbers(stats: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in stats.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
