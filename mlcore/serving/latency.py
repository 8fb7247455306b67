"""How long requests took."""

import threading
from collections.abc import Sequence

import numpy as np

PERCENTILES = (50, 95, 99)


class Latencies:
    """Times of requests, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: list[float] = []

    def add(self, seconds: float) -> None:
        """Count one request."""
        with self._lock:
            self._seconds.append(seconds)

    @property
    def milliseconds(self) -> list[float]:
        """Each of them."""
        with self._lock:
            return [1000 * seconds for seconds in self._seconds]

    def summary(self) -> dict[str, float]:
        """`requests`, `p50_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `max_ms`; nothing where there was no request."""
        return summary_of(self.milliseconds)


def summary_of(milliseconds: Sequence[float]) -> dict[str, float]:
    """Percentiles (between neighbours by proportion), mean and maximum of times in milliseconds."""
    if not milliseconds:
        return {}
    values = np.percentile(milliseconds, PERCENTILES)
    named = {f"p{percent}_ms": round(float(value), 3) for percent, value in zip(PERCENTILES, values, strict=True)}
    return {
        "requests": len(milliseconds),
        **named,
        "mean_ms": round(float(np.mean(milliseconds)), 3),
        "max_ms": round(max(milliseconds), 3),
    }
