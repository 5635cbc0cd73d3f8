"""The endpoint's metrics, published through Ray on the metrics port of every node.

Owns only the translation; names and meanings are in ``serving/metrics.py``. Ray prefixes each name
with ``ray_`` and adds the replica's own labels.
"""

from __future__ import annotations

from ray.util import metrics as ray_metrics

from farm.serving.metrics import METRICS, SECONDS

__all__ = ["RayMetrics"]


class RayMetrics:
    """Metrics of a replica, collected by the cluster's Prometheus."""

    def __init__(self) -> None:
        self._counters: dict[str, ray_metrics.Counter] = {}
        self._gauges: dict[str, ray_metrics.Gauge] = {}
        self._histograms: dict[str, ray_metrics.Histogram] = {}
        for spec in METRICS:
            if spec.kind == "counter":
                self._counters[spec.name] = ray_metrics.Counter(
                    spec.name, spec.meaning, tag_keys=spec.labels
                )
            elif spec.kind == "gauge":
                self._gauges[spec.name] = ray_metrics.Gauge(
                    spec.name, spec.meaning, tag_keys=spec.labels
                )
            else:
                self._histograms[spec.name] = ray_metrics.Histogram(
                    spec.name, spec.meaning, boundaries=list(SECONDS), tag_keys=spec.labels
                )

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self._counters[name].inc(amount, tags=labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._histograms[name].observe(value, tags=labels)

    def text(self) -> bytes | None:
        return None
