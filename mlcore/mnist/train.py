"""The step `mnist-train`: from arrays to a checkpointed, evaluated and exported classifier."""

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mlcore.cluster.config import cluster_from_environment
from mlcore.cluster.status import goal_of
from mlcore.cluster.strategy import choose_strategy, no_parameter_servers
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.mnist import MnistData, load_mnist
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import SUCCESS, OutputDirectory, atomic_file, read_success
from mlcore.runtime.parameters import Environment, Range, step

if TYPE_CHECKING:
    from mlcore.cluster.chief import Chief
    from mlcore.mnist.curves import Point
    from mlcore.mnist.learner import Learner
    from mlcore.mnist.network import Network

log = logging.getLogger(__name__)

STEP = "mnist-train"
RUN = "run.json"
REPORT, CONFUSION_CSV, CONFUSION_PNG = "report.html", "confusion.csv", "confusion.png"
_STEPS_A_POINT = 100  # training steps in one call into the graph, and between two points of the training curve
_SAMPLES = 100  # images on which the exported model is compared with the trained one
_OWN = (
    "ckpt-*",
    "checkpoint",
    "train",
    "validation",
    "history.csv",
    RUN,
    REPORT,
    CONFUSION_CSV,
    CONFUSION_PNG,
    SUCCESS,
)


@dataclass(frozen=True)
class MnistTrainResult:
    """What a training reached.

    Attributes:
        accuracy: On the validation part: what a search for parameters should look at.
        loss: On the validation part.
        test_accuracy: On the test part.
        steps: Training steps in all.
        version: Number of the exported version; none without --export-dir.
        model: Directory of that version.
    """

    accuracy: float
    loss: float
    test_accuracy: float
    steps: int
    version: int | None = None
    model: Path | None = None


