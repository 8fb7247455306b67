"""What the two gRPC clients share: a channel, calls without generated stubs, and what a failure means."""

import threading
from collections.abc import Callable
from typing import Any

import grpc

from mlcore.serving.clients.client import (
    NotServedError,
    RequestRefusedError,
    Server,
    ServerFailedError,
    UnavailableError,
    _Retry,
)

_REFUSED = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNAUTHENTICATED", "PERMISSION_DENIED",
            "UNIMPLEMENTED", "ALREADY_EXISTS")  # fmt: skip


class Channel:
    """A connection to a server, opened at the first call.

    Args:
        server: Where it listens.
        service: Full name of the service.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._lock = threading.Lock()
        self._channel: Any = None
        authorization = server.access.authorization
        self._metadata = None if authorization is None else (("authorization", authorization),)

    def call(self, method: str, request: Any, answer: Any, timeout_s: float, *, what: str) -> Any:
        """One call of `/service/Method`.

        Args:
            method: `/package.Service/Method`.
            request: Message to send.
            answer: Class of the message that comes back.
            timeout_s: Longest time, in seconds.
            what: What is asked of whom, for messages.
        """
        function = self._open().unary_unary(
            method, request_serializer=_serialize, response_deserializer=answer.FromString
        )
        try:
            return function(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _meaning(error, what, timeout_s) from error

    def _open(self) -> Any:
        with self._lock:
            if self._channel is None:
                options: list[tuple[str, Any]] = [
                    ("grpc.max_send_message_length", -1),
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    ("grpc.enable_retries", 0),  # the client's own tries know the deadline
                ]
                target, access = str(self.server), self.server.access
                if access.host is not None:
                    options.append(("grpc.default_authority", access.host))
                if self.server.secure:
                    if access.host_name is not None:
                        options.append(("grpc.ssl_target_name_override", access.host_name))
                    roots = None if access.authority is None else access.authority.encode()
                    self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
                else:
                    self._channel = grpc.insecure_channel(target, options)
            return self._channel

    def close(self) -> None:
        """Close it."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None


_serialize: Callable[[Any], bytes] = lambda message: message.SerializeToString()  # noqa: E731 (a name for its type)


def _meaning(error: Any, what: str, timeout_s: float) -> Exception:
    """The error of ours that a status of gRPC means."""
    name = error.code().name
    details = " ".join((error.details() or "no details").split())
    text = f"{what}: {name}: {details}"
    if name == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return RequestRefusedError(text, name)
    # No call is cancelled here: a server that stops cancels those that it has.
    if name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"):
        return _Retry(f"{name}: {details}")
    if name == "DEADLINE_EXCEEDED":
        return UnavailableError(f"{what}: no answer within {timeout_s:.3g} s")
    if name == "NOT_FOUND":
        return NotServedError(text, name)
    if name in _REFUSED:
        return RequestRefusedError(text, name)
    return ServerFailedError(text, name)
