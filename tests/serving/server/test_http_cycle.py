"""How handlers of predictions run on a connection, without a model: what they may await, and how long it stays open."""

import asyncio
import functools
import gzip
import socket
import threading
import time
import zlib

import pytest
import uvicorn

from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.http import Answer, error_response
from mlcore.serving.server.http_protocol import Predictions, Protocol
from tests.waiting import wait_until

KEEP_ALIVE_S = 0.8
EMPTY = b"POST /echo HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n"


async def echo(post):
    return Answer(post.body, b"text/plain", post.headers.get("x-request-id") or "none", 1)


async def slow(post):
    seconds = float(post.body)
    await asyncio.sleep(seconds)
    return await echo(post)


async def turns(post):
    for _ in range(int(post.body)):
        await asyncio.sleep(0)
    return await echo(post)


async def thread(post):
    assert await asyncio.to_thread(threading.current_thread) is not threading.current_thread()
    return await echo(post)


async def refuses(post):
    return error_response(RequestError("no"))


async def fails(post):
    await asyncio.sleep(0)
    raise ValueError("a bug")


async def gives_up(post):
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


HANDLERS = {f"/{handler.__name__}": handler for handler in (echo, slow, turns, thread, refuses, fails, gives_up)}


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"other"})


PREDICTIONS = Predictions(HANDLERS, max_bytes=100_000)


