"""Everything that a client can get wrong: an error that names it, and a server that lives on."""

import contextlib
import gzip
import json
import struct

import grpc
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROW = np.zeros((28, 28, 1)).tolist()
PREDICT = "/v1/models/mnist:predict"
INFER = "/v2/models/mnist/infer"


def tensor(**changes):
    return {"name": "imgs", "datatype": "FP32", "shape": [1, 28, 28, 1], "data": [0.0] * 784, **changes}


@pytest.fixture(autouse=True)
def _alive(mnist_server):
    """The server answers after each of them."""
    yield
    assert mnist_server.predict([ROW]).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (PREDICT, b"{", 400, "JSON"),
        (PREDICT, b"\xff\xfe", 400, "JSON"),
        (PREDICT, b"", 400, "JSON"),
        (PREDICT, [1], 400, "object"),
        (PREDICT, {}, 400, "instances"),
        (PREDICT, {"instances": [ROW], "inputs": [ROW]}, 400, "instances"),
        (PREDICT, {"instances": 3}, 400, "instances"),
        (PREDICT, {"instances": [ROW, [[1]]]}, 400, "imgs"),
        (PREDICT, {"instances": [[[0.0]]]}, 400, "shape [?, 28, 28, 1], not [1, 1, 1]"),
        (PREDICT, {"instances": ["text"]}, 400, "imgs"),
        (PREDICT, {"instances": [None]}, 400, "imgs"),
        (PREDICT, {"instances": [{"imgs": ROW, "more": 1}]}, 400, "more"),
        (PREDICT, {"instances": [{"image": ROW}]}, 400, "missing: imgs; not known: image"),
        (PREDICT, {"instances": [{"imgs": ROW}, ROW]}, 400, "row 1"),
        (PREDICT, {"instances": [{"imgs": ROW}, {"img": ROW}]}, 400, "row 1"),
        (PREDICT, {"inputs": {}}, 400, "missing: imgs"),
        (PREDICT, {"instances": [ROW], "signature_name": "nope"}, 400, "'nope'"),
        (PREDICT, {"instances": [ROW], "signature_name": 3}, 400, "signature_name"),
        ("/v1/models/other:predict", {"instances": [ROW]}, 404, "'other'"),
        ("/v1/models/mnist/versions/77:predict", {"instances": [ROW]}, 404, "77"),
        ("/v1/models/mnist/versions/new:predict", {"instances": [ROW]}, 400, "'new'"),
        ("/v1/models/mnist:classify", {"instances": [ROW]}, 404, "Malformed request"),
        ("/v1/models/mnist:explain", {"instances": [ROW]}, 501, ""),
        ("/v2/repository/models/mnist/unload", {}, 501, "the directory"),
        (INFER, b"[]", 400, "object"),
        (INFER, {"inputs": 3}, 400, "inputs"),
        (INFER, {"inputs": [tensor(name="x")]}, 400, "missing: imgs; not known: x"),
        (INFER, {"inputs": [tensor(), tensor()]}, 400, "twice"),
        (INFER, {"inputs": [tensor(datatype="INT32")]}, 400, "FP32, not INT32"),
        (INFER, {"inputs": [tensor(shape=[2, 28, 28, 1])]}, 400, "784 values do not make shape"),
        (INFER, {"inputs": [tensor(shape=[1, 784])]}, 400, "imgs"),
        (INFER, {"inputs": [tensor(shape=[-1, 28, 28, 1])]}, 400, "shape"),
        (INFER, {"inputs": [tensor(shape="big")]}, 400, "shape"),
        (INFER, {"inputs": [tensor(data=None)]}, 400, "data"),
        (INFER, {"inputs": [tensor(data=["a"] * 784)]}, 400, "imgs"),
        (INFER, {"inputs": [tensor()], "outputs": [{"name": "scores"}]}, 400, "'scores'"),
        (INFER, {"inputs": [tensor()], "parameters": {"signature_name": "nope"}}, 400, "'nope'"),
        (INFER, {"inputs": [tensor(parameters={"binary_data_size": 99})]}, 400, "binary_data_size"),
        ("/v2/models/other/infer", {"inputs": [tensor()]}, 404, "'other'"),
        ("/v2/models/mnist/versions/77/infer", {"inputs": [tensor()]}, 404, "77"),
    ],
)  # fmt: skip
def test_rest_names_what_is_wrong(mnist_server, path, body, status, words):
    answer = mnist_server.post(path, body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert words in answer.json["error"]


@pytest.mark.parametrize("path", ["/v1/models/other", "/v2/models/other", "/v2/models/other/ready", "/nothing",
                                  "/v1/models/mnist/versions/77", "/v1/models/other/metadata"])  # fmt: skip
def test_unknown_paths_are_404(mnist_server, path):
    answer = mnist_server.get(path)
    assert (answer.status, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize("length", ["x", "-1", "99999999"])
def test_a_wrong_length_of_the_json_part_is_refused(mnist_server, length):
    answer = mnist_server.post(INFER, {"inputs": [tensor()]}, **{"inference-header-content-length": length})
    assert answer.status == 400
    assert "inference-header-content-length" in answer.json["error"].lower()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(mnist_server, chunked):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", mnist_server.ports[0], timeout=30)
    body = b"[" + b"0," * 3_000_000 + b"0]"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server does not read it to its end
        connection.request("POST", PREDICT, iter([body[:3_000_000], body[3_000_000:]]) if chunked else body,
                           {"content-type": "application/json"}, encode_chunked=chunked)  # fmt: skip
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"4000000 bytes" in answer.read()
    connection.close()


@pytest.mark.parametrize(("path", "body"), [(PREDICT, {"instances": [ROW]}), (INFER, {"inputs": [tensor()]})])
def test_a_compressed_request_has_the_answer_of_the_plain_one(mnist_server, path, body):
    plain = mnist_server.post(path, body)
    packed = mnist_server.post(path, gzip.compress(json.dumps(body).encode()), **{"content-encoding": "gzip"})
    assert (packed.status, plain.status) == (200, 200)
    outputs = [answer.json.get("predictions") or answer.json["outputs"] for answer in (packed, plain)]
    assert outputs[0] == outputs[1]
    answer = mnist_server.post(path, b"x", **{"content-encoding": "br"})
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


def tfs_request(**changes):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = changes.get("model", "mnist")
    request.model_spec.signature_name = changes.get("signature", "")
    if "version" in changes:
        request.model_spec.version.value = changes["version"]
    if "label" in changes:
        request.model_spec.version_label = changes["label"]
    if "output" in changes:
        request.output_filter.append(changes["output"])
    proto = request.inputs[changes.get("input", "imgs")]
    proto.dtype = changes.get("dtype", 1)
    for size in changes.get("shape", (1, 28, 28, 1)):
        proto.tensor_shape.dim.add().size = size
    proto.tensor_content = changes.get("content", b"\0" * 3136)
    proto.float_val.extend(changes.get("values", ()))
    return request


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "other"}, "NOT_FOUND", "'other'"),
        ({"version": 77}, "NOT_FOUND", "77"),
        ({"label": "stable"}, "INVALID_ARGUMENT", "version_label"),
        ({"signature": "nope"}, "INVALID_ARGUMENT", "'nope'"),
        ({"input": "x"}, "INVALID_ARGUMENT", "missing: imgs; not known: x"),
        ({"dtype": 4}, "INVALID_ARGUMENT", "float32, not DT_UINT8"),
        ({"dtype": 999}, "INVALID_ARGUMENT", "float32, not 999"),
        ({"shape": (2, 28, 28, 1)}, "INVALID_ARGUMENT", "imgs"),
        ({"shape": (1, 784)}, "INVALID_ARGUMENT", "shape"),
        ({"shape": (-1, 28, 28, 1), "content": b""}, "INVALID_ARGUMENT", "shape"),
        ({"content": b"\0" * 7}, "INVALID_ARGUMENT", "7 bytes"),
        ({"content": b"", "values": [1.0, 2.0]}, "INVALID_ARGUMENT", "2 values"),
        ({"content": b""}, "INVALID_ARGUMENT", "0 values"),
        ({"content": b"", "values": [1.0], "shape": (2**40, 28, 28, 1)}, "INVALID_ARGUMENT", "1 values"),
        ({"output": "scores"}, "INVALID_ARGUMENT", "'scores'"),
        ({"shape": (2000, 28, 28, 1), "content": b"\0" * 3136 * 2000}, "RESOURCE_EXHAUSTED", ""),
    ],
)  # fmt: skip
def test_tensorflow_servings_grpc_names_what_is_wrong(mnist_server, changes, code, words):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(mnist_server.tfs_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(tfs_request(**changes), timeout=20)
    assert error.value.code().name == code
    assert words in error.value.details()


@pytest.mark.parametrize("method", ["Classify", "Regress", "MultiInference"])
def test_what_tensorflow_serving_has_beside_predict_is_refused_with_a_word_of_predict(mnist_server, method):
    with grpc.insecure_channel(mnist_server.tfs_address) as channel:
        call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=20)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"{method} is not served: call Predict" in error.value.details()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_name": "other"}, "NOT_FOUND", "'other'"),
        ({"model_version": "77"}, "NOT_FOUND", "77"),
        ({"model_version": "new"}, "INVALID_ARGUMENT", "'new'"),
        ({"name": "x"}, "INVALID_ARGUMENT", "missing: imgs; not known: x"),
        ({"datatype": "INT8"}, "INVALID_ARGUMENT", "FP32, not INT8"),
        ({"shape": [3, 28, 28, 1]}, "INVALID_ARGUMENT", "imgs"),
        ({"raw": [b"\0" * 9]}, "INVALID_ARGUMENT", "9 bytes"),
        ({"raw": [b"\0" * 3136, b""]}, "INVALID_ARGUMENT", "raw_input_contents: 2 for 1"),
        ({"raw": []}, "INVALID_ARGUMENT", "0 values"),
    ],
)  # fmt: skip
def test_v2_grpc_names_what_is_wrong(mnist_server, changes, code, words):
    done = _v2_infer(mnist_server.grpc_address, changes)
    assert done[0] == code
    assert words in done[1]


