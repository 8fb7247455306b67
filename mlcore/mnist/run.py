"""A training of MNIST in its model directory: alone, on the workers of a cluster, or in step with others."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data.mnist import MnistData
from mlcore.runtime.alone import alone_in
from mlcore.runtime.cores import usable_cores
from mlcore.runtime.errors import DataError, MlcoreError, TransientError, UsageError
from mlcore.runtime.outputs import SUCCESS, OutputDirectory, atomic_file, read_success, refuse_foreign
from mlcore.runtime.signals import stop_flag

if TYPE_CHECKING:
    from mlcore.cluster.chief import Chief
    from mlcore.cluster.team import Follower, Team
    from mlcore.mnist.batches import Batches
    from mlcore.mnist.checkpoints import Checkpoints
    from mlcore.mnist.curves import Point
    from mlcore.mnist.learner import Learner
    from mlcore.mnist.loop import Plan
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
    REPORT,
    CONFUSION_CSV,
    CONFUSION_PNG,
    SUCCESS,
    RUN,  # the last to go: what is left of a training that was being removed is known by it
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training in its model directory.

    Attributes:
        model_dir: Where checkpoints, curves and the report are.
        export_dir: Where the exported versions are; None: nothing is exported.
        parameters: All that change its numbers, but for its length.
        data: The examples.
        total: Steps in all.
        per_epoch: Steps an epoch.
        checkpoint_interval_s: Least time between two checkpoints.
        keep: How many checkpoints stay.
    """

    model_dir: Path
    export_dir: Path | None
    parameters: dict[str, Any]
    data: MnistData
    total: int
    per_epoch: int
    checkpoint_interval_s: float
    keep: int

    @contextlib.contextmanager
    def alone(self, error: type[MlcoreError] = TransientError) -> Iterator[None]:
        """Make the model directory, in which no other training may be at work meanwhile.

        Raises:
            UsageError: It cannot be made, or holds the result of another step.
            MlcoreError: Another training is at work in it; of the class `error`.
        """
        refuse_foreign(self.model_dir, STEP, "--model-dir")
        try:
            self.model_dir.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"--model-dir={self.model_dir}: cannot be written ({problem.strerror})") from problem
        with alone_in(self.model_dir, error):
            yield

    def begin(self, *, overwrite: bool) -> dict[str, Any] | None:
        """Make the model directory, or find this training in it; its results where it has nothing left to do."""
        identity = {"parameters": self.parameters, "data": self.data.version}
        before = self._recorded(overwrite)
        if before is not None and before != identity:
            if self._steps_saved() and not overwrite:
                raise DataError(
                    f"{self.model_dir}: holds a training with {_difference(before, identity)}; "
                    "name another --model-dir or pass --overwrite=true"
                )
            before = None
        elif before is not None and overwrite and self._steps_saved() > self.total:
            before = None
        if before is None:
            self._clear()
            with atomic_file(self.model_dir / RUN) as temporary:
                temporary.write_text(json.dumps(identity, indent=1) + "\n")
            return None
        record = read_success(self.model_dir)
        if record is None or record["results"]["steps"] != self.total:
            return None
        results: dict[str, Any] = record["results"]
        wanted = None if self.export_dir is None else self.export_dir.resolve()
        model = results.get("model")
        there = None if model is None or not Path(model).is_dir() else Path(model).resolve().parent
        if wanted is not None and there != wanted:
            return None
        log.info("%s is up to date", self.model_dir)
        return results

    def run(self) -> dict[str, Any]:
        """Train to the end, evaluate, export, and write what came of it; the results."""
        from mlcore.mnist.tensorflow import use_cores

        cores = usable_cores()
        use_cores(cores)

        from mlcore.mnist.checkpoints import Checkpoints
        from mlcore.mnist.learner import parts_for, steps_in_graph

        learner = self.make_learner(parts_for(self.parameters["batch_size"], cores))
        checkpoints = Checkpoints(learner, self.model_dir, self.keep)
        points, evaluate = self._fit(learner, checkpoints, steps_in_graph(learner, self._batches()))
        return self._finish(learner.network, points, evaluate)

    def run_on_workers(self, chief: "Chief") -> None:
        """Train to the end on the workers of a cluster, and save; the rest is done as on one machine."""
        if self._steps_saved() >= self.total:
            return
        from mlcore.mnist.cluster import ClusterCheckpoints, steps_on_workers

        coordinator = chief.connect()
        with coordinator.strategy.scope():
            learner = self.make_learner()
        checkpoints = ClusterCheckpoints(learner, self.model_dir, self.keep)
        run = steps_on_workers(coordinator, learner, self._batches())
        self._fit(learner, checkpoints, run, at_once=len(coordinator.workers))
        log.info("steps by worker: %s", dict(coordinator.steps_by_worker))
        chief.disconnect()

    def run_in_team(self, chief: "Chief") -> None:
        """Train to the end in step with the others, and save; the rest is done as on one machine."""
        if self._steps_saved() >= self.total:
            return
        from mlcore.mnist.tensorflow import use_cores

        use_cores(usable_cores())

        from mlcore.mnist.checkpoints import Checkpoints
        from mlcore.mnist.cluster import steps_in_team

        team = chief.gather()
        learner = self._learner_of(team)
        checkpoints = Checkpoints(learner, self.model_dir, self.keep)
        self._fit(learner, checkpoints, steps_in_team(team, learner, self._batches()), team=team)
        chief.disconnect()

    def follow(self, follower: "Follower") -> None:
        """The part of a member that trains in step with the chief: the same steps, but it writes nothing."""
        from mlcore.mnist.tensorflow import use_cores

        use_cores(usable_cores())

        from mlcore.mnist.checkpoints import Checkpoints
        from mlcore.mnist.cluster import steps_in_team
        from mlcore.mnist.loop import rounds

        if (team := follower.join()) is None:
            return
        learner = self._learner_of(team)
        step = self._restore(Checkpoints(learner, self.model_dir), team)
        run = steps_in_team(team, learner, self._batches())
        with stop_flag() as stop:
            for news in rounds(learner, run, first=step, plan=self._plan(), stop=stop, agree=team.agree):
                step = news.step
            if step < self.total:
                raise stop.error()

    def make_learner(self, parts: int = 1, share: tuple[int, int] = (0, 1)) -> "Learner":
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
            share=share,
        )

    def _learner_of(self, team: "Team") -> "Learner":
        from mlcore.mnist.learner import parts_for

        with team.strategy.scope():
            parts = parts_for(self.parameters["batch_size"] // team.size, usable_cores())
            return self.make_learner(parts, share=(team.index, team.size))

    def _batches(self) -> "Batches":
        from mlcore.mnist.batches import Batches

        return Batches(self.data.train[: self._split], self.parameters["batch_size"], self.parameters["seed"])

    @property
    def _split(self) -> int:
        """Number of the training examples; those behind them are for validation."""
        return len(self.data.train) - int(self.parameters["validation_size"])

    def _plan(self, at_once: int = 1) -> "Plan":
        from mlcore.mnist.loop import Plan

        return Plan(self.total, self.per_epoch, _STEPS_A_POINT * at_once, self.checkpoint_interval_s)

    def _restore(self, checkpoints: "Checkpoints", team: "Team | None" = None) -> int:
        """Restore the newest checkpoint, the same one everywhere; its step."""
        first = checkpoints.restore()
        if team is not None:
            team.check_same("step", first)
        if first > self.total:
            raise UsageError(
                f"--steps={self.total}: {self.model_dir} has a checkpoint of step {first}; expected at least as many, "
                "or --overwrite=true to begin anew"
            )
        return first

    def _fit(
        self, learner: "Learner", checkpoints: "Checkpoints", run: Any, *, at_once: int = 1, team: "Team | None" = None
    ) -> "tuple[list[Point], Callable[[], Any]]":
        """Train to the end; the curves, and what evaluates on the validation part."""
        from mlcore.mnist.curves import Curves
        from mlcore.mnist.learner import evaluator
        from mlcore.mnist.loop import fit

        (self.model_dir / SUCCESS).unlink(missing_ok=True)
        first = self._restore(checkpoints, team)
        evaluate = evaluator(learner.network, self.data.train[self._split :])
        with Curves(self.model_dir, first) as curves:
            fit(
                learner,
                run,
                evaluate,
                first=first,
                plan=self._plan(at_once),
                checkpoints=checkpoints,
                curves=curves,
                batch_size=self.parameters["batch_size"],
                agree=bool if team is None else team.agree,
            )
        return curves.points, evaluate

    def _finish(self, network: "Network", points: "list[Point]", evaluate: Callable[[], Any]) -> dict[str, Any]:
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
        if self.export_dir is not None:
            from mlcore.mnist.export import publish

            version, model = publish(
                network,
                self.export_dir,
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
        return results

    def _recorded(self, overwrite: bool) -> dict[str, Any] | None:
        path = self.model_dir / RUN
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            record, problem = None, str(error)
        else:
            problem = "expected an object"
        if isinstance(record, dict):
            return record
        if overwrite:
            return {}  # different from every training
        raise DataError(f"{path}: cannot be read as JSON ({problem}); pass --overwrite=true to begin anew")

    def _steps_saved(self) -> int:
        numbers = [path.stem.rpartition("-")[2] for path in self.model_dir.glob("ckpt-*.index")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _clear(self) -> None:
        """An empty model directory: nothing of an earlier training in it. Files of others stay.

        Raises:
            DataError: What looks like a training's is there, without the file that tells of one.
        """
        try:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            old = [path for pattern in _OWN for path in self.model_dir.glob(pattern)]
            if old and not (self.model_dir / RUN).exists():
                raise DataError(
                    f"{self.model_dir}: holds {old[0].name}, but no {RUN} that tells of which training; name another "
                    "--model-dir, or delete it yourself"
                )
            for path in old:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"--model-dir={self.model_dir}: cannot be written ({error.strerror})") from error


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two trainings differ, in words."""
    old, new = before.get("parameters", {}), now["parameters"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            return f"--{name.replace('_', '-')} {old.get(name)}, now {new.get(name)}"
    return f"other data ({before.get('data')}, now {now['data']})"
