"""A small training program on `mlcore.cluster`: linear regression, the same command line for every member."""

import argparse
import faulthandler
import logging
import signal
import sys
from pathlib import Path

from mlcore.cluster.chief import lead
from mlcore.cluster.config import Cluster, cluster_from_environment
from mlcore.cluster.evaluation import evaluate_continuously
from mlcore.cluster.saving import trace_saving
from mlcore.cluster.server import serve
from mlcore.cluster.status import goal_of
from mlcore.cluster.tensorflow import import_tensorflow
from mlcore.cluster.timeouts import Timeouts
from mlcore.runtime import logs
from mlcore.runtime.errors import MlcoreError, Stopped
from mlcore.runtime.signals import raise_on_stop, stop_flag

log = logging.getLogger("mlcore.program")
SIZE = 256


def newest(model_dir: Path) -> int | None:
    steps = [int(path.stem.split("-")[1]) for path in model_dir.glob("ckpt-*.index")]
    return max(steps, default=None)


def dataset(tf, context, generation):
    seed = tf.stack([context.input_pipeline_id, generation])
    true = tf.range(SIZE, dtype=tf.float32) / SIZE

    def example(number):
        x = tf.random.stateless_normal([32, SIZE], seed + number)
        return x, tf.linalg.matvec(x, true)

    return tf.data.Dataset.counter().map(lambda number: example(tf.cast(number, tf.int64)))


def timeouts_of(options: argparse.Namespace) -> Timeouts:
    return Timeouts(
        start_timeout_s=options.start,
        chief_timeout_s=options.gone,
        stall_timeout_s=options.stall,
        evaluation_timeout_s=60,
    )


def train(cluster: Cluster, options: argparse.Namespace, goal: str) -> None:
    with (
        stop_flag() as stop,
        lead(cluster, options.model_dir, goal=goal, stop=stop, timeouts=timeouts_of(options)) as chief,
    ):
        chief.begin()
        coordinator = chief.connect()
        tf = import_tensorflow()
        with coordinator.strategy.scope():
            weights = tf.Variable(tf.zeros([SIZE]), name="weights")
            step = tf.Variable(0, dtype=tf.int64, name="step", trainable=False)
        checkpoint = tf.train.Checkpoint(weights=weights, step=step)
        trace_saving(checkpoint)
        if (last := newest(options.model_dir)) is not None:
            checkpoint.read(str(options.model_dir / f"ckpt-{last}")).assert_consumed()
            log.info("resumed at step %d", step.numpy())

        def save() -> None:
            checkpoint.write(str(options.model_dir / f"ckpt-{step.numpy()}"))
            log.info("saved step %d", step.numpy())

        @tf.function
        def steps(iterator, first, count):
            loss = tf.constant(0.0)
            for _ in tf.range(count):
                x, y = next(iterator)
                for _ in tf.range(options.work):
                    x = x + 1e-20 * tf.matmul(x, tf.random.normal([SIZE, SIZE]))
                error = tf.linalg.matvec(x, weights) - y
                loss = tf.reduce_mean(error**2)
                weights.assign_sub(0.05 * tf.linalg.matvec(x, error, transpose_a=True) / 32)
                step.assign_add(1)
            return loss

        iterator = coordinator.per_worker_iterator(lambda context, generation: dataset(tf, context, generation))
        losses = []
        while step.numpy() < options.steps:
            due = min(options.checkpoint_every, options.steps - int(step.numpy()))
            coordinator.run(
                steps, [iterator], due, steps_per_closure=5, stop=stop, on_result=lambda _, loss: losses.append(loss)
            )
            save()
            log.info("step %d loss %.4f shares %s", step.numpy(), losses[-1], dict(coordinator.steps_by_worker))
            if stop.is_set():
                raise stop.error()
        chief.disconnect()
        chief.wait_for_evaluation(int(step.numpy()))
        print(f"loss={losses[-1]:.6f} step={step.numpy()}", flush=True)


def evaluate(cluster: Cluster, options: argparse.Namespace, goal: str) -> None:
    def one(step: int) -> dict[str, float]:
        tf = import_tensorflow()
        try:
            weights = tf.train.load_variable(
                str(options.model_dir / f"ckpt-{step}"), "weights/.ATTRIBUTES/VARIABLE_VALUE"
            )
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError from error
        log.info("evaluated step %d", step)
        return {"error": float(abs(weights - [number / SIZE for number in range(SIZE)]).max())}

    with stop_flag() as stop:
        evaluate_continuously(
            cluster, options.model_dir, goal=goal, newest=lambda: newest(options.model_dir), evaluate=one, stop=stop,
            timeouts=timeouts_of(options),
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--work", type=int, default=20)
    parser.add_argument("--stall", type=float, default=4)
    parser.add_argument("--gone", type=float, default=15)
    parser.add_argument("--start", type=float, default=120)
    options = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)  # where a process hangs
    logs.configure()
    raise_on_stop()
    try:
        cluster = cluster_from_environment()
        assert cluster is not None
        goal = goal_of(cluster, steps=options.steps)
        if cluster.role in ("worker", "ps"):
            serve(cluster, options.model_dir, goal=goal, timeouts=timeouts_of(options))
        elif cluster.role == "evaluator":
            evaluate(cluster, options, goal)
        else:
            train(cluster, options, goal)
    except MlcoreError as error:
        log.error("%s", error)
        return error.exit_code
    except Stopped as stopped:
        log.error("stopped by %s", stopped)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
