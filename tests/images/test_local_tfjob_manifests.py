"""`mlcore local-tfjob` runs our own TFJob manifests with our own images, with members killed in between."""

import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.images.conftest import TAG
from tests.images.containers import docker
from tests.images.local_job import LocalJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def rendered(project: Path, overlay: str) -> dict:
    """The TFJob of an overlay."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", project / "manifests" / "overlays" / overlay],
                          capture_output=True, text=True, check=True)  # fmt: skip
    (job,) = (each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "TFJob")
    return job


class OurJob:
    """A TFJob of ours with another tag, claim, length and at most two workers: the machine may have two cores."""

    def __init__(self, project: Path, images, folder: Path, overlay: str, **flags: str) -> None:
        job = rendered(project, overlay)
        self.claim = f"test-{uuid.uuid4().hex[:10]}"
        for spec in job["spec"]["tfReplicaSpecs"].values():
            spec["replicas"] = min(spec["replicas"], 2)
            pod = spec["template"]["spec"]
            for volume in pod["volumes"]:
                if "persistentVolumeClaim" in volume:
                    volume["persistentVolumeClaim"]["claimName"] = self.claim
            for container in (*pod["initContainers"], *pod["containers"]):
                container["image"] = container["image"].rpartition(":")[0] + f":{TAG}"
            (container,) = pod["containers"]
            for name, value in flags.items():
                flag = f"--{name.replace('_', '-')}="
                kept = [text for text in container["args"] if not text.startswith(flag)]
                container["args"] = [*kept, flag + value]
        self.job = LocalJob(folder, job)
        self.volume = f"{self.job.namespace}.{self.claim}"
        self.shell = partial(images["download"].shell, options=[f"--volume={self.volume}:/data"])

    def fill(self, folder: Path, place: str, image: str) -> None:
        """Put a folder on the claim."""
        docker("volume", "create", self.volume)
        self.shell(f"mkdir -p {place}")
        name = docker("create", f"--volume={self.volume}:/data", image).stdout.strip()
        docker("cp", f"{folder}/.", f"{name}:{place}")
        docker("rm", name)
        self.shell("chmod -R a+rwX /data")

    def wait_for_checkpoint(self, beyond: int = 0, timeout_s: float = 240) -> int:
        """Wait until the evaluator has read a checkpoint of a later step; the step."""
        pattern = re.compile(rf"^{self.job.name}-evaluator-0 +\| .* step (\d+): validation loss", re.MULTILINE)
        end = time.monotonic() + timeout_s
        while True:
            steps = [int(text) for text in pattern.findall(self.job.stderr)]
            if max(steps, default=0) > beyond:
                return max(steps)
            assert time.monotonic() < end and self.job.process.poll() is None, self.job.tail()
            time.sleep(0.1)

    def close(self) -> None:
        self.job.close()
        docker("volume", "rm", "--force", self.volume, check=False)


@pytest.fixture
def our_job(project, images, tmp_path) -> Iterator:
    jobs = []

    def make(overlay: str, **flags: str) -> OurJob:
        jobs.append(OurJob(project, images, tmp_path, overlay, **flags))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.fixture(scope="module")
def mnist_arrays(shared_data, tmp_path_factory) -> Iterator[Path]:
    """What the step mnist-download leaves."""
    folder = tmp_path_factory.mktemp("arrays")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=shared_data / "mnist"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    subprocess.run([sys.executable, "-m", "mlcore", "mnist-download", f"--output-dir={folder}",
                    f"--mirror=http://127.0.0.1:{server.server_port}"], check=True, capture_output=True)  # fmt: skip
    server.shutdown()
    return folder


@pytest.fixture(scope="module")
def records(shared_data, tmp_path_factory) -> Path:
    """What the step convert leaves of BCCD."""
    folder = tmp_path_factory.mktemp("bccd")
    for step in (
        ["extract", f"--archive={shared_data / 'bccd.tar.gz'}", f"--output-dir={folder / 'raw'}"],
        ["convert", f"--data-dir={folder / 'raw'}", f"--output-dir={folder / 'records'}", "--shards=4"],
    ):
        subprocess.run([sys.executable, "-m", "mlcore", *step], check=True, capture_output=True)
    return folder / "records"


def test_mnist_succeeds_with_a_worker_and_a_ps_killed_in_between(our_job, images, mnist_arrays):
    ours = our_job("mnist", epochs="8", checkpoint_interval_s="1", learning_rate_schedule="constant")
    ours.fill(mnist_arrays, "/data/mnist/data", images["download"].reference)
    job = ours.job.start()
    saved = ours.wait_for_checkpoint()
    docker("kill", "--signal=KILL", f"{job.name}-worker-1")
    saved = ours.wait_for_checkpoint(beyond=saved)
    docker("kill", "--signal=KILL", f"{job.name}-ps-0")
    job.wait_for(rf"{job.name}-chief-0: ended with 138; deleted and made again", 120)
    assert job.wait(400) == 0, job.tail()
    table = job.table()
    assert table[f"{job.name}-chief-0"][:2] == ("Succeeded", "0")
    assert 1 <= table[f"{job.name}-chief-0"][2] <= 3  # once for the parameter server; more on a busy machine
    assert table[f"{job.name}-worker-1"][2] >= 1 and table[f"{job.name}-ps-0"][2] >= 1
    resumed = re.search(rf"{job.name}-chief-0 +\| .*going on from \S+ckpt-(\d+)", job.stderr)
    assert resumed and int(resumed[1]) >= saved, job.tail()
    accuracy = re.findall(rf"{job.name}-chief-0 +\| .* accuracy=([\d.]+)", job.stdout)
    assert float(accuracy[-1]) > 0.95
    assert ours.shell("ls -d /data/mnist/exported/*/saved_model.pb").strip() == "/data/mnist/exported/1/saved_model.pb"


def test_detection_succeeds_with_a_worker_and_a_ps_killed_in_between(our_job, images, records):
    ours = our_job("pets", steps="80", image_size="64x96", checkpoint_interval="20")
    ours.fill(records, "/data/pets/records", images["download"].reference)
    job = ours.job.start()
    chief = rf"{job.name}-chief-0 +\| [^\n]*"
    job.wait_for(rf"{chief}saved \S+ckpt-20\n", 300)
    docker("kill", "--signal=KILL", f"{job.name}-worker-1")
    job.wait_for(rf"{chief}saved \S+ckpt-40\n", 240)
    docker("kill", "--signal=KILL", f"{job.name}-ps-0")
    job.wait_for(rf"{job.name}-chief-0: ended with 138; deleted and made again", 120)
    assert job.wait(600) == 0, job.tail()
    table = job.table()
    assert table[f"{job.name}-chief-0"][:2] == ("Succeeded", "0")
    assert min(table[f"{job.name}-{name}"][2] for name in ("chief-0", "worker-1", "ps-0")) >= 1
    resumed = re.search(rf"{chief}resuming from \S+ckpt-(\d+)", job.stderr)
    assert resumed and int(resumed[1]) >= 40, job.tail()
    assert re.search(rf"{job.name}-evaluator-0 +\| .*ap50=[\d.]+", job.stdout)
    assert "ckpt-80.index" in ours.shell("ls /data/pets/model")
