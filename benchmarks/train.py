"""`mlcore train` against official's own train_lib: the same configuration and records, whole processes, alternately.

    python benchmarks/train.py --data-dir=records [--steps=60] [--rounds=3]

Prints, of each and as ratios (ours / theirs): seconds from the start of the process to the end of the first step, steps
a second after the first ten (the median of runs of ten, so that a pause of the machine does not count), and CPU seconds
a step. Records are those of `mlcore convert`.
"""

import argparse
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

WINDOW = 10  # steps between two measured points, in both


def peer(config_file: Path, data_dir: Path, model_dir: Path) -> None:
    """What official's documentation has one write: an experiment, a task, run_experiment."""
    started = time.clock_gettime(time.CLOCK_BOOTTIME) - _process_age_s()
    import tensorflow as tf
    from official.core import task_factory, train_lib
    from official.vision.configs import retinanet  # noqa: F401 (registers the experiment)

    from mlcore.detection.experiment import SECTIONS, new_config

    description = yaml.safe_load(config_file.read_text())
    config = new_config(description["experiment"])
    config.override({name: description[name] for name in SECTIONS})
    steps = config.trainer.train_steps
    config.override({
        "task": {"train_data": {"input_path": str(data_dir / "train.tfrecord-*")}},
        "trainer": {"steps_per_loop": WINDOW, "summary_interval": WINDOW, "checkpoint_interval": steps},
    })  # fmt: skip
    marks = []

    def mark(_: object) -> None:
        marks.append((time.clock_gettime(time.CLOCK_BOOTTIME) - started, _cpu_s()))

    task = task_factory.get_task(config.task, logging_dir=str(model_dir))
    train_lib.run_experiment(tf.distribute.get_strategy(), task, "train", config, str(model_dir), train_actions=[mark])
    rates = _rates(marks)
    # Its first loop ends WINDOW steps after the start, not one.
    _print_result({"first_step_s": marks[0][0] - (WINDOW - 1) / rates["steps_per_second"], **rates})


def ours(arguments: list[str]) -> None:
    """The step as users run it, with two points of time taken from its loop."""
    from mlcore.cli import main
    from mlcore.detection.loop import TrainingLoop

    marks = []
    account = TrainingLoop._account

    def marked(self, window, **more):
        account(self, window, **more)
        marks.append((_process_age_s(), _cpu_s()))

    TrainingLoop._account = marked
    sys.argv = ["mlcore", "train", *arguments]
    try:
        main()
    finally:
        _print_result({"first_step_s": marks[0][0], **_rates(marks[1:])})


def _rates(marks: list[tuple[float, float]]) -> dict[str, float]:
    """From the time and the CPU seconds at the end of runs of WINDOW steps."""
    seconds = statistics.median(after[0] - before[0] for before, after in itertools.pairwise(marks))
    cpu_s = (marks[-1][1] - marks[0][1]) / (len(marks) - 1)
    return {"steps_per_second": WINDOW / seconds, "cpu_s_per_step": cpu_s / WINDOW}


def _print_result(result: dict[str, float]) -> None:
    print("RESULT", json.dumps(result))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _process_age_s() -> float:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _run(*arguments: object) -> dict[str, float]:
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time of TensorFlow's import
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    match = re.search(r"RESULT (.*)", done.stdout)
    if not match:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps % WINDOW or options.steps < 3 * WINDOW:
        parser.error(f"--steps={options.steps}: expected a multiple of {WINDOW}, at least {3 * WINDOW}")
    flags = [
        f"--data-dir={options.data_dir}", f"--steps={options.steps}", "--eval-interval=0",
        f"--checkpoint-interval={options.steps}", f"--overrides=trainer.summary_interval={WINDOW}",
    ]  # fmt: skip
    if options.peer:
        return peer(options.peer[0], options.data_dir, options.peer[1])
    if options.ours:
        return ours([*flags, f"--model-dir={options.ours}"])
    results: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            model = Path(folder, f"ours-{number}")
            common = ["--data-dir", options.data_dir, "--steps", options.steps]
            results["ours"].append(_run("--ours", model, *common))
            peer_model = Path(folder, f"theirs-{number}")
            results["theirs"].append(_run("--peer", model / "experiment.yaml", peer_model, *common))
            mine, other = results["ours"][-1], results["theirs"][-1]
            print(f"round {number + 1}:", *(f"{name} {mine[name]:.3f}/{other[name]:.3f}" for name in mine), flush=True)
    print(f"{'':18} {'ours':>9} {'theirs':>9} {'ratio':>7}")
    for name in ("first_step_s", "steps_per_second", "cpu_s_per_step"):
        mine, other = (statistics.median(result[name] for result in results[who]) for who in ("ours", "theirs"))
        print(f"{name:18} {mine:9.3f} {other:9.3f} {mine / other:7.2f}")
    return None


if __name__ == "__main__":
    main()
