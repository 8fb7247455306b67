"""Which checkpoints there are, which are whole, which is the best."""

import json
import shutil
from pathlib import Path

import pytest

from mlcore.detection.checkpoints import Best, find_checkpoint, list_checkpoints, read_best, remove_checkpoint
from mlcore.runtime.errors import DataError, UsageError


def make(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    for step in steps:
        (folder / f"ckpt-{step}.index").write_bytes(b"index")
        (folder / f"ckpt-{step}.data-00000-of-00001").write_bytes(b"data")


def test_checkpoints_are_listed_by_number_and_nothing_else_is(tmp_path: Path) -> None:
    make(tmp_path, 1000, 200, 30)
    for name in ("damaged-ckpt-5.index", "ckpt-7.data-00000-of-00001", "ckpt-x.index", "checkpoint", ".ckpt-9.index"):
        (tmp_path / name).touch()
    assert list(list_checkpoints(tmp_path)) == [30, 200, 1000]
    assert list_checkpoints(tmp_path)[30] == tmp_path / "ckpt-30"


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("which", "error", "expected"),
    [
        ("latest", DataError, "no checkpoint"),
        ("best", DataError, "no best checkpoint"),
        (7, DataError, "no checkpoint of step 7; there are: none"),
        ("newest", UsageError, "expected latest, best or a step"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, which: str | int, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        find_checkpoint(tmp_path, which)


def test_a_missing_step_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    make(tmp_path, 100, 200)
    make(tmp_path / "best", 50)
    with pytest.raises(DataError, match="there are: 50, 100, 200"):
        find_checkpoint(tmp_path, 150)


def test_the_best_is_what_its_record_says(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    make(tmp_path / "best", 50)
    record = tmp_path / "best/best.json"
    record.write_text(json.dumps({"step": 50, "metric": "ap50", "value": 0.75}))
    assert read_best(tmp_path) == Best(tmp_path / "best/ckpt-50", 50, "ap50", 0.75)
    record.write_text('{"step": 50')
    with pytest.raises(DataError, match=r"best\.json"):
        read_best(tmp_path)


def test_removing_one_leaves_the_others(tmp_path: Path) -> None:
    make(tmp_path, 5, 50)
    remove_checkpoint(tmp_path / "ckpt-5")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ckpt-50.data-00000-of-00001", "ckpt-50.index"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of TensorFlow's."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("saved")
    value = tf.Variable(tf.random.normal([4096]))
    for step in (10, 20):
        tf.train.Checkpoint(value=value).write(str(folder / f"ckpt-{step}"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "no data", "cut index"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    saved: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    assert find_checkpoint(folder) == folder / "ckpt-20"
    data = folder / "ckpt-20.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    if damage == "cut":
        data.write_bytes(content[:-1000])
    elif damage == "flipped":
        content[5000] ^= 1
        data.write_bytes(content)
    elif damage == "no data":
        data.unlink()
    else:
        index = folder / "ckpt-20.index"
        index.write_bytes(index.read_bytes()[:-20])
    assert find_checkpoint(folder) == folder / "ckpt-10"
    assert "ckpt-20 is damaged" in caplog.text
    with pytest.raises(DataError, match="ckpt-20: is damaged"):
        find_checkpoint(folder, 20)


@pytest.mark.slow
def test_only_the_best_is_kept(tmp_path: Path) -> None:
    import tensorflow as tf

    from mlcore.detection.checkpoints import write_best

    checkpoint = tf.train.Checkpoint(value=tf.Variable([1.0]))
    for step, value in ((10, 0.5), (20, 0.6)):
        assert write_best(tmp_path, checkpoint, step=step, metric="ap50", value=value) == read_best(tmp_path)
    assert list(list_checkpoints(tmp_path / "best")) == [20]
    assert find_checkpoint(tmp_path, "best") == tmp_path / "best/ckpt-20"
    assert find_checkpoint(tmp_path, 20) == tmp_path / "best/ckpt-20"
