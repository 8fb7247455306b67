"""MNIST on a cluster with parameter servers: `mlcore mnist-train` against tf_keras `model.fit`.

    python benchmarks/cluster_mnist.py --data-dir=DIR [--rounds=3] [--epochs=4]

Both train the same network (784-256-64-10, ReLU) with Adam 0.001 on batches of 128, shuffled, with accuracy, under
ParameterServerStrategy on the same kind of cluster: a chief, two workers and a parameter server, all processes of this
machine. The servers of the peer are as TensorFlow makes them; those of the step run each operation on one thread, which
helps the peer, too (--peer-threads=1). They run in turns. Printed are the medians of the examples a second in the
epochs after the first, without validation, and of the accuracy on the 5,000 validation examples.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

BATCH = 128
RATE = 0.001
VALIDATION = 5000
WORKERS = 2


def run_server(model_dir: Path, threads: int) -> None:
    """A worker or parameter server of the peer."""
    from mlcore.cluster.config import cluster_from_environment
    from mlcore.cluster.server import serve
    from mlcore.cluster.timeouts import Timeouts

    cluster = cluster_from_environment()
    assert cluster is not None
    serve(cluster, model_dir, goal="", timeouts=Timeouts(), threads_an_operation=threads)


def run_keras(data_dir: Path, epochs: int, model_dir: Path) -> None:
    """The peer: what the Keras guide to parameter servers writes."""
    import tf_keras

    from mlcore.cluster.config import cluster_from_environment
    from mlcore.cluster.strategy import parameter_server_strategy
    from mlcore.cluster.tensorflow import import_tensorflow
    from mlcore.data.mnist import load_mnist

    tf = import_tensorflow()
    cluster = cluster_from_environment()
    assert cluster is not None
    strategy = parameter_server_strategy(cluster)
    data = load_mnist(data_dir)
    pixels, labels = data.train.imgs.reshape(len(data.train), -1).astype("float32") / 255, data.train.labels
    split = len(pixels) - VALIDATION

    def dataset_fn(_context: object) -> object:
        dataset = tf.data.Dataset.from_tensor_slices((pixels[:split], labels[:split].astype("int64")))
        return dataset.shuffle(split).batch(BATCH).repeat().prefetch(2)

    with strategy.scope():
        model = tf_keras.Sequential(
            [
                tf_keras.layers.Dense(256, "relu", input_shape=(pixels.shape[1],)),
                tf_keras.layers.Dense(64, "relu"),
                tf_keras.layers.Dense(10),
            ]
        )
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.Adam(RATE), loss, metrics=["accuracy"])

    class Clock(tf_keras.callbacks.Callback):
        """The time of each epoch."""

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            times.append(time.perf_counter() - self.began)

    times: list[float] = []
    creator = tf_keras.utils.experimental.DatasetCreator(dataset_fn)
    model.fit(creator, epochs=epochs, steps_per_epoch=-(-split // BATCH), verbose=0, callbacks=[Clock()])
    hidden = pixels[split:]
    weights = [variable.numpy() for variable in model.trainable_variables]
    for layer in range(0, len(weights), 2):
        hidden = hidden @ weights[layer] + weights[layer + 1]
        hidden = hidden.clip(0) if layer + 2 < len(weights) else hidden
    report(split, times, float((hidden.argmax(1) == labels[split:]).mean()))


def run_ours(data_dir: Path, epochs: int, model_dir: Path) -> None:
    """The step itself; its training calls are timed as they are made."""
    from mlcore.mnist import cluster
    from mlcore.mnist.train import mnist_train

    calls: list[tuple[int, float]] = []
    make = cluster.steps_on_workers

    def timed(*arguments):
        run = make(*arguments)

        def run_steps(first: int, steps: int):
            began = time.perf_counter()
            sums = run(first, steps)
            calls.append((first, time.perf_counter() - began))
            return sums

        return run_steps

    cluster.steps_on_workers = timed
    result = mnist_train(
        data_dir=data_dir, model_dir=model_dir, epochs=epochs, batch_size=BATCH, learning_rate=RATE,
        learning_rate_schedule="constant", validation_size=VALIDATION,
    )  # fmt: skip
    if result is None:  # a worker or parameter server
        return
    times = [0.0] * epochs
    for first, seconds in calls:
        times[first * epochs // result.steps] += seconds
    report(60000 - VALIDATION, times, result.accuracy)


def report(examples: int, times: list[float], accuracy: float) -> None:
    """One line of JSON on stdout. The first epoch has the tracing in it and does not count."""
    print(json.dumps({"rate": examples / statistics.median(times[1:] or times), "accuracy": accuracy}), flush=True)


def free_address() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One training on a cluster of its own."""
    roles = {"chief": 1, "worker": WORKERS, "ps": 1}
    spec = {role: [free_address() for _ in range(count)] for role, count in roles.items()}
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        for role, addresses in reversed(spec.items()):
            for index in range(len(addresses)):
                run = "server" if name == "keras" and role != "chief" else name
                command = [sys.executable, __file__, f"--run={run}", f"--data-dir={arguments.data_dir}"]
                command += [f"--peer-threads={arguments.peer_threads}"]
                config = json.dumps({"cluster": spec, "task": {"type": role, "index": index}})
                processes.append(
                    subprocess.Popen(
                        [*command, f"--epochs={arguments.epochs}", f"--model-dir={folder}"],
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                        env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"},
                    )
                )  # fmt: skip
        try:
            output = processes[-1].communicate()[0]
        finally:
            for process in processes[:-1]:
                process.kill()
                process.wait()
    if processes[-1].returncode:
        raise SystemExit(f"{name}: the chief ended with {processes[-1].returncode}")
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the four IDX files, or the arrays")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-threads", type=int, default=0, help="that an operation of its servers may use; 0: all")
    parser.add_argument("--run", choices=["ours", "keras", "server"], help=argparse.SUPPRESS)
    parser.add_argument("--model-dir", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run == "server":
        run_server(arguments.model_dir, arguments.peer_threads)
    elif arguments.run:
        run = run_ours if arguments.run == "ours" else run_keras
        run(arguments.data_dir, arguments.epochs, arguments.model_dir)
    if arguments.run:
        return
    results: dict[str, list[dict[str, float]]] = {"ours": [], "keras": []}
    for number in range(arguments.rounds):
        for name, measured in results.items():
            measured.append(measure(name, arguments))
            values = "  ".join(f"{key} {value:,.4g}" for key, value in measured[-1].items())
            print(f"round {number + 1}  {name:5}  {values}", flush=True)
    ours, keras = (
        {key: statistics.median(run[key] for run in measured) for key in measured[0]} for measured in results.values()
    )
    print(f"{'':28}{'mlcore':>12}{'tf_keras':>12}{'ratio':>8}")
    for title, key in (("examples/s, steady", "rate"), ("validation accuracy", "accuracy")):
        print(f"{title:28}{ours[key]:12,.4g}{keras[key]:12,.4g}{ours[key] / keras[key]:8.2f}")


if __name__ == "__main__":
    main()
