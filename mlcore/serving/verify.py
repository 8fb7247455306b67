"""The step `verify`: the integration test of a deployed model."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory, file_digest, read_success
from mlcore.runtime.parameters import Environment, Range, step
from mlcore.runtime.results import as_mapping, print_results
from mlcore.serving.clients.access import Access

if TYPE_CHECKING:
    from mlcore.serving.served import ServedClassifier, ServedDetector, Target
    from mlcore.serving.verification.golden import Outcome
    from mlcore.serving.verification.samples import DetectionSamples, Measured, MnistSamples

log = logging.getLogger(__name__)

STEP = "verify"
VERIFICATION = "verification.json"
_WARM_UPS = 3
_NAMED_PROBLEMS = 4


@dataclass(frozen=True)
class VerifyResult:
    """What the test of a served model found.

    Attributes:
        task: classification or detection.
        version: The version that was served, where the server tells.
        samples: Samples that were sent.
        accuracy: Share of right answers of a classifier.
        ap50: AP at IoU .50 of a detector.
        coco_ap: COCO's AP of a detector.
        p50_ms: Half of the requests with one sample took no longer, in milliseconds.
        p95_ms: 95 of 100 requests took no longer.
        p99_ms: 99 of 100 requests took no longer.
        golden_cases: Golden cases that were checked.
        golden_failed: Those that were answered otherwise.
        edge_cases: Edge cases that were tried.
        edge_failed: Those that went wrong.
        ready_s: Seconds until the model was ready.
        output_dir: Where the report is.
    """

    task: str
    version: int | None
    samples: int
    accuracy: float | None
    ap50: float | None
    coco_ap: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    golden_cases: int
    golden_failed: int
    edge_cases: int
    edge_failed: int
    ready_s: float
    output_dir: Path | None


@step
def verify(
    *,
    server: str,
    model_name: str,
    protocol: Literal["tfs-grpc", "v1", "v2", "v2-grpc"] = "tfs-grpc",
    signature: str | None = None,
    host_header: str | None = None,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    data_dir: Annotated[Path | None, Environment(("MNIST_DATA_DIR",))] = None,
    split: str = "test",
    samples: Annotated[int, Range(min=1)] = 500,
    acceptable_accuracy: Annotated[float | None, Range(min=0, max=1)] = None,
    acceptable_ap50: Annotated[float | None, Range(min=0, max=1)] = None,
    max_p95_ms: Annotated[float | None, Range(min=0)] = None,
    golden: Path | None = None,
    golden_tolerance: Annotated[float, Range(min=0)] = 0.001,
    write_golden: Path | None = None,
    golden_cases: Annotated[int, Range(min=1)] = 10,
    edge_cases: bool = True,
    ready_timeout_s: Annotated[float, Range(min=0)] = 60.0,
    deadline_s: Annotated[float, Range(min=0.1)] = 30.0,
    output_dir: Path | None = None,
    overwrite: bool = False,
) -> VerifyResult:
    """Test a served model: quality on samples, golden cases, edge cases, latency.

    A classifier of MNIST's kind is asked about examples of the test part, which gives its accuracy; a detector about
    pictures of a split of records, which gives AP50. Edge cases (all black, all white, no picture, one, many; wrong
    type, shape, names) must be answered well, or refused without harm. Every run asks the server anew. The report is
    written before the step fails.

    Args:
        server: host:port of the model server, or an address with https:// for TLS.
        model_name: Name of the model on the server.
        protocol: How the server speaks: tfs-grpc is TensorFlow Serving's gRPC, v1 its REST (also KServe's V1), v2 and
            v2-grpc are the Open Inference Protocol.
        signature: Signature of the served model. Default: image_bytes where it has that, else serving_default.
        host_header: Host to ask for, where an ingress routes by it (Knative, Istio): the service's, such as
            mnist.default.example.com. With TLS the certificate must have that name.
        token_file: File with a bearer token for the server, such as a service account's. Default: the environment
            variable MLCORE_SERVER_TOKEN, if it is set.
        ca_file: Certificates (PEM) of the authorities to trust in place of the system's, for https://.
        data_dir: Samples with their truth: the four IDX files or the arrays of mlcore mnist-download for a classifier,
            the records of mlcore convert for a detector. Without it only golden and edge cases are checked.
        split: Split of the records.
        samples: Most samples that are sent: of MNIST the same random ones each time, of records the first.
        acceptable_accuracy: Least accuracy of a classifier.
        acceptable_ap50: Least AP50 of a detector.
        max_p95_ms: Longest time that 95 of 100 requests with one sample may take, in milliseconds.
        golden: File of golden cases, pictures with the answers that are expected.
        golden_tolerance: Largest difference of a probability in a golden case.
        write_golden: Record the answers to the first samples in this file of golden cases, if the model is accepted.
        golden_cases: How many are recorded.
        edge_cases: Try the edge cases.
        ready_timeout_s: Longest wait until the model is ready, in seconds.
        deadline_s: Longest time for one request, retries included, in seconds.
        output_dir: Directory for verification.json and report.html; not given: only the numbers are printed.
        overwrite: Replace a directory that another step made.

    Returns:
        The numbers.

    Raises:
        UsageError: There are no samples of this kind, or the server has no such signature.
        DataError: The model is not good enough, too slow, or a golden or edge case went wrong.
        TransientError: The model is not ready in time (a name that the server does not know may still appear there), or
            the server stopped answering.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"--data-dir={data_dir}: no such directory")
    if data_dir is None:
        for flag, value in (
            ("--acceptable-accuracy", acceptable_accuracy), ("--acceptable-ap50", acceptable_ap50),
            ("--max-p95-ms", max_p95_ms), ("--write-golden", write_golden),
        ):  # fmt: skip
            if value is not None:
                raise UsageError(f"{flag}={value} needs samples: give --data-dir")
        if golden is None and not edge_cases:
            raise UsageError("nothing to check: give --data-dir or --golden, or leave --edge-cases on")
    access = Access.read(host_header, token_file, ca_file)
    output = _output(output_dir, overwrite, {"server": server, "model": model_name, "golden": _digest(golden)})

    from mlcore.serving.clients import connect
    from mlcore.serving.served import ServedClassifier, ServedDetector, find_target
    from mlcore.serving.verification import golden as goldens
    from mlcore.serving.verification.edge_cases import check_edges

    # The folder for the report is made first, so that one that cannot be written is known before the work.
    with contextlib.ExitStack() as stack:
        directory = None if output is None else stack.enter_context(output.writing())
        client = stack.enter_context(connect(server, protocol, model_name, deadline_s=deadline_s, access=access))
        ready_s = client.wait_until_ready(ready_timeout_s)
        target = find_target(client, signature)
        _check_wanted(target, acceptable_accuracy, acceptable_ap50)
        taken = None if data_dir is None else _load(target, data_dir, split, samples)
        cases = [] if golden is None else goldens.read_golden(golden, target.task)
        model = ServedDetector(client, target, 1) if target.task == "detection" else ServedClassifier(client, target, 1)
        stack.enter_context(model)
        golden_outcomes = goldens.check_golden(cases, model, golden_tolerance)
        measured = _measure(model, taken)
        edge_outcomes = check_edges(model) if edge_cases else []
        latency = measured.latency()
        result = VerifyResult(
            task=target.task,
            version=target.version,
            samples=measured.samples,
            accuracy=measured.quality.get("accuracy"),
            ap50=_number(measured.quality.get("ap50")),
            coco_ap=_number(measured.quality.get("coco_ap")),
            p50_ms=latency.get("p50_ms"),
            p95_ms=latency.get("p95_ms"),
            p99_ms=latency.get("p99_ms"),
            golden_cases=len(golden_outcomes),
            golden_failed=sum(bool(each.problem) for each in golden_outcomes),
            edge_cases=len(edge_outcomes),
            edge_failed=sum(bool(each.problem) for each in edge_outcomes),
            ready_s=round(ready_s, 3),
            output_dir=output_dir,
        )
        problems = _quality_problems(result, acceptable_accuracy, acceptable_ap50, max_p95_ms)
        problems += [f"{each.name}: {each.problem}" for each in (*golden_outcomes, *edge_outcomes) if each.problem]
        if write_golden is not None and taken is not None and not problems:
            written = goldens.write_golden(write_golden, model, taken.pictures(golden_cases))
            log.info("%s: %d golden cases recorded", write_golden, written)
        if output is not None and directory is not None:
            output.results = {**_named(result), "passed": not problems}
            _write(
                directory,
                model=str(client),
                result=result,
                problems=problems,
                measured=measured,
                golden=golden_outcomes,
                edges=edge_outcomes,
            )
    if problems:
        print_results(as_mapping(result))  # what a step returns is printed for it, but this one ends with an error
        named = "; ".join(problems[:_NAMED_PROBLEMS])
        more = len(problems) - _NAMED_PROBLEMS
        where = f" (see {output_dir}/report.html)" if output_dir is not None else ""
        raise DataError(f"{client} is not accepted: {named}{f' and {more} more' if more > 0 else ''}{where}")
    log.info("%s passed", client)
    return result


