"""A real HTTP server for download tests, whose behaviour each test chooses."""

import hashlib
import http.server
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Behaviour:
    """What the server does with the file.

    Attributes:
        data: The file's bytes.
        ranges: Whether Range is honoured.
        if_range: Whether If-Range is.
        etag: ETag; empty for none; `auto` for one of the bytes.
        cut_after: For each request in turn, bytes after which the connection is cut (None: not).
        statuses: For each request in turn, (status, headers) to answer instead of the file; (0, {}) for the file.
        stall_s: Seconds of silence in the middle of the first reply.
        pause_s: Seconds between blocks of 64 KiB.
        chunked: Whether the length is not said.
        resets: Whether a cut is a reset, which throws away what was not read yet, and not a close.
        headers: More headers of the reply.
        redirect: Location to send the client to.
    """

    data: bytes = b""
    ranges: bool = True
    if_range: bool = True
    etag: str = "auto"
    cut_after: list[int | None] = field(default_factory=list)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    stall_s: float = 0
    pause_s: float = 0
    chunked: bool = False
    resets: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        now = self.server.behaviour
        now.requests.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        now.times.append(time.monotonic())
        status, headers = now.statuses.pop(0) if now.statuses else (0, {})
        if now.redirect:
            status, headers = 302, {"Location": now.redirect}
        if status:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._file(now)

    def _file(self, now: Behaviour) -> None:
        etag = f'"{hashlib.md5(now.data).hexdigest()}"' if now.etag == "auto" else now.etag
        if etag and self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.send_header("ETag", etag)
            self.end_headers()
            return
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if now.ranges and wanted and (not now.if_range or self.headers.get("If-Range", etag) == etag):
            start, status = int(wanted[1]), 206
            if start >= len(now.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(now.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = now.data[start:]
        self.send_response(status)
        for name, value in now.headers.items():
            self.send_header(name, value)
        if etag:
            self.send_header("ETag", etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(now.data) - 1}/{len(now.data)}")
        if now.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = now.cut_after.pop(0) if now.cut_after else None
        stall, now.stall_s = now.stall_s, 0
        body = body if cut is None else body[:cut]
        try:
            for position in range(0, len(body), 65536):
                block = body[position : position + 65536]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if now.chunked else block)
                time.sleep(now.pause_s)
                if stall and position:
                    time.sleep(stall)
                    stall = 0
            if now.chunked and cut is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        if cut is not None:
            self.close_connection = True
            if now.resets:
                time.sleep(0.2)  # until the other side has read
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    behaviour: Behaviour

    def handle_error(self, *_: object) -> None:
        pass  # clients that go away are what the tests are about


@contextmanager
def serving(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[Behaviour]:
    """The behaviour with its `url` set, as long as the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.behaviour = behaviour
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    behaviour.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
