"""The real clients of each protocol against a running server."""

import asyncio
import subprocess
import sys

import grpc
import numpy as np
import pytest

from tests.serving.server import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# What a client written for kserve does, in a process of its own, as kserve reads sys.argv when it is imported.
KSERVE = """
import asyncio, json, sys
import numpy as np
arguments, sys.argv = sys.argv[1:], sys.argv[:1]
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, grpc_address = arguments
imgs = np.random.default_rng(5).random((5, 28, 28, 1), np.float32)

def request(binary):
    tensor = InferInput("imgs", list(imgs.shape), "FP32")
    tensor.set_data_from_numpy(imgs, binary_data=binary)
    return InferRequest("mnist", [tensor], request_id="from-kserve")

async def main():
    answers = {}
    client = InferenceGRPCClient(grpc_address)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("mnist")
    for binary in (True, False):
        answers[f"grpc {binary}"] = await client.infer(request(binary))
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(http) and await rest.is_server_ready(http)
    assert await rest.is_model_ready(http, "mnist")
    for binary in (True, False):
        answers[f"rest {binary}"] = await rest.infer(http, request(binary), model_name="mnist")
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await v1.is_model_ready(http, "mnist")
    rows = await v1.infer(http, {"instances": imgs.tolist()}, model_name="mnist")
    found = {}
    for name, answer in answers.items():
        outputs = {output.name: output for output in answer.outputs}
        found[name] = [answer.id, outputs["logits"].as_numpy().tolist(),
                       [value.decode() if isinstance(value, bytes) else value
                        for value in outputs["classes"].as_numpy().tolist()]]
    found["v1"] = ["from-kserve", [row["logits"] for row in rows["predictions"]],
                   [row["classes"] for row in rows["predictions"]]]
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def tfs(mnist_server):
    """TensorFlow Serving's stubs."""
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    channel = grpc.insecure_channel(mnist_server.tfs_address)
    yield (
        prediction_service_pb2_grpc.PredictionServiceStub(channel),
        model_service_pb2_grpc.ModelServiceStub(channel),
    )
    channel.close()


@pytest.fixture(scope="module")
def expected(classifier, imgs):
    """What TensorFlow itself answers, version -> outputs."""
    from mlcore.mnist.tensorflow import tf

    answers = {}
    for version in (1, 2):
        loaded = tf.saved_model.load(str(classifier / str(version)))
        outputs = loaded.signatures["serving_default"](imgs=tf.constant(imgs))
        answers[version] = {name: value.numpy() for name, value in outputs.items()}
    return answers


def predict_request(imgs, version=None, **spec):
    from tensorflow_serving.apis import predict_pb2

    from mlcore.mnist.tensorflow import tf

    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "mnist")
    request.model_spec.signature_name = spec.get("signature", "")
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["imgs"].CopyFrom(tf.make_tensor_proto(imgs))
    return request


@pytest.mark.parametrize(("version", "answered"), [(None, 2), (1, 1), (2, 2)])
def test_tensorflow_servings_client(tfs, imgs, expected, version, answered):
    from mlcore.mnist.tensorflow import tf

    response, call = tfs[0].Predict.with_call(
        predict_request(imgs, version), timeout=20, metadata=[("x-request-id", "abc-1")]
    )
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("mnist", answered, "serving_default")
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-1"
    wanted = expected[answered]
    assert response.outputs.keys() == wanted.keys()
    for name, value in wanted.items():
        given = tf.make_ndarray(response.outputs[name])
        assert (given.dtype, given.shape) == (value.dtype, value.shape)
        if value.dtype == np.float32:
            assert np.allclose(given, value, rtol=1e-5, atol=1e-5)
        else:
            assert given.tolist() == value.tolist()
    # Clients read the typed fields, not tensor_content.
    assert len(response.outputs["logits"].float_val) == 50
    assert list(response.outputs["class_ids"].int64_val) == wanted["class_ids"].tolist()


def test_typed_fields_and_one_value_for_all_are_taken_as_inputs(tfs):
    from tensorflow_serving.apis import predict_pb2

    answers = []
    for values in ([0.5] * 784, [0.5]):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "mnist"
        tensor = request.inputs["imgs"]
        tensor.dtype = 1
        for size in (1, 28, 28, 1):
            tensor.tensor_shape.dim.add().size = size
        tensor.float_val.extend(values)
        answers.append(list(tfs[0].Predict(request, timeout=20).outputs["logits"].float_val))
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)


def test_output_filter_gives_only_these(tfs, imgs):
    request = predict_request(imgs)
    request.output_filter.append("classes")
    assert list(tfs[0].Predict(request, timeout=20).outputs) == ["classes"]


