"""A training run on a cluster: what the chief, those who train in step with it, and the evaluator do.

The model directory, the loop, the trainer and what a step is are those of one machine, so that a run that began here
can go on there. What differs is the crew that takes the steps: workers with parameter servers (`cluster_runner`), or
all members in step, each on its part of the batch. An evaluator evaluates the checkpoints while training goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.cluster.chief import Chief, lead
from mlcore.cluster.config import Cluster, StrategyName
from mlcore.cluster.evaluation import Evaluation, evaluate_continuously, read_evaluation
from mlcore.cluster.saving import save_own_values
from mlcore.cluster.team import Team, follow
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.records import RecordSet
from mlcore.detection.checkpoints import list_checkpoints, read_best
from mlcore.detection.model_directory import ModelDirectory
from mlcore.detection.settings import Settings, blamed_on, configure, describe
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.alone import alone_in
from mlcore.runtime.errors import RestartError
from mlcore.runtime.signals import stop_flag

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

    from mlcore.detection.loop import Outcome, Plan
    from mlcore.detection.runner import StepRunner
    from mlcore.detection.trainer import Trainer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What all members know of a run.

    Attributes:
        records: What to train and evaluate on.
        settings: The settings.
        metric: Metric by which the best checkpoint is kept.
        patience: Evaluations without a better one after which training stops.
        seed: Of everything that is random.
        deterministic: See `train`.
        on: Strategy of the cluster.
        here: Strategy where one machine trains alone.
        goal: What the job is for (`goal_of`).
        timeouts: Bounds of waiting.
    """

    records: RecordSet
    settings: Settings
    metric: str
    patience: int
    seed: int
    deterministic: bool | None
    on: StrategyName
    here: str
    goal: str
    timeouts: Timeouts


@dataclasses.dataclass(frozen=True)
class _Crew:
    """Who takes the steps of a trainer."""

    trainer: Trainer
    runner: StepRunner
    scope: AbstractContextManager[Any]  # in which the loop runs


def lead_run(cluster: Cluster, directory: ModelDirectory, training: Training) -> dict[str, Any]:
    """The chief's part: train with the others; the results that `_SUCCESS.json` records.

    Raises:
        UsageError, DataError, Stopped: See `mlcore.detection.train.train`.
        RestartError: A member of the cluster is lost; to be started again.
    """
    with lead(cluster, directory.path, goal=training.goal, timeouts=training.timeouts) as chief:
        results = directory.finished()
        if results is None:
            directory.path.mkdir(parents=True, exist_ok=True)
            with alone_in(directory.path, RestartError):
                results = _lead(chief, directory, training)
        else:
            chief.begin()
    return results


def _lead(chief: Chief, directory: ModelDirectory, training: Training) -> dict[str, Any]:
    from mlcore.detection.run import log_first_step, make_plan, results_of
    from mlcore.detection.summaries import Summaries
    from mlcore.detection.validation import CheckpointEvaluator

    tf = import_tensorflow()
    records, path = training.records, directory.path
    config = configure(training.settings, records)
    directory.open(describe(training.settings, config, records, training.seed), records.classes)
    chief.begin()
    plan = make_plan(config, records, metric=training.metric, patience=training.patience)
    has_evaluator = bool(chief.cluster.of("evaluator")) and plan.eval_interval > 0
    evaluator = CheckpointEvaluator(path, config, records, metric=training.metric)
    outcome = _already_done(directory, plan)
    if outcome is None:
        from mlcore.detection.loop import TrainingLoop

        with blamed_on(training.settings):
            crew = _crew(chief, config, path, training)
        directory.begin()
        loop_plan = _plan_of_loop(plan, chief.cluster, training)
        loop = TrainingLoop(
            crew.trainer,
            crew.runner,
            loop_plan,
            path,
            validation=evaluator if loop_plan.eval_interval else None,
            first_step_done=log_first_step,
            stop_early=lambda _: has_evaluator and _out_of_patience(path, plan),
        )
        with crew.scope:
            outcome = loop.run()
        if chief.coordinator is not None:
            log.info("steps by worker: %s", dict(chief.coordinator.steps_by_worker))
    chief.disconnect()
    if plan.eval_interval and not outcome.metrics:
        evaluation = chief.wait_for_evaluation(outcome.step) if has_evaluator else None
        if evaluation is None:
            with tf.device("/job:chief/task:0/device:CPU:0" if chief.coordinator else None):
                evaluation = Evaluation(outcome.step, evaluator.run(outcome.step, Summaries(path, 0)))
        outcome.metrics, outcome.best = evaluation.metrics, read_best(path)
    results = results_of(outcome)
    directory.finish(results)
    log.info("trained to step %d: %s", outcome.step, path)
    return results


def _plan_of_loop(plan: Plan, cluster: Cluster, training: Training) -> Plan:
    """The plan without the evaluations that are not the loop's: those of an evaluator, or at the end."""
    elsewhere = bool(cluster.of("evaluator"))
    if training.on == "parameter_server" and not elsewhere:
        elsewhere = True
        if plan.patience:
            log.warning("--patience=%d: without an evaluator the chief evaluates in the end only", plan.patience)
    if not elsewhere or not plan.eval_interval:
        return plan
    # Checkpoints are what the evaluator evaluates.
    interval = min(plan.checkpoint_interval, plan.eval_interval)
    return dataclasses.replace(plan, checkpoint_interval=interval, eval_interval=0)


