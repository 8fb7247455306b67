"""What the REST interfaces share: request ids, versions in paths, errors as JSON, a bound on bodies."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.json_tensors import dumps

JSON = "application/json"
REQUEST_ID = "x-request-id"
VERSION = "x-model-version"
_LARGE = 64 * 1024  # bytes of tensors or JSON that take long enough for a thread to pay


def request_id(http: HttpRequest) -> str | None:
    """The id that the client gave, if it can be a header again."""
    given = http.headers.get(REQUEST_ID)
    return given if given and given.isascii() and given.isprintable() else None


def version_number(http: HttpRequest) -> int | None:
    """The version in the path.

    Raises:
        RequestError: It is no number.
    """
    text = http.path_params.get("version")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise RequestError(f"version {text!r}: expected a number")
    return int(text)


def answer_headers(with_id: str, version: int) -> dict[str, str]:
    """Headers of an answer: whose it is, and which version gave it."""
    return {REQUEST_ID: with_id, VERSION: str(version)}


def error_response(error: Exception, with_id: str | None = None) -> Response:
    """An error as {"error": "..."}."""
    if isinstance(error, RequestError):
        code, message = error.code, str(error)
    elif isinstance(error, ClientDisconnect):
        code, message = Code.CANCELLED, "the client is gone"
    else:  # logged where it was counted
        code, message = Code.INTERNAL, "internal error; the server's log has more"
    headers = {REQUEST_ID: with_id} if with_id else {}
    if code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE):
        headers["retry-after"] = "1"
    return Response(dumps({"error": message}), code.http, headers=headers, media_type=JSON)


async def in_thread(size: int, function: Any, *arguments: Any) -> Any:
    """Call a function that works on `size` bytes; in a thread where other requests would wait for it."""
    if size < _LARGE:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


class BoundedBodies:
    """Middleware: a body above the bound is refused with 413, before it is read where its length is given."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message: Message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise self._error()
            return message

        await self.app(scope, bounded, send)

    def _error(self) -> RequestError:
        return RequestError(f"the request is larger than {self.max_bytes} bytes", Code.TOO_LARGE)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(self._error())
        response.headers["connection"] = "close"  # its body is not read
        await response(scope, receive, send)
