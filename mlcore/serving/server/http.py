"""What the REST interfaces share: request ids, versions in paths, answers, errors as JSON, a bound on bodies."""

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.json_tensors import dumps

JSON = "application/json"
REQUEST_ID = "x-request-id"
_HEAD = f"content-length: %d\r\ncontent-type: %b\r\n{REQUEST_ID}: %b\r\nx-model-version: %d\r\n%b".encode()
ENCODINGS = "gzip, deflate"  # of requests
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # as zlib tells its formats apart
LARGE = 64 * 1024  # bytes of tensors or JSON that take long enough for a thread to pay


class Lookup(Protocol):
    """What a handler asks of headers."""

    def get(self, name: str, /) -> str | None: ...


class HttpRequest(Protocol):
    """What is asked of a request's head: Starlette's, or a `Post`."""

    @property
    def headers(self) -> "Lookup": ...
    @property
    def path_params(self) -> Mapping[str, Any]: ...


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
    """An answer to a prediction: what Starlette's Response is, made in a third of its time.

    Args:
        body: The content.
        media_type: Its type.
        request_id: Whose answer it is.
        version: The version that gave it.
        more: Further lines of its head, each with its end.

    Attributes:
        head: The lines of the head that are its own, each with its end.
    """

    __slots__ = ("body", "head")
    status_code = 200

    def __init__(self, body: bytes, media_type: bytes, request_id: str, version: int, more: bytes = b"") -> None:
        self.body = body
        self.head = _HEAD % (len(body), media_type, request_id.encode("latin-1"), version, more)


def error_response(error: BaseException, with_id: str | None = None) -> Response:
    """An error as {"error": "..."}."""
    if isinstance(error, RequestError):
        code, message = error.code, str(error)
    else:  # logged where it was counted
        code, message = Code.INTERNAL, "internal error; the server's log has more"
    headers = {REQUEST_ID: with_id} if with_id else {}
    if code is Code.UNKNOWN_ENCODING:
        headers["accept-encoding"] = ENCODINGS
    if code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE):
        headers["retry-after"] = "1"
    return Response(dumps({"error": message}), code.http, headers=headers, media_type=JSON)


async def in_thread(size: int, function: Any, *arguments: Any) -> Any:
    """Call a function that works on `size` bytes; in a thread from `LARGE` on, as other requests would wait for it."""
    if size < LARGE:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


class Headers:
    """Headers of a request by name, in small letters; of several with one name the first."""

    __slots__ = ("_values",)

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._values = dict(reversed(headers))

    def get(self, name: str) -> str | None:
        """One of them."""
        value = self._values.get(name.encode())
        return None if value is None else value.decode("latin-1")


class Post:
    """A prediction that came by POST.

    Args:
        headers: Its headers, names in small letters.
        path_params: The parts of its path.
        body: Its content.
    """

    __slots__ = ("body", "headers", "path_params")

    def __init__(self, headers: list[tuple[bytes, bytes]], path_params: Mapping[str, Any], body: bytes) -> None:
        self.headers = Headers(headers)
        self.path_params = path_params
        self.body = body


Predict = Callable[[Post], Coroutine[Any, Any, Answer | Response]]


def is_too_large(headers: list[tuple[bytes, bytes]], max_bytes: int) -> bool:
    """Whether a request says that its body is above the bound."""
    for name, value in headers:
        if name == b"content-length":
            return value.isdigit() and int(value) > max_bytes
    return False


def too_large(max_bytes: int) -> RequestError:
    """What it is refused with."""
    return RequestError(f"the request is larger than {max_bytes} bytes", Code.TOO_LARGE)


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body whose Content-Encoding is gzip or deflate (RFC 9110, 8.4.1) as it was before.

    Args:
        body: As it came: one stream. A row of them, which gzip allows, could cost the square of its length.
        encoding: The header, in small letters.
        max_bytes: Most bytes of the result: a small body can hold a very large one.

    Raises:
        RequestError: It is damaged or too large, or the encoding is another.
    """
    if encoding not in _WINDOW_BITS:
        raise RequestError(f"content-encoding {encoding!r}: expected {ENCODINGS}, or none", Code.UNKNOWN_ENCODING)
    decoder = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"content-encoding {encoding}: the body cannot be unpacked ({error})") from error
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    if not decoder.eof:
        raise RequestError(f"content-encoding {encoding}: the body ends early")
    if decoder.unused_data:
        raise RequestError(f"content-encoding {encoding}: something follows the end of the body")
    return content


class Bounded:
    """An application whose requests have a bound on their bodies: 413, before one is read where its length is given."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if is_too_large(scope["headers"], self.max_bytes):
                response = error_response(too_large(self.max_bytes))
                response.headers["connection"] = "close"  # its body is not read
                await response(scope, receive, send)
                return
            receive = self._bounded(receive)
        await self.app(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message: Message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise too_large(self.max_bytes)
            return message

        return bounded
