"""What the gRPC interfaces share: request ids in metadata, deadlines, errors as statuses, the health service."""

import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc

from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.http import REQUEST_ID
from mlcore.serving.server.service import Request

_HEALTH = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse(status=...)


def metadata_id(context: grpc.aio.ServicerContext) -> str | None:
    """The id that the client gave."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str):
            return value
    return None


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """Seconds that the client still waits."""
    remaining = context.time_remaining()
    return None if remaining is None else max(remaining, 0.0)


class answering:
    """A request in work; an error inside becomes its status, and the answer carries the request's id."""

    __slots__ = ("context", "request")

    def __init__(self, request: Request, context: grpc.aio.ServicerContext) -> None:
        self.request = request
        self.context = context

    async def __aenter__(self) -> Request:
        self.context.set_trailing_metadata(((REQUEST_ID, self.request.id),))
        return self.request.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.request.__exit__(kind, error, traceback)
        if isinstance(error, RequestError):
            await self.context.abort(getattr(grpc.StatusCode, error.code.grpc), str(error))
        elif isinstance(error, Exception):  # logged where it was counted
            await self.context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has more")


@contextlib.asynccontextmanager
async def telling(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """A question about the server, which is no prediction and not counted; an error inside becomes its status."""
    try:
        yield
    except RequestError as error:
        await context.abort(getattr(grpc.StatusCode, error.code.grpc), str(error))


def health_handler(is_ready: Callable[[], bool], names: tuple[str, ...]) -> grpc.GenericRpcHandler:
    """The standard health service (grpc/health/v1): what Kubernetes' gRPC probes ask.

    Args:
        is_ready: Whether the server is.
        names: Services that may be asked for, beside the empty name of the server as a whole.
    """

    async def check(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        # HealthCheckRequest has one field: 1, the name of the service.
        name = message[2:].decode(errors="replace") if message[:1] == b"\x0a" else ""
        if name and name not in names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {name}")
        return _SERVING if is_ready() else _NOT_SERVING

    handlers: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    return grpc.method_handlers_generic_handler(_HEALTH, handlers)
