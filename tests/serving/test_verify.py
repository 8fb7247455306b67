"""`verify`: good models pass, wrong ones fail with 65 after the report is written."""

import json
import threading
import time

import numpy as np
import pytest

from mlcore import cli
from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.serving.verify import verify
from tests.cluster.processes import free_ports
from tests.serving.models import block_images, block_probabilities
from tests.serving.peers import Http, TfServing


def test_a_good_classifier_passes_with_its_numbers(tf_serving, block_data, tmp_path):
    result = verify(
        server=tf_serving.address, model_name="blocks", data_dir=block_data, acceptable_accuracy=0.99,
        max_p95_ms=5000, samples=100, output_dir=tmp_path / "out",
    )  # fmt: skip
    assert (result.task, result.version, result.samples, result.accuracy) == ("classification", 2, 100, 1.0)
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
    assert result.edge_failed == 0 and result.edge_cases >= 11
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["passed"] is True and record["problems"] == []
    assert record["by_class"]["7"]["right"] == record["by_class"]["7"]["samples"] > 0
    assert sum(row["samples"] for row in record["by_class"].values()) == 100
    assert {case["name"] for case in record["edges"]} >= {"all black", "all white", "a batch of none", "wrong dtype"}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "passed" in report and "Edge cases" in report
    # The server is asked anew each time.
    again = verify(server=tf_serving.address, model_name="blocks", data_dir=block_data, output_dir=tmp_path / "out")
    assert again.samples == 200


def test_a_good_detector_passes_with_its_numbers(tf_serving, coloured_records, tmp_path):
    result = verify(
        server=tf_serving.address, model_name="colours", data_dir=coloured_records, acceptable_ap50=0.95,
        output_dir=tmp_path / "out",
    )  # fmt: skip
    assert (result.task, result.version, result.samples) == ("detection", 3, 11)
    assert result.ap50 > 0.95 and result.accuracy is None
    assert result.edge_failed == 0 and result.edge_cases >= 11
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["by_class"]["a-red"]["objects"] == 11


def test_a_detector_that_takes_pixels_passes_too(tf_serving, coloured_records):
    result = verify(server=tf_serving.address, model_name="pixels", data_dir=coloured_records, acceptable_ap50=0.95)
    assert result.ap50 > 0.95 and result.edge_failed == 0


def run(capsys, *arguments):
    code = cli.main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_model_that_answers_wrongly_fails_with_65_after_the_report(tf_serving, block_data, tmp_path, capsys):
    common = [f"--server={tf_serving.address}", "--protocol=tfs-grpc", f"--data-dir={block_data}", "--samples=50"]
    code, out, err = run(
        capsys, *common, "--model-name=wrong", "--acceptable-accuracy=0.9", f"--output-dir={tmp_path / 'out'}"
    )
    assert code == 65
    assert " accuracy=0.000000\n" in out and " p95_ms=" in out and " samples=50\n" in out
    assert err.splitlines()[-1].endswith("report.html)") and "Traceback" not in err
    assert "accuracy is 0.0000, expected at least --acceptable-accuracy=0.9" in err
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["passed"] is False and record["accuracy"] == 0.0 and len(record["problems"]) == 1
    assert "0, taken for 1" in (tmp_path / "out" / "report.html").read_text()
    code, out, _ = run(capsys, *common, "--model-name=blocks", "--acceptable-accuracy=0.9")
    assert code == 0 and " accuracy=1.000000\n" in out and " p95_ms=" in out and " edge_failed=0\n" in out


def test_a_detector_below_the_acceptable_ap50_fails_with_65(tf_serving, coloured_records):
    with pytest.raises(DataError, match=r"ap50 is 1\.0000|ap50 is 0\.\d+, expected at least --acceptable-ap50=1"):
        verify(
            server=tf_serving.address, model_name="colours", signature="serving_default", data_dir=coloured_records,
            split="train", acceptable_ap50=1.0, max_p95_ms=0.0001,
        )  # fmt: skip


def test_a_model_that_is_too_slow_fails_with_65(tf_serving, block_data):
    with pytest.raises(DataError, match=r"p95 is [\d.]+ ms, expected at most --max-p95-ms=0.001"):
        verify(server=tf_serving.address, model_name="blocks", data_dir=block_data, samples=5, max_p95_ms=0.001)


def test_golden_cases_are_recorded_and_a_model_that_answers_otherwise_is_found(
    tf_serving, block_data, coloured_records, tmp_path
):
    golden = tmp_path / "golden.json"
    address = tf_serving.address
    verify(server=address, model_name="blocks", data_dir=block_data, samples=5, write_golden=golden, golden_cases=4)
    assert len(json.loads(golden.read_text())["cases"]) == 4
    result = verify(server=address, model_name="blocks", golden=golden, edge_cases=False)
    assert (result.golden_cases, result.golden_failed, result.samples) == (4, 0, 0)
    with pytest.raises(DataError, match=r"golden 0: class \d, expected \d; .*golden 3"):
        verify(server=address, model_name="wrong", golden=golden, edge_cases=False)
    with pytest.raises(UsageError, match="cases of classification; the served model does detection"):
        verify(server=address, model_name="colours", golden=golden)

    boxes = tmp_path / "boxes.json"
    verify(server=address, model_name="colours", data_dir=coloured_records, write_golden=boxes, edge_cases=False)
    # Recorded with encoded pictures, checked with pixels.
    assert verify(server=address, model_name="pixels", golden=boxes, edge_cases=False).golden_failed == 0
    content = json.loads(boxes.read_text())
    content["cases"][1]["expected"]["classes"][0] = 3
    boxes.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"golden 1: 2 boxes, expected 2; they agree on 50.0%"):
        verify(server=address, model_name="colours", golden=boxes, edge_cases=False)


