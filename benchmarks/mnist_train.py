"""MNIST training: `mlcore mnist-train` against Keras 3 `model.fit`.

    python benchmarks/mnist_train.py --data-dir=DIR [--rounds=3] [--epochs=10]

Both train the same network (784-256-64-10, ReLU) with the same optimiser (Adam 0.001, constant), batch (128), split
(55,000 + 5,000), shuffle each epoch and accuracy, validate after each epoch and export a SavedModel. They run in
turns, each as a process of its own. Printed are the medians of two things: examples a second in the epochs after the
first, and the time of the whole process from its start to the saved model.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BATCH = 128
RATE = 0.001
VALIDATION = 5000


def run_keras(data_dir: Path, epochs: int, output: Path) -> None:
    """The peer: what a user of Keras writes."""
    import keras

    from mlcore.data.mnist import load_mnist

    data = load_mnist(data_dir)
    pixels, labels = data.train.imgs.reshape(len(data.train), -1).astype("float32") / 255, data.train.labels
    model = keras.Sequential(
        [
            keras.Input((pixels.shape[1],)),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )

    class Clock(keras.callbacks.Callback):
        """The time and CPU time of each epoch, without its validation."""

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter(), time.process_time()

        def on_test_begin(self, logs=None):
            times.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))

    times: list[tuple[float, float]] = []
    split = len(pixels) - VALIDATION
    history = model.fit(
        pixels[:split], labels[:split], batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[Clock()],
        validation_data=(pixels[split:], labels[split:]), validation_batch_size=1000,
    )  # fmt: skip
    model.export(output / "1", verbose=False)
    report(split, times, history.history["val_accuracy"][-1])


def run_ours(data_dir: Path, epochs: int, output: Path) -> None:
    """The step itself; its training calls are timed as they are made."""
    from mlcore.mnist import learner
    from mlcore.mnist.train import mnist_train

    calls: list[tuple[int, float, float]] = []
    make = learner.steps_in_graph

    def timed(*arguments):
        run = make(*arguments)

        def run_steps(first: int, steps: int):
            began = time.perf_counter(), time.process_time()
            sums = run(first, steps)
            calls.append((first, time.perf_counter() - began[0], time.process_time() - began[1]))
            return sums

        return run_steps

    learner.steps_in_graph = timed
    result = mnist_train(
        data_dir=data_dir, model_dir=output / "model", export_dir=output / "export", epochs=epochs, batch_size=BATCH,
        learning_rate=RATE, learning_rate_schedule="constant", validation_size=VALIDATION,
    )  # fmt: skip
    per_epoch = result.steps // epochs
    times = [(0.0, 0.0)] * epochs
    for first, wall, cpu in calls:
        before = times[first // per_epoch]
        times[first // per_epoch] = before[0] + wall, before[1] + cpu
    report(60000 - VALIDATION, times, result.accuracy)


def report(examples: int, times: list[tuple[float, float]], accuracy: float) -> None:
    """One line of JSON on stdout. The first epoch has the tracing in it and does not count for the rate."""
    later = times[1:] or times
    rates = [examples / statistics.median(values) for values in zip(*later, strict=True)]
    print(json.dumps({"rate": rates[0], "rate_cpu": rates[1], "accuracy": accuracy}), flush=True)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f"--run={name}", f"--data-dir={arguments.data_dir}", f"--output={folder}"]
        used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [*command, f"--epochs={arguments.epochs}"], capture_output=True, text=True, check=False,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the four IDX files, or the arrays")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", choices=["ours", "keras"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    runs: dict[str, Callable[[Path, int, Path], None]] = {"ours": run_ours, "keras": run_keras}
    if arguments.run:
        runs[arguments.run](arguments.data_dir, arguments.epochs, arguments.output)
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(arguments.rounds):
        for name, measured in results.items():
            measured.append(measure(name, arguments))
            values = "  ".join(f"{key} {value:,.4g}" for key, value in measured[-1].items())
            print(f"round {number + 1}  {name:5}  {values}", flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in results.items()
    }
    ours, keras = medians["ours"], medians["keras"]
    print(f"{'':28}{'mlcore':>12}{'Keras 3':>12}{'ratio':>8}")
    for title, key, better_is_more in (
        ("examples/s, steady", "rate", True),
        ("examples/s of CPU, steady", "rate_cpu", True),
        ("whole process, s", "wall", False),
        ("whole process, s of CPU", "cpu", False),
        ("validation accuracy", "accuracy", True),
    ):
        ratio = ours[key] / keras[key] if better_is_more else keras[key] / ours[key]
        print(f"{title:28}{ours[key]:12,.4g}{keras[key]:12,.4g}{ratio:8.2f}")


if __name__ == "__main__":
    main()
