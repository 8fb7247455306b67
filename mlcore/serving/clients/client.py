"""What every client of a model server can do, and the errors that all of them raise.

    predict     arrays in, arrays out
    metadata    inputs and outputs of each signature
    versions    the versions that the server holds, and their states
    ready       whether it answers for the model

A call is tried again while the server is away or full (UNAVAILABLE, RESOURCE_EXHAUSTED, CANCELLED, 429, 502, 503, a
connection that is refused or broken), with growing waits, until the deadline; a request that the server refuses is not.
"""

import abc
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.serving.clients.access import Access

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
T = TypeVar("T")

SERVING_DEFAULT = "serving_default"
PORTS = {"tfs-grpc": 8500, "v1": 8080, "v2": 8080, "v2-grpc": 8081}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_POLL_S = 0.25
_NO_INGRESS = Access()
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_ADDRESS = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:\s\[\]]+)(?::(?P<port>\d+))?/?")


class RequestRefusedError(DataError):
    """The server says that the request is wrong: 4xx, INVALID_ARGUMENT and their like. Trying again does not help.

    Attributes:
        status: The protocol's own word or number for it.
    """

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class NotServedError(UsageError):
    """The server has no such model, version or signature."""

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class ServerFailedError(TransientError):
    """The server failed: 500, INTERNAL, or an answer that its protocol does not know."""

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(TransientError):
    """No answer within the deadline: the server is away, not ready or full."""


class _Retry(Exception):
    """One try failed in a way that may pass."""


@dataclass(frozen=True)
class Server:
    """Where a server listens.

    Attributes:
        host: Name or address.
        port: Port.
        secure: Whether to use TLS.
        access: What is needed beside the address.
    """

    host: str
    port: int
    secure: bool = False
    access: Access = _NO_INGRESS

    @classmethod
    def parse(cls, text: str, protocol: str, flag: str = "--server", access: Access = _NO_INGRESS) -> Self:
        """From host:port, host (then the port that `mlcore serve` has for the protocol), or an address with a scheme.

        Raises:
            UsageError: It is none of these.
        """
        match = _ADDRESS.fullmatch(text.strip())
        scheme = match["scheme"] if match else None
        if match is None or scheme not in (None, "http", "https", "grpc", "grpcs"):
            raise UsageError(f"{flag}={text}: expected host:port, such as localhost:{PORTS[protocol]}")
        secure = scheme in ("https", "grpcs")
        default = 443 if secure else 80 if scheme == "http" else PORTS[protocol]
        port = int(match["port"]) if match["port"] else default
        if not 0 < port < 65536:
            raise UsageError(f"{flag}={text}: port {port}; expected 1 to 65535")
        if access.authority is not None and not secure:
            raise UsageError(f"{flag}={text} is without TLS, so --ca-file has no use; expected https://...")
        if access.token is not None and not secure and match["host"] not in _LOCAL_HOSTS:
            log.warning(
                "the token goes to %s:%d without TLS: whoever listens on the way can read it", match["host"], port
            )
        return cls(match["host"], port, secure, access)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: Its name.
        dtype: Of numpy; object stands for bytes.
        shape: Its lengths, -1 where any is taken; None where the server does not say.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None

    @property
    def is_bytes(self) -> bool:
        """Whether it takes or gives texts or encoded pictures."""
        return self.dtype == object

    def __str__(self) -> str:
        kind = "bytes" if self.is_bytes else self.dtype.name
        return f"{self.name}: {kind} {list(self.shape) if self.shape is not None else '[...]'}"


