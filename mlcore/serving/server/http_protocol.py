"""HTTP/1.1 as uvicorn speaks it, with a short way for predictions.

The way through ASGI, an application's middlewares, its routers and back costs a prediction more than all else that
happens to it here, and uvicorn writes an answer in two parts, for each of which the client wakes up. So a POST to the
path of a prediction is taken right after the parser: its handler gets the whole body and gives the whole answer, which
is written at once. All other requests go uvicorn's way, and so do connections: their parser, requests sent before the
last one was answered, and the end of the server.
"""

import asyncio
import logging
import re
from collections.abc import Coroutine, Mapping
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlcore.serving.server.errors import RequestError, too_many
from mlcore.serving.server.http import (
    Answer,
    Post,
    Predict,
    error_response,
    in_thread,
    is_too_large,
    request_id,
    too_large,
    unpack,
)

log = logging.getLogger(__name__)

_REMEMBERED = 256  # addresses
_PLAIN = "identity"  # Content-Encoding of a body that is as it was made
_GROWTH = 20  # by how much a compressed body of JSON may grow: what decides whether a thread does it
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Found = tuple[Predict, Mapping[str, Any]] | None


class Predictions:
    """Which requests are predictions.

    Args:
        handlers: Pattern of the whole path, with groups for its parts -> what answers a POST to it.
        max_bytes: Most bytes of a body.
        max_held: Most bytes of all bodies that come or are in work; a body that goes beyond is refused, one alone not.

    Attributes:
        held: Bytes of all bodies that come or are in work.
    """

    def __init__(self, handlers: Mapping[str, Predict], max_bytes: int, max_held: float = float("inf")) -> None:
        self.max_bytes = max_bytes
        self.max_held = max_held
        self.held = 0
        self._handlers = [(re.compile(pattern.encode()), handler) for pattern, handler in handlers.items()]
        self._found: dict[bytes, Found] = {}

    def find(self, url: bytes) -> Found:
        """What answers a POST to an address, and the parts of its path; None: uvicorn's way.

        Few addresses are used again and again, so they are remembered.
        """
        if url in self._found:
            return self._found[url]
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        found = self._found[url] = self._search(url)
        return found

    def _search(self, url: bytes) -> Found:
        path = httptools.parse_url(url).path or b""
        if b"%" in path:
            path = _unquote(path)
        for pattern, handler in self._handlers:
            match = pattern.fullmatch(path)
            if match:
                return handler, {name: _text(part) for name, part in match.groupdict().items()}
        return None


