"""The MNIST line: `make mnist`, or `python -m examples.mnist`.

Downloads MNIST, trains, exports a numbered SavedModel and evaluates it, with the steps of mlcore as anyone would call
them. Every command is shown before it runs. Started again, it goes on where it ended; what is done is not done again.
"""

import argparse
import contextlib
import csv
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from examples.quickstart.chain import Chain, StepFailed, bold, say
from mlcore.data.mnist import load_mnist
from mlcore.data.report import Report
from mlcore.mnist.metrics import Confusion
from mlcore.mnist.pages import add_test
from mlcore.runtime import logs
from mlcore.runtime.errors import MlcoreError, Stopped
from mlcore.runtime.signals import raise_on_stop

_PICTURES = 24


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("build/mnist"), help="default: build/mnist")
    parser.add_argument("--dataset", choices=["mnist", "fashion-mnist"], default="mnist", help="default: mnist")
    parser.add_argument("--mirror", help="base address that has the four files, tried before the known ones")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training examples (default: 10)")
    parser.add_argument("--min-accuracy", type=float, default=0.98, help="fail below it (default: 0.98)")
    return parser.parse_args()


def run_steps(arguments: argparse.Namespace) -> int:
    """The line; the exit code."""
    root: Path = arguments.output_dir
    started = time.monotonic()
    chain = Chain()
    mirror = [f"--mirror={arguments.mirror}"] if arguments.mirror else []
    data = chain.run("mnist-download", f"--output-dir={root}/data", f"--dataset={arguments.dataset}", *mirror)
    trained = chain.run(
        "mnist-train", f"--data-dir={data['data_dir']}", f"--model-dir={root}/model", f"--export-dir={root}/export",
        f"--epochs={arguments.epochs}",
    )  # fmt: skip
    evaluated = chain.run(
        "mnist-evaluate", f"--model={trained['model']}", f"--data-dir={data['data_dir']}",
        f"--output-dir={root}/evaluation", "--overwrite=true",
    )  # fmt: skip
    accuracy = float(evaluated["accuracy"])
    rows = [
        ("examples to learn from", f"{int(data['train']):,}"),
        ("training steps", f"{int(trained['steps']):,}"),
        ("validation accuracy", f"{float(trained['accuracy']):.4f}"),
        ("test accuracy", f"{accuracy:.4f}"),
        ("worst class", f"{evaluated['worst_class']} (recall {float(evaluated['worst_recall']):.4f})"),
        ("version of the data", data["version"]),
        ("version of the model", trained["version"]),
        ("model", trained["model"]),
    ]
    with chain.timed("report"):
        write_report(root, Path(data["data_dir"]), rows, chain)
    print_table(rows, chain, time.monotonic() - started, root / "report.html")
    if accuracy < arguments.min_accuracy:
        say(f"mnist: error: the test accuracy is {accuracy:.4f}, expected at least {arguments.min_accuracy:g}")
        return 1
    return 0


def write_report(root: Path, data_dir: Path, rows: list[tuple[str, str]], chain: Chain) -> None:
    """One page: what was reached, the data, the curves and the mistakes."""
    facts = dict(rows)
    report = Report("The MNIST line", "From the downloaded files to an exported and evaluated version.")
    report.facts({name: facts[name] for name in ("test accuracy", "validation accuracy", "training steps")})
    report.table(("", "value"), rows)
    report.bars("Seconds", chain.seconds)
    data = load_mnist(data_dir)
    pictures = [
        (Image.fromarray(image).resize((84, 84), Image.Resampling.NEAREST), data.classes[label])
        for image, label in zip(data.t10k.imgs[:_PICTURES], data.t10k.labels[:_PICTURES], strict=True)
    ]
    report.section("Data").images("The first test examples", pictures, width=84)
    report.section("Curves")
    with (root / "model" / "history.csv").open() as file:
        points = list(csv.DictReader(file))
    for name in ("loss", "accuracy"):
        series: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            series.setdefault(point["part"], []).append((float(point["step"]), float(point[name])))
        report.lines(name.capitalize(), series, x_label="step", y_label=name)
    add_test(report, read_confusion(root / "evaluation" / "confusion.csv"), data.classes)
    report.write(root / "report.html")


def read_confusion(path: Path) -> Confusion:
    """The matrix of a confusion.csv."""
    with path.open() as file:
        return np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.int64)


def print_table(rows: list[tuple[str, str]], chain: Chain, seconds: float, report: Path) -> None:
    """What came out, and how long each step took."""
    say(f"\n{bold('MNIST')}")
    times = [(name, f"{taken:.1f} s") for name, taken in chain.seconds.items()]
    every = [*times, ("in all", f"{seconds:.1f} s"), ("", ""), *rows, ("report", str(report))]
    width = max(len(name) for name, _ in every)
    for name, value in every:
        say(f"  {name:<{width}}  {value}".rstrip())


def main() -> int:
    """The exit code of the line: of the step that failed, if one did."""
    arguments = parse()
    logs.configure()
    raise_on_stop()
    try:
        return run_steps(arguments)
    except StepFailed as failed:
        print(f"mnist: error: {failed}; see its last lines above", file=sys.stderr)
        return failed.code
    except MlcoreError as error:
        print(f"mnist: error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"mnist: stopped by {stopped}; run it again to go on", file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        raise SystemExit(main())
