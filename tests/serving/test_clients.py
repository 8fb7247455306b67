"""The clients against servers that others' code makes."""

import base64
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from mlcore.runtime.errors import TransientError, UsageError
from mlcore.serving.clients import connect
from mlcore.serving.clients.client import (
    NotServedError,
    RequestRefusedError,
    Server,
    ServerFailedError,
    UnavailableError,
    bytes_array,
)
from tests.cluster.processes import free_ports
from tests.serving.models import BLUE, RED, block_images, block_probabilities, coloured
from tests.serving.peers import Http, TfServing


def imgs(labels):
    return (block_images(np.array(labels))[..., None] / 255).astype(np.float32)


# TensorFlow Serving's gRPC


def test_a_classifier_answers_over_tensorflow_servings_grpc(tf_serving):
    with connect(tf_serving.address, "tfs-grpc", "blocks") as client:
        assert client.ready()
        assert client.versions() == {1: "AVAILABLE", 2: "AVAILABLE"}
        metadata = client.metadata()
        assert metadata.version == 2 and list(metadata.signatures) == ["serving_default"]
        signature = metadata.signatures["serving_default"]
        assert str(signature.inputs["imgs"]) == "imgs: float32 [-1, 28, 28, 1]"
        assert signature.outputs["classes"].is_bytes
        batch = imgs([3, 7, 0])
        answer = client.predict({"imgs": batch})
        assert answer["class_ids"].tolist() == [3, 7, 0] and answer["class_ids"].dtype == np.int64
        assert answer["classes"].tolist() == [b"block 3", b"block 7", b"block 0"]
        np.testing.assert_allclose(answer["probabilities"], block_probabilities(batch), atol=1e-5)
        # Version 1 is the one whose classes are off by one.
        assert client.predict({"imgs": batch}, version=1)["class_ids"].tolist() == [4, 8, 1]
        assert client.predict({"imgs": batch[:0]})["probabilities"].shape == (0, 10)


def test_every_type_survives_the_way_to_tensorflow_and_back(tf_serving):
    with connect(tf_serving.address, "tfs-grpc", "echo") as client:
        inputs = {
            name: (np.arange(6).reshape(2, 3) - (2 if np.dtype(name).kind != "u" else 0)).astype(name)
            for name in ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16",
                         "uint32", "uint64", "bool", "complex64")
        } | {"string": bytes_array([b"a", b"\xff\x00", b""])}  # fmt: skip
        answer = client.predict(inputs)
        for name, array in inputs.items():
            got = answer[f"{name}_out"]
            assert got.dtype == array.dtype and got.tolist() == array.tolist(), name


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "words"),
    [
        ({"imgs": np.zeros((1, 27, 28, 1), np.float32)}, {}, RequestRefusedError, "INVALID_ARGUMENT"),
        ({"imgs": np.zeros((1, 28, 28, 1), np.float64)}, {}, RequestRefusedError, "expected TensorSpec"),
        ({"pictures": np.zeros((1, 28, 28, 1), np.float32)}, {}, RequestRefusedError, "expected the inputs"),
        ({"imgs": np.zeros((1, 28, 28, 1), np.float32)}, {"signature": "x"}, RequestRefusedError, "not found"),
        ({"imgs": np.zeros((1, 28, 28, 1), np.float32)}, {"version": 9}, NotServedError, "NOT_FOUND"),
    ],
    ids=["shape", "dtype", "name", "signature", "version"],
)
def test_a_refused_request_is_not_sent_again(tf_serving, inputs, options, kind, words):
    before = len(tf_serving.requests)
    with connect(tf_serving.address, "tfs-grpc", "blocks") as client, pytest.raises(kind, match=words):
        client.predict(inputs, **options)
    assert len(tf_serving.requests) == before + 1


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"])
def test_a_server_that_is_full_or_away_is_asked_again(tf_serving, status):
    tf_serving.busy, tf_serving.busy_with = 3, grpc.StatusCode[status]
    before = len(tf_serving.requests)
    with connect(tf_serving.address, "tfs-grpc", "blocks") as client:
        assert client.predict({"imgs": imgs([5])})["class_ids"].tolist() == [5]
    assert len(tf_serving.requests) == before + 4


