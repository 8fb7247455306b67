"""The whole chain on a data set that it draws itself: `make quickstart`, or `python -m examples.quickstart`.

Draws pictures of circles, squares and triangles, packs them, serves them on this machine, and then runs the steps of
mlcore, as anyone would: download, extract, convert, train, evaluate, export, predict. Every command is shown before it
runs. Started again, it goes on where it ended; what is done is not done again.
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from examples.quickstart import chain, shapes
from examples.quickstart.chain import Chain, StepFailed, bold, say
from examples.quickstart.report import Places, write_report
from mlcore.runtime import logs
from mlcore.runtime.errors import MlcoreError, Stopped, UsageError
from mlcore.runtime.outputs import OutputDirectory, atomic_file, file_digest
from mlcore.runtime.signals import raise_on_stop

ARCHIVE = "shapes.tar.gz"
SETTINGS = "quickstart.json"
SECONDS = "seconds.json"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("build/quickstart"), help="default: build/quickstart")
    parser.add_argument("--train", type=int, default=600, help="pictures to train on (default: 600)")
    parser.add_argument("--val", type=int, default=40, help="pictures to choose a checkpoint by (default: 40)")
    parser.add_argument("--test", type=int, default=100, help="held-out pictures (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (default: 0)")
    parser.add_argument("--steps", type=int, default=900, help="training steps (default: 900)")
    parser.add_argument("--min-ap50", type=float, default=0.90, help="fail below it (default: 0.90)")
    parser.add_argument("--overwrite", action="store_true", help="start over, whatever is in the output directory")
    return parser.parse_args()


def prepare(directory: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Makes the output directory, or checks that it is of a quickstart with the same settings."""
    file = directory / SETTINGS
    if directory.exists() and any(directory.iterdir()):
        before = json.loads(file.read_text()) if file.is_file() else None
        if before == settings:
            return
        if before is None:
            raise UsageError(f"{directory}: not empty, and not made by the quickstart; name another --output-dir")
        if not overwrite:
            raise UsageError(f"{directory}: made with other settings; pass --overwrite to start over")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")


def draw(directory: Path, counts: dict[str, int], seed: int) -> Path:
    """Draws and packs the data set, unless it is there."""
    output = OutputDirectory(
        directory,
        step="quickstart-shapes",
        parameters={"counts": counts, "seed": seed},
        inputs={"shapes.py": file_digest(Path(shapes.__file__))},
        overwrite=True,
    )
    if output.existing() is None:
        with output.writing() as staging:
            shapes.pack(staging / ARCHIVE, counts, seed)
    return directory / ARCHIVE


def run_steps(arguments: argparse.Namespace) -> int:
    """The chain; the exit code."""
    started = time.monotonic()
    root: Path = arguments.output_dir
    counts = {"train": arguments.train, "val": arguments.val, "test": arguments.test}
    steps = Chain()

    say(f"Drawing {sum(counts.values())} pictures of circles, squares and triangles, and packing them")
    with steps.timed("draw and pack"):
        archive = draw(root / "source", counts, arguments.seed)
    say(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
    with chain.serving(archive.parent) as address:
        url, digest = f"{address}/{ARCHIVE}", file_digest(archive)
        steps.run("download", f"--url={url}", f"--sha256={digest}", f"--output-dir={root}/download")
    steps.run("extract", f"--archive={root}/download/{ARCHIVE}", f"--output-dir={root}/raw")
    converted = steps.run("convert", f"--data-dir={root}/raw", f"--output-dir={root}/records", "--workers=2")
    steps.run(
        "train", "--preset=retinanet-mobile", f"--data-dir={root}/records", f"--model-dir={root}/model",
        "--image-size=192x256", f"--steps={arguments.steps}",
    )  # fmt: skip
    metrics = steps.run("evaluate", f"--model-dir={root}/model", f"--data-dir={root}/records", "--split=test")
    exported = steps.run("export", f"--model-dir={root}/model", f"--output-dir={root}/export")
    places = Places(
        root / "raw" / shapes.FOLDER, root / "records", root / "model", root / "export", root / "predictions"
    )
    steps.run(
        "predict", f"--model={root}/export", f"--input={places.raw}/JPEGImages/test_*.jpg",
        f"--output-dir={places.predictions}", "--min-score=0.4",
    )  # fmt: skip

    facts = {
        "images": int(converted["images"]),
        "boxes": int(converted["boxes"]),
        "training steps": arguments.steps,
        "seconds": round(time.monotonic() - started),
        "AP": float(metrics["coco_ap"]),
        "AP50": float(metrics["ap50"]),
        "model": exported["path"],
    }
    with steps.timed("report"):
        seconds = longest(root / SECONDS, steps.seconds)
        facts_then = facts | {"seconds": round(sum(seconds.values()))}
        write_report(root / "report.html", places, facts=facts_then, metrics=metrics, seconds=seconds)
    facts["seconds"] = round(time.monotonic() - started)
    print_table(facts, steps.seconds, root / "report.html")
    if facts["AP50"] < arguments.min_ap50:
        say(f"quickstart: error: AP50 is {facts['AP50']:.4f}, expected at least {arguments.min_ap50:g}")
        return 1
    return 0


def longest(file: Path, seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of the run that did the work of each step: another run only finds that it is done."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    merged = {step: max(taken, before.get(step, 0.0)) for step, taken in seconds.items()}
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(merged, indent=1) + "\n")
    return merged


def print_table(facts: dict[str, Any], seconds: dict[str, float], report: Path) -> None:
    """What came out, and how long each step took."""
    say(f"\n{bold('Quickstart')}")
    rows = [(name, f"{taken:.1f} s") for name, taken in seconds.items()]
    rows += [("in all", f"{facts['seconds']} s"), ("", "")]
    rows += [("images", f"{facts['images']:,}"), ("boxes", f"{facts['boxes']:,}")]
    rows += [("training steps", f"{facts['training steps']:,}")]
    rows += [("AP on held-out pictures", f"{facts['AP']:.4f}"), ("AP50 on held-out pictures", f"{facts['AP50']:.4f}")]
    rows += [("model", facts["model"]), ("report", str(report))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name:<{width}}  {value}".rstrip())


def main() -> int:
    """The exit code of the quickstart: of the step that failed, if one did."""
    arguments = parse()
    logs.configure()
    raise_on_stop()
    settings = {name: getattr(arguments, name) for name in ("train", "val", "test", "seed", "steps")}
    try:
        prepare(arguments.output_dir, settings, overwrite=arguments.overwrite)
        return run_steps(arguments)
    except StepFailed as failed:
        print(f"quickstart: error: {failed}; see its last lines above", file=sys.stderr)
        return failed.code
    except MlcoreError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"quickstart: stopped by {stopped}; run it again to go on", file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        raise SystemExit(main())
