"""Prometheus metrics of the server, on the page that kserve has for its own. No TensorFlow."""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_NO_VERSION = "none"


class _Requests:
    """Counter and histogram of requests, which are counted in the event loop's thread alone: without locks."""

    def __init__(self, model: str, prefix: str) -> None:
        self._model = model
        self._prefix = prefix
        self.counts: dict[tuple[int | None, str, str], int] = {}  # by version, protocol, code
        self._times: dict[tuple[int | None, str], tuple[list[int], list[float]]] = {}  # buckets, sum

    def count(self, version: int | None, protocol: str, code: str, seconds: float) -> None:
        """Count one that is done."""
        key = version, protocol, code
        self.counts[key] = self.counts.get(key, 0) + 1
        times = self._times.get(key[:2])
        if times is None:
            times = self._times[key[:2]] = [0] * (len(_LATENCY_S) + 1), [0.0]
        times[0][bisect_left(_LATENCY_S, seconds)] += 1
        times[1][0] += seconds

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """For Prometheus."""
        labels = ["model", "version", "protocol", "code"]
        counter = CounterMetricFamily(f"{self._prefix}_requests", "Requests answered or refused.", labels=labels)
        for (version, protocol, code), count in sorted(self.counts.items(), key=str):
            counter.add_metric([self._model, _text(version), protocol, code], count)
        yield counter
        what = "Time from the arrival of a request to its answer."
        histogram = HistogramMetricFamily(f"{self._prefix}_request_seconds", what, labels=labels[:3])
        bounds = [*map(str, _LATENCY_S), "+Inf"]
        for (version, protocol), (counts, total) in sorted(self._times.items(), key=str):
            until = [sum(counts[: index + 1]) for index in range(len(counts))]
            buckets = list(zip(bounds, until, strict=True))
            histogram.add_metric([self._model, _text(version), protocol], buckets, total[0])
        yield histogram


def _text(version: int | None) -> str:
    return _NO_VERSION if version is None else str(version)


class Metrics:
    """What is counted. A label is looked up once: the look-up costs more than the count."""

    def __init__(self, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.model = model
        self._registry = registry
        prefix = "mlcore_serving"
        self._requests = _Requests(model, prefix)
        self.request = self._requests.count
        registry.register(self._requests)
        self.batch_size = Histogram(
            f"{prefix}_batch_examples", "Examples in a call of the model.", ("model", "version"), buckets=_EXAMPLES,
            registry=registry,
        )  # fmt: skip
        self.queue = Gauge(f"{prefix}_queue_examples", "Examples that wait.", ("model",), registry=registry)
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "Requests in work.", ("model",), registry=registry)
        self.version = Gauge(
            f"{prefix}_version_loaded", "1 for each version that is served.", ("model", "version"), registry=registry
        )
        self.load_failures = Counter(
            f"{prefix}_load_failures", "Versions that could not be loaded.", ("model",), registry=registry
        )
        self.load_seconds = Gauge(
            f"{prefix}_load_seconds", "Time that loading and warming up took.", ("model", "version"), registry=registry
        )
        self.log_entries = Counter(
            f"{prefix}_request_log_entries", "Entries of the request log by what became of them.",
            ("model", "outcome"), registry=registry,
        )  # fmt: skip
        self.load_failures.labels(model)
        self._batches: dict[int, Histogram] = {}

    def close(self) -> None:
        """Take the metrics off the page, for another server in this process."""
        for metric in (self._requests, self.batch_size, self.queue, self.in_flight, self.version,
                       self.load_failures, self.load_seconds, self.log_entries):  # fmt: skip
            self._registry.unregister(metric)

    def observe_batch(self, version: int, examples: int) -> None:
        """Count a call of the model."""
        histogram = self._batches.get(version)
        if histogram is None:
            histogram = self._batches[version] = self.batch_size.labels(self.model, str(version))
        histogram.observe(examples)

    def log_entry(self, outcome: str) -> None:
        """Count what became of an entry of the request log."""
        self.log_entries.labels(self.model, outcome).inc()