def test_a_changed_probability_is_found_beyond_the_tolerance(tf_serving, block_data, tmp_path):
    golden = tmp_path / "golden.json"
    verify(server=tf_serving.address, model_name="blocks", data_dir=block_data, samples=5, write_golden=golden)
    content = json.loads(golden.read_text())
    content["cases"][0]["expected"]["probabilities"][4] += 0.01
    golden.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"golden 0: a probability differs by 0.01, at most 0.001 is allowed"):
        verify(server=tf_serving.address, model_name="blocks", golden=golden, edge_cases=False)
    verify(server=tf_serving.address, model_name="blocks", golden=golden, golden_tolerance=0.02, edge_cases=False)


def test_a_server_that_accepts_anything_is_found(block_data, tmp_path):
    """Edge cases can fail: a server that answers wrong requests as if they were right."""
    row = {
        "class_ids": 1,
        "probabilities": block_probabilities(block_images(np.array([1]))[..., None] / 255)[0].tolist(),
    }
    number = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}]}}
    metadata = {
        "model_spec": {"version": "1"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": {
            "inputs": {"imgs": {"dtype": "DT_FLOAT", "tensor_shape": {
                "dim": [{"size": str(size)} for size in (-1, 28, 28, 1)]}}},
            "outputs": {"class_ids": {**number, "dtype": "DT_INT64"}, "probabilities": number},
        }}}},
    }  # fmt: skip
    peer = Http({
        "/v1/models/m": [(200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]})],
        "/v1/models/m/metadata": [(200, metadata)],
        "/v1/models/m:predict": [(200, {"predictions": [row]})],
    })  # fmt: skip
    try:
        with pytest.raises(DataError) as caught:
            verify(server=peer.address, protocol="v1", model_name="m", output_dir=tmp_path / "out")
    finally:
        peer.stop()
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    failed = {edge["name"] for edge in record["edges"] if edge["problem"]}
    assert failed >= {"wrong shape", "wrong dtype", "unknown signature", "a batch of many"}
    assert "was accepted; expected an error of the 4xx" in str(caught.value)


def test_waiting_for_a_server_has_a_bound_and_ends_with_75(block_data, tmp_path, capsys):
    (port,) = free_ports(1)
    started = time.monotonic()
    code, _, err = run(
        capsys, f"--server=127.0.0.1:{port}", "--model-name=m", "--ready-timeout-s=0.5", f"--data-dir={block_data}",
        f"--output-dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 75 and time.monotonic() - started < 10
    assert f"m at 127.0.0.1:{port} (tfs-grpc) is not ready after 0.5 s and" in err and "UNAVAILABLE" in err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_midway_is_said_with_75(model_bases, block_data, capsys):
    peer = TfServing({"blocks": model_bases["blocks"]})

    def stop_later():
        while len(peer.requests) < 30:
            time.sleep(0.002)
        peer.stop()

    watcher = threading.Thread(target=stop_later)
    watcher.start()
    code, _, err = run(
        capsys, f"--server={peer.address}", "--model-name=blocks", f"--data-dir={block_data}", "--deadline-s=0.5"
    )
    watcher.join()
    assert code == 75
    assert "the server stopped answering after" in err and "of 200 samples" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acceptable_ap50": 0.5}, "the served model is a classifier; use --acceptable-accuracy"),
        ({"name": "colours", "acceptable_accuracy": 0.5}, "the served model is a detector; use --acceptable-ap50"),
        ({"name": "colours"}, "expected a finished --output-dir of mlcore convert"),
        ({"golden": "nowhere.json"}, "--golden=nowhere.json: no such file"),
        ({"data_dir": None, "acceptable_accuracy": 0.5}, "--acceptable-accuracy=0.5 needs samples"),
        ({"data_dir": None, "edge_cases": False}, "nothing to check"),
        ({"name": "nothing", "ready_timeout_s": 0}, "NOT_FOUND"),
    ],
    ids=["ap50 of a classifier", "accuracy of a detector", "no records", "no golden", "no data", "nothing", "no model"],
)
def test_a_mistake_names_what_was_expected(tf_serving, block_data, options, words):
    arguments = {"name": "blocks", "data_dir": block_data} | options
    with pytest.raises((UsageError, TransientError), match=words):
        verify(server=tf_serving.address, model_name=arguments.pop("name"), **arguments)


def test_a_directory_of_anothers_is_not_replaced(tf_serving, block_data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes.txt"):
        verify(server=tf_serving.address, model_name="blocks", data_dir=block_data, output_dir=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_known_before_any_request(tf_serving, block_data):
    before = len(tf_serving.requests)
    with pytest.raises(UsageError, match="--output-dir=/proc/x: cannot be written"):
        verify(server=tf_serving.address, model_name="blocks", data_dir=block_data, output_dir="/proc/x")
    assert len(tf_serving.requests) == before


def test_a_model_that_is_not_accepted_makes_no_golden_cases(tf_serving, block_data, tmp_path):
    with pytest.raises(DataError, match=r"accuracy is 0\.0"):
        verify(
            server=tf_serving.address, model_name="wrong", data_dir=block_data, samples=20, acceptable_accuracy=0.9,
            write_golden=tmp_path / "golden.json",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
