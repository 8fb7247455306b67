"""Predict, with a small real SavedModel: it finds the extent of each pure colour, so that the truth is known."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlcore.detection.predict import PredictResult, predict
from mlcore.runtime.errors import DataError, UsageError
from tests.serving.models import BLUE, GREEN, RED
from tests.serving.models import coloured as picture
from tests.serving.models import save_detector as save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("export") / "1")


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def run(model: Path, source: object, output: Path, **options: Any) -> tuple[PredictResult, dict[str, Any]]:
    result = predict(model=model, input=(str(source),), output_dir=output, **options)
    return result, json.loads((output / "predictions.json").read_text())


def test_boxes_are_found_in_pixels_with_class_and_score(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(((10, 5, 30, 25), RED), ((40, 20, 60, 44), GREEN)))
    result, predictions = run(model, tmp_path / "in", tmp_path / "out")
    assert (result.images, result.unreadable, result.detections) == (1, 0, 2)
    (image,) = predictions["images"]
    assert image == {
        "id": 1, "file": "a.png", "path": str(tmp_path / "in" / "a.png"), "width": 64, "height": 48,
        "drawn": "images/a.jpg",
        "detections": [
            {"class_id": 1, "class": "red", "score": 0.9, "box": [10.0, 5.0, 30.0, 25.0]},
            {"class_id": 2, "class": "green", "score": 0.6, "box": [40.0, 20.0, 60.0, 44.0]},
        ],
    }  # fmt: skip
    assert predictions["classes"] == {"1": "red", "2": "green", "3": "blue"}
    assert "1 green, 1 red" in (tmp_path / "out" / "report.html").read_text()
    with Image.open(tmp_path / "out" / "images" / "a.jpg") as drawn:
        assert drawn.size == (320, 240)  # a small picture is enlarged, to be read


def test_pictures_of_any_format_give_the_same_boxes(model: Path, tmp_path: Path) -> None:
    image = picture(((16, 8, 40, 32), RED))
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "in"
    for name in ("a.png", "b.bmp", "c.gif", "d.tiff", "e.ppm"):
        save(folder / name, image)
    save(folder / "f.webp", image, lossless=True)
    save(folder / "g.jpg", image, quality=98, subsampling=0)
    save(folder / "h.jpg", image.convert("CMYK"), quality=98, subsampling=0)
    save(folder / "i.png", image.convert("RGBA"))
    save(folder / "j.png", image.transpose(Image.Transpose.ROTATE_90), exif=turned)
    result, predictions = run(model, folder, tmp_path / "out")
    assert result.images == 10
    for entry in predictions["images"]:
        (found,) = entry["detections"]
        assert found["box"] == pytest.approx([16, 8, 40, 32], abs=1), entry["file"]


def test_an_unreadable_picture_is_counted_listed_and_passed_over(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(((16, 8, 40, 32), RED)))
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture")
    result, predictions = run(model, tmp_path / "in", tmp_path / "out")
    assert (result.images, result.unreadable) == (1, 1)
    path = str(tmp_path / "in" / "b.jpg")
    assert predictions["unreadable"] == [{"file": "b.jpg", "path": path, "reason": "not a picture that Pillow reads"}]
    with pytest.raises(DataError, match="1 of 2 pictures cannot be read"):  # though it is up to date
        run(model, tmp_path / "in", tmp_path / "out", max_bad_fraction=0.4)
    assert "not a picture" in (tmp_path / "out" / "report.html").read_text()


def test_too_many_unreadable_pictures_end_the_step_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture())
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 3 pictures cannot be read .*b\.jpg \(not a picture"):
        run(model, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_score_below_the_least_is_in_the_coco_results_alone(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "000042.png", picture(((8, 8, 24, 24), BLUE), ((30, 8, 50, 40), RED)))
    result, predictions = run(model, tmp_path / "in", tmp_path / "out", min_score=0.5)
    assert result.detections == 1
    assert [entry["class"] for entry in predictions["images"][0]["detections"]] == ["red"]
    coco = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert coco == [
        {"image_id": 42, "category_id": 1, "bbox": [30.0, 8.0, 20.0, 32.0], "score": 0.9},
        {"image_id": 42, "category_id": 3, "bbox": [8.0, 8.0, 16.0, 16.0], "score": 0.3},
    ]


@pytest.mark.parametrize("masks", [False, True])
def test_pycocotools_reads_the_coco_results(masks: bool, model: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if masks:
        model = save_model(tmp_path / "model" / "1", masks=True)
    for number in (7, 8):
        save(tmp_path / "in" / f"{number}.png", picture(((16, 8, 40, 32), RED)))
    run(model, tmp_path / "in", tmp_path / "out")
    outline = {"segmentation": [[16, 8, 40, 8, 40, 32, 16, 32]], "area": 24 * 24, "iscrowd": 0}
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "width": 64, "height": 48} for number in (7, 8)],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [16, 8, 24, 24]} | outline for number in (7, 8)
        ],
    }
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "out" / "coco_results.json"))
    evaluation = COCOeval(truth, found, "segm" if masks else "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_batches_change_nothing(model: Path, tmp_path: Path) -> None:
    for index in range(7):
        size = (64, 48) if index % 3 else (80, 50)
        save(tmp_path / "in" / f"p{index}.png", picture(((index, 8, 40, 32), RED), size=size))
    run(model, tmp_path / "in", tmp_path / "one", batch_size=1)
    run(model, tmp_path / "in", tmp_path / "many", batch_size=5)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file() and path.name != "_SUCCESS.json":
            assert (tmp_path / "many" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_the_highest_version_is_taken(model: Path, tmp_path: Path) -> None:
    for name in ("2", "10", "tmp-11"):
        shutil.copytree(model, tmp_path / "export" / name)
    save(tmp_path / "a.png", picture())
    result, predictions = run(tmp_path / "export", tmp_path / "a.png", tmp_path / "out")
    assert result.model == tmp_path / "export" / "10"
    assert predictions["model"]["version"] == 10


def test_a_model_that_takes_pixels_alone_gives_the_same(model: Path, tmp_path: Path) -> None:
    """As those of the TensorFlow model zoo, for one picture at a time."""
    zoo = save_model(tmp_path / "zoo", batch=1, encoded=False)
    for index in range(3):
        save(tmp_path / "in" / f"{index}.png", picture(((index, 8, 40, 32), RED), size=(63, 45 + index)))
    _, expected = run(model, tmp_path / "in", tmp_path / "one")
    _, predictions = run(zoo, tmp_path / "in", tmp_path / "other")
    assert predictions["images"] == expected["images"]


def test_a_model_that_is_not_there_or_not_one_is_named(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    with pytest.raises(UsageError, match=r"--model=.*nowhere: no such directory"):
        run(tmp_path / "nowhere", tmp_path / "a.png", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no SavedModel"):
        run(tmp_path / "empty", tmp_path / "a.png", tmp_path / "out")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "saved_model.pb").write_bytes(b"bad")
    with pytest.raises(DataError, match="cannot be loaded"):
        run(tmp_path / "bad", tmp_path / "a.png", tmp_path / "out")
    with pytest.raises(DataError, match="has no output num_detections"):
        run(save_model(tmp_path / "other", output="count"), tmp_path / "a.png", tmp_path / "out")


def test_a_label_map_of_ones_own_names_the_classes(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(((16, 8, 40, 32), RED), ((41, 8, 60, 32), GREEN)))
    (tmp_path / "map.pbtxt").write_text("item { id: 1 name: 'rouge' }")
    _, predictions = run(model, tmp_path / "a.png", tmp_path / "out", label_map=tmp_path / "map.pbtxt")
    assert [entry["class"] for entry in predictions["images"][0]["detections"]] == ["rouge", "class 2"]


def test_again_is_free_and_other_parameters_are_refused(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(((16, 8, 40, 32), RED)))
    first, _ = run(model, tmp_path / "a.png", tmp_path / "out")
    before = (tmp_path / "out" / "_SUCCESS.json").stat().st_mtime_ns
    again, _ = run(model, tmp_path / "a.png", tmp_path / "out")
    assert again == first and (tmp_path / "out" / "_SUCCESS.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="--min-score"):
        run(model, tmp_path / "a.png", tmp_path / "out", min_score=0.95)
    changed, _ = run(model, tmp_path / "a.png", tmp_path / "out", min_score=0.95, overwrite=True)
    assert changed.detections == 0


def test_results_within_the_folder_are_none_of_its_pictures(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture(((16, 8, 40, 32), RED)))
    first, _ = run(model, tmp_path / "in", tmp_path / "in" / "found")
    again, _ = run(model, tmp_path / "in", tmp_path / "in" / "found")
    assert (first.images, again) == (1, first)


@pytest.mark.parametrize("source", [".", "a.png"])
def test_pictures_are_never_replaced_by_what_is_found_in_them(model: Path, tmp_path: Path, source: str) -> None:
    save(tmp_path / "in" / "a.png", picture(((16, 8, 40, 32), RED)))
    for output in (tmp_path / "in", tmp_path, model.parent):
        with pytest.raises(UsageError, match=r"--output-dir=.*holds .*, which the step reads"):
            run(model, tmp_path / "in" / source, output, overwrite=True)
    assert (tmp_path / "in" / "a.png").exists()


def test_pictures_are_not_drawn_where_nobody_wants_them(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(((16, 8, 40, 32), RED)))
    _, predictions = run(model, tmp_path / "a.png", tmp_path / "out", draw=False)
    assert "drawn" not in predictions["images"][0]
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=nowhere/*.jpg"], "--input=nowhere/*.jpg: no match"),
        (["--input=."], "no pictures in it"),
        (["--input=.", "--min-score=2"], "min-score"),
    ],
)
def test_a_mistake_ends_in_one_line_without_loading_tensorflow(
    flags: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "mlcore",
        "predict",
        f"--model={model}",
        "--output-dir=out",
        *flags,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(errors) == 1 and message in errors[0]
    assert "tensorflow" not in done.stderr.replace("mlcore[", "")
