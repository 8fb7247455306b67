"""`convert`, on what users were seen to have: images claimed twice, names that are no text, results in the way."""

import io
import os
import random

import pytest
from PIL import Image, ImageOps
from voc_sets import annotation, box, encoded, jpeg, names_in, rejects_of

from mlcore.data.convert import convert
from mlcore.data.example import decode
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.runtime.errors import DataError, UsageError


def records_of(folder):
    records = RecordSet.open(folder)
    return [
        record
        for split in records.splits
        for shard in records.shards(split)
        for record in map(decode, read_records(shard))
    ]


def reasons_of(folder):
    return {entry["file"].rpartition("/")[2]: entry["reason"] for entry in rejects_of(folder)}


def test_an_image_that_several_annotations_name_is_in_the_records_once(voc, tmp_path):
    voc.fill(3).add("lonely", xml="")
    for number in range(6):
        voc.add(f"old_{number}", xml=annotation(box(), filename="good_000.jpg"), extension="")
    for number in range(2):
        voc.add(f"new_{number}", xml=annotation(box(), filename="lonely.jpg"), extension="")
    done = convert(data_dir=voc.root, output_dir=tmp_path / "out", max_bad_fraction=1)
    assert (done.images, done.rejected) == (4, 7)
    names = sorted(record["image/filename"][0] for record in records_of(tmp_path / "out"))
    assert names == [b"good_000.jpg", b"good_001.jpg", b"good_002.jpg", b"lonely.jpg"]
    reasons = reasons_of(tmp_path / "out")
    assert reasons["new_0.xml"] == "image-by-filename"
    assert {reasons[f"old_{number}.xml"] for number in range(6)} | {reasons["new_1.xml"]} == {"image-taken"}


def test_images_in_sub_folders_are_found_by_the_names_of_flat_annotations(voc, tmp_path):
    voc.fill(4)
    (voc.root / "JPEGImages" / "batch").mkdir()
    for name in ("good_001", "good_002"):
        image = voc.root / "JPEGImages" / f"{name}.jpg"
        image.rename(image.parent / "batch" / image.name)
    done = convert(data_dir=voc.root, output_dir=tmp_path / "out")
    assert (done.images, done.boxes, done.rejected) == (4, 4, 0)
    assert reasons_of(tmp_path / "out")["good_001.xml"] == "image-in-another-folder"


@pytest.mark.parametrize("workers", [1, 2])
def test_names_that_are_not_utf8_are_kept(voc, tmp_path, workers):
    name = os.fsdecode(b"caf\xe9")
    voc.fill(2).add(name, xml=annotation(box(), box(corners=(90, 90, 95, 95))))
    done = convert(data_dir=voc.root, output_dir=tmp_path / "out", workers=workers)
    assert (done.images, done.boxes) == (3, 3)
    assert b"caf\xe9.jpg" in [record["image/filename"][0] for record in records_of(tmp_path / "out")]
    assert b"Annotations/caf\xe9.xml,box-outside" in (tmp_path / "out" / "rejects.csv").read_bytes()


def test_an_image_without_extension_is_taken_where_filename_names_it(voc, tmp_path):
    voc.fill(2).add("a", xml=annotation(box(), filename="noext"), extension="")
    (voc.root / "JPEGImages" / "noext").write_bytes(jpeg())
    assert convert(data_dir=voc.root, output_dir=tmp_path / "out").images == 3


