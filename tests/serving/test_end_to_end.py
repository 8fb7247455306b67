"""The client steps against `mlcore serve`, over every protocol."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from mlcore.detection.predict import predict
from mlcore.runtime.errors import DataError, TransientError
from mlcore.serving.clients import connect
from mlcore.serving.verify import verify
from mlcore.serving.versions import versions
from tests.cluster.processes import free_ports
from tests.serving.models import GREEN, RED, coloured

pytestmark = pytest.mark.slow

PROTOCOLS = ("tfs-grpc", "v1", "v2", "v2-grpc")


class Served:
    """`mlcore serve` in a process of its own."""

    def __init__(self, name, base, log):
        self.name, self.base = name, base
        http, grpc, tfs = free_ports(3)
        self.ports = {"v1": http, "v2": http, "v2-grpc": grpc, "tfs-grpc": tfs}
        command = [
            sys.executable, "-m", "mlcore", "serve", f"--model-name={name}", f"--models-dir={base}",
            f"--http-port={http}", f"--grpc-port={grpc}", f"--tfs-port={tfs}", "--host=127.0.0.1",
            "--poll-interval-s=0.2",
        ]  # fmt: skip
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def at(self, protocol):
        return {"server": f"127.0.0.1:{self.ports[protocol]}", "protocol": protocol, "model_name": self.name}

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def servers(model_bases, tmp_path_factory):
    """Servers of the block classifier and of the detector of colours, on copies of their versions."""
    root = tmp_path_factory.mktemp("served")
    started = {}
    for name in ("blocks", "colours"):
        shutil.copytree(model_bases[name], root / name)
        started[name] = Served(name, root / name, root / f"{name}.log")
    try:
        for served in started.values():
            with connect(f"127.0.0.1:{served.ports['tfs-grpc']}", "tfs-grpc", served.name) as client:
                client.wait_until_ready(90)
        yield started
    finally:
        for served in started.values():
            served.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_served_classifier_is_verified(servers, block_data, protocol, tmp_path):
    result = verify(**servers["blocks"].at(protocol), data_dir=block_data, acceptable_accuracy=0.99, samples=60,
                    output_dir=tmp_path / "out")  # fmt: skip
    assert (result.accuracy, result.edge_failed, result.version) == (1.0, 0, 2)
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    refused = {edge["name"]: edge["answer"] for edge in record["edges"] if edge["answer"].startswith("refused")}
    assert {"wrong shape", "wrong dtype", "unknown model"} <= set(refused)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_served_detector_is_verified(servers, coloured_records, protocol):
    result = verify(**servers["colours"].at(protocol), data_dir=coloured_records, acceptable_ap50=0.99)
    assert (result.samples, result.edge_failed, result.version) == (11, 0, 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_gives_the_same_over_every_protocol_as_on_disk(servers, model_bases, protocol, tmp_path):
    pictures = tmp_path / "in"
    pictures.mkdir()
    for index in range(6):
        coloured(((10 + index, 5, 30, 25), RED), ((40, 20, 60, 44), GREEN)).save(pictures / f"{index}.png")
    labels = model_bases["colours"] / "3" / "assets.extra" / "label_map.pbtxt"
    predict(model=model_bases["colours"], input=(str(pictures),), output_dir=tmp_path / "disk")
    result = predict(
        **servers["colours"].at(protocol), input=(str(pictures),), output_dir=tmp_path / "out", label_map=labels
    )
    assert result.images == 6 and result.p99_ms > 0
    on_disk, served = (json.loads((tmp_path / each / "predictions.json").read_text()) for each in ("disk", "out"))
    assert served["images"] == on_disk["images"]
    assert (tmp_path / "out" / "coco_results.json").read_bytes() == (
        tmp_path / "disk" / "coco_results.json"
    ).read_bytes()


def test_encoded_pictures_can_be_asked_for_where_the_protocol_tells_of_no_signatures(servers, tmp_path):
    coloured(((10, 5, 30, 25), RED)).save(tmp_path / "a.png")
    for protocol in ("v2", "v2-grpc"):
        result = predict(**servers["colours"].at(protocol), signature="image_bytes", input=(str(tmp_path / "a.png"),),
                         output_dir=tmp_path / protocol)  # fmt: skip
        assert result.detections == 1


def test_a_rollback_reaches_the_server_and_no_request_fails_meanwhile(servers, block_data):
    served = servers["blocks"]
    stop, failures, answers = threading.Event(), [], []

    def ask():
        from tests.serving.test_clients import imgs

        with connect(f"127.0.0.1:{served.ports['tfs-grpc']}", "tfs-grpc", "blocks") as client:
            while not stop.is_set():
                try:
                    answers.append(int(client.predict({"imgs": imgs([5])})["class_ids"][0]))
                except Exception as error:  # whatever it is, the test shows it
                    failures.append(error)

    def wait_for(version):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with connect(f"127.0.0.1:{served.ports['v1']}", "v1", "blocks") as client:
                if client.metadata().version == version:
                    return
            time.sleep(0.1)
        pytest.fail(f"version {version} is not served")

    def wait_for_answers():
        before = len(answers)
        while len(answers) < before + 3 and not failures:
            time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        address = f"127.0.0.1:{served.ports['tfs-grpc']}"
        wait_for_answers()
        assert versions(models_dir=served.base, action="rollback").serving == 1
        wait_for(1)
        with pytest.raises(DataError, match=r"accuracy is 0\.0000"):
            verify(server=address, model_name="blocks", data_dir=block_data, samples=20, acceptable_accuracy=0.9)
        assert versions(models_dir=served.base, action="promote", version=2, server=(address,)).serving == 2
        wait_for(2)
        wait_for_answers()
    finally:
        stop.set()
        asking.join()
    assert not failures and set(answers) == {5, 6}  # version 1 is off by one
    assert answers[0] == answers[-1] == 5


def test_the_server_says_which_model_it_has(servers):
    with pytest.raises(TransientError, match=r"nothing at .* is not ready after 0.1 s and \d tries; .*404"):
        verify(**servers["blocks"].at("v2") | {"model_name": "nothing"}, ready_timeout_s=0.1)