def test_model_metadata_has_the_signatures(tfs):
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "mnist"
    response = tfs[0].GetModelMetadata(request, timeout=20)
    assert response.model_spec.version.value == 2
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    definition = signatures.signature_def["serving_default"]
    assert [dim.size for dim in definition.inputs["imgs"].tensor_shape.dim] == [-1, 28, 28, 1]
    assert set(definition.outputs) == {"probabilities", "logits", "class_ids", "classes"}


def test_model_status_has_the_versions(tfs):
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mnist"
    states = tfs[1].GetModelStatus(request, timeout=20).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(state.version, state.state, state.status.error_code) for state in states] == [
        (2, available, 0),
        (1, available, 0),
    ]


@pytest.mark.parametrize("address", ["grpc_address", "tfs_address"])
@pytest.mark.parametrize(("service", "status"), [("", 1), ("mnist", 1), ("other", None)])
def test_standard_health_service(mnist_server, address, service, status):
    with grpc.insecure_channel(getattr(mnist_server, address)) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        message = bytes([10, len(service)]) + service.encode() if service else b""
        if status is None:
            with pytest.raises(grpc.RpcError) as error:
                check(message, timeout=20)
            assert error.value.code() is grpc.StatusCode.NOT_FOUND
        else:
            assert check(message, timeout=20) == bytes([8, status])