@dataclass(frozen=True)
class Signature:
    """One way to call a model."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """What a server says of a model.

    Attributes:
        signatures: Name -> signature; a protocol without signatures gives the one that it has as serving_default.
        has_signatures: Whether the protocol can name one in a request.
        version: The version that answered, where it is known.
    """

    signatures: Mapping[str, Signature]
    has_signatures: bool
    version: int | None = None


class ModelClient(abc.ABC):
    """A client of one model on one server. Safe to use from several threads; a context manager.

    Attributes:
        protocol: Its name on the command line.
        server: Where the server listens.
        model_name: Name of the model there.
        deadline_s: Longest time for one call, in seconds.
    """

    protocol: str

    def __init__(self, server: Server, model_name: str, deadline_s: float = 60.0) -> None:
        self.server = server
        self.model_name = model_name
        self.deadline_s = deadline_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.model_name} at {self.server} ({self.protocol})"

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abc.abstractmethod
    def _predict(
        self, inputs: Mapping[str, Array], signature: str | None, version: int | None, timeout_s: float
    ) -> dict[str, Array]:
        """One try."""

    @abc.abstractmethod
    def _metadata(self, version: int | None, timeout_s: float) -> Metadata:
        """One try."""

    @abc.abstractmethod
    def _versions(self, timeout_s: float) -> dict[int, str]:
        """One try."""

    @abc.abstractmethod
    def _why_not_ready(self, timeout_s: float) -> str:
        """One try; empty where the model is ready."""

    def predict(
        self,
        inputs: Mapping[str, Array],
        *,
        signature: str | None = None,
        version: int | None = None,
        deadline_s: float | None = None,
    ) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Name -> array; arrays of bytes have the dtype object.
            signature: Name of a signature, where the protocol has them; None: the model's default.
            version: A version of the model; None: the one that the server chooses.
            deadline_s: Longest time in seconds; None: the client's own.

        Returns:
            Name -> array; texts are bytes in an array of dtype object.

        Raises:
            RequestRefusedError: The server says that the request is wrong.
            NotServedError: It has no such model, version or signature.
            UnavailableError: No answer within the deadline.
            ServerFailedError: It failed.
        """
        return self._trying(lambda timeout_s: self._predict(inputs, signature, version, timeout_s), deadline_s)

    def metadata(self, *, version: int | None = None, deadline_s: float | None = None) -> Metadata:
        """Inputs and outputs of the model; errors as in `predict`."""
        return self._trying(lambda timeout_s: self._metadata(version, timeout_s), deadline_s)

    def versions(self, *, deadline_s: float | None = None) -> dict[int, str]:
        """Version -> state of those that the server holds (AVAILABLE, LOADING, ...), as far as it tells."""
        return self._trying(self._versions, deadline_s)

    def why_not_ready(self, timeout_s: float = 5.0) -> str:
        """Why the model cannot be asked now; empty where it can."""
        try:
            return self._why_not_ready(timeout_s)
        except _Retry as error:
            return str(error)
        except (DataError, UsageError, TransientError) as error:
            return str(error)

    def ready(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers for the model."""
        return not self.why_not_ready(timeout_s)

    def wait_until_ready(self, timeout_s: float) -> float:
        """Ask until the model is ready; the seconds that it took.

        Raises:
            UnavailableError: It is not after `timeout_s` seconds; the message says what was tried.
        """
        started = time.monotonic()
        tries = 0
        while True:
            tries += 1
            left = timeout_s - (time.monotonic() - started)
            reason = self.why_not_ready(min(5.0, max(left, 0.5)))
            spent = time.monotonic() - started
            if not reason:
                return spent
            if spent >= timeout_s:
                raise UnavailableError(
                    f"{self} is not ready after {timeout_s:g} s and {tries} tr{'y' if tries == 1 else 'ies'}; the last "
                    f"one: {reason} (see --model-name and --protocol)"
                )
            if tries == 1:
                log.info("waiting at most %g s for %s: %s", timeout_s, self, reason)
            time.sleep(min(_POLL_S, max(timeout_s - spent, 0.01)))

    def _trying(self, attempt: Callable[[float], T], deadline_s: float | None) -> T:
        """Try until the deadline."""
        limit = self.deadline_s if deadline_s is None else deadline_s
        end = time.monotonic() + limit
        wait = _FIRST_WAIT_S
        tries = 0
        while True:
            tries += 1
            try:
                return attempt(max(end - time.monotonic(), 0.001))
            except _Retry as error:
                pause = wait * random.uniform(0.5, 1.0)  # not all clients at the same moment
                if time.monotonic() + pause >= end:
                    raise UnavailableError(
                        f"{self}: no answer within {limit:g} s and {tries} tr{'y' if tries == 1 else 'ies'}; "
                        f"the last one: {error}"
                    ) from error
                log.debug("%s: %s; again in %.2f s", self, error, pause)
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_S)


def as_bytes(values: Any) -> Array:
    """Texts and bytes of any nesting as an array of bytes of dtype object."""
    array = np.asarray(values, dtype=object)
    flat = [value.encode() if isinstance(value, str) else bytes(value) for value in array.ravel()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)


def bytes_array(items: Any) -> Array:
    """A list of bytes as an array (n,) of dtype object."""
    result = np.empty(len(items), dtype=object)
    result[:] = list(items)
    return result


def is_texts(array: Array) -> bool:
    """Whether an array holds texts or bytes."""
    return array.dtype.kind in "OSU"
