"""`mlcore serve` against calling the SavedModel in-process, against itself without batches, and against kserve alone.

    python benchmarks/serving.py [--detector=exports/pets] [--rounds=3] [--seconds=2] [--clients=32] [--threads=1]

In one run, all on this machine: the p50 of a MNIST request (TensorFlow Serving's gRPC) and of a detection request (a
JPEG over the same) beside the p50 of the call in-process; the throughput of 32 clients, each with one picture at a
time, of the server as it is, of the server with --max-batch-size=1, and of kserve's ModelServer with the same
SavedModel called for each request, over V1 REST as its examples do; the bytes of a picture as JPEG and as JSON.
For each protocol, too: CPU time of server and clients for a request. The server counts what it answered, and that must
be what the clients got. Both MNIST servers have --threads=1, which suits so small a model. The MNIST model has the
trained one's shape and random weights. Without --detector the detection part is left out.
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
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from wire import Clients, Grpc, Outcome, Rest

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

    def __enter__(self) -> "Server":
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time of TensorFlow's import
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env=environment)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            text = Path(self.log.name).read_text()
            if re.search("is served", text):
                self.ports = tuple(map(int, re.findall(r"(?:HTTP|gRPC) (\d+)", text)))
                return self
            time.sleep(0.1)
        raise SystemExit(f"{' '.join(self.command)} did not come up:\n{Path(self.log.name).read_text()[-3000:]}")

    def cpu_s(self) -> float:
        """CPU time that it took until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def answered(self) -> float:
        """Requests that it counted as answered well."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/metrics") as page:
            text = page.read().decode()
        return sum(map(float, re.findall(r'^mlcore_serving_requests_total\{.*code="OK".*\} (\S+)$', text, re.M)))

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


def one_by_grpc(port: int, content: bytes, seconds: float) -> float:
    """p50 in milliseconds of one client, which is gRPC's own."""
    import grpc

    async def run() -> list[float]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(PREDICT)
            times = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                started = time.perf_counter()
                await call(content)
                times.append(time.perf_counter() - started)
            return times[len(times) // 5 :]

    return 1000 * statistics.median(asyncio.run(run()))


Connect = Callable[[Server], Rest | Grpc]


def many(server: Server, connect: Connect, clients: int, seconds: float) -> tuple[Outcome, float]:
    """What so many clients saw, and the server's CPU seconds for an answer."""
    with Clients([connect(server) for _ in range(clients)]) as running:
        running.run(min(1.0, seconds))
        before = server.cpu_s()
        outcome = running.run(seconds)
        return outcome, (server.cpu_s() - before) / outcome.answers


def protocols(imgs: np.ndarray) -> dict[str, Connect]:
    """Protocol -> a client's connection."""
    json_type, v1 = {"content-type": "application/json"}, "/v1/models/mnist:predict"
    rows = json.dumps({"instances": imgs.tolist()}).encode()
    tensor = {"name": "imgs", "shape": list(imgs.shape), "datatype": "FP32"}
    values = json.dumps({"inputs": [tensor | {"data": imgs.ravel().tolist()}]}).encode()
    tensor["parameters"] = {"binary_data_size": imgs.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    binary = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    infer = "/v2/models/mnist/infer"
    message = request("mnist", "imgs", imgs)

    def at(server: Server, index: int = 0) -> tuple[str, int]:
        return "127.0.0.1", server.ports[index]

    return {
        "v2-binary": lambda server: Rest(at(server), infer, binary, head + imgs.tobytes()),
        "v2-json": lambda server: Rest(at(server), infer, json_type, values),
        "v1": lambda server: Rest(at(server), v1, json_type, rows),
        "tfs-grpc": lambda server: Grpc(at(server, 2), PREDICT, message),
    }


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
    parser.add_argument("--threads", type=int, default=1, help="flag of both MNIST servers")
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
        print(f"{name:24} {' '.join(f'{value:9.2f}' for value in values)}   median {statistics.median(values):.2f}")
    median = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"MNIST, one client: p50 {median['mnist_ms']:.2f} ms, in-process {median['mnist_inside_ms']:.2f} ms, "
          f"difference {median['mnist_ms'] - median['mnist_inside_ms']:+.2f} ms")  # fmt: skip
    for protocol in protocols(np.zeros((1, 28, 28, 1), np.float32)):
        batched, unbatched = median[protocol], median[f"{protocol}, alone"]
        print(f"MNIST, {options.clients} clients, {protocol}: {batched:.0f} requests/s; --max-batch-size=1 "
              f"{unbatched:.0f} (ratio {batched / unbatched:.2f}); CPU for a request: server "
              f"{median[f'{protocol} us']:.0f} us against {median[f'{protocol}, alone us']:.0f}, client "
              f"{median[f'{protocol} client us']:.0f}")  # fmt: skip
    print(f"MNIST, {options.clients} clients, kserve alone, v1: {median['kserve']:.0f} requests/s (ratio of ours "
          f"{median['v1'] / median['kserve']:.2f})")  # fmt: skip
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
    ways = protocols(imgs)
    inside = InProcess(base / "1", "serving_default")
    threads = f"--threads={options.threads}"
    with (
        ours("mnist", base, threads) as batched,
        ours("mnist", base, threads, "--max-batch-size=1") as unbatched,
        Server(__file__, "--kserve-alone", base, free_port()) as kserve,
    ):
        wait_for(kserve.ports[0])
        for _ in range(options.rounds):
            note(mnist_inside_ms=inside.p50_ms(options.seconds, imgs=imgs))
            note(mnist_ms=one_by_grpc(batched.ports[2], content, options.seconds))
            for protocol, connect in ways.items():
                for server, name in ((batched, protocol), (unbatched, f"{protocol}, alone")):
                    counted = server.answered()
                    outcome, server_s = many(server, connect, options.clients, options.seconds)
                    if server.answered() - counted < outcome.answers:
                        raise SystemExit(f"{name}: {outcome.answers} answers, the server counted fewer")
                    note(**{name: outcome.rate, f"{name} us": 1e6 * server_s})
                    note(**{f"{name} client us": 1e6 * outcome.cpu_s / outcome.answers})
            note(kserve=many(kserve, ways["v1"], options.clients, options.seconds)[0].rate)


def detection(version: Path, options: argparse.Namespace, jpeg: bytes, note: Callable[..., None]) -> None:
    encoded = np.array([jpeg], object)
    inside = InProcess(version, "image_bytes")
    content = request("detector", "inputs", encoded, "image_bytes")
    with ours("detector", version.parent) as server:
        for _ in range(options.rounds):
            note(detect_inside_ms=inside.p50_ms(2 * options.seconds, inputs=encoded))
            note(detect_ms=one_by_grpc(server.ports[2], content, 2 * options.seconds))


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
