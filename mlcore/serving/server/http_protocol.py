"""HTTP/1.1 as uvicorn speaks it, with a short way for predictions.

The way through ASGI, an application's middlewares, its routers and back costs a prediction more than all else that
happens to it here, and uvicorn writes an answer in two parts, for each of which the client wakes up. So a POST to the
path of a prediction is taken right after the parser: its handler gets the whole body and gives the whole answer, which
is written at once. All other requests go uvicorn's way, and so do connections: their parser, their time-outs, requests
sent before the last one was answered, and the end of the server.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlcore.serving.server.errors import RequestError, too_many
from mlcore.serving.server.http import Answer, Post, Predict, error_response, is_too_large, too_large

log = logging.getLogger(__name__)

_REMEMBERED = 256  # addresses
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

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        found = self.predictions.find(self.url) if self.parser.get_method() == b"POST" else None
        if found is None or self.parser.should_upgrade():
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

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Cycle):
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)


class Cycle:
    """A prediction on a connection; its attributes are what uvicorn's protocol asks of its own RequestResponseCycle."""

    __slots__ = (
        "_begun", "_counted", "_found", "_headers", "_protocol", "_started", "_waits", "body", "disconnected",
        "keep_alive", "message_event", "more_body", "response_complete",
    )  # fmt: skip

    def __init__(self, protocol: Protocol, found: tuple[Predict, Mapping[str, Any]], keep_alive: bool) -> None:
        self._protocol = protocol
        self._headers = protocol.headers
        self._found = found
        self._waits = protocol.expect_100_continue
        self._begun = self._started = False
        self._counted = 0  # bytes of the body, in `Predictions.held`
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = self  # its `set` is called when more of the body came

    def begin(self) -> None:
        """It is its turn: what came before on the connection is answered."""
        self._begun = True
        protocol = self._protocol
        if is_too_large(self._headers, protocol.predictions.max_bytes):
            self._refuse(too_large(protocol.predictions.max_bytes))
            return
        if self._waits and self.more_body:
            protocol.transport.write(_CONTINUE)
        self.set()

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
            self._started = True
            task = protocol.loop.create_task(self._run())
            protocol.tasks.add(task)
            task.add_done_callback(protocol.tasks.discard)

    async def _run(self) -> None:
        handler, path_params = self._found
        answer: Answer | Response
        post = Post(self._headers, path_params, bytes(self.body))
        self.body = bytearray()  # not twice in memory
        try:
            answer = await handler(post)
        except Exception as error:
            log.exception("a handler failed")
            answer = error_response(error)
        if self._protocol.flow.write_paused and not self.disconnected:
            await self._protocol.flow.drain()
        self._write(answer)

    def _refuse(self, error: RequestError) -> None:
        """An error before the body was read; the rest of it is not read, so the connection ends."""
        self.keep_alive = self.keep_alive and not self.more_body
        self._write(error_response(error))

    def _let_go(self) -> None:
        """Its body is no longer held."""
        self._protocol.predictions.held -= self._counted
        self._counted = 0
        self.body = bytearray()

    def _write(self, answer: Answer | Response) -> None:
        self.response_complete = True
        self._let_go()
        if self.disconnected:
            return
        protocol = self._protocol
        parts = [STATUS_LINE[answer.status_code]]
        for name, value in protocol.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in answer.raw_headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", bytes(answer.body))
        protocol.transport.write(b"".join(parts))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _unquote(path: bytes) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(path)


def _text(part: bytes | None) -> str | None:
    return None if part is None else part.decode(errors="replace")
