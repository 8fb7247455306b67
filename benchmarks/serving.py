"""`mlcore serve` against calling the SavedModel in-process, against itself without batches, and against kserve alone.

    python benchmarks/serving.py [--detector=exports/pets] [--rounds=3] [--seconds=2] [--clients=32]

In one run, all on this machine: the p50 of a MNIST request (TensorFlow Serving's gRPC) and of a detection request (a
JPEG over the same) beside the p50 of the call in-process; the throughput of 32 clients, each with one picture at a
time, of the server as it is, of the server with --max-batch-size=1, and of kserve's ModelServer with the same
SavedModel called for each request, over V1 REST as its examples do; the bytes of a picture as JPEG and as JSON.
The MNIST model has the trained one's shape and random weights. Without --detector the detection part is left out.
"""

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlcore.serving.version_directory import find_version

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def make_mnist(base: Path) -> None:
    """A classifier as `mnist-train` exports it, without the training."""
    from mlcore.mnist.export import publish
    from mlcore.mnist.network import Network

    publish(Network((28, 28), (256, 64), 10, seed=1), base, classes=[str(digit) for digit in range(10)], parameters={},
            data_version="none", metrics={}, samples=np.zeros((2, 28, 28), np.uint8))  # fmt: skip


def picture() -> tuple[np.ndarray, bytes]:
    """A picture of 640 x 480 with edges and textures, as pixels and as JPEG."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return np.asarray(image), file.getvalue()


def request(model: str, name: str, value: np.ndarray, signature: str = "") -> bytes:
    from tensorflow_serving.apis import predict_pb2

    from mlcore.mnist.tensorflow import tf

    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = model, signature
    message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message.SerializeToString()


class Server:
    """A server process, gone at the end of the block."""

    def __init__(self, *command: object) -> None:
        self.command = [sys.executable, *map(str, command)]

    def __enter__(self) -> tuple[int, ...]:
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time of TensorFlow's import
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env=environment)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            text = Path(self.log.name).read_text()
            if re.search("is served", text):
                return tuple(map(int, re.findall(r"(?:HTTP|gRPC) (\d+)", text)))
            time.sleep(0.1)
        raise SystemExit(f"{' '.join(self.command)} did not come up:\n{Path(self.log.name).read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


def ours(name: str, base: Path, *flags: str) -> Server:
    return Server("-m", "mlcore", "serve", f"--model-name={name}", f"--models-dir={base}", "--host=127.0.0.1",
                  "--http-port=0", "--grpc-port=0", "--tfs-port=0", *flags)  # fmt: skip


def kserve_alone(base: Path) -> None:
    """What kserve's documentation has one write for a model of one's own."""
    port, sys.argv = sys.argv[-1], sys.argv[:1]
    import kserve
    import tensorflow as tf

    class Mnist(kserve.Model):
        def load(self) -> bool:
            self.predictor = tf.saved_model.load(str(base / "1")).signatures["serving_default"]
            self.ready = True
            return True

        def predict(self, payload: dict, headers: object = None) -> dict:
            outputs = self.predictor(imgs=tf.constant(payload["instances"], tf.float32))
            return {"predictions": outputs["probabilities"].numpy().tolist()}

    model = Mnist("mnist")
    model.load()
    print(f"HTTP {port} is served", flush=True)
    kserve.ModelServer(http_port=int(port), enable_grpc=False).start([model])


class InProcess:
    """The SavedModel in this process, as its own documentation has one call it."""

    def __init__(self, directory: Path, signature: str) -> None:
        from mlcore.mnist.tensorflow import tf

        self.tf = tf
        self.loaded = tf.saved_model.load(str(directory))
        self.signature = self.loaded.signatures[signature]

    def p50_ms(self, seconds: float, **inputs: np.ndarray) -> float:
        """p50 of a call and of taking its outputs."""
        times = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            for output in self.signature(**{name: self.tf.constant(value) for name, value in inputs.items()}).values():
                output.numpy()
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times[len(times) // 5 :])


async def by_grpc(port: int, content: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """(p50 in milliseconds, requests a second) of so many clients at once."""
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(PREDICT)
        return await _load(lambda: call(content), clients, seconds)


async def by_http(port: int, content: bytes, clients: int, seconds: float) -> tuple[float, float]:
    import httpx

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=clients), timeout=60) as client:
        url = f"http://127.0.0.1:{port}/v1/models/mnist:predict"

        async def call() -> None:
            (await client.post(url, content=content, headers=headers)).raise_for_status()

        return await _load(call, clients, seconds)


async def _load(call, clients: int, seconds: float) -> tuple[float, float]:
    times: list[float] = []

    async def client(end: float) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            await call()
            times.append(time.perf_counter() - started)

    for duration in (1.0, seconds):  # the first to warm up
        times.clear()
        await asyncio.gather(*(client(time.perf_counter() + duration) for _ in range(clients)))
    return 1000 * statistics.median(times), len(times) / seconds


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", type=Path, help="directory of versions of mlcore export")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kserve-alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kserve_alone:
        kserve_alone(Path(options.kserve_alone[0]))
        return
    rounds: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            rounds.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        mnist(Path(folder, "mnist"), options, note)
    pixels, jpeg = picture()
    if options.detector:
        detection(find_version(options.detector), options, jpeg, note)
    for name, values in rounds.items():
        print(f"{name:16} {' '.join(f'{value:9.2f}' for value in values)}   median {statistics.median(values):.2f}")
    median = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"MNIST, one client: p50 {median['mnist_ms']:.2f} ms, in-process {median['mnist_inside_ms']:.2f} ms, "
          f"difference {median['mnist_ms'] - median['mnist_inside_ms']:+.2f} ms")  # fmt: skip
    print(f"MNIST, {options.clients} clients: {median['batched']:.0f} requests/s; --max-batch-size=1 "
          f"{median['unbatched']:.0f} (ratio {median['batched'] / median['unbatched']:.2f}); kserve alone, V1 REST "
          f"{median['kserve']:.0f} (ratio {median['batched'] / median['kserve']:.2f})")  # fmt: skip
    as_json = len(json.dumps({"instances": pixels[None].tolist()}, separators=(",", ":")))
    print(f"640x480 picture: {len(jpeg)} bytes as JPEG, {as_json} as JSON (ratio {as_json / len(jpeg):.1f})")
    if options.detector:
        print(f"detection, one client: p50 {median['detect_ms']:.1f} ms, in-process {median['detect_inside_ms']:.1f} "
              f"ms (ratio {median['detect_ms'] / median['detect_inside_ms']:.2f})")  # fmt: skip


def mnist(base: Path, options: argparse.Namespace, note: Callable[..., None]) -> None:
    """All servers are up all the time; they are measured in turn."""
    make_mnist(base)
    imgs = np.random.default_rng(0).random((1, 28, 28, 1), np.float32)
    content = request("mnist", "imgs", imgs)
    body = json.dumps({"instances": imgs.tolist()}).encode()
    inside = InProcess(base / "1", "serving_default")
    with (
        ours("mnist", base) as batched,
        ours("mnist", base, "--max-batch-size=1") as unbatched,
        Server(__file__, "--kserve-alone", base, free_port()) as kserve,
    ):
        wait_for(kserve[0])
        for _ in range(options.rounds):
            note(mnist_inside_ms=inside.p50_ms(options.seconds, imgs=imgs))
            note(mnist_ms=asyncio.run(by_grpc(batched[2], content, 1, options.seconds))[0])
            note(batched=asyncio.run(by_grpc(batched[2], content, options.clients, options.seconds))[1])
            note(unbatched=asyncio.run(by_grpc(unbatched[2], content, options.clients, options.seconds))[1])
            note(kserve=asyncio.run(by_http(kserve[0], body, options.clients, options.seconds))[1])


def detection(version: Path, options: argparse.Namespace, jpeg: bytes, note: Callable[..., None]) -> None:
    encoded = np.array([jpeg], object)
    inside = InProcess(version, "image_bytes")
    content = request("detector", "inputs", encoded, "image_bytes")
    with ours("detector", version.parent) as ports:
        for _ in range(options.rounds):
            note(detect_inside_ms=inside.p50_ms(2 * options.seconds, inputs=encoded))
            note(detect_ms=asyncio.run(by_grpc(ports[2], content, 1, 2 * options.seconds))[0])


def wait_for(port: int) -> None:
    import socket

    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens on {port}")


if __name__ == "__main__":
    main()
