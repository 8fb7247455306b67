"""`convert` on VOC: every rule on a small set, and the real BCCD."""

import collections
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading

import pytest
from PIL import Image
from voc_sets import annotation, box, encoded, jpeg, names_in, rejects_of

from mlcore.data.convert import convert
from mlcore.data.example import decode
from mlcore.data.irregularities import RULES
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.runtime.errors import DataError, UsageError


@pytest.fixture(scope="session")
def bccd(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bccd")
    with tarfile.open(shared_data / "bccd.tar.gz") as archive:
        # Python 3.11.0 to 3.11.3 know no filters.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / "BCCD"


def records_of(folder):
    records = RecordSet.open(folder)
    return {
        record["image/filename"][0].decode(): record
        for split in records.splits
        for shard in records.shards(split)
        for record in map(decode, read_records(shard))
    }


def content_of(folder):
    """Every file but _SUCCESS.json, which has the time in it."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "_SUCCESS.json"}
    success = json.loads((folder / "_SUCCESS.json").read_text())
    del success["time"]
    return files, success


def boxes_of(record):
    sides = (record[f"image/object/bbox/{side}"] for side in ("xmin", "ymin", "xmax", "ymax"))
    width, height = record["image/width"][0], record["image/height"][0]
    return [
        tuple(round(value * scale, 3) for value, scale in zip(corners, (width, height) * 2, strict=True))
        for corners in zip(*sides, strict=True)
    ]


def test_bccd_keeps_all_boxes_but_two_and_names_them(bccd, tmp_path):
    result = convert(data_dir=bccd, output_dir=tmp_path / "out", workers=2)
    assert (result.images, result.boxes, result.boxes_dropped, result.rejected) == (364, 4886, 2, 0)
    assert (result.train_images, result.val_images, result.test_images) == (205, 87, 72)
    dropped = [row for row in rejects_of(tmp_path / "out") if row["action"] == "box dropped"]
    assert [row["file"] for row in dropped] == ["Annotations/BloodImage_00338.xml", "Annotations/BloodImage_00343.xml"]
    assert {row["reason"] for row in dropped} == {"box-zero-area"}
    records = RecordSet.open(tmp_path / "out")
    assert records.classes == {1: "Platelets", 2: "RBC", 3: "WBC"}
    assert sum(records.by_split[split].boxes for split in records.splits) == 4886
    names = {
        split: {record["image/filename"][0].decode()[:-4] for shard in records.shards(split)
                for record in map(decode, read_records(shard))}
        for split in records.splits
    }  # fmt: skip
    for split, found in names.items():
        assert found == set((bccd / "ImageSets" / "Main" / f"{split}.txt").read_text().split())
        assert len(found) == records.count(split)


def test_a_record_has_every_feature_of_the_format(voc, tmp_path):
    data = jpeg((64, 48), seed=5)
    voc.add("one", annotation(box("dog", (1, 1, 64, 48)), box("cat", (11, 5, 20, 30)), filename="one.jpg"), data)
    convert(data_dir=voc.root, output_dir=tmp_path / "out", val_fraction=0, test_fraction=0)
    (record,) = records_of(tmp_path / "out").values()
    source_id = record.pop("image/source_id")
    assert int(source_id[0]) < 2**53
    assert record.pop("image/encoded") == [data]
    assert len(record.pop("image/key/sha256")[0]) == 64
    assert boxes_of(record) == [(0, 0, 64, 48), (10, 4, 20, 30)]
    assert {name: value for name, value in record.items() if "bbox" not in name} == {
        "image/height": [48],
        "image/width": [64],
        "image/filename": [b"one.jpg"],
        "image/format": [b"jpeg"],
        "image/object/class/text": [b"dog", b"cat"],
        "image/object/class/label": [2, 1],
        "image/object/view": [b"Left", b"Left"],
        "image/object/difficult": [0, 0],
        "image/object/truncated": [1, 1],
        "image/object/is_crowd": [0, 0],
        "image/object/area": [64 * 48, 260],
    }


def test_bytes_are_the_same_for_any_number_of_processes_and_pods(voc, tmp_path):
    voc.fill(60).add("broken", "<annotation>").add(
        "clipped", annotation(box(corners=(5, 5, 90, 20)), filename="clipped.jpg")
    )
    options = {"data_dir": voc.root, "shards": 4, "max_bad_fraction": 0.1}
    convert(output_dir=tmp_path / "one", **options)
    expected = content_of(tmp_path / "one")
    convert(output_dir=tmp_path / "three", workers=3, **options)
    assert content_of(tmp_path / "three") == expected
    for pod in (2, 0, 1):
        assert not (tmp_path / "pods").exists()
        result = convert(output_dir=tmp_path / "pods", shard_index=pod, shard_count=3, workers=1 + pod, **options)
    assert result.images == 61
    assert content_of(tmp_path / "pods") == expected
    assert names_in(tmp_path) == ["one", "pods", "raw", "three"]
    again = convert(output_dir=tmp_path / "pods", shard_index=1, shard_count=3, **options)
    assert again == result


def test_pods_that_end_at_the_same_moment_make_one_whole(voc, tmp_path):
    voc.fill(40)
    errors = []

    def pod(index):
        try:
            convert(data_dir=voc.root, output_dir=tmp_path / "out", shards=8, shard_index=index, shard_count=8)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pod, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(records_of(tmp_path / "out")) == 40
    assert names_in(tmp_path) == ["out", "raw"]


def test_again_is_free_and_other_parameters_are_refused(voc, tmp_path):
    voc.fill(12)
    first = convert(data_dir=voc.root, output_dir=tmp_path / "out")
    stamp = (tmp_path / "out" / "_SUCCESS.json").stat().st_mtime_ns
    assert convert(data_dir=voc.root, output_dir=tmp_path / "out", workers=2) == first
    assert (tmp_path / "out" / "_SUCCESS.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="--seed 42, now 7"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out", seed=7)
    voc.add("new")
    with pytest.raises(DataError, match="another input data"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out")
    assert convert(data_dir=voc.root, output_dir=tmp_path / "out", overwrite=True).images == 13


IMAGE_CASES = {
    "png_as_jpg": (jpeg(kind="PNG"), {"format-not-its-name"}, "png"),
    "gif_as_jpg": (jpeg(kind="GIF"), {"format-not-its-name", "image-format"}, "png"),
    "bmp_as_jpg": (jpeg(kind="BMP"), {"format-not-its-name", "image-format"}, "png"),
    "cmyk": (jpeg(mode="CMYK"), {"image-colours"}, "jpeg"),
    "grey": (jpeg(mode="L"), {"image-grey", "depth-not-the-images"}, "jpeg"),
    "16_bit": (
        encoded(Image.new("I;16", (64, 48)), "PNG"),
        {"image-colours", "format-not-its-name", "image-grey", "depth-not-the-images"},
        "png",
    ),
}


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_an_image_is_taken_for_what_it_is(voc, tmp_path, case):
    data, reasons, kind = IMAGE_CASES[case]
    voc.add(case, image=data)
    convert(data_dir=voc.root, output_dir=tmp_path / "out", val_fraction=0, test_fraction=0)
    record = records_of(tmp_path / "out")[f"{case}.jpg"]
    assert {row["reason"] for row in rejects_of(tmp_path / "out")} == reasons
    assert record["image/format"] == [kind.encode()]
    if not reasons & {"image-format", "image-colours"}:
        assert record["image/encoded"] == [data]


@pytest.mark.parametrize(
    ("size", "orientation", "options", "expected"),
    [
        ((64, 48), 6, {}, ("orientation-kept", (64, 48))),
        ((48, 64), 6, {}, ("image-rotated", (48, 64))),
        (None, 6, {}, ("image-rotated", (48, 64))),
        ((64, 48), 3, {}, ("image-rotated", (64, 48))),
        ((64, 48), 3, {"orientation": "stored"}, ("orientation-kept", (64, 48))),
        ((64, 48), 1, {}, (None, (64, 48))),
    ],
    ids=["boxes of stored pixels", "boxes of upright", "no size", "half turn", "half turn stored", "upright"],
)
def test_boxes_of_a_rotated_image_fit_what_a_decoder_shows(voc, tmp_path, size, orientation, options, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    voc.add("turned", annotation(box(), size=size, filename="turned.jpg"), jpeg((64, 48), exif=exif))
    convert(data_dir=voc.root, output_dir=tmp_path / "out", val_fraction=0, test_fraction=0, **options)
    record = records_of(tmp_path / "out")["turned.jpg"]
    reason, shown = expected
    assert (record["image/width"][0], record["image/height"][0]) == shown
    reasons = {row["reason"] for row in rejects_of(tmp_path / "out")} - {"size-missing"}
    assert reasons == ({reason} if reason else set())
    assert boxes_of(record) == [(4, 5, 20, 30)]


def named(*objects, **options):
    return annotation(*objects, filename="odd.jpg", **options)


XML_CASES = {
    "no-objects": (named(), "accepted", 0),
    "box-zero-area": (named(box(), box(corners=(9, 9, 9, 9))), "box dropped", 1),
    "box-inverted": (named(box(), box(corners=(20, 9, 10, 30))), "box dropped", 1),
    "box-outside": (named(box(), box(corners=(70, 9, 80, 30))), "box dropped", 1),
    "box-beyond-edge": (named(box(corners=(5, 5, 66, 20))), "box clipped", 1),
    "box-duplicate": (named(box(), box(), box("dog")), "box dropped", 2),
    "box-not-a-number": (named(box(), box(corners=("x", 5, 6, 20))), "box dropped", 1),
    "box-without-class": (named(box(), box(" ")), "box dropped", 1),
    "no-usable-box": (named(box(corners=(9, 9, 9, 9))), "image rejected", None),
    "size-not-the-images": (named(box(), size=(100, 48)), "corrected", 1),
    "size-and-boxes-disagree": (named(box(corners=(5, 5, 90, 20)), size=(100, 48)), "image rejected", None),
    "size-missing": (named(box(), size=None), "corrected", 1),
    "depth-not-the-images": (named(box(), depth=1), "corrected", 1),
    "filename-not-the-images": (annotation(box(), filename="odd.xml"), "corrected", 1),
    "filename-missing": (annotation(box(), more="<frame>odd</frame>"), "corrected", 1),
    "flags-missing": (named(box(flags=False)), "accepted", 1),
    "path-foreign": (named(box(), more=r"<path>D:\data\odd.jpg</path>"), "accepted", 1),
    "xml-size-last": (named(box(), size_last=True), "accepted", 1),
    "xml-no-declaration": (named(box(), declaration=False), "accepted", 1),
    "xml-byte-order-mark": ("\ufeff" + named(box()), "accepted", 1),
    "xml-crlf": (named(box()).replace("\n", "\r\n"), "accepted", 1),
    "xml-malformed": ("<annotation><object>", "image rejected", None),
    "xml-forbidden": ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "image rejected", None),
    "xml-not-voc": ("<html/>", "image rejected", None),
}


@pytest.mark.parametrize("reason", XML_CASES)
def test_each_irregularity_of_the_xml_has_its_rule(voc, tmp_path, reason):
    xml, action, boxes = XML_CASES[reason]
    voc.fill(3).add("odd", xml)
    convert(data_dir=voc.root, output_dir=tmp_path / "out", max_bad_fraction=0.3)
    rows = [row for row in rejects_of(tmp_path / "out") if row["reason"] == reason]
    assert [(row["file"], row["action"]) for row in rows] == [("Annotations/odd.xml", action)]
    assert RULES[reason].action == action
    assert reason in (tmp_path / "out" / "report.html").read_text()
    success = RecordSet.open(tmp_path / "out").success["results"]
    assert success["irregularities"][reason] == 1
    records = records_of(tmp_path / "out")
    if boxes is None:
        assert "odd.jpg" not in records
        assert success["rejected"] == 1
    else:
        assert len(boxes_of(records["odd.jpg"])) == boxes


def test_odd_files_and_lists_have_their_rules(voc, tmp_path):
    voc.fill(10)
    voc.add("not_listed").add("no_xml", xml="").add("no_image", extension="")
    voc.add("CAPITALS", annotation(box(), filename="CAPITALS.JPG"), extension=".JPG")
    voc.add("twice").add("empty", image=b"").add("cut", image=jpeg()[:-30])
    (voc.root / "JPEGImages" / "twice.png").write_bytes(jpeg(kind="PNG"))
    (voc.root / "JPEGImages" / "Thumbs.db").write_bytes(b"x")
    (voc.root / "JPEGImages" / "._good_001.jpg").write_bytes(b"x")
    voc.add("xml_of_another", annotation(box(), filename="other_name.jpg"), extension="")
    (voc.root / "JPEGImages" / "other_name.jpg").write_bytes(jpeg())
    good = [f"good_{number:03}" for number in range(10)]
    voc.lists(
        train=[*good[:6], "no_xml", "no_image", "CAPITALS", "xml_of_another"],
        val=["good_006 1", "good_007.jpg", "twice", "good_000"],
        test=["good_008 -1", "good_009", "empty", "cut", "good_000"],
    )
    convert(data_dir=voc.root, output_dir=tmp_path / "out", max_bad_fraction=0.3)
    found = {(row["reason"], row["file"].rpartition("/")[2]) for row in rejects_of(tmp_path / "out")}
    assert found == {
        ("not-listed", "not_listed.jpg"),
        ("annotation-missing", "no_xml.jpg"),
        ("image-missing", "no_image"),
        ("extension-in-capitals", "CAPITALS.JPG"),
        ("image-ambiguous", "twice.jpg"),
        ("image-unreadable", "empty.jpg"),
        ("image-unreadable", "cut.jpg"),
        ("not-an-image", "Thumbs.db"),
        ("image-by-filename", "xml_of_another.xml"),
        ("listed-twice", "Main: good_000"),
    }
    records = RecordSet.open(tmp_path / "out")
    assert {split: records.count(split) for split in records.splits} == {"train": 7, "val": 3, "test": 3}
    assert "other_name.jpg" in records_of(tmp_path / "out")


def test_trainval_alone_is_divided_and_test_kept(voc, tmp_path):
    voc.fill(40).lists(
        trainval=[f"good_{number:03}" for number in range(30)], test=[f"good_{number:03}" for number in range(30, 40)]
    )
    result = convert(data_dir=voc.root, output_dir=tmp_path / "out", val_fraction=0.3)
    assert result.test_images == 10
    assert result.train_images + result.val_images == 30
    assert 3 <= result.val_images <= 15


def test_sets_that_count_from_zero_are_taken_so(voc, tmp_path):
    for number in range(3):
        voc.add(f"zero_{number}", annotation(box(corners=(0, 10, 64, 48)), filename=f"zero_{number}.jpg"))
    convert(data_dir=voc.root, output_dir=tmp_path / "out")
    assert all(boxes_of(record) == [(0, 10, 64, 48)] for record in records_of(tmp_path / "out").values())
    convert(data_dir=voc.root, output_dir=tmp_path / "one", box_origin="1")
    assert all(boxes_of(record) == [(0, 9, 64, 48)] for record in records_of(tmp_path / "one").values())


def test_a_given_label_map_chooses_the_classes(voc, tmp_path):
    for number in range(4):
        voc.add(f"a_{number}", annotation(box("dog"), box("cat"), filename=f"a_{number}.jpg"))
    voc.add("other", annotation(box("bird"), filename="other.jpg"))
    (tmp_path / "map.pbtxt").write_text("item { id: 5 name: 'dog' }")
    result = convert(data_dir=voc.root, output_dir=tmp_path / "out", label_map=tmp_path / "map.pbtxt")
    assert (result.boxes, result.boxes_dropped, result.images, result.rejected) == (4, 5, 5, 0)
    records = records_of(tmp_path / "out")
    assert records["a_0.jpg"]["image/object/class/label"] == [5]
    assert records["other.jpg"]["image/object/class/label"] == []


def test_empty_and_difficult_can_be_left_out(voc, tmp_path):
    voc.fill(3).add("none", named()).add("hard", annotation(box(), box("dog", difficult=1), filename="hard.jpg"))
    result = convert(data_dir=voc.root, output_dir=tmp_path / "out", keep_empty=False, keep_difficult=False)
    assert (result.images, result.boxes, result.boxes_dropped, result.left_out) == (4, 4, 1, 1)


def test_a_damaged_jpeg_is_found_when_every_image_is_decoded(voc, tmp_path):
    data = bytearray(jpeg((200, 150)))
    png = bytearray(jpeg((64, 48), kind="PNG"))
    png[60] ^= 0xFF
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16  # code counts that no Huffman table can have
    voc.fill(3).add("damaged", image=bytes(data)).add("flipped", image=bytes(png))
    convert(data_dir=voc.root, output_dir=tmp_path / "out", verify_images=True, max_bad_fraction=0.5)
    assert set(records_of(tmp_path / "out")) == {f"good_{number:03}.jpg" for number in range(3)}


def test_too_many_bad_images_fail_with_the_reasons(voc, tmp_path):
    voc.fill(50).add("odd", "<annotation>").add("none", image=b"")
    with pytest.raises(DataError) as error:
        convert(data_dir=voc.root, output_dir=tmp_path / "out")
    message = str(error.value)
    assert "2 of 52 images rejected (3.8%), more than --max-bad-fraction=0.01" in message
    assert "1 xml-malformed (Annotations/odd.xml" in message
    assert "1 image-unreadable (JPEGImages/none.jpg: an empty file)" in message
    assert names_in(tmp_path) == ["raw"]


@pytest.mark.parametrize(
    ("xml", "label_map", "words"),
    [
        (named(), None, "no annotation has an object"),
        (named(box("dog")), "item { id: 1 name: 'Dog' }", "no box is left to train on \\(1 class-not-in-label-map"),
        (named(box(), box(difficult=1)), "item { id: 1 name: 'x' }", "no box is left"),
    ],
    ids=["no objects", "other case", "other classes"],
)
def test_a_conversion_never_succeeds_with_empty_records(voc, tmp_path, xml, label_map, words):
    voc.add("odd", xml)
    path = None
    if label_map:
        path = tmp_path / "map.pbtxt"
        path.write_text(label_map)
    with pytest.raises(DataError, match=words):
        convert(data_dir=voc.root, output_dir=tmp_path / "out", label_map=path)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_told_in_one_line(voc, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        convert(data_dir=tmp_path / "typo", output_dir=tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match=r"no data set in it; expected JPEGImages/.* but it is empty"):
        convert(data_dir=tmp_path / "bare", output_dir=tmp_path / "out")
    with pytest.raises(DataError, match="no image with an annotation \\(its folders are empty\\)"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out")
    voc.add("only", xml="")
    with pytest.raises(DataError, match="1 not-annotated"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out")
    shutil.copytree(voc.root, tmp_path / "two" / "a")
    shutil.copytree(voc.root, tmp_path / "two" / "b")
    with pytest.raises(UsageError, match="2 data sets"):
        convert(data_dir=tmp_path / "two", output_dir=tmp_path / "out")
    with pytest.raises(UsageError, match="shard-index=3"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out", shard_index=3, shard_count=3)


def test_readers_are_told_what_is_wrong_with_a_folder(voc, tmp_path):
    voc.fill(4)
    convert(data_dir=voc.root, output_dir=tmp_path / "out", val_fraction=0, test_fraction=0)
    records = RecordSet.open(tmp_path / "out")
    assert (records.splits, records.has_masks, records.count("train")) == (("train",), False, 4)
    assert sorted(map(str, records.shards("train"))) == sorted(map(str, tmp_path.glob("out/train.tfrecord-*")))
    with pytest.raises(UsageError, match="no split test; there is train"):
        records.shards("test")
    for path, words in ((tmp_path / "none", "no such folder"), (voc.root, "holds Annotations and no _SUCCESS.json")):
        with pytest.raises(UsageError, match=words):
            RecordSet.open(path)
    os.truncate(records.shards("train")[0], 100)
    with pytest.raises(DataError, match="100 bytes; expected"):
        RecordSet.open(tmp_path / "out")
    records.shards("train")[0].unlink()
    with pytest.raises(DataError, match="missing"):
        RecordSet.open(tmp_path / "out")


def test_the_command_line_prints_the_counts(voc, tmp_path):
    voc.fill(20)
    command = [sys.executable, "-m", "mlcore", "convert", f"--data-dir={voc.root}", f"--output-dir={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = dict(line.rpartition(" ")[2].split("=", 1) for line in done.stdout.splitlines())
    assert (lines["images"], lines["boxes"], lines["rejected"]) == ("20", "20", "0")


def test_every_action_of_a_rule_is_known():
    from mlcore.data.irregularities import ACTIONS

    assert collections.Counter(rule.action for rule in RULES.values()).keys() == set(ACTIONS)


@pytest.mark.slow
def test_official_vision_reads_the_records_as_the_xml_says(bccd, tmp_path):
    import numpy as np
    import tensorflow as tf
    from lxml import etree
    from official.vision.dataloaders import tf_example_decoder, utils

    convert(data_dir=bccd, output_dir=tmp_path / "out", workers=2)
    records = RecordSet.open(tmp_path / "out")
    ids = {name: number for number, name in records.classes.items()}
    decoder = tf_example_decoder.TfExampleDecoder()
    seen = set()
    for split in records.splits:
        for record in tf.data.TFRecordDataset([str(path) for path in records.shards(split)]):
            name = decode(record.numpy())["image/filename"][0].decode()
            tensors = decoder.decode(record)
            seen.add(int(utils.process_source_id(tensors["source_id"])))
            assert tensors["image"].shape == (480, 640, 3)
            expected = []
            for element in etree.parse(bccd / "Annotations" / name.replace(".jpg", ".xml")).iter("object"):
                xmin, ymin, xmax, ymax = (
                    float(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if xmax > xmin:
                    corners = ((ymin - 1) / 480, (xmin - 1) / 640, ymax / 480, xmax / 640)
                    expected.append((*corners, ids[element.findtext("name")]))
            found = np.column_stack([tensors["groundtruth_boxes"], tensors["groundtruth_classes"]])
            assert np.allclose(found, np.array(expected), atol=1e-6)
    assert len(seen) == 364