@step
def mnist_train(
    *,
    data_dir: Annotated[Path, Environment(("MNIST_DATA_DIR",))],
    model_dir: Path | None = None,
    export_dir: Annotated[Path | None, Environment(("MNIST_MODELS_DIR",))] = None,
    epochs: Annotated[int, Range(min=1)] = 10,
    steps: Annotated[int, Range(min=1)] | None = None,
    batch_size: Annotated[int, Range(min=1)] = 128,
    learning_rate: Annotated[float, Range(min=1e-9)] = 0.001,
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine",
    optimizer: Literal["adam", "sgd", "momentum", "rmsprop", "adagrad"] = "adam",
    hidden: tuple[int, ...] = (256, 64),
    dropout: Annotated[float, Range(min=0, max=0.95)] = 0.0,
    validation_size: Annotated[int, Range(min=1)] = 5000,
    seed: Annotated[int, Range(min=0, max=2**31 - 1)] = 1,
    checkpoint_interval_s: Annotated[float, Range(min=0)] = 30,
    keep_checkpoints: Annotated[int, Range(min=1)] = 3,
    overwrite: bool = False,
    strategy: Literal["auto", "one_device", "parameter_server"] = "auto",
    start_timeout_s: Annotated[float, Range(min=0)] = 600,
    chief_timeout_s: Annotated[float, Range(min=0)] = 120,
    stall_timeout_s: Annotated[float, Range(min=1)] = 30,
    evaluation_timeout_s: Annotated[float, Range(min=0)] = 60,
) -> MnistTrainResult | None:
    """Train a dense network on MNIST, evaluate it and export it as the next version.

    Begun again after it was stopped or killed, it goes on from its last checkpoint and ends with the same numbers; with
    more epochs or steps it trains further; when there is nothing left to do it says so. The model directory also gets
    report.html, the confusion matrix of the test examples (CSV and picture), history.csv and TensorBoard events.

    With TF_CONFIG in the environment (a TFJob) it is a member of a cluster: the chief trains on the workers through the
    parameter servers, and all end when it has. A member that should be started again ends with 138. The model directory
    is the same as on one machine; a run can go on in either.

    Args:
        data_dir: Directory of the four IDX files, or of the arrays of mlcore mnist-download.
        model_dir: Directory for checkpoints, curves and the report; default: training/ in --export-dir.
        export_dir: Directory of the exported versions, as TensorFlow Serving reads it; not given: nothing is exported.
        epochs: Passes over the training examples.
        steps: Training steps in all, instead of --epochs.
        batch_size: Examples a step; the last batch of an epoch may be smaller.
        learning_rate: At the first step.
        learning_rate_schedule: cosine lets the rate fall along half a cosine to 0 at the last step, which ends at a
            better accuracy; constant keeps it.
        optimizer: Algorithm that changes the weights (momentum: SGD with momentum 0.9).
        hidden: Units of a hidden layer; once for each layer, the first at the image.
        dropout: Share of the units of each hidden layer that a step leaves out.
        validation_size: Examples at the end of the training part that are kept for validation.
        seed: Of first weights, order and dropout. The same seed gives the same numbers on the same machine.
        checkpoint_interval_s: Least time between two checkpoints, in seconds; 0: as often as can be.
        keep_checkpoints: How many checkpoints stay.
        overwrite: Begin anew where the model directory holds a training with other parameters or data.
        strategy: auto: the workers of the cluster that TF_CONFIG describes, or this machine; one_device: this machine
            in any case; parameter_server: the workers of a cluster.
        start_timeout_s: In a cluster: seconds to wait for the other members to come up.
        chief_timeout_s: In a cluster: seconds for which the chief may be gone before the others end with 138.
        stall_timeout_s: In a cluster: seconds without an answer after which a worker is left out.
        evaluation_timeout_s: In a cluster: seconds to wait for the evaluator's last evaluation.

    Returns:
        What was reached, and the exported version; nothing for members of a cluster that are not its chief.

    Raises:
        UsageError: A wrong parameter, or the loss grew beyond all numbers.
        DataError: The data or every checkpoint is damaged, or the model directory belongs to another training.
        RestartError: A member of a cluster should be started again.
        Stopped: SIGTERM or Ctrl-C; the state was saved.
    """
    given = locals()
    if model_dir is None:
        if export_dir is None:
            raise UsageError("--model-dir or --export-dir must be given")
        model_dir = export_dir / "training"
    if any(units < 1 for units in hidden) or not hidden:
        raise UsageError(f"--hidden={','.join(map(str, hidden))}: expected at least one layer of at least 1 unit")
    cluster = cluster_from_environment()
    chosen = choose_strategy(cluster, strategy)
    if cluster is not None and chosen == "multi_worker_mirrored":
        raise no_parameter_servers(cluster)
    on_workers = chosen == "parameter_server"
    timeouts = Timeouts(**{field.name: given[field.name] for field in dataclasses.fields(Timeouts)})
    goal = ""
    if cluster is not None:
        goal = goal_of(cluster, **{name: value for name, value in given.items() if not name.endswith("_s")})
        if cluster.role in ("worker", "ps") and not cluster.is_chief:
            from mlcore.cluster.server import serve

            serve(cluster, model_dir, goal=goal, timeouts=timeouts)
            return None
    data = load_mnist(data_dir)
    if validation_size >= len(data.train):
        raise UsageError(
            f"--validation-size={validation_size}: expected less than the {len(data.train)} training examples"
        )
    batch_size = min(batch_size, len(data.train) - validation_size)
    per_epoch = -(-(len(data.train) - validation_size) // batch_size)
    total = epochs * per_epoch if steps is None else steps
    training = _Training(
        model_dir=model_dir,
        parameters={
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "learning_rate_schedule": learning_rate_schedule,
            "optimizer": optimizer,
            "hidden": list(hidden),
            "dropout": dropout,
            "validation_size": validation_size,
            "seed": seed,
        },
        data=data,
        total=total,
        per_epoch=per_epoch,
    )
    if cluster is None:
        done = training.begin(export_dir, overwrite=overwrite)
        return done or training.run(export_dir, checkpoint_interval_s=checkpoint_interval_s, keep=keep_checkpoints)
    if cluster.role == "evaluator":
        from mlcore.mnist.cluster import evaluate_run

        evaluate_run(
            cluster, model_dir, data, make_learner=training.make_learner, validation_size=validation_size, goal=goal,
            timeouts=timeouts,
        )  # fmt: skip
        return None
    from mlcore.cluster.chief import lead

    with lead(cluster, model_dir, goal=goal, timeouts=timeouts) as chief:
        done = training.begin(export_dir, overwrite=overwrite)
        chief.begin()
        if done is None and on_workers:
            training.run_on_workers(chief, checkpoint_interval_s=checkpoint_interval_s, keep=keep_checkpoints)
        return done or training.run(export_dir, checkpoint_interval_s=checkpoint_interval_s, keep=keep_checkpoints)


@dataclass(frozen=True)
class _Training:
    """A training in its model directory."""

    model_dir: Path
    parameters: dict[str, Any]  # all that change its numbers, but for its length
    data: MnistData
    total: int
    per_epoch: int

    def begin(self, export_dir: Path | None, *, overwrite: bool) -> MnistTrainResult | None:
        """Make the model directory, or find this training in it; its result where it has nothing left to do."""
        identity = {"parameters": self.parameters, "data": self.data.version}
        before = self._recorded()
        if before is not None and before != identity:
            if not overwrite:
                raise DataError(
                    f"{self.model_dir}: holds a training with {_difference(before, identity)}; "
                    "name another --model-dir or pass --overwrite=true"
                )
            before = None
        elif before is not None and overwrite and self._steps_saved() > self.total:
            before = None
        if before is None:
            self._clear(overwrite)
            with atomic_file(self.model_dir / RUN) as temporary:
                temporary.write_text(json.dumps(identity, indent=1) + "\n")
            return None
        record = read_success(self.model_dir)
        if record is None or record["results"]["steps"] != self.total:
            return None
        result = _result(record["results"])
        wanted = None if export_dir is None else export_dir.resolve()
        there = None if result.model is None or not result.model.is_dir() else result.model.resolve().parent
        if wanted is not None and there != wanted:
            return None
        log.info("%s is up to date", self.model_dir)
        return result

    def run(self, export_dir: Path | None, *, checkpoint_interval_s: float, keep: int) -> MnistTrainResult:
        """Train to the end, evaluate, export, and write what came of it."""
        from mlcore.mnist.tensorflow import use_cores

        cores = len(os.sched_getaffinity(0))
        use_cores(cores)

        from mlcore.mnist.batches import Batches
        from mlcore.mnist.checkpoints import Checkpoints
        from mlcore.mnist.curves import Curves
        from mlcore.mnist.learner import evaluator, parts_for, steps_in_graph
        from mlcore.mnist.loop import Plan, fit

        (self.model_dir / SUCCESS).unlink(missing_ok=True)
        values, data = self.parameters, self.data
        learner = self.make_learner(parts_for(values["batch_size"], cores))
        network = learner.network
        split = len(data.train) - values["validation_size"]
        batches = Batches(data.train[:split], values["batch_size"], values["seed"])
        checkpoints = Checkpoints(learner, self.model_dir, keep)
        first = checkpoints.restore()
        if first > self.total:
            raise UsageError(
                f"--steps={self.total}: {self.model_dir} has a checkpoint of step {first}; expected at least as many, "
                "or --overwrite=true to begin anew"
            )
        plan = Plan(self.total, self.per_epoch, _STEPS_A_POINT, checkpoint_interval_s)
        with Curves(self.model_dir, first) as curves:
            evaluate = evaluator(network, data.train[split:])
            fit(
                learner,
                steps_in_graph(learner, batches),
                evaluate,
                first=first,
                plan=plan,
                checkpoints=checkpoints,
                curves=curves,
                batch_size=values["batch_size"],
            )
            return self._finish(network, curves.points, evaluate, export_dir)

    def make_learner(self, parts: int = 1) -> "Learner":
        """The network and what trains it, as the parameters say."""
        from mlcore.mnist.learner import Learner
        from mlcore.mnist.network import Network

        values, imgs = self.parameters, self.data.train.imgs
        network = Network(
            (imgs.shape[1], imgs.shape[2]),
            values["hidden"],
            len(self.data.classes),
            dropout=values["dropout"],
            seed=values["seed"],
        )
        return Learner(
            network,
            values["optimizer"],
            learning_rate=values["learning_rate"],
            schedule=values["learning_rate_schedule"],
            total_steps=self.total,
            parts=parts,
        )

    def run_on_workers(self, chief: "Chief", *, checkpoint_interval_s: float, keep: int) -> None:
        """Train to the end on the workers of a cluster, and save; the rest is done as on one machine."""
        if self._steps_saved() >= self.total:
            return
        from mlcore.mnist.batches import Batches
        from mlcore.mnist.cluster import ClusterCheckpoints, steps_on_workers
        from mlcore.mnist.curves import Curves
        from mlcore.mnist.learner import evaluator
        from mlcore.mnist.loop import Plan, fit

        (self.model_dir / SUCCESS).unlink(missing_ok=True)
        values, data = self.parameters, self.data
        split = len(data.train) - values["validation_size"]
        coordinator = chief.connect()
        with coordinator.strategy.scope():
            learner = self.make_learner()
        checkpoints = ClusterCheckpoints(learner, self.model_dir, keep)
        first = checkpoints.restore()
        batches = Batches(data.train[:split], values["batch_size"], values["seed"])
        plan = Plan(self.total, self.per_epoch, _STEPS_A_POINT * len(coordinator.workers), checkpoint_interval_s)
        with Curves(self.model_dir, first) as curves:
            fit(
                learner,
                steps_on_workers(coordinator, learner, batches),
                evaluator(learner.network, data.train[split:]),
                first=first,
                plan=plan,
                checkpoints=checkpoints,
                curves=curves,
                batch_size=values["batch_size"],
            )
        log.info("steps by worker: %s", dict(coordinator.steps_by_worker))
        chief.disconnect()
        chief.wait_for_evaluation(self.total)

    def _finish(
        self, network: "Network", points: "list[Point]", evaluate: Any, export_dir: Path | None
    ) -> MnistTrainResult:
        from mlcore.mnist.learner import evaluator
        from mlcore.mnist.metrics import accuracy_of, write_confusion_csv, write_confusion_png
        from mlcore.mnist.pages import write_training_page

        data = self.data
        loss, confusion = evaluate()
        _, test_confusion = evaluator(network, data.t10k)()
        metrics: dict[str, float | int] = {
            "accuracy": accuracy_of(confusion),
            "loss": loss,
            "test_accuracy": accuracy_of(test_confusion),
            "steps": self.total,
        }
        results: dict[str, Any] = dict(metrics)
        if export_dir is not None:
            from mlcore.mnist.export import publish

            version, model = publish(
                network,
                export_dir,
                classes=data.classes,
                parameters=self.parameters,
                data_version=data.version,
                metrics=metrics,
                samples=data.t10k.imgs[:_SAMPLES],
            )
            results |= {"version": version, "model": str(model)}
        write_confusion_csv(self.model_dir / CONFUSION_CSV, test_confusion, data.classes)
        write_confusion_png(self.model_dir / CONFUSION_PNG, test_confusion, data.classes)
        write_training_page(
            self.model_dir / REPORT,
            points=points,
            confusion=test_confusion,
            classes=data.classes,
            facts={"validation accuracy": metrics["accuracy"], "steps": self.total, "version": results.get("version")},
            parameters={**self.parameters, "data": data.version},
        )
        output = OutputDirectory(
            self.model_dir, step=STEP, parameters=self.parameters, inputs={"data": data.version}, overwrite=True
        )
        output.results = results
        with atomic_file(self.model_dir / SUCCESS) as temporary:
            temporary.write_text(json.dumps(output.success_record(), indent=1, sort_keys=True) + "\n")
        return _result(results)

    def _recorded(self) -> dict[str, Any] | None:
        path = self.model_dir / RUN
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: expected a JSON object")
        return record

    def _steps_saved(self) -> int:
        numbers = [path.stem.rpartition("-")[2] for path in self.model_dir.glob("ckpt-*.index")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _clear(self, overwrite: bool) -> None:
        """An empty model directory: nothing of an earlier training in it. Files of others stay."""
        try:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            old = [path for pattern in _OWN for path in self.model_dir.glob(pattern)]
            if old and not overwrite:
                raise DataError(
                    f"{self.model_dir}: holds {old[0].name}, but no {RUN} that tells of which training; name another "
                    "--model-dir or pass --overwrite=true"
                )
            for path in old:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"--model-dir={self.model_dir}: cannot be written ({error.strerror})") from error


def _result(results: dict[str, Any]) -> MnistTrainResult:
    model = results.get("model")
    return MnistTrainResult(**{**results, "model": None if model is None else Path(model)})


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two trainings differ, in words."""
    old, new = before.get("parameters", {}), now["parameters"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            return f"--{name.replace('_', '-')} {old.get(name)}, now {new.get(name)}"
    return f"other data ({before.get('data')}, now {now['data']})"
