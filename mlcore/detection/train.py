"""The step `train`: from records to a trained detection model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mlcore.cluster.config import cluster_from_environment
from mlcore.cluster.status import goal_of
from mlcore.cluster.strategy import choose_strategy
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.records import RecordSet
from mlcore.detection.metrics import MASK_PREFIX, SUMMARY
from mlcore.detection.model_directory import ModelDirectory
from mlcore.detection.settings import Settings, check_init_checkpoint, parse_image_size
from mlcore.runtime.errors import UsageError
from mlcore.runtime.parameters import Range, Sections, step


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Attributes:
        model_dir: The model directory.
        checkpoint: Prefix of the last checkpoint.
        steps: Steps done in all.
        loss: Mean loss over the last steps.
        steps_per_second: While training.
        coco_ap: AP on the val split at the end (not a number without one).
        ap50: AP50 on the val split at the end.
        best_step: Step of the best checkpoint; 0 where nothing was evaluated.
        stopped_early: Whether training ended for lack of progress.
    """

    model_dir: Path
    checkpoint: Path
    steps: int
    loss: float
    steps_per_second: float
    coco_ap: float
    ap50: float
    best_step: int
    stopped_early: bool


@step
def train(
    *,
    data_dir: Path,
    model_dir: Path,
    preset: str | None = None,
    experiment: str | None = None,
    overrides: Annotated[Mapping[str, Any], Sections(("task", "trainer", "runtime"))] = {},
    steps: Annotated[int, Range(min=1)] | None = None,
    batch_size: Annotated[int, Range(min=1)] | None = None,
    learning_rate: Annotated[float, Range(min=0)] | None = None,
    warmup_steps: Annotated[int, Range(min=0)] | None = None,
    schedule: Literal["cosine", "constant"] | None = None,
    clip_norm: Annotated[float, Range(min=0)] | None = None,
    image_size: str | None = None,
    init_checkpoint: str | None = None,
    init_modules: tuple[Literal["backbone", "decoder", "all"], ...] = ("backbone", "decoder"),
    mixed_precision: Literal["float32", "float16", "bfloat16"] | None = None,
    flip: bool | None = None,
    scale_min: Annotated[float, Range(min=0.05, max=10)] | None = None,
    scale_max: Annotated[float, Range(min=0.05, max=10)] | None = None,
    augmentation: Literal["none", "autoaug", "randaug", "ssd_random_crop"] | None = None,
    checkpoint_interval: Annotated[int, Range(min=1)] | None = None,
    keep_checkpoints: Annotated[int, Range(min=1)] | None = None,
    eval_interval: Annotated[int, Range(min=0)] | None = None,
    metric: str = "coco_ap",
    patience: Annotated[int, Range(min=0)] = 0,
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker_mirrored", "parameter_server"] = "auto",
    seed: Annotated[int, Range(min=0, max=2**31 - 1)] = 0,
    deterministic: bool | None = None,
    overwrite: bool = False,
    start_timeout_s: Annotated[float, Range(min=0)] = 600,
    chief_timeout_s: Annotated[float, Range(min=0)] = 120,
    stall_timeout_s: Annotated[float, Range(min=1)] = 30,
    evaluation_timeout_s: Annotated[float, Range(min=0)] = 600,
) -> TrainResult | None:
    """Train a detection model on the train split, evaluating it on the val split as it goes.

    The same command again goes on from the newest checkpoint, or says that there is nothing left to do. A larger
    --steps trains further.

    With TF_CONFIG in the environment (a TFJob) it is a member of a cluster: the chief trains on the workers through the
    parameter servers, or, where there are none, all train in step, each on its part of the batch; an evaluator
    evaluates the checkpoints as they come, and all end when the chief (else worker 0) has. A member that should be
    started again ends with 138. The model directory is the same as on one machine; a run can go on in any of them.

    Args:
        data_dir: Folder of records, the --output-dir of convert.
        model_dir: Folder for checkpoints, TensorBoard summaries and experiment.yaml; made, or gone on with.
        preset: Ready configuration; retinanet-mobile, the default, trains from scratch on a CPU in minutes. A wrong
            name gives the list.
        experiment: Detection experiment of official.vision instead of a preset, such as fasterrcnn_resnetfpn_coco. A
            wrong name gives the list.
        overrides: Any setting of the experiment, as --overrides=task.model.min_level=3, or as the sections task,
            trainer and runtime of the --config file. They win over the other flags.
        steps: Steps to train for in all; the schedule of the learning rate is fitted to it. Default: the preset's.
        batch_size: Images a step, over all devices and members that train in step. Without --learning-rate, the
            learning rate follows it.
        learning_rate: Highest learning rate. Default: the preset's.
        warmup_steps: Steps in which the learning rate rises to its highest; 0: none. Default: the preset's, at most a
            fifth of --steps.
        schedule: How the learning rate goes on after that: cosine down to 0, or constant. Default: the preset's.
        clip_norm: Scale gradients down to this global norm; 0: never. Default: the preset's.
        image_size: HEIGHTxWIDTH to which images are scaled and padded, such as 256x320, or one number for a square.
        init_checkpoint: Checkpoint to take weights from (a prefix such as model/ckpt-500, or a directory: its latest),
            if --model-dir has none yet. The number of classes may differ.
        init_modules: Parts that are taken from it; repeat the flag. all: every part, for the same classes and anchors.
        mixed_precision: Number format of activations: float16 and bfloat16 save memory and time on GPUs that have them.
        flip: Mirror images at random. Default: the preset's.
        scale_min: Smallest factor by which images are scaled at random. Default: the preset's.
        scale_max: Largest factor by which images are scaled at random. Default: the preset's.
        augmentation: Further random changes of images, a policy of official.vision; Faster, Mask and Cascade R-CNN know
            autoaug and randaug.
        checkpoint_interval: Steps between two checkpoints. Default: the preset's.
        keep_checkpoints: How many of the last checkpoints to keep; the best one is kept beside them.
        eval_interval: Steps between two evaluations on the val split; 0: none. Default: the preset's.
        metric: Metric of these evaluations by which the best checkpoint is kept, such as coco_ap, ap50 or ap_small.
        patience: Evaluations without a better metric after which training stops early; 0: never.
        strategy: auto takes every GPU of the machine, or the workers of the cluster that TF_CONFIG describes;
            one_device the first GPU (or the CPU), mirrored all devices even where these are logical CPU devices, of the
            chief alone where there is a cluster; parameter_server the workers of a cluster, each on batches of its own;
            multi_worker_mirrored all of its workers in step, each on its part of a batch.
        seed: Decides initial weights, order and augmentation of the images.
        deterministic: The same seed gives the same model, bit for bit, on the same machine, also when the run was
            stopped and gone on with (of Cascade R-CNN only nearly). It costs time on a GPU, so it is off by default
            where there is one.
        overwrite: Remove what is in --model-dir if it was trained otherwise (other data or settings); without it that
            is an error. A run of the same settings is gone on with in either case.
        start_timeout_s: In a cluster: seconds to wait for the other members to come up.
        chief_timeout_s: In a cluster: seconds for which the chief may be gone before the others end with 138.
        stall_timeout_s: In a cluster: seconds without an answer after which a worker is left out.
        evaluation_timeout_s: In a cluster: seconds to wait for the evaluator's last evaluation; then the chief makes
            it.

    Returns:
        What was made; nothing for members of a cluster that are not its chief.

    Raises:
        UsageError: A flag does not fit, or a folder is missing.
        DataError: The model directory holds another run, or the loss is not finite.
        RestartError: A member of a cluster should be started again.
        Stopped: After SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    given = locals()
    settings = Settings(**{field.name: given[field.name] for field in dataclasses.fields(Settings)})
    settings.source()
    if image_size is not None:
        parse_image_size(image_size)
    if init_checkpoint is not None:
        check_init_checkpoint(init_checkpoint)
    if metric.removeprefix(MASK_PREFIX) not in SUMMARY:
        raise UsageError(
            f"--metric={metric}: expected one of {', '.join(SUMMARY)}, or {MASK_PREFIX} before one of them"
        )
    cluster = cluster_from_environment()
    on = choose_strategy(cluster, strategy)
    if on == "one_machine" and cluster is not None and len(cluster.members) == 1:
        cluster = None
    timeouts = Timeouts(**{field.name: given[field.name] for field in dataclasses.fields(Timeouts)})
    goal = goal_of(cluster, step="train", settings=dataclasses.asdict(settings), seed=seed) if cluster else ""
    follows = cluster is not None and not cluster.is_chief and cluster.role in ("chief", "worker")
    trains_in_step = follows and on == "multi_worker_mirrored"
    if cluster is not None and ((follows and not trains_in_step) or cluster.role == "ps"):
        from mlcore.cluster.server import serve

        serve(cluster, model_dir, goal=goal, timeouts=timeouts)
        return None
    records = RecordSet.open(data_dir)
    records.split("train")
    if cluster is not None:
        from mlcore.detection.cluster import Training, evaluate_run, follow_run, lead_run

        training = Training(
            records=records, settings=settings, metric=metric, patience=patience, seed=seed,
            deterministic=deterministic, on=on, here="auto" if strategy == "multi_worker_mirrored" else strategy,
            goal=goal, timeouts=timeouts,
        )  # fmt: skip
        if cluster.role == "evaluator" or trains_in_step:
            run_member = evaluate_run if cluster.role == "evaluator" else follow_run
            run_member(cluster, model_dir, training)
            return None
    directory = ModelDirectory(
        model_dir,
        parameters={**dataclasses.asdict(settings), "metric": metric, "patience": patience, "seed": seed},
        inputs={"data": records.digest},
        overwrite=overwrite,
    )
    results = None if cluster else directory.finished()
    if results is not None:
        pass
    elif cluster is not None:
        results = lead_run(cluster, directory, training)
    else:
        from mlcore.detection.run import run

        results = run(
            directory, records, settings, metric=metric, patience=patience, seed=seed, deterministic=deterministic,
            strategy_name=strategy,
        )  # fmt: skip
    return TrainResult(model_dir=model_dir, checkpoint=directory.checkpoint(results["steps"]), **results)
