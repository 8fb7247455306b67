"""The short way of predictions over HTTP/1.1, byte by byte: what a client may send, and when."""

import json
import socket
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PREDICT = "/v1/models/mnist:predict"
INFER = "/v2/models/mnist/infer"


def body_of(picture):
    return json.dumps({"instances": [np.full((28, 28, 1), picture).tolist()]}).encode()


def head(path, size, *headers, version="1.1"):
    lines = [f"POST {path} HTTP/{version}", "Host: here", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode()


class Connection:
    """A connection whose answers are read one after the other."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.ports[0]), 20)
        self.came = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def more(self):
        part = self.socket.recv(65536)
        self.came += part
        return part

    def answer(self):
        """Status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self.came:
            assert self.more(), self.came
        top, _, self.came = self.came.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        while len(self.came) < size:
            assert self.more()
        body, self.came = self.came[:size], self.came[size:]
        return int(first.split()[1]), headers, body

    def is_closed(self):
        return not self.came and not self.more()


@pytest.fixture
def connection(mnist_server):
    with Connection(mnist_server) as found:
        yield found
    assert mnist_server.predict(json.loads(body_of(0.5))["instances"]).status == 200


def test_an_answer_comes_in_one_part(connection):
    body = body_of(0.1)
    connection.send(head(PREDICT, len(body)), body)
    part = connection.more()
    status, headers, content = connection.answer()
    assert (status, part.endswith(content), len(content)) == (200, True, int(headers["content-length"]))
    assert headers["server"] and headers["date"] and headers["x-model-version"] == "2"


def test_requests_before_the_answer_to_the_last_are_answered_in_their_order(connection):
    bodies = [body_of(number / 10) for number in range(5)]
    alone = []
    for body in bodies:
        connection.send(head(PREDICT, len(body)), body)
        alone.append(json.loads(connection.answer()[2]))
    get = b"GET /v1/models/mnist HTTP/1.1\r\nHost: here\r\n\r\n"
    parts = [head(PREDICT, len(body), f"X-Request-Id: r{number}") + body for number, body in enumerate(bodies)]
    connection.send(*parts[:3], get, *parts[3:])
    answers = [connection.answer() for _ in range(6)]
    assert [answer[1].get("x-request-id") for answer in answers] == ["r0", "r1", "r2", None, "r3", "r4"]
    assert "model_version_status" in json.loads(answers.pop(3)[2])
    for (_, _, content), expected in zip(answers, alone, strict=True):
        assert np.allclose(
            json.loads(content)["predictions"][0]["probabilities"], expected["predictions"][0]["probabilities"],
            atol=1e-6,
        )  # fmt: skip


def test_a_body_may_come_in_pieces_of_any_size(connection):
    body = body_of(0.3)
    whole = head(PREDICT, len(body)) + body
    for start in range(0, 200):
        connection.send(whole[start : start + 1])
    time.sleep(0.1)
    connection.send(whole[200:1000])
    time.sleep(0.1)
    connection.send(whole[1000:])
    assert connection.answer()[0] == 200


def test_a_body_may_be_chunked(connection):
    body = body_of(0.3)
    connection.send(f"POST {PREDICT} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for start in range(0, len(body), 1000):
        part = body[start : start + 1000]
        connection.send(b"%x\r\n" % len(part), part, b"\r\n")
    connection.send(b"0\r\n\r\n")
    assert connection.answer()[0] == 200


def test_a_client_that_asks_first_is_told_to_go_on(connection):
    body = body_of(0.3)
    connection.send(head(PREDICT, len(body), "Expect: 100-continue"))
    assert connection.answer()[0] == 100
    connection.send(body)
    assert connection.answer()[0] == 200


def test_a_client_that_asks_first_is_refused_before_it_sends_too_much(connection):
    connection.send(head(PREDICT, 5_000_000, "Expect: 100-continue"))
    status, headers, content = connection.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert "larger than 4000000 bytes" in json.loads(content)["error"]
    assert connection.is_closed()


def test_a_chunked_body_is_refused_once_it_is_too_large(connection):
    connection.send(f"POST {INFER} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    part = b"%x\r\n" % 500_000 + bytes(500_000) + b"\r\n"
    try:
        for _ in range(9):
            connection.send(part)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused before all was sent, and the answer lost with the rest
    assert connection.answer()[0] == 413


@pytest.mark.parametrize(
    ("version", "headers", "closes"),
    [("1.1", (), False), ("1.1", ("Connection: close",), True), ("1.0", (), True)],
)
def test_the_connection_stays_or_ends_as_the_client_wants(connection, version, headers, closes):
    body = body_of(0.3)
    connection.send(head(PREDICT, len(body), *headers, version=version), body)
    status, answered, _ = connection.answer()
    assert (status, answered.get("connection")) == (200, "close" if closes else None)
    if closes:
        assert connection.is_closed()
    else:
        connection.send(head(PREDICT, len(body)), body)
        assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/mnist%3Apredict", "/v1/models/mnist:predict?x=1", "http://here/v1/models/mnist:predict",
             "/v1/models/mn%69st/versions/2:predict"],
)  # fmt: skip
def test_addresses_may_be_written_in_other_ways(connection, path):
    body = body_of(0.3)
    connection.send(head(path, len(body)), body)
    assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/models/%ff:predict", 404), ("/v1/models//versions/1:predict", 404)],
)
def test_an_address_that_is_none_is_404(connection, path, status):
    body = body_of(0.3)
    connection.send(head(path, len(body)), body)
    assert connection.answer()[0] == status