def test_a_folder_that_contains_itself_is_read_once(voc, tmp_path):
    voc.fill(3)
    (voc.root / "JPEGImages" / "loop").symlink_to("loop")
    (voc.root / "Annotations" / "self").symlink_to(".")
    done = convert(data_dir=voc.root, output_dir=tmp_path / "out")
    assert (done.images, done.rejected, done.left_out) == (3, 0, 0)


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "TIFF"])
def test_damaged_images_of_any_format_are_rejected_and_the_rest_goes_on(voc, tmp_path, kind):
    whole = jpeg(kind=kind, exif=exif(6))
    generator = random.Random(0)
    voc.fill(3)
    for number in range(60):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        damaged[generator.randrange(len(damaged)) :] = b"" if number % 2 else bytes(20)
        voc.add(f"bad_{number}", image=bytes(damaged))
    done = convert(data_dir=voc.root, output_dir=tmp_path / "out", max_bad_fraction=1)
    assert done.images + done.rejected == 63 and done.images >= 3
    assert done.rejected >= 20


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def quarters(size=(40, 60)):
    """One colour in each quarter, so that a turn shows."""
    image = Image.new("RGB", size, "red")
    half = (size[0] // 2, size[1] // 2)
    image.paste("lime", (half[0], 0, *size))
    image.paste("blue", (0, half[1], half[0], size[1]))
    image.paste("white", (*half, *size))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kept", ["stored", "upright"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_boxes_fit_the_pixels_of_turned_images(voc, tmp_path, kind, orientation, kept):
    stored = quarters()
    image = encoded(stored, kind, exif=exif(orientation))
    turned = stored.copy()
    turned.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(turned) if kept == "upright" else stored
    voc.add("a", xml=annotation(box(corners=(5, 11, 15, 31)), size=expected.size), image=image, extension=".png")
    convert(data_dir=voc.root, output_dir=tmp_path / "out", orientation=kept, val_fraction=0, test_fraction=0,
            box_origin="0")  # fmt: skip
    (record,) = records_of(tmp_path / "out")
    width, height = expected.size
    assert (record["image/width"], record["image/height"]) == ([width], [height])
    assert record["image/object/bbox/xmin"][0] * width == pytest.approx(5)
    assert record["image/object/bbox/ymax"][0] * height == pytest.approx(31)
    assert Image.open(io.BytesIO(record["image/encoded"][0])).convert("RGB").tobytes() == expected.tobytes()


def test_a_result_never_takes_the_place_of_what_was_read(voc, tmp_path):
    voc.fill(4)
    for output in (voc.root, tmp_path, voc.root / "JPEGImages" / ".."):
        with pytest.raises(UsageError, match=r"--output-dir=.*(holds|is what the step reads)"):
            convert(data_dir=voc.root, output_dir=output, overwrite=True)
    assert len(names_in(voc.root / "JPEGImages")) == 4


def test_records_within_a_flat_data_set_are_none_of_its_files(voc, tmp_path):
    voc.fill(3)
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in ("JPEGImages", "Annotations"):
        for path in (voc.root / folder).iterdir():
            path.rename(flat / path.name)
    first = convert(data_dir=flat, output_dir=flat / "records")
    again = convert(data_dir=flat, output_dir=flat / "records")
    assert (first.images, again) == (3, first)


def test_records_that_were_damaged_are_not_up_to_date(voc, tmp_path):
    voc.fill(6)
    first = convert(data_dir=voc.root, output_dir=tmp_path / "out")
    shard = next(tmp_path.glob("out/train.tfrecord-*"))
    content = shard.read_bytes()
    for damage in (shard.unlink, lambda: os.truncate(shard, 10)):
        damage()
        with pytest.raises(DataError, match=r"are gone; pass --overwrite=true"):
            convert(data_dir=voc.root, output_dir=tmp_path / "out")
        assert convert(data_dir=voc.root, output_dir=tmp_path / "out", overwrite=True) == first
        assert shard.read_bytes() == content


@pytest.mark.parametrize(("bad", "whole", "fraction"), [(29, 50, 0.58), (29, 100, 0.29)])
def test_the_bound_on_bad_images_holds_to_the_image(voc, tmp_path, bad, whole, fraction):
    voc.fill(whole - bad)
    for number in range(bad):
        voc.add(f"bad_{number}", image=b"no image")
    assert convert(data_dir=voc.root, output_dir=tmp_path / "out", max_bad_fraction=fraction).rejected == bad
    with pytest.raises(DataError, match=f"{bad} of {whole} images rejected"):
        convert(data_dir=voc.root, output_dir=tmp_path / "less", max_bad_fraction=fraction - 0.001)


def test_bodies_are_of_pets_only(voc, tmp_path):
    with pytest.raises(UsageError, match=r"--target=bodies: expected the layout pets"):
        convert(data_dir=voc.fill(2).root, output_dir=tmp_path / "out", target="bodies")


@pytest.mark.parametrize("text", ["TRUE", "Yes", "1.0", " true "])
def test_flags_are_read_however_they_are_spelt(text):
    from mlcore.data.voc import parse_voc

    (found,) = parse_voc(annotation(box(difficult=text)).encode()).objects
    assert found.difficult == 1


def test_pods_whose_whole_is_refused_leave_nothing(voc, tmp_path):
    voc.fill(4)
    for number in range(4):
        voc.add(f"bad_{number}", image=b"no image")
    convert(data_dir=voc.root, output_dir=tmp_path / "out", shards=2, shard_index=0, shard_count=2)
    with pytest.raises(DataError, match="4 of 8 images rejected"):
        convert(data_dir=voc.root, output_dir=tmp_path / "out", shards=2, shard_index=1, shard_count=2)
    assert names_in(tmp_path) == ["raw"]