class Protocol(HttpToolsProtocol):
    """A connection.

    Args:
        predictions: Which requests go the short way.
        options: uvicorn's.
    """

    def __init__(self, predictions: Predictions, **options: Any) -> None:
        super().__init__(**options)
        self.predictions = predictions
        self._idle_since: float | None = None

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        self._idle_since = None
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport."""
        super().connection_lost(exc)  # tells the last of the requests
        while self.pipeline:
            cycle = self.pipeline.pop()[0]
            cycle.disconnected = True
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        """Called by the parser. What only an application asks for is made when it is known to be for one."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        found = self.predictions.find(self.url) if self.parser.get_method() == b"POST" else None
        if found is None or self.parser.should_upgrade():
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers += headers  # the scope has this list, too
            super().on_headers_complete()
            return
        before = self.cycle
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        cycle: Any = Cycle(self, found, keep_alive)
        self.cycle = cycle
        if before is None or before.response_complete:
            cycle.begin()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        cycle: Any = self.cycle
        if type(cycle) is Cycle:
            cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        cycle: Any = self.cycle
        if type(cycle) is Cycle:
            cycle.more_body = False
            cycle.set()
        else:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is Cycle:
            self.loop.call_soon(cycle.begin)  # not at once: a row of refusals would be as deep as it is long
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Called when an answer was written."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_more(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """Called by uvicorn, which makes a new timer after each request; ours looks at the time when it is due."""

    def _wait_for_more(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Called when nothing may have come for too long."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._wait_for_more(left)
        else:
            self.transport.close()


class Cycle:
    """A prediction on a connection; its attributes are what uvicorn's protocol asks of its own RequestResponseCycle."""

    __slots__ = (
        "_begun", "_counted", "_found", "_handler", "_headers", "_protocol", "_started", "_waits", "body",
        "disconnected", "keep_alive", "message_event", "more_body", "response_complete",
    )  # fmt: skip

    def __init__(self, protocol: Protocol, found: tuple[Predict, Mapping[str, Any]], keep_alive: bool) -> None:
        self._protocol = protocol
        self._headers = protocol.headers
        self._found = found
        self._handler: Coroutine[Any, Any, Answer | Response] | None = None
        self._waits = protocol.expect_100_continue
        self._begun = self._started = False
        self._counted = 0  # bytes of the body, in `Predictions.held`
        self.keep_alive = keep_alive
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = self  # its `set` is called when the client is gone

    def begin(self) -> None:
        """It is its turn: what came before on the connection is answered."""
        self._begun = True
        protocol = self._protocol
        if is_too_large(self._headers, protocol.predictions.max_bytes):
            self._refuse(too_large(protocol.predictions.max_bytes))
            return
        if self._waits and self.more_body:
            protocol.transport.write(_CONTINUE)
        if self.body or not self.more_body:
            self.set()

    def take(self, part: bytes) -> None:
        """A part of the body came."""
        if self.response_complete:
            return
        if not self.body:
            self.body = part
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += part
        if self._begun:
            self.set()
        elif len(self.body) > HIGH_WATER_LIMIT:
            self._protocol.flow.pause_reading()

    def set(self) -> None:
        """Look at what came."""
        protocol = self._protocol
        predictions = protocol.predictions
        size = len(self.body)
        predictions.held += size - self._counted
        self._counted = size
        if self.disconnected or self.response_complete:
            self._let_go()
        elif not self._begun or self._started:
            return
        elif size > predictions.max_bytes:
            self._refuse(too_large(predictions.max_bytes))
        elif size < predictions.held > predictions.max_held:
            self._refuse(too_many(predictions.held, predictions.max_held))
        elif self.more_body:
            protocol.flow.resume_reading()
        else:
            self._start()

    def _start(self) -> None:
        self._started = True
        handler, path_params = self._found
        post = Post(self._headers, path_params, bytes(self.body))
        self.body = b""  # not twice in memory
        encoding = (post.headers.get("content-encoding") or _PLAIN).lower()
        self._handler = handler(post) if encoding == _PLAIN else self._unpacked(handler, post, encoding)
        self._go_on(None)

    async def _unpacked(self, handler: Predict, post: Post, encoding: str) -> Answer | Response:
        """The answer to a body that came compressed; what it grows to counts as held, too."""
        predictions = self._protocol.predictions
        packed = len(post.body)
        try:
            post.body = await in_thread(_GROWTH * packed, unpack, post.body, encoding, predictions.max_bytes)
            grown = len(post.body) - packed
            predictions.held += grown
            self._counted += grown
            if len(post.body) < predictions.held > predictions.max_held:
                raise too_many(predictions.held, predictions.max_held)
        except RequestError as error:
            return error_response(error, request_id(post))
        return await handler(post)

    def _go_on(self, _: Any) -> None:
        """Let the handler run until it waits for something.

        What a Task does, without the turns of the loop before its start and after its end, and what they cost.
        """
        assert self._handler is not None
        try:
            waits_for = self._handler.send(None)
        except StopIteration as end:
            self._write(end.value)
        except (Exception, asyncio.CancelledError) as error:
            log.exception("a handler failed")
            self._write(error_response(error))
        else:
            if waits_for is None:  # asyncio.sleep(0)
                self._protocol.loop.call_soon(self._go_on, None)
            else:
                waits_for._asyncio_future_blocking = False  # taken: what a future asks of who waits for it
                waits_for.add_done_callback(self._go_on)

    def _refuse(self, error: RequestError) -> None:
        """An error before the body was read; the rest of it is not read, so the connection ends."""
        self.keep_alive = self.keep_alive and not self.more_body
        self._write(error_response(error))

    def _let_go(self) -> None:
        """Its body is no longer held."""
        self._protocol.predictions.held -= self._counted
        self._counted = 0
        self.body = b""

    def _write(self, answer: Answer | Response) -> None:
        self.response_complete = True
        self._handler = None
        self._let_go()
        protocol = self._protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        if isinstance(answer, Answer):
            head = answer.head
        else:
            head = b"".join([part for header in answer.raw_headers for part in (header[0], b": ", header[1], b"\r\n")])
        parts = [STATUS_LINE[answer.status_code]]
        for name, value in protocol.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (head, b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", bytes(answer.body))
        protocol.transport.write(b"".join(parts))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _unquote(path: bytes) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(path)


def _text(part: bytes | None) -> str | None:
    return None if part is None else part.decode(errors="replace")
