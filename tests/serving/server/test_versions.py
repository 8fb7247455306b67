"""Versions that come, go, are broken or mended while the server answers."""

import asyncio
import json
import os
import shutil
import time

import grpc
import numpy as np
import pytest

from tests.serving.server import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROW = np.zeros((28, 28, 1)).tolist()


def version_of(answer):
    assert answer.status == 200, answer.body
    return int(answer.headers["x-model-version"])


def test_a_server_without_a_version_is_live_and_gets_ready_when_one_appears(run_server, classifier, tmp_path):
    base = tmp_path / "not" / "there yet"
    server = run_server(base)
    assert server.get("/v2/health/live").status == 200
    assert server.get("/v2/health/ready").status == 503
    assert server.get("/v1/models/mnist").status == 503
    assert server.predict([ROW]).status == 503
    models.copy_version(classifier / "1", base, 1)
    server.wait_ready()
    assert version_of(server.predict([ROW])) == 1
    models.copy_version(classifier / "2", base, 2)
    server.wait_version(2, 1)
    models.copy_version(classifier / "1", base, 3)
    server.wait_version(3, 2)  # the last two
    assert server.predict([ROW], version=1).status == 404
    shutil.rmtree(base)
    time.sleep(0.6)
    assert version_of(server.predict([ROW])) == 3  # a directory that is gone takes nothing down
    assert server.stop() == 143


BROKEN = {
    "saved_model.pb is cut": lambda path: os.truncate(path / "saved_model.pb", 1000),
    "saved_model.pb is empty": lambda path: os.truncate(path / "saved_model.pb", 0),
    "variables are missing": lambda path: shutil.rmtree(path / "variables"),
    "variables are cut": lambda path: os.truncate(path / "variables/variables.data-00000-of-00001", 100),
}


def test_broken_versions_are_refused_once_and_served_when_mended(run_server, classifier, tmp_path, imgs):
    base = tmp_path / "models"
    models.copy_version(classifier / "1", base, 1)
    server = run_server(base).wait_version(1)
    for number, harm in enumerate(BROKEN.values(), 2):
        staging = base / f".{number}"
        shutil.copytree(classifier / "2", staging)
        harm(staging)
        staging.rename(base / str(number))
    last = len(BROKEN) + 1
    server.wait_until(lambda: server.metric("mlcore_serving_load_failures_total") == len(BROKEN))
    time.sleep(1)  # five more looks at the directory
    assert server.metric("mlcore_serving_load_failures_total") == len(BROKEN)
    text = server.log.read_text()
    for number in range(2, last + 1):
        assert text.count(f"version {number} of mnist is refused") == 1
    states = {state["version"]: state for state in server.get("/v1/models/mnist").json["model_version_status"]}
    assert states["1"]["state"] == "AVAILABLE"
    assert states["2"]["state"] == "END" and states["2"]["status"]["error_message"]
    assert version_of(server.predict([ROW])) == 1
    assert server.get("/v2/health/ready").status == 200
    shutil.rmtree(base / str(last))
    models.copy_version(classifier / "2", base, last)
    server.wait_version(last, 1)
    assert version_of(server.predict([ROW])) == last
    # Other files under a number that is served are a new version, too.
    pictures = imgs.tolist()
    before = server.predict(pictures).json
    (base / str(last)).rename(base / ".away")
    models.copy_version(classifier / "1", base, last)
    server.wait_until(lambda: server.predict(pictures).json != before)
    assert server.predict(pictures).json == server.predict(pictures, version=1).json


def test_version_policy(run_server, classifier, tmp_path):
    for number in (1, 2, 3):
        models.copy_version(classifier / "1", tmp_path / "models", number)
    server = run_server(tmp_path / "models", "--version-policy=specific:1,3,9").wait_version(3, 1)
    server.wait_until(lambda: "has no version 9, which is asked for; served: 3, 1" in server.log.read_text())


def test_traffic_is_split_by_request_id_and_metrics_tell_the_versions_apart(run_server, classifier):
    server = run_server(classifier, "--traffic=1:75", "--traffic=2:25").wait_version(2, 1)
    given = [version_of(server.predict([ROW], **{"x-request-id": f"user-{number}"})) for number in range(200)]
    again = [version_of(server.predict([ROW], **{"x-request-id": f"user-{number}"})) for number in range(50)]
    assert again == given[:50]
    assert 120 < given.count(1) < 180
    for version in (1, 2):
        counted = server.metric("mlcore_serving_requests_total", version=str(version), code="OK")
        assert counted == (given + again).count(version)
    assert version_of(server.predict([ROW], version=2)) == 2


def test_ten_thousand_requests_with_version_switches_and_none_fails(run_server, classifier, tmp_path):
    from tensorflow_serving.apis import predict_pb2

    base = tmp_path / "models"
    models.copy_version(classifier / "1", base, 1)
    server = run_server(base).wait_version(1)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mnist"
    tensor = request.inputs["imgs"]
    tensor.dtype = 1
    for size in (1, 28, 28, 1):
        tensor.tensor_shape.dim.add().size = size
    tensor.tensor_content = np.zeros(784, np.float32).tobytes()
    content = request.SerializeToString()
    row = json.dumps({"instances": [ROW]}).encode()
    seen = []

    async def main():
        import httpx

        left = iter(range(10_000))

        async def by_grpc(call):
            for _ in left:
                answer = predict_pb2.PredictResponse.FromString(await call(content, timeout=60))
                seen.append(answer.model_spec.version.value)

        async def by_http(client):
            for _ in left:
                answer = await client.post("/v1/models/mnist:predict", content=row)
                assert answer.status_code == 200, answer.text
                seen.append(int(answer.headers["x-model-version"]))

        async def switch():
            for number in (2, 3, 4, 5):
                while len(seen) < 1800 * (number - 1):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(models.copy_version, classifier / str(number % 2 + 1), base, number)

        limits = httpx.Limits(max_connections=8)
        async with (
            grpc.aio.insecure_channel(server.tfs_address) as channel,
            httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client,
        ):
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            clients = [by_grpc(call) for _ in range(24)] + [by_http(client) for _ in range(4)]
            await asyncio.gather(switch(), *clients)

    asyncio.run(main())
    assert len(seen) == 10_000
    assert set(seen) >= {1, 2, 3, 4}
    assert seen.index(2) < seen.index(3) < seen.index(4)
    server.wait_version(5, 4)
    assert server.metric("mlcore_serving_requests_total", code="OK") == 10_000
    assert server.metric("mlcore_serving_requests_in_flight") == 0
