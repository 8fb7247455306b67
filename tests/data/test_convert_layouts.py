"""Where `convert` finds a data set: folders above it, and those that annotation tools make."""

import pytest
from voc_sets import annotation, box, jpeg, rejects_of

from mlcore.data.convert import convert
from mlcore.runtime.errors import UsageError


def test_a_folder_above_the_data_set_is_enough(voc, tmp_path):
    voc.fill(3)
    deep = tmp_path / "extracted" / "VOCdevkit"
    deep.mkdir(parents=True)
    voc.root.rename(deep / "VOC2007")
    assert convert(data_dir=tmp_path / "extracted", output_dir=tmp_path / "out").images == 3


def flatten(voc, images, annotations):
    """Move the files of a set in VOC's folders into others; "" is the set's own."""
    for old, new in (("JPEGImages", images), ("Annotations", annotations)):
        (voc.root / new).mkdir(exist_ok=True)
        for file in (voc.root / old).iterdir():
            file.rename(voc.root / new / file.name)
        (voc.root / old).rmdir()
    return voc


@pytest.mark.parametrize(
    ("images", "annotations", "listed"),
    [
        pytest.param("", "", False, id="XMLs beside the pictures"),
        pytest.param("", "", True, id="XMLs beside the pictures, with lists"),
        pytest.param("photos", "labels", True, id="folders by other names"),
        pytest.param("photos", "annotations", False, id="one of them by its name"),
        pytest.param("photos", "photos", False, id="all in one folder below"),
    ],
)
def test_data_sets_as_annotation_tools_leave_them_give_the_same_records(voc, tmp_path, images, annotations, listed):
    names = [f"good_{number:03}" for number in range(12)]
    voc.fill(12)
    if listed:
        voc.lists(train=names[:8], val=names[8:10], test=names[10:])
    expected = convert(data_dir=voc.root, output_dir=tmp_path / "expected")
    flatten(voc, images, annotations)
    (voc.root / annotations / "classes.txt").write_text("cat\n")
    result = convert(data_dir=voc.root, output_dir=tmp_path / "records")
    assert result.digest == expected.digest
    assert (result.images, result.boxes) == (12, 12)
    assert result.left_out == (1 if images == annotations else 0)  # classes.txt among the pictures is no picture


def test_what_is_not_annotated_is_left_out_of_a_flat_set(voc, tmp_path):
    flatten(voc.fill(3).add("bare", xml=""), "", "")
    (voc.root / "lonely.xml").write_text(annotation(box()))
    (voc.root / "pictures").mkdir()
    result = convert(data_dir=voc.root, output_dir=tmp_path / "records", max_bad_fraction=0.3)
    assert (result.images, result.left_out, result.rejected) == (3, 1, 1)
    assert ("bare.jpg", "not-annotated") in {(row["file"], row["reason"]) for row in rejects_of(tmp_path / "records")}


def test_named_folders_go_before_loose_files(voc, tmp_path):
    voc.fill(3)
    for number in range(2):
        (voc.root / f"example_{number}.xml").write_text(annotation(box()))
        (voc.root / f"example_{number}.jpg").write_bytes(jpeg(seed=number))
    assert convert(data_dir=voc.root, output_dir=tmp_path / "records").images == 3
    assert convert(data_dir=voc.root.parent, output_dir=tmp_path / "from above").images == 3


@pytest.mark.parametrize(
    "fill",
    [
        pytest.param(lambda root: None, id="no XML has the name of a picture"),
        pytest.param(lambda root: (root / "c" / "x_0.jpg").write_bytes(jpeg()), id="two folders with pictures"),
    ],
)
def test_loose_files_that_may_mean_several_things_are_refused(tmp_path, fill):
    for name in "abc":
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "a" / "x_0.xml").write_text(annotation(box()))
    (tmp_path / "set" / "b" / "y_0.jpg").write_bytes(jpeg())
    if fill(tmp_path / "set") is not None:
        (tmp_path / "set" / "b" / "x_0.jpg").write_bytes(jpeg())
    with pytest.raises(UsageError, match=r"no data set in it; expected .*pictures with XMLs of the same names"):
        convert(data_dir=tmp_path / "set", output_dir=tmp_path / "out")


def test_flat_folders_side_by_side_are_several_data_sets(voc, tmp_path):
    flatten(voc.fill(2), "one", "one")
    (voc.root / "two").mkdir()
    for file in (voc.root / "one").iterdir():
        (voc.root / "two" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="2 data sets in it; name one of"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out")