def _crew(chief: Chief, config: ExperimentConfig, model_dir: Path, training: Training) -> _Crew:
    """The crew of the chief, which waits for it to be complete."""
    from mlcore.detection.run import (
        load_weights,
        make_dataset,
        make_strategy,
        make_trainer,
        prepare_devices,
        prepare_trainer,
    )  # fmt: skip

    tf = import_tensorflow()
    if training.on == "multi_worker_mirrored":
        deterministic = prepare_devices(tf, training.seed, training.deterministic)
        return _crew_of_team(chief.gather(), config, model_dir, training, deterministic=deterministic, leads=True)
    if training.on == "parameter_server":
        from mlcore.detection.cluster_runner import ClusterRunner, talk_less

        prepare_devices(tf, training.seed, deterministic=False)
        coordinator = chief.connect()
        with coordinator.without_waiting():
            trainer = make_trainer(coordinator.strategy, config)
        load_weights(trainer, coordinator.strategy, model_dir)
        talk_less(trainer)
        runner = ClusterRunner(trainer, coordinator, training.records, training.seed)
        return _Crew(trainer, runner, coordinator.strategy.scope())
    from mlcore.detection.runner import LocalRunner

    deterministic = prepare_devices(tf, training.seed, training.deterministic)
    strategy = make_strategy(tf, training.here)
    trainer = prepare_trainer(strategy, config, model_dir)
    dataset = make_dataset(strategy, trainer, training.records, seed=training.seed, deterministic=deterministic)
    local = LocalRunner(trainer, strategy, dataset, deterministic=deterministic)
    return _Crew(trainer, local, contextlib.nullcontext())


def _crew_of_team(
    team: Team, config: ExperimentConfig, model_dir: Path, training: Training, *, deterministic: bool, leads: bool
) -> _Crew:
    from mlcore.detection.run import load_weights, make_dataset, make_trainer
    from mlcore.detection.runner import LocalRunner

    strategy = team.strategy
    trainer = make_trainer(strategy, config)
    if not leads:  # the chief comes first, as it sets damaged checkpoints aside
        team.agree(False)
    load_weights(trainer, strategy, model_dir)
    if leads:
        team.agree(False)
    team.check_same("step", trainer.steps_done())
    save_own_values(trainer.model.variables)
    dataset = make_dataset(strategy, trainer, training.records, seed=training.seed, deterministic=deterministic)
    runner = LocalRunner(trainer, strategy, dataset, team.agree, deterministic=deterministic)
    return _Crew(trainer, runner, contextlib.nullcontext())


def follow_run(cluster: Cluster, model_dir: Path, training: Training) -> None:
    """The part of a member that trains in step with the chief: the same loop, but it writes nothing.

    Raises:
        RestartError: The chief or another member is lost.
        UsageError, DataError, Stopped: See `mlcore.detection.train.train`.
    """
    from mlcore.detection.run import make_plan, prepare_devices

    with follow(cluster, model_dir, goal=training.goal, timeouts=training.timeouts) as follower:
        tf = import_tensorflow()
        config = configure(training.settings, training.records)
        plan = make_plan(config, training.records, metric=training.metric, patience=training.patience)
        deterministic = prepare_devices(tf, training.seed, training.deterministic)
        if (team := follower.join()) is None:
            return
        from mlcore.detection.loop import TrainingLoop

        crew = _crew_of_team(team, config, model_dir, training, deterministic=deterministic, leads=False)
        loop_plan = _plan_of_loop(plan, cluster, training)
        with crew.scope:
            TrainingLoop(crew.trainer, crew.runner, loop_plan, model_dir, leads=False).run()


def _already_done(directory: ModelDirectory, plan: Plan) -> Outcome | None:
    """The outcome of a run that only lacks its last words, so that no cluster need be waited for."""
    from mlcore.detection.checkpoints import newest_good
    from mlcore.detection.loop import Outcome

    newest = newest_good(directory.path)
    if newest is None or newest[0] < plan.steps:
        return None
    log.info("%s is trained to step %d, --steps=%d", directory.path, newest[0], plan.steps)
    results = directory.results() or {}
    nan = float("nan")
    return Outcome(
        step=newest[0], loss=results.get("loss", nan), steps_per_second=results.get("steps_per_second", nan),
        best=read_best(directory.path),
    )  # fmt: skip


def _out_of_patience(model_dir: Path, plan: Plan) -> bool:
    """Whether the evaluator has seen no better checkpoint for too long."""
    evaluation, best = read_evaluation(model_dir), read_best(model_dir)
    if evaluation is None or best is None or not plan.out_of_patience(evaluation.step, best):
        return False
    log.info("no better %s since step %d; stopping early", plan.metric, best.step)
    return True


def evaluate_run(cluster: Cluster, model_dir: Path, training: Training) -> None:
    """The evaluator's part: evaluate each new checkpoint until the chief is done.

    Raises:
        RestartError: The chief is gone.
        Stopped: After SIGTERM or Ctrl-C.
    """
    from mlcore.detection.summaries import Summaries
    from mlcore.detection.validation import CheckpointEvaluator

    evaluator: list[tuple[CheckpointEvaluator, Summaries]] = []
    records, settings = training.records, training.settings
    has_work = "val" in records.by_split and settings.eval_interval != 0

    def newest() -> int | None:
        return max(list_checkpoints(model_dir), default=None) if has_work else None

    def evaluate(step: int) -> Mapping[str, float]:
        if not evaluator:
            import_tensorflow()
            config = configure(settings, records)
            made = CheckpointEvaluator(model_dir, config, records, metric=training.metric)
            evaluator.append((made, Summaries(model_dir, 0)))
        return evaluator[0][0].run(step, evaluator[0][1])

    with stop_flag() as stop:
        evaluate_continuously(
            cluster, model_dir, goal=training.goal, newest=newest, evaluate=evaluate, stop=stop,
            timeouts=training.timeouts,
        )  # fmt: skip