def test_kserves_clients(mnist_server, expected):
    import json

    done = subprocess.run(
        [sys.executable, "-c", KSERVE, mnist_server.url, mnist_server.grpc_address], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers.keys() == {"grpc True", "grpc False", "rest True", "rest False", "v1"}
    for name, (request_id, logits, classes) in answers.items():
        assert request_id == "from-kserve", name
        assert np.allclose(logits, expected[2]["logits"], rtol=1e-5, atol=1e-5), name
        assert classes == [text.decode() for text in expected[2]["classes"]], name


def test_v1_rows_and_columns(mnist_server, imgs, expected):
    rows = mnist_server.predict(imgs.tolist(), **{"x-request-id": "mine"})
    assert (rows.status, rows.headers["x-request-id"], rows.headers["x-model-version"]) == (200, "mine", "2")
    columns = mnist_server.post("/v1/models/mnist/versions/1:predict", {"inputs": {"imgs": imgs.tolist()}})
    assert columns.headers["x-model-version"] == "1"
    assert columns.headers["x-request-id"]
    for version, answer in ((2, rows.json["predictions"]), (1, columns.json["outputs"])):
        for name, value in expected[version].items():
            given = answer[name] if version == 1 else [row[name] for row in answer]
            if value.dtype == object:
                assert given == [text.decode() for text in value]
            else:
                assert np.allclose(given, value, rtol=1e-5, atol=1e-5)


def test_named_rows_are_rows(mnist_server, imgs):
    named = mnist_server.predict([{"imgs": picture} for picture in imgs.tolist()])
    assert named.json == mnist_server.predict(imgs.tolist()).json


def test_v1_status_and_metadata(mnist_server):
    status = mnist_server.get("/v1/models/mnist")
    assert status.status == 200
    assert status.json["model_version_status"][0] == {
        "version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""},
    }  # fmt: skip
    assert (status.json["name"], status.json["ready"]) == ("mnist", True)
    metadata = mnist_server.get("/v1/models/mnist/versions/1/metadata").json
    assert metadata["model_spec"] == {"name": "mnist", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["imgs"]["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in signature["inputs"]["imgs"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "28", "28", "1"]


def test_v2_metadata_versions_and_health(mnist_server):
    assert mnist_server.get("/v2").json["name"] == "kserve"
    assert mnist_server.get("/v2/health/live").json == {"live": True}
    metadata = mnist_server.get("/v2/models/mnist").json
    assert metadata["versions"] == ["2", "1"]
    assert metadata["inputs"] == [{"name": "imgs", "datatype": "FP32", "shape": [-1, 28, 28, 1]}]
    assert mnist_server.get("/v2/models/mnist/versions/1/ready").json == {"name": "mnist", "ready": True}
    assert mnist_server.get("/v2/models/mnist/versions/7/ready").status == 404


def test_v2_version_id_and_chosen_outputs(mnist_server, imgs):
    body = {
        "id": "inside", "outputs": [{"name": "class_ids"}],
        "inputs": [{"name": "imgs", "datatype": "FP32", "shape": list(imgs.shape), "data": imgs.tolist()}],
    }  # fmt: skip
    answer = mnist_server.post("/v2/models/mnist/versions/1/infer", body)
    assert answer.headers["x-request-id"] == "inside"
    assert (answer.json["id"], answer.json["model_version"]) == ("inside", "1")
    assert [(output["name"], output["datatype"]) for output in answer.json["outputs"]] == [("class_ids", "INT64")]


@pytest.mark.parametrize("count", [0, 1, 200])
def test_none_one_and_many_examples(mnist_server, tfs, count):
    imgs = np.zeros((count, 28, 28, 1), np.float32)
    assert tfs[0].Predict(predict_request(imgs), timeout=20).outputs["logits"].tensor_shape.dim[0].size == count
    assert len(mnist_server.predict(imgs.tolist()).json["predictions"]) == count


def test_answers_are_the_clients_own_under_load(mnist_server, imgs):
    """Many clients at once, each with another picture: none gets the answer of another."""

    async def main():
        from tensorflow_serving.apis import predict_pb2

        async with grpc.aio.insecure_channel(mnist_server.tfs_address) as channel:
            call = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                predict_pb2.PredictRequest.SerializeToString, predict_pb2.PredictResponse.FromString,
            )  # fmt: skip
            alone = [list((await call(predict_request(imgs[n : n + 1]))).outputs["logits"].float_val) for n in range(5)]

            async def client(n):
                for _ in range(20):
                    answer = await call(predict_request(imgs[n % 5 : n % 5 + 1]), timeout=20)
                    assert list(answer.outputs["logits"].float_val) == pytest.approx(alone[n % 5], abs=1e-4)

            await asyncio.gather(*(client(n) for n in range(40)))

    before = mnist_server.metric("mlcore_serving_batch_examples_count")
    asyncio.run(main())
    assert mnist_server.metric("mlcore_serving_batch_examples_count") - before < 800  # they were put together


def test_metrics_tell_protocol_version_and_code(mnist_server, imgs):
    labels = {"protocol": "v1", "version": "1", "code": "OK"}
    before = mnist_server.metric("mlcore_serving_requests_total", **labels)
    refused = mnist_server.metric("mlcore_serving_requests_total", protocol="v1", code="NOT_FOUND")
    assert mnist_server.predict(imgs.tolist(), version=1).status == 200
    assert mnist_server.predict(imgs.tolist(), version=9).status == 404
    assert mnist_server.metric("mlcore_serving_requests_total", **labels) == before + 1
    assert mnist_server.metric("mlcore_serving_requests_total", protocol="v1", code="NOT_FOUND") == refused + 1
    assert mnist_server.metric("mlcore_serving_request_seconds_count", protocol="v1", version="1") >= before + 1
    assert mnist_server.metric("mlcore_serving_version_loaded") == 2
    assert mnist_server.metric("mlcore_serving_queue_examples") == 0


def test_a_detector_takes_pictures_of_any_size_by_every_protocol(detector_server):
    import base64

    pictures = [models.jpeg(40, 30, 255), models.jpeg(64, 64, 51)]
    encoded = [{"b64": base64.b64encode(picture).decode()} for picture in pictures]
    v1 = detector_server.post(
        "/v1/models/shapes:predict", {"signature_name": "image_bytes", "instances": encoded}
    ).json["predictions"]
    assert [row["detection_scores"][0] for row in v1] == pytest.approx([1.0, 0.2], abs=0.01)
    named = [{"inputs": picture} for picture in encoded]
    body = {"signature_name": "image_bytes", "instances": named}
    assert detector_server.post("/v1/models/shapes:predict", body).json["predictions"] == v1
    v2 = detector_server.post("/v2/models/shapes/infer", {
        "parameters": {"signature_name": "image_bytes"},
        "inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [2], "parameters": {"content_type": "base64"},
                    "data": [text["b64"] for text in encoded]}],
    }).json  # fmt: skip
    scores = next(output for output in v2["outputs"] if output["name"] == "detection_scores")
    assert scores["data"] == pytest.approx([1.0, 0.2], abs=0.01)
    pixels = np.full((1, 6, 5, 3), 255, np.uint8).tolist()
    (row,) = detector_server.post("/v1/models/shapes:predict", {"instances": pixels}).json["predictions"]
    assert row["detection_boxes"] == pytest.approx(np.array([[0.1, 0.2, 0.5, 0.6]]))


def test_a_damaged_picture_fails_alone(detector_server):
    """In one batch with good ones, which are answered."""
    from tensorflow_serving.apis import predict_pb2

    def request(picture):
        message = predict_pb2.PredictRequest()
        message.model_spec.name, message.model_spec.signature_name = "shapes", "image_bytes"
        tensor = message.inputs["inputs"]
        tensor.dtype = 7
        tensor.tensor_shape.dim.add().size = 1
        tensor.string_val.append(picture)
        return message.SerializeToString()

    async def main():
        async with grpc.aio.insecure_channel(detector_server.tfs_address) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            good, bad = request(models.jpeg()), request(models.jpeg()[:100])
            calls = [call(bad if number % 10 == 3 else good, timeout=30) for number in range(100)]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(main())
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, grpc.RpcError)]
    assert refused == list(range(3, 100, 10))
    assert {answers[number].code() for number in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
