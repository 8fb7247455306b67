"""Load beyond what the server can do, time-outs, and the ends of the server."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from tests.serving.server import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROW = np.zeros((28, 28, 1)).tolist()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model that works as long as its input says."""
    base = tmp_path_factory.mktemp("slow")
    models.publish_slow(base)
    return base


def test_sigterm_answers_everything_that_was_accepted_and_ends_with_143(run_server, slow):
    server = run_server(slow, "--max-batch-size=1", name="slow").wait_ready()
    with ThreadPoolExecutor(8) as pool, grpc.insecure_channel(server.tfs_address) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        http = [pool.submit(server.predict, [[300.0]]) for _ in range(4)]
        rpcs = [pool.submit(call, _slow_request(300.0), timeout=20) for _ in range(4)]
        server.wait_until(lambda: server.metric("mlcore_serving_requests_in_flight") == 8)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError):  # no new connection
            socket.create_connection(("127.0.0.1", server.ports[0]), timeout=2).close()
        with grpc.insecure_channel(server.tfs_address) as late, pytest.raises(grpc.RpcError) as refused:
            late.unary_unary("/tensorflow.serving.PredictionService/Predict")(_slow_request(1.0), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [answer.result().status for answer in http] == [200] * 4
        assert all(answer.result() for answer in rpcs)
    assert server.process.wait(10) == 143
    text = server.log.read_text()
    assert "stopped: 8 requests answered, 0 refused" in text
    assert "Traceback" not in text


def test_a_stop_waits_no_longer_than_the_drain_time(run_server, slow):
    server = run_server(slow, "--drain-timeout-s=1", name="slow").wait_ready()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.predict, [[20_000.0]])
        server.wait_until(lambda: server.metric("mlcore_serving_requests_in_flight") == 1)
        started = time.monotonic()
        assert server.stop() == 143
        assert time.monotonic() - started < 6
        with pytest.raises(OSError):
            asked.result()


def test_a_full_queue_is_429_and_resource_exhausted_and_the_rest_is_answered(run_server, slow):
    server = run_server(slow, "--max-batch-size=1", "--max-queue=3", name="slow").wait_ready()
    with ThreadPoolExecutor(16) as pool, grpc.insecure_channel(server.tfs_address) as channel:
        answers = list(pool.map(lambda _: server.predict([[200.0]]), range(10)))
        statuses = sorted(answer.status for answer in answers)
        assert set(statuses) == {200, 429}
        assert 3 <= statuses.count(200) <= 5
        refused = next(answer for answer in answers if answer.status == 429)
        assert "the queue is full" in refused.json["error"]
        assert refused.headers["retry-after"] == "1"
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        def code(_):
            try:
                call(_slow_request(200.0), timeout=20)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        assert set(pool.map(code, range(10))) == {"OK", "RESOURCE_EXHAUSTED"}
    assert server.predict([[1.0]]).status == 200
    assert server.metric("mlcore_serving_requests_total", code="RESOURCE_EXHAUSTED") > 0


def test_requests_that_take_too_long_are_504_and_deadline_exceeded(run_server, slow):
    server = run_server(slow, "--request-timeout-s=0.5", "--max-batch-size=1", name="slow").wait_ready()
    answer = server.predict([[1500.0]])
    assert (answer.status, "0.5 s" in answer.json["error"]) == (504, True)
    time.sleep(1.2)  # the model is busy that long
    with grpc.insecure_channel(server.tfs_address) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for limit in (0.1, 20):  # the client's own, the server's
            with pytest.raises(grpc.RpcError) as error:
                call(_slow_request(900.0), timeout=limit)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(0.6)
    server.wait_until(lambda: server.predict([[1.0]]).status == 200, 10)
    assert server.metric("mlcore_serving_requests_in_flight") == 0


def test_a_killed_server_is_ready_again_within_ten_seconds(run_server, classifier):
    server = run_server(classifier).wait_version(2, 1)
    server.predict([ROW])
    assert server.stop(signal.SIGKILL) == -9
    started = time.monotonic()
    server.start().wait_ready()
    print(f"ready again after {time.monotonic() - started:.1f} s")
    assert time.monotonic() - started < 10 + 30 * _load()  # on a machine that does other work, it takes its share
    assert server.predict([ROW]).status == 200


def _load() -> float:
    """How much more is to be done on this machine than it can do, now; 0 on one that is free."""
    import os

    return max(os.getloadavg()[0] / (os.cpu_count() or 1) - 1, 0)


def test_request_log_has_what_was_asked_and_answered(run_server, classifier, imgs, tmp_path):
    import base64

    folder = tmp_path / "requests"
    server = run_server(
        classifier, f"--request-log={folder}", "--request-log-payload=true", "--request-log-file-mb=0.02",
        "--request-log-files=2",
    ).wait_version(2, 1)  # fmt: skip
    answer = server.predict(imgs.tolist(), version=1, **{"x-request-id": "watched"})
    server.wait_until(lambda: server.metric("mlcore_serving_request_log_entries_total", outcome="written") == 1)
    (line,) = (json.loads(text) for path in folder.iterdir() for text in path.read_text().splitlines())
    assert (line["id"], line["version"], line["protocol"], line["model"]) == ("watched", 1, "v1", "mnist")
    kept = np.frombuffer(base64.b64decode(line["inputs"]["imgs"]["data"]), "<f4").reshape(
        line["inputs"]["imgs"]["shape"]
    )
    assert np.array_equal(kept, imgs)
    assert line["outputs"]["class_ids"] == [row["class_ids"] for row in answer.json["predictions"]]
    assert line["latency_ms"] > 0
    for _ in range(20):
        assert server.predict([ROW]).status == 200
    assert server.stop() == 143
    files = sorted(folder.iterdir())
    assert len(files) <= 2
    assert all(file.stat().st_size <= 25_000 for file in files)
    assert all(json.loads(text)["id"] for file in files for text in file.read_text().splitlines())


@pytest.mark.parametrize(("index", "flag"), [(0, "http-port"), (2, "tfs-port")])
def test_a_port_that_is_taken_is_wrong_use(mnist_server, classifier, index, flag):
    ports = dict.fromkeys(("http-port", "grpc-port", "tfs-port"), 0) | {flag: mnist_server.ports[index]}
    done = subprocess.run(
        [sys.executable, "-m", "mlcore", "serve", "--model-name=mnist", f"--models-dir={classifier}",
         "--host=127.0.0.1", *(f"--{name}={port}" for name, port in ports.items())],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--{flag}={ports[flag]}: cannot listen" in done.stderr.splitlines()[-1]


def test_it_ends_by_itself_after_the_time_given(classifier):
    done = subprocess.run(
        [sys.executable, "-m", "mlcore", "serve", "--model-name=mnist", f"--models-dir={classifier}", "--http-port=0",
         "--grpc-port=0", "--tfs-port=0", "--run-seconds=1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert "answered=0" in done.stdout
    assert "versions=[2, 1]" in done.stdout


def _slow_request(milliseconds: float) -> bytes:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "slow"
    tensor = request.inputs["milliseconds"]
    tensor.dtype = 1
    for _ in range(2):
        tensor.tensor_shape.dim.add().size = 1
    tensor.float_val.append(milliseconds)
    return request.SerializeToString()