def _digest(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(f"--golden={path}: no such file; mlcore verify --write-golden=FILE makes one")
    return file_digest(path)


def _output(output_dir: Path | None, overwrite: bool, inputs: dict[str, Any]) -> OutputDirectory | None:
    """Where the report goes; an earlier verification is replaced, since the server is asked anew."""
    if output_dir is None:
        return None
    own = output_dir.is_dir() and (read_success(output_dir) or {}).get("step") == STEP
    output = OutputDirectory(output_dir, step=STEP, parameters={}, inputs=inputs, overwrite=overwrite or own)
    if not own:
        output.existing()
    return output


def _check_wanted(target: "Target", accuracy: float | None, ap50: float | None) -> None:
    """A bound that the model's kind does not have is a mistake, not a bound that is met."""
    if target.task == "detection" and accuracy is not None:
        raise UsageError(f"--acceptable-accuracy={accuracy:g}: the served model is a detector; use --acceptable-ap50")
    if target.task == "classification" and ap50 is not None:
        raise UsageError(f"--acceptable-ap50={ap50:g}: the served model is a classifier; use --acceptable-accuracy")


def _load(target: "Target", data_dir: Path, split: str, count: int) -> "MnistSamples | DetectionSamples":
    from mlcore.serving.verification.samples import DetectionSamples, MnistSamples

    if target.task == "detection":
        return DetectionSamples.load(data_dir, split, count)
    return MnistSamples.load(data_dir, count)


def _measure(model: "ServedDetector | ServedClassifier", taken: "MnistSamples | DetectionSamples | None") -> "Measured":
    """The samples' quality and times, after a few requests that are not counted."""
    from mlcore.serving.verification.samples import Measured

    if taken is None:
        return Measured()
    for picture in taken.pictures(_WARM_UPS):
        model.call(model.request([picture]) if isinstance(picture, bytes) else model.request(picture[None]))  # type: ignore[arg-type]
    return taken.measure(model)  # type: ignore[arg-type]  # the kind of samples is the target's


def _quality_problems(
    result: VerifyResult, accuracy: float | None, ap50: float | None, max_p95_ms: float | None
) -> list[str]:
    problems = []
    for name, value, least in (("accuracy", result.accuracy, accuracy), ("ap50", result.ap50, ap50)):
        if least is not None and not (value is not None and value >= least):
            shown = "not measurable" if value is None else f"{value:.4f}"
            problems.append(f"{name} is {shown}, expected at least --acceptable-{name}={least:g}")
    if max_p95_ms is not None and not (result.p95_ms is not None and result.p95_ms <= max_p95_ms):
        problems.append(f"p95 is {result.p95_ms} ms, expected at most --max-p95-ms={max_p95_ms:g}")
    return problems


def _named(result: VerifyResult) -> dict[str, Any]:
    """The numbers, without the place of the report."""
    return {name: value for name, value in as_mapping(result).items() if name != "output_dir"}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _write(
    directory: Path,
    *,
    model: str,
    result: VerifyResult,
    problems: Sequence[str],
    measured: "Measured",
    golden: Sequence["Outcome"],
    edges: Sequence["Outcome"],
) -> None:
    """The JSON file and the report."""
    from mlcore.serving.verification.report import write_report

    named = _named(result)
    record = {
        "model": model,
        "passed": not problems,
        "problems": list(problems),
        **named,
        "quality": {name: _number(value) for name, value in measured.quality.items()},
        "latency": measured.latency(),
        "by_class": {
            name: {column: _number(value) for column, value in row.items()} for name, row in measured.by_class.items()
        },
        "golden": [dataclasses.asdict(each) for each in golden],
        "edges": [dataclasses.asdict(each) for each in edges],
    }
    shown = ("accuracy", "ap50", "p50_ms", "p95_ms", "p99_ms", "samples", "version")
    facts = {name: named[name] for name in shown if named[name] is not None}
    (directory / VERIFICATION).write_text(json.dumps(record, indent=1) + "\n")
    write_report(
        directory / "report.html",
        model=model,
        facts=facts,
        problems=problems,
        measured=measured,
        golden=golden,
        edges=edges,
    )