def test_asking_again_ends_with_the_deadline(tf_serving):
    tf_serving.busy, tf_serving.busy_with = 10**6, grpc.StatusCode.UNAVAILABLE
    started = time.monotonic()
    try:
        with (
            connect(tf_serving.address, "tfs-grpc", "blocks", deadline_s=0.6) as client,
            pytest.raises(UnavailableError, match=r"no answer within 0.6 s and \d+ tries; .*UNAVAILABLE: try"),
        ):
            client.predict({"imgs": imgs([5])})
    finally:
        tf_serving.busy = 0
    assert time.monotonic() - started < 2


@pytest.mark.slow
def test_a_server_that_starts_late_is_waited_for(model_bases):
    (port,) = free_ports(1)
    with connect(f"127.0.0.1:{port}", "tfs-grpc", "echo") as client:
        with pytest.raises(UnavailableError, match=r"not ready after 0.3 s and \d+ tries; the last one: UNAVAILABLE"):
            client.wait_until_ready(0.3)
        peers = []
        base = {"echo": model_bases["echo"]}
        starter = threading.Timer(0.5, lambda: peers.append(TfServing(base, port)))
        starter.start()
        try:
            assert client.wait_until_ready(20) > 0.3
        finally:
            starter.join()
            peers[0].stop()


@pytest.mark.parametrize("protocol", ["tfs-grpc", "v1", "v2", "v2-grpc"])
def test_nobody_listening_is_unavailable_after_the_deadline(protocol):
    (port,) = free_ports(1)
    with connect(f"127.0.0.1:{port}", protocol, "m", deadline_s=0.4) as client:
        assert not client.ready()
        with pytest.raises(UnavailableError, match=rf"m at 127.0.0.1:{port} \({protocol}\): no answer within 0.4 s"):
            client.predict({"imgs": imgs([1])})


# REST, by answers that are written down


@pytest.fixture
def http():
    peers = []

    def make(answers):
        peers.append(Http(answers))
        return peers[-1]

    yield make
    for peer in peers:
        peer.stop()


METADATA = {
    "model_spec": {"name": "m", "signature_name": "", "version": "4"},
    "metadata": {"signature_def": {"signature_def": {
        "__saved_model_init_op": {"inputs": {}, "outputs": {}},
        "serving_default": {
            "inputs": {"imgs": {"dtype": "DT_FLOAT", "name": "x:0", "tensor_shape": {
                "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False}}},
            "outputs": {
                "class_ids": {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}]}},
                "png_bytes": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}]}},
                "score": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [], "unknown_rank": True}},
            },
        },
    }}},
}  # fmt: skip
ROWS = {"predictions": [{"class_ids": 3, "png_bytes": {"b64": base64.b64encode(b"\xff\x00").decode()}, "score": 1}]}


def test_v1_speaks_tensorflow_servings_json(http):
    peer = http({
        "/v1/models/m": [(200, {"model_version_status": [{"version": "4", "state": "AVAILABLE", "status": {}}]})],
        "/v1/models/m/metadata": [(200, METADATA)],
        "/v1/models/m:predict": [(200, ROWS)],
        "/v1/models/m/versions/4:predict": [(200, ROWS)],
        "/v1/models/m/versions/4/metadata": [(200, METADATA)],
    })  # fmt: skip
    with connect(peer.address, "v1", "m") as client:
        assert client.ready() and client.versions() == {4: "AVAILABLE"}
        metadata = client.metadata()
        assert metadata.version == 4 and list(metadata.signatures) == ["serving_default"]
        outputs = metadata.signatures["serving_default"].outputs
        assert outputs["score"].shape is None and outputs["class_ids"].dtype == np.int64
        answer = client.predict({"imgs": np.array([[0.5, 1.0]], np.float32)})
        assert answer["class_ids"].dtype == np.int64 and answer["class_ids"].tolist() == [3]
        assert answer["png_bytes"].tolist() == [b"\xff\x00"]
        assert answer["score"].dtype == np.float32  # though JSON says 1
        client.predict({"a": np.array([1]), "b": bytes_array([b"\x00"])}, signature="two", version=4)
    sent = [(path, body) for method, path, body, _ in peer.requests if method == "POST"]
    assert sent[0] == ("/v1/models/m:predict", b'{"instances":[[0.5,1.0]]}')
    assert sent[1] == (
        "/v1/models/m/versions/4:predict",
        b'{"signature_name":"two","instances":[{"a":1,"b":{"b64":"AA=="}}]}',
    )


