"""Prometheus metrics of the server, on the page that kserve has for its own. No TensorFlow."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_NO_VERSION = "none"


class Metrics:
    """What is counted. A label is looked up once: the look-up costs more than the count."""

    def __init__(self, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.model = model
        self._registry = registry
        prefix = "mlcore_serving"
        self.requests = Counter(
            f"{prefix}_requests", "Requests answered or refused.", ("model", "version", "protocol", "code"),
            registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            f"{prefix}_request_seconds", "Time from the arrival of a request to its answer.",
            ("model", "version", "protocol"), buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
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
        self._counted: dict[tuple[int | None, str, str], Counter] = {}
        self._batches: dict[int, Histogram] = {}
        self._timed: dict[tuple[int | None, str], Histogram] = {}

    def close(self) -> None:
        """Take the metrics off the page, for another server in this process."""
        for metric in (self.requests, self.latency, self.batch_size, self.queue, self.in_flight, self.version,
                       self.load_failures, self.load_seconds, self.log_entries):  # fmt: skip
            self._registry.unregister(metric)

    def request(self, version: int | None, protocol: str, code: str, seconds: float) -> None:
        """Count a request that is done."""
        key = (version, protocol, code)
        counter = self._counted.get(key)
        if counter is None:
            text = _NO_VERSION if version is None else str(version)
            counter = self._counted[key] = self.requests.labels(self.model, text, protocol, code)
        counter.inc()
        timed = self._timed.get(key[:2])
        if timed is None:
            text = _NO_VERSION if version is None else str(version)
            timed = self._timed[key[:2]] = self.latency.labels(self.model, text, protocol)
        timed.observe(seconds)

    def observe_batch(self, version: int, examples: int) -> None:
        """Count a call of the model."""
        histogram = self._batches.get(version)
        if histogram is None:
            histogram = self._batches[version] = self.batch_size.labels(self.model, str(version))
        histogram.observe(examples)

    def log_entry(self, outcome: str) -> None:
        """Count what became of an entry of the request log."""
        self.log_entries.labels(self.model, outcome).inc()
