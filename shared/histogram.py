"""A histogram for the hot path: as Prometheus', but without a lock, so that an observation costs 0.2 us and not 1 us.

Observed on the event loop's thread only; the metrics server's thread reads it, and may see an observation whose sum is
not there yet. Made by shared/metrics.py.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Buckets:
    """The observations of one set of labels: `counts[i]` of them are at most `bounds[i]` and above the bound before."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


class Histogram(Collector):
    """All observations of one name. `bounds` ascend; the bucket without an upper bound is added."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name: Final = name
        self._documentation: Final = documentation
        self._labels: Final = tuple(labels)
        self._bounds: Final = tuple(bounds)
        self._les: Final = [*map(floatToGoString, self._bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Buckets] = {}
        registry.register(self)

    def labels(self, *values: str) -> Buckets:
        """Return the buckets of these label values; worth keeping where they are often used."""
        assert len(values) == len(self._labels), "one value per label"
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = Buckets(self._bounds)
        return found

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the family without values, by which the registry knows the name."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the family as it stands now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, buckets in list(self._children.items()):
            cumulated = list(accumulate(buckets.counts))
            family.add_metric(values, list(zip(self._les, cumulated, strict=True)), buckets.total)
        return [family]