@pytest.fixture(scope="module")
def address():
    config = uvicorn.Config(
        application, http=functools.partial(Protocol, PREDICTIONS), lifespan="off",
        log_config=None, timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def connection(address):
    with socket.create_connection(address, 10) as found:
        yield found


def ask(connection, path, body=b"", more=b""):
    head = b"POST %b HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n%b\r\n" % (path, len(body), more)
    connection.sendall(head + body)


def receive(connection, size):
    part = connection.recv(size)
    assert part, "the server closed the connection"
    return part


def answer(connection):
    """Status and body."""
    came = b""
    while b"\r\n\r\n" not in came:
        came += receive(connection, 1)
    size = int(came.split(b"content-length: ")[1].split(b"\r")[0])
    body = b""
    while len(body) < size:
        body += receive(connection, size - len(body))
    return int(came[9:12]), body


@pytest.mark.parametrize(
    ("path", "body"),
    [(b"/echo", b""), (b"/echo", b"x" * 70_000), (b"/slow", b".2"), (b"/turns", b"50"), (b"/thread", b"")],
)
def test_a_handler_may_await_what_a_task_may(connection, path, body):
    for _ in range(2):
        ask(connection, path, body)
        assert answer(connection) == (200, body)


@pytest.mark.parametrize("path", [b"/fails", b"/gives_up"])
def test_a_handler_that_fails_is_an_answer_and_a_line_in_the_log(connection, path, caplog):
    ask(connection, path)
    status, body = answer(connection)
    assert (status, b"internal error" in body) == (500, True)
    assert "a handler failed" in caplog.text
    ask(connection, b"/echo", b"a")
    assert answer(connection) == (200, b"a")


def test_a_long_row_of_requests_is_answered_in_its_order(connection):
    row = 3000
    refused = EMPTY.replace(b"/echo", b"/refuses")
    slow = b"POST /slow HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n.5"
    sender = threading.Thread(target=connection.sendall, args=(slow + refused * row + EMPTY,))
    sender.start()
    with connection.makefile("rb") as came:
        statuses = [line[9:12] for line in came_lines(came, row + 2)]
    sender.join()
    assert statuses == [b"200", *[b"400"] * row, b"200"]


def came_lines(came, wanted):
    """The first lines of so many answers."""
    for _ in range(wanted):
        first = came.readline()
        size = 0
        while (line := came.readline()) != b"\r\n":
            if line.startswith(b"content-length: "):
                size = int(line[16:])
        came.read(size)
        yield first


@pytest.mark.slow
@pytest.mark.parametrize("first", [EMPTY, EMPTY.replace(b"POST /echo", b"GET /other")])
def test_an_idle_connection_ends_after_its_time_and_not_before(connection, first):
    connection.sendall(first)
    answer(connection)
    for _ in range(3):  # the time begins anew with each request
        time.sleep(0.4 * KEEP_ALIVE_S)
        ask(connection, b"/echo")
        answer(connection)
    started = time.monotonic()
    assert connection.recv(1) == b""
    assert 0.8 * KEEP_ALIVE_S < time.monotonic() - started < 5


@pytest.mark.slow
def test_a_connection_whose_request_is_in_work_or_still_comes_is_not_idle(connection):
    ask(connection, b"/echo")
    answer(connection)
    ask(connection, b"/slow", b"%.2f" % (1.5 * KEEP_ALIVE_S))
    assert answer(connection)[0] == 200
    connection.sendall(EMPTY[:-2])
    time.sleep(1.5 * KEEP_ALIVE_S)
    connection.sendall(EMPTY[-2:])
    assert answer(connection)[0] == 200


def test_predictions_and_other_requests_take_turns_on_a_connection(connection):
    get = b"GET /other HTTP/1.1\r\nhost: here\r\n\r\n"
    connection.sendall(EMPTY + get + EMPTY + get)
    assert [answer(connection)[1] for _ in range(4)] == [b"", b"other", b"", b"other"]


@pytest.mark.parametrize("size", [10, 70_000, 90_000])
def test_a_body_that_comes_while_another_request_is_in_work(connection, size):
    body = b"x" * size
    start = b"POST /echo HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % size
    connection.sendall(b"POST /slow HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n.2" + start + body[:5])
    time.sleep(0.05)
    connection.sendall(body[5 : size // 2])
    time.sleep(0.3)
    connection.sendall(body[size // 2 :])
    assert answer(connection) == (200, b".2")
    assert answer(connection) == (200, body)


@pytest.mark.slow
def test_nothing_is_held_of_a_client_that_is_gone(address):
    start = b"POST /echo HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n"
    slow = b"POST /slow HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n2"
    with socket.create_connection(address, 10) as connection:
        connection.sendall(slow + 3 * (start + bytes(1000)) + start + b"abc")  # in one part: reading pauses after it
        wait_until(lambda: PREDICTIONS.held >= 3000)
    wait_until(lambda: PREDICTIONS.held == 0)


TEXT = bytes(range(256)) * 300


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        (b"gzip", gzip.compress(TEXT), 200, TEXT),
        (b"x-gzip", gzip.compress(TEXT), 200, TEXT),
        (b"Deflate", zlib.compress(TEXT), 200, TEXT),
        (b"Identity", b"as it is", 200, b"as it is"),
        (b"gzip", gzip.compress(b""), 200, b""),
        (b"br", b"any", 415, b"'br': expected gzip, deflate, or none"),
        (b"gzip, deflate", b"any", 415, b"expected gzip, deflate, or none"),
        (b"gzip", TEXT[:1000], 400, b"cannot be unpacked"),
        (b"gzip", b"", 400, b"ends early"),
        (b"gzip", gzip.compress(TEXT)[:-9], 400, b"ends early"),
        (b"gzip", gzip.compress(TEXT) + b"more", 400, b"something follows"),
        (b"gzip", gzip.compress(b"") * 1000, 400, b"something follows"),
        (b"gzip", gzip.compress(bytes(100_001)), 413, b"larger than 100000 bytes"),
        (b"gzip", gzip.compress(bytes(100_000_000)), 413, b"larger than 100000 bytes"),
    ],
)
def test_a_compressed_body_is_what_is_in_it(connection, encoding, body, status, words):
    ask(connection, b"/echo", body, b"content-encoding: " + encoding + b"\r\n")
    code, content = answer(connection)
    assert code == status
    assert content == words if status == 200 else words in content
    ask(connection, b"/echo", b"next")
    assert answer(connection) == (200, b"next")
    assert PREDICTIONS.held == 0


def test_what_a_compressed_body_grows_to_is_held(connection, monkeypatch):
    monkeypatch.setattr(PREDICTIONS, "max_held", 90_000)
    packed = gzip.compress(TEXT)
    ask(connection, b"/echo", packed, b"content-encoding: gzip\r\n")  # alone it is never too much
    assert answer(connection) == (200, TEXT)
    monkeypatch.setattr(PREDICTIONS, "held", 50_000)
    ask(connection, b"/echo", packed, b"content-encoding: gzip\r\n")
    assert answer(connection)[0] == 429
    assert PREDICTIONS.held == 50_000
