"""Clients that cost less than the server that they measure: many connections of one thread, requests made before.

gRPC for Python takes as long for a call as the server for its answer, and on two cores it would be the one that is
measured. These write the bytes of a request, which are always the same, and look at no more of an answer than where it
ends and whether it is a good one. Each connection is a client: it sends its next request when it has the answer.
"""

import selectors
import socket
import time
from dataclasses import dataclass

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGE_WINDOW = (2**30).to_bytes(4, "big")


@dataclass(frozen=True)
class Outcome:
    """What a run of clients saw.

    Attributes:
        answers: Good answers; there are no others.
        seconds: How long it took.
        p50_ms: Half of the answers took no longer.
        cpu_s: CPU time of the clients.
    """

    answers: int
    seconds: float
    p50_ms: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Rest:
    """A connection of HTTP/1.1 that posts the same body again and again."""

    def __init__(self, address: tuple[str, int], path: str, headers: dict[str, str], body: bytes) -> None:
        host, port = address
        lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self.socket = _connect(address)
        self._came = b""

    def send(self) -> None:
        """Ask."""
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what came; whether the answer is whole.

        Raises:
            SystemExit: It is not a good one.
        """
        self._came += _receive(self.socket)
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self._came.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"refused: {self._came[:500]!r}")
        at = self._came.index(b"content-length: ") + 16
        if len(self._came) < end + 4 + int(self._came[at : self._came.index(b"\r", at)]):
            return False
        self._came = b""
        return True


class Grpc:
    """A connection of HTTP/2 that calls the same method with the same message again and again."""

    def __init__(self, address: tuple[str, int], method: str, message: bytes) -> None:
        host, port = address
        # HPACK without its table: fields 3 and 6 of the static one are POST and http, the others are spelled out.
        head = b"\x83\x86" + b"\x04" + _text(method) + b"\x01" + _text(f"{host}:{port}")
        for name, value in (("content-type", "application/grpc"), ("te", "trailers")):
            head += b"\x00" + _text(name) + _text(value)
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        if len(body) > 16384:
            raise ValueError("the message is larger than a frame")
        self._before = _start(_HEADERS, _END_HEADERS, len(head)), head + _start(_DATA, _END_STREAM, len(body)), body
        self._stream = 1
        self._window = 65535
        self._came = b""
        self._content = 0
        self.socket = _connect(address)
        self.socket.sendall(
            _GREETING + _frame(_SETTINGS, 0, b"\x00\x04" + _LARGE_WINDOW) + _frame(_WINDOW_UPDATE, 0, _LARGE_WINDOW)
        )

    def send(self) -> None:
        """Call."""
        start, middle, body = self._before
        stream = self._stream.to_bytes(4, "big")
        self._window -= len(body)
        if self._window < 0:
            raise SystemExit("the server takes no more")
        self._content = 0
        self.socket.sendall(b"".join([start, stream, middle, stream, body]))

    def receive(self) -> bool:
        """Take what came; whether the answer is whole.

        Raises:
            SystemExit: It is not a good one: a failed call has no content.
        """
        came = self._came + _receive(self.socket)
        at, done = 0, False
        while len(came) - at >= 9:
            size, kind, flags = int.from_bytes(came[at : at + 3], "big"), came[at + 3], came[at + 4]
            if len(came) - at < 9 + size:
                break
            payload = came[at + 9 : at + 9 + size]
            if kind in (_DATA, _HEADERS):
                self._content += size if kind == _DATA else 0
                done = done or bool(flags & _END_STREAM)
            elif kind == _WINDOW_UPDATE and not any(came[at + 5 : at + 9]):
                self._window += int.from_bytes(payload, "big")
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.socket.sendall(_frame(kind, _ACK, payload if kind == _PING else b""))
            elif kind in (_RESET, _GO_AWAY):
                raise SystemExit(f"refused: {payload!r}")
            at += 9 + size
        self._came = came[at:]
        if done:
            if not self._content:
                raise SystemExit("refused: the call failed")
            self._stream += 2
        return done


class Clients:
    """Clients that ask at the same time, as a context.

    Args:
        connections: Their connections.
    """

    def __init__(self, connections: "list[Rest] | list[Grpc]") -> None:
        self._connections = connections
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def run(self, seconds: float) -> Outcome:
        """Ask for so long."""
        times: list[float] = []
        clock, sent = time.perf_counter, {}
        cpu, started = time.process_time(), clock()
        for connection in self._connections:
            sent[connection] = clock()
            connection.send()
        while sent:
            for key, _ in self._selector.select():
                connection = key.data
                if connection.receive():
                    now = clock()
                    times.append(now - sent.pop(connection))
                    if now < started + seconds:
                        sent[connection] = clock()
                        connection.send()
        return Outcome(len(times), clock() - started, 1000 * sorted(times)[len(times) // 2], time.process_time() - cpu)


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket) -> bytes:
    came = connection.recv(65536)
    if not came:
        raise SystemExit("the server closed a connection")
    return came


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def _start(kind: int, flags: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes([kind, flags])


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return _start(kind, flags, len(payload)) + bytes(4) + payload