@pytest.mark.parametrize("status", [429, 502, 503])
@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_rest_is_asked_again_when_the_server_is_full_or_away(http, protocol, status):
    path = "/v1/models/m:predict" if protocol == "v1" else "/v2/models/m/infer"
    good = {"predictions": [[1.5]], "outputs": [{"name": "output_0", "shape": [1], "datatype": "FP32", "data": [1.5]}]}
    peer = http({path: [(status, {"error": "full"}), (status, b"full"), (200, good)]})
    with connect(peer.address, protocol, "m") as client:
        (values,) = client.predict({"x": np.zeros(1, np.float32)}).values()
        assert values.ravel().tolist() == [1.5]
    assert [path for method, path, *_ in peer.requests if method == "POST"] == [path] * 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestRefusedError), (413, RequestRefusedError), (404, NotServedError), (500, ServerFailedError)],
)
def test_rest_is_not_asked_again_when_it_refuses_or_fails(http, status, kind):
    peer = http({"/v2/models/m/infer": [(status, {"error": "input imgs: 27 rows"}), (200, {})]})
    with connect(peer.address, "v2", "m") as client, pytest.raises(kind, match=f"{status} .*input imgs: 27 rows"):
        client.predict({"x": np.zeros(1, np.float32)})
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("protocol", "content"),
    [
        ("v1", b"<html>"), ("v1", {"answer": 1}), ("v1", {"predictions": [[1], [1, 2]]}), ("v1", []),
        ("v2", b"<html>"), ("v2", {"outputs": [{"name": "x"}]}),
        ("v2", {"outputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [1]}]}),
        ("v2", {"outputs": [{"name": "x", "shape": [1], "datatype": "FP128", "data": [1]}]}),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_names_the_server(http, protocol, content):
    path = "/v1/models/m:predict" if protocol == "v1" else "/v2/models/m/infer"
    peer = http({path: [(200, content)]})
    with (
        connect(peer.address, protocol, "m") as client,
        pytest.raises(ServerFailedError, match=rf"m at .*\({protocol}"),
    ):
        client.predict({"x": np.zeros((1, 1), np.float32)})


def test_a_slow_answer_ends_with_the_deadline():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        with (
            connect(f"127.0.0.1:{port}", "v1", "m", deadline_s=0.4) as client,
            pytest.raises(UnavailableError, match="no answer within 0"),
        ):
            client.predict({"x": np.zeros(1, np.float32)})
        assert time.monotonic() - started < 2


# Addresses and packages


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("localhost:9000", "tfs-grpc", Server("localhost", 9000)),
        ("models.example.org", "v2", Server("models.example.org", 8080)),
        ("https://models.example.org/", "v1", Server("models.example.org", 443, True)),
        ("http://models.example.org", "v1", Server("models.example.org", 80)),
        ("grpcs://m.svc:9000", "v2-grpc", Server("m.svc", 9000, True)),
        ("[::1]:8500", "tfs-grpc", Server("[::1]", 8500)),
        ("m", "tfs-grpc", Server("m", 8500)),
    ],
)
def test_addresses_are_understood(text, protocol, expected):
    assert Server.parse(text, protocol) == expected


@pytest.mark.parametrize("text", ["", "a b", "ftp://x:1", "host:port", "host:99999", "http://host/path", "a:1:2"])
def test_what_is_no_address_is_wrong_use(text):
    with pytest.raises(UsageError, match=r"--server="):
        connect(text, "v1", "m")


def test_the_clients_never_import_tensorflow():
    script = """
        import importlib, pkgutil, sys
        import mlcore.serving as package
        for entry in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if ".server" not in entry.name.removesuffix(".serving") and not entry.name.endswith(".serve"):
                importlib.import_module(entry.name)
        import mlcore.detection.predictions, mlcore.detection.draw, mlcore.data.mnist
        from mlcore.serving.clients import connect
        for protocol in ("tfs-grpc", "v1", "v2", "v2-grpc"):
            connect("localhost:1", protocol, "m").ready(0.2)
        heavy = {"tensorflow", "tensorflow_serving", "kserve", "cv2", "matplotlib", "pandas"} & set(sys.modules)
        assert not heavy, heavy
    """
    lines = "\n".join(line.removeprefix("        ") for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_errors_have_the_exit_codes_that_orchestrators_act_on():
    assert RequestRefusedError("").exit_code == 65
    assert NotServedError("").exit_code == 2
    assert issubclass(UnavailableError, TransientError) and ServerFailedError("").exit_code == 75


# kserve's own server


@pytest.fixture(scope="module")
def kserve_ports(project):
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, project / "tests" / "serving" / "kserve_peer.py", str(http_port), str(grpc_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(f"127.0.0.1:{grpc_port}", "v2-grpc", "blocks") as client:
            client.wait_until_ready(60)
        yield {"v1": http_port, "v2": http_port, "v2-grpc": grpc_port}
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["v1", "v2", "v2-grpc"])
def test_kserves_model_server_answers(kserve_ports, protocol):
    with connect(f"127.0.0.1:{kserve_ports[protocol]}", protocol, "blocks") as client:
        assert client.ready()
        signature = client.metadata().signatures["serving_default"]
        assert str(signature.inputs["imgs"]) == "imgs: float32 [-1, 28, 28, 1]"
        for labels in ([4], [1, 2, 9], list(range(10)) * 4):  # the last is large enough for raw data
            batch = imgs(labels)
            answer = client.predict({"imgs": batch})
            assert answer["class_ids"].tolist() == labels and answer["class_ids"].dtype == np.int64
            assert answer["classes"].tolist() == [f"block {label}".encode() for label in labels]
            np.testing.assert_allclose(answer["probabilities"], block_probabilities(batch), atol=1e-5)
            assert answer["probabilities"].dtype == np.float32
    with connect(f"127.0.0.1:{kserve_ports[protocol]}", protocol, "nothing", deadline_s=5) as client:
        assert "nothing" in client.why_not_ready()
        with pytest.raises(NotServedError, match="nothing"):
            client.predict({"imgs": imgs([1])})


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["v2", "v2-grpc"])
def test_kserves_model_server_gets_bytes_as_they_are(kserve_ports, protocol):
    values = [b"plain", "ä".encode(), b"", b"\xff\xd8\x00" * 100]
    if protocol == "v2":  # its REST cannot take bytes that are no UTF-8, in JSON or behind it: 500
        values[3] = b"z" * 300
    with connect(f"127.0.0.1:{kserve_ports[protocol]}", protocol, "lengths") as client:
        assert client.predict({"x": bytes_array(values)})["lengths"].tolist() == [5, 2, 0, 300]
        assert client.predict({"x": bytes_array(values[:2])})["lengths"].tolist() == [5, 2]


def test_a_detector_takes_pictures_as_files(tf_serving):
    import io

    files = []
    for colour in (RED, BLUE):
        buffer = io.BytesIO()
        coloured(((16, 8, 40, 32), colour)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    with connect(tf_serving.address, "tfs-grpc", "colours") as client:
        assert set(client.metadata().signatures) == {"serving_default", "image_bytes"}
        answer = client.predict({"inputs": bytes_array(files)}, signature="image_bytes")
        assert answer["num_detections"].tolist() == [1, 1]
        assert answer["detection_classes"][:, 0].tolist() == [1, 3]
        np.testing.assert_allclose(answer["detection_boxes"][0, 0], [8 / 48, 16 / 64, 32 / 48, 40 / 64], atol=1e-6)
