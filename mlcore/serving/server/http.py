"""What the REST interfaces share: request ids, versions in paths, errors as JSON, a short way in, a bound on bodies."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.json_tensors import dumps

JSON = "application/json"
REQUEST_ID = "x-request-id"
VERSION = "x-model-version"
_REQUEST_ID, _VERSION = REQUEST_ID.encode(), VERSION.encode()
_LARGE = 64 * 1024  # bytes of tensors or JSON that take long enough for a thread to pay


class Lookup(Protocol):
    """What a handler asks of headers."""

    def get(self, name: str, /) -> str | None: ...


class HttpRequest(Protocol):
    """What a handler asks of a request: Starlette's, or a `Post`."""

    @property
    def headers(self) -> "Lookup": ...
    @property
    def path_params(self) -> Mapping[str, Any]: ...
    async def body(self) -> bytes: ...


Handler = Callable[[HttpRequest], Awaitable[ASGIApp]]


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


class Answer:
    """An answer to a prediction: what Starlette's Response does, for a third of its time.

    Args:
        content: The body.
        media_type: Its type.
        request_id: Whose answer it is.
        version: The version that gave it.
        more: Further headers, names in small letters.
    """

    __slots__ = ("content", "headers")

    def __init__(
        self, content: bytes, media_type: bytes, request_id: str, version: int, *more: tuple[bytes, bytes]
    ) -> None:
        self.content = content
        self.headers = [
            (b"content-length", b"%d" % len(content)), (b"content-type", media_type),
            (_REQUEST_ID, request_id.encode("latin-1")), (_VERSION, b"%d" % version), *more,
        ]  # fmt: skip

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.content})


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


class Headers:
    """Headers of a request by name, in small letters; of several with one name the first.

    Few of them are asked for, so they are searched and not made a mapping of.
    """

    __slots__ = ("_headers",)

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers

    def get(self, name: str) -> str | None:
        """One of them."""
        wanted = name.encode()
        for found, value in self._headers:
            if found == wanted:
                return value.decode("latin-1")
        return None


class Post:
    """A prediction that came by POST.

    Args:
        scope, receive: Of ASGI.
        path_params: The parts of its path.
        max_bytes: Most bytes of its body.
    """

    __slots__ = ("_max_bytes", "_receive", "headers", "path_params")

    def __init__(self, scope: Scope, receive: Receive, path_params: Mapping[str, Any], max_bytes: int) -> None:
        self.headers = Headers(scope["headers"])
        self.path_params = path_params
        self._receive = receive
        self._max_bytes = max_bytes

    async def body(self) -> bytes:
        """Its content.

        Raises:
            RequestError: It is too large.
            ClientDisconnect: The client went away in the middle of it.
        """
        parts: list[bytes] = []
        read = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            read += len(parts[-1])
            if read > self._max_bytes:
                raise _too_large(self._max_bytes)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


class Front:
    """What a request meets first: a bound on bodies, and for predictions a short way to their handlers.

    A body above the bound is refused with 413, before it is read where its length is given. The application's own way,
    through middlewares, routers and exit stacks, costs a prediction more than all else that happens to it here.

    Args:
        app: The application, for all the rest.
        predictions: Pattern of the whole path, with groups for its parts -> what answers a POST to it.
        max_bytes: Most bytes of a body.
    """

    def __init__(self, app: ASGIApp, predictions: Mapping[str, Handler], max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self._predictions = [(re.compile(pattern), handler) for pattern, handler in predictions.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.max_bytes:
                response = error_response(_too_large(self.max_bytes))
                response.headers["connection"] = "close"  # its body is not read
                await response(scope, receive, send)
                return
        if scope["method"] == "POST":
            for pattern, handler in self._predictions:
                match = pattern.fullmatch(scope["path"])
                if match:
                    answer = await handler(Post(scope, receive, match.groupdict(), self.max_bytes))
                    await answer(scope, receive, send)
                    return
        await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message: Message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise _too_large(self.max_bytes)
            return message

        return bounded


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the request is larger than {max_bytes} bytes", Code.TOO_LARGE)