def _v2_infer(address, changes):
    """The status of a hand-made ModelInferRequest, whose bytes need no import of kserve."""

    def text(number, value):
        return _field(number, value.encode())

    tensor = text(1, changes.get("name", "imgs")) + text(2, changes.get("datatype", "FP32"))
    sizes = b"".join(_varint(size) for size in changes.get("shape", [1, 28, 28, 1]))
    message = text(1, changes.get("model_name", "mnist")) + text(2, changes.get("model_version", ""))
    message += _field(5, tensor + _field(3, sizes))
    message += b"".join(_field(7, raw) for raw in changes.get("raw", [struct.pack("<784f", *[0] * 784)]))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            call(message, timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def test_a_right_request_by_the_same_hand_is_answered(mnist_server):
    assert _v2_infer(mnist_server.grpc_address, {}) == ("OK", "")


@pytest.mark.parametrize(
    ("instances", "words"),
    [([{"b64": "!!!"}], "base64"), (["plain text"], ""), ([3], "inputs"), ([{"b64": ""}], ""),
     ([{"b64": "/9j/4AAQSkZJRg=="}], "")],
)  # fmt: skip
def test_bytes_that_are_no_picture_are_400(detector_server, instances, words):
    body = {"signature_name": "image_bytes", "instances": instances}
    answer = detector_server.post("/v1/models/shapes:predict", body)
    assert answer.status == 400
    assert words in answer.json["error"]
