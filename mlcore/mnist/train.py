"""The step `mnist-train`: from arrays to a checkpointed, evaluated and exported classifier."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mlcore.cluster.config import cluster_from_environment
from mlcore.cluster.status import goal_of
from mlcore.cluster.strategy import choose_strategy
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.mnist import load_mnist
from mlcore.mnist.run import Training
from mlcore.runtime.errors import RestartError, UsageError
from mlcore.runtime.parameters import Environment, Range, step


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
    strategy: Literal["auto", "one_device", "multi_worker_mirrored", "parameter_server"] = "auto",
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
    parameter servers, or, where there are none, all train in step, each on its part of the batch; all end when the
    chief (else worker 0) has. A member that should be started again ends with 138. The model directory is the same as
    on one machine; a run can go on in any of them.

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
            in any case (the chief's, in a cluster); parameter_server: the workers of a cluster, each on batches of its
            own; multi_worker_mirrored: all of its workers in step, each on its part of a batch.
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
    on = choose_strategy(cluster, strategy)
    timeouts = Timeouts(**{field.name: given[field.name] for field in dataclasses.fields(Timeouts)})
    goal = ""
    if cluster is not None:
        goal = goal_of(cluster, **{name: value for name, value in given.items() if not name.endswith("_s")})
    follows = cluster is not None and not cluster.is_chief and cluster.role in ("chief", "worker")
    trains_in_step = follows and on == "multi_worker_mirrored"
    if cluster is not None and ((follows and not trains_in_step) or cluster.role == "ps"):
        from mlcore.cluster.server import serve

        serve(cluster, model_dir, goal=goal, timeouts=timeouts, threads_an_operation=1)
        return None
    data = load_mnist(data_dir)
    if validation_size >= len(data.train):
        raise UsageError(
            f"--validation-size={validation_size}: expected less than the {len(data.train)} training examples"
        )
    batch_size = min(batch_size, len(data.train) - validation_size)
    per_epoch = -(-(len(data.train) - validation_size) // batch_size)
    total = epochs * per_epoch if steps is None else steps
    training = Training(
        model_dir=model_dir,
        export_dir=export_dir,
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
        checkpoint_interval_s=checkpoint_interval_s,
        keep=keep_checkpoints,
    )
    if cluster is None:
        with training.alone():
            return _result(training.begin(overwrite=overwrite) or training.run())
    if trains_in_step:
        from mlcore.cluster.team import follow

        with follow(cluster, model_dir, goal=goal, timeouts=timeouts) as follower:
            training.follow(follower)
        return None
    if cluster.role == "evaluator":
        from mlcore.mnist.cluster import evaluate_run

        evaluate_run(
            cluster, model_dir, data, make_learner=training.make_learner, validation_size=validation_size, goal=goal,
            timeouts=timeouts,
        )  # fmt: skip
        return None
    from mlcore.cluster.chief import lead

    with lead(cluster, model_dir, goal=goal, timeouts=timeouts) as chief, training.alone(RestartError):
        results = training.begin(overwrite=overwrite)
        chief.begin()
        if results is None:
            if on == "parameter_server":
                training.run_on_workers(chief)
            elif on == "multi_worker_mirrored":
                training.run_in_team(chief)
            results = training.run()
            chief.wait_for_evaluation(total)
        return _result(results)


def _result(results: dict[str, Any]) -> MnistTrainResult:
    model = results.get("model")
    return MnistTrainResult(**{**results, "model": None if model is None else Path(model)})