@pytest.mark.parametrize("sent", [0, 500, 10_000])
def test_a_client_may_go_away_in_the_middle(mnist_server, sent):
    body = body_of(0.3) + b" " * 20_000
    for _ in range(20):
        with Connection(mnist_server) as connection:
            connection.send(head(PREDICT, len(body)), body[:sent])
    with Connection(mnist_server) as connection:
        connection.send(head(PREDICT, len(body)), body)
        assert connection.answer()[0] == 200
    text = mnist_server.log.read_text()
    assert "Traceback" not in text and "bug" not in text


def test_a_client_may_go_away_before_its_answer(mnist_server):
    body = body_of(0.3)
    for _ in range(20):
        with Connection(mnist_server) as connection:
            connection.send(head(PREDICT, len(body)), body)
    with Connection(mnist_server) as connection:
        connection.send(head(PREDICT, len(body)), body)
        assert connection.answer()[0] == 200
    assert "Traceback" not in mnist_server.log.read_text()


def test_the_address_of_a_prediction_is_no_other_method(connection):
    connection.send(f"GET {PREDICT} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert connection.answer()[0] == 404


def test_bodies_that_come_slowly_are_bounded_together(classifier, run_server):
    server = run_server(classifier, "--max-in-flight-mb=3").wait_version(2)
    body = body_of(0.3)
    large = body + b" " * 2_000_000
    with Connection(server) as slow, Connection(server) as other, Connection(server) as third:
        slow.send(head(PREDICT, len(large)), large[:-1])
        time.sleep(0.3)
        other.send(head(PREDICT, len(large)), large)
        status, headers, content = other.answer()
        assert (status, headers["retry-after"]) == (429, "1")
        assert "MB of requests are in work, at most 3 are held" in json.loads(content)["error"]
        third.send(head(PREDICT, len(body)), body)
        assert third.answer()[0] == 200
        slow.send(large[-1:])
        assert slow.answer()[0] == 200
        third.send(head(PREDICT, len(large)), large)
        assert third.answer()[0] == 200
        slow.send(head(PREDICT, len(large)), large[:-1])
    time.sleep(0.3)  # it is gone
    with Connection(server) as last:
        last.send(head(PREDICT, len(large)), large)
        assert last.answer()[0] == 200
