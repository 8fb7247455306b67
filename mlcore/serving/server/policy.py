"""Which versions are served, and which of them answers a request that asks for none. No TensorFlow."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlcore.runtime.errors import UsageError


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of those on disk are served.

    Attributes:
        latest: How many of the highest numbers; None: all.
        specific: These in any case; with `latest` 0 only these.
    """

    latest: int | None
    specific: frozenset[int] = frozenset()

    def choose(self, available: Collection[int]) -> list[int]:
        """The versions to serve, the highest first."""
        ranked = sorted(available, reverse=True)
        chosen = set(ranked if self.latest is None else ranked[: self.latest]) | (self.specific & set(ranked))
        return sorted(chosen, reverse=True)


def parse_policy(text: str, flag: str = "--version-policy") -> VersionPolicy:
    """`latest`, `latest:2`, `all` or `specific:3,5` as a policy.

    Raises:
        UsageError: It is none of these.
    """
    kind, _, value = text.partition(":")
    try:
        if kind == "all" and not value:
            return VersionPolicy(None)
        if kind == "latest":
            count = int(value or 1)
            if count >= 1:
                return VersionPolicy(count)
        if kind == "specific":
            numbers = frozenset(int(number) for number in value.split(","))
            if min(numbers) >= 1:
                return VersionPolicy(0, numbers)
    except ValueError:
        pass
    raise UsageError(f"{flag}={text}: expected latest:N, all, or specific:N,N")


@dataclass(frozen=True)
class TrafficSplit:
    """Shares of the requests that ask for no version.

    Attributes:
        weights: Version -> weight.
    """

    weights: tuple[tuple[int, float], ...]

    @property
    def versions(self) -> frozenset[int]:
        """The versions that have a share."""
        return frozenset(version for version, weight in self.weights if weight > 0)

    def choose(self, request_id: str, loaded: Collection[int]) -> int | None:
        """The version for a request: always the same for the same id, while the same versions are loaded.

        The share of a version that is not loaded goes to the others. None: none of them is loaded.
        """
        shares = [(version, weight) for version, weight in self.weights if version in loaded and weight > 0]
        if not shares:
            return None
        point = position(request_id) * sum(weight for _, weight in shares)
        for version, weight in shares:
            point -= weight
            if point < 0:
                return version
        return shares[-1][0]


def position(request_id: str) -> float:
    """A place in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=6).digest(), "big") / 2**48


def parse_traffic(texts: Sequence[str], flag: str = "--traffic") -> TrafficSplit | None:
    """`2:90` and `3:10`, or both as `2:90,3:10` (or with `=`), as shares; None where there is none.

    Raises:
        UsageError: It is not of that form, a version comes twice, or no weight is above 0.
    """
    weights: dict[int, float] = {}
    for text in (part for whole in texts for part in whole.split(",") if part):
        version, _, weight = text.replace("=", ":").partition(":")
        try:
            number, share = int(version), float(weight)
        except ValueError:
            number, share = 0, 0.0
        if number < 1 or not 0 <= share < float("inf"):
            raise UsageError(f"{flag}={text}: expected VERSION:WEIGHT such as 2:90")
        if number in weights:
            raise UsageError(f"{flag}={text}: version {number} is given twice")
        weights[number] = share
    if weights and not any(weights.values()):
        raise UsageError(f"{flag}={','.join(texts)}: expected a weight above 0")
    return TrafficSplit(tuple(sorted(weights.items()))) if weights else None
