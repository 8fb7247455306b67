"""`convert` on the layout of Oxford-IIIT Pet, with every fault that the real data set has."""

import csv
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from voc_sets import annotation, box, encoded, jpeg

from mlcore.data.boxes import Box
from mlcore.data.convert import convert
from mlcore.data.example import decode
from mlcore.data.images import ImageError
from mlcore.data.masks import bounding_box, encode_mask, pack_mask, read_trimap
from mlcore.data.pets import class_of
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.runtime.errors import UsageError

SIZE = (64, 48)
BREEDS = ("Abyssinian", "american_bulldog", "Bengal")


def trimap(seed=0, size=SIZE):
    """A disc (1) with a border (3) before a background (2)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2 - seed % 7, y - height / 2)
    return np.where(distance < 12, 1, np.where(distance < 15, 3, 2)).astype(np.uint8)


def png(pixels):
    return encoded(Image.fromarray(pixels), "PNG")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """240 sound pets of the lists trainval and test, the XMLs for trainval only, and every real fault."""
    root = tmp_path_factory.mktemp("pets")
    for part in ("images", "annotations/xmls", "annotations/trimaps"):
        (root / part).mkdir(parents=True)
    lists = {"trainval": [], "test": []}

    def add(name, split, image=None, mask=None, xml=True, pixels=True):
        (root / "images" / f"{name}.jpg").write_bytes(image or jpeg(SIZE, seed=sum(name.encode())))
        if xml:
            species = "cat" if name[0].isupper() else "dog"
            text = annotation(box(species, (11, 5, 20, 30)), size=SIZE, filename=f"{name}.jpg", declaration=True)
            (root / "annotations" / "xmls" / f"{name}.xml").write_text(text)
        if pixels:
            data = png(trimap(len(name))) if mask is None else mask
            (root / "annotations" / "trimaps" / f"{name}.png").write_bytes(data)
        if split:
            lists[split].append(name)

    for number in range(80):
        for breed in BREEDS:
            split = "trainval" if number < 40 else "test"
            add(f"{breed}_{number}", split, xml=split == "trainval")
    add("Abyssinian_100", "trainval", image=jpeg(SIZE, kind="PNG"))  # a PNG called .jpg
    add("Abyssinian_101", "trainval", image=jpeg(SIZE, kind="GIF"))
    add("Abyssinian_102", "trainval", xml=False)  # listed, no XML
    add("Bengal_103", "", xml=False)  # in no list
    add("Bengal_104", "trainval", mask=png(np.full((48, 64), 2, np.uint8)))  # all background
    add("Bengal_105", "trainval", image=jpeg(SIZE)[:-40])  # a JPEG with corrupt data
    (root / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (root / "annotations" / "trimaps" / "._Bengal_1.png").write_bytes(b"\0\5\x16\7")  # left by macOS in the archive
    for split, names in lists.items():
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
    every = "".join(f"{name} 1 1 1\n" for names in lists.values() for name in names)
    (root / "annotations" / "list.txt").write_text(f"#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n{every}")
    return root


def findings(folder):
    with (folder / "rejects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["reason"], row["file"], row["action"]) for row in rows if row["reason"] != "not-annotated"}, sum(
        row["reason"] == "not-annotated" for row in rows
    )


def records_of(records, split):
    return {
        record["image/filename"][0].decode(): record
        for shard in records.shards(split)
        for record in map(decode, read_records(shard))
    }


def test_heads_take_the_class_from_the_file_name_and_the_box_from_the_xml(pets, tmp_path):
    result = convert(data_dir=pets, output_dir=tmp_path / "out", workers=2)
    assert (result.images, result.boxes, result.rejected) == (123, 123, 1)
    found, not_annotated = findings(tmp_path / "out")
    assert found == {
        ("format-not-its-name", "images/Abyssinian_100.jpg", "corrected"),
        ("format-not-its-name", "images/Abyssinian_101.jpg", "corrected"),
        ("image-format", "images/Abyssinian_101.jpg", "image re-encoded"),
        ("image-unreadable", "images/Bengal_105.jpg", "image rejected"),
        ("not-an-image", "images/Abyssinian_100.mat", "left out"),
        ("not-listed", "images/Bengal_103.jpg", "left out"),
    }
    assert not_annotated == 121  # the test list and Abyssinian_102
    records = RecordSet.open(tmp_path / "out")
    assert records.classes == {1: "Abyssinian", 2: "american_bulldog", 3: "Bengal"}
    assert records.splits == ("train", "val")
    assert not records.has_masks
    record = {**records_of(records, "train"), **records_of(records, "val")}["american_bulldog_7.jpg"]
    assert record["image/object/class/text"] == [b"american_bulldog"]
    assert record["image/object/class/label"] == [2]
    assert record["image/object/bbox/xmin"] == pytest.approx([10 / 64])
    assert record["image/object/bbox/ymax"] == pytest.approx([30 / 48])
    assert "image/object/mask" not in record


def test_bodies_take_box_and_mask_from_the_trimap(pets, tmp_path):
    result = convert(data_dir=pets, output_dir=tmp_path / "out", target="bodies", workers=2)
    assert (result.images, result.boxes, result.rejected, result.test_images) == (243, 243, 2, 120)
    found, not_annotated = findings(tmp_path / "out")
    assert ("trimap-empty", "annotations/trimaps/Bengal_104.png", "image rejected") in found
    assert ("image-unreadable", "images/Bengal_105.jpg", "image rejected") in found
    assert not_annotated == 0
    records = RecordSet.open(tmp_path / "out")
    assert records.has_masks
    for name, record in records_of(records, "test").items():
        foreground = trimap(len(name) - 4) != 2
        rows, columns = np.nonzero(foreground)
        assert record["image/object/bbox/xmin"] == pytest.approx([columns.min() / 64])
        assert record["image/object/bbox/xmax"] == pytest.approx([(columns.max() + 1) / 64])
        assert record["image/object/bbox/ymin"] == pytest.approx([rows.min() / 48])
        assert record["image/object/bbox/ymax"] == pytest.approx([(rows.max() + 1) / 48])
        assert record["image/object/area"] == [foreground.sum()]
        (mask,) = record["image/object/mask"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(mask)), bool), foreground)


@pytest.mark.parametrize("target", ["heads", "bodies"])
def test_pods_make_the_bytes_of_one_process(pets, tmp_path, target):
    convert(data_dir=pets, output_dir=tmp_path / "one", target=target)
    for pod in range(2):
        convert(data_dir=pets, output_dir=tmp_path / "two", target=target, shard_index=pod, shard_count=2)
    for path in (tmp_path / "one").iterdir():
        if path.name != "_SUCCESS.json":
            assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_archives_extracted_side_by_side_are_one_data_set_only_with_both_folders(pets, tmp_path):
    (tmp_path / "images").symlink_to(pets / "images")
    with pytest.raises(UsageError, match="no data set in it"):
        convert(data_dir=tmp_path, output_dir=tmp_path / "out")


def test_a_missing_kind_of_annotation_is_told(pets, tmp_path):
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "set" / "images").symlink_to(pets / "images")
    (tmp_path / "set" / "annotations" / "xmls").symlink_to(pets / "annotations" / "xmls")
    with pytest.raises(UsageError, match="try --target=heads"):
        convert(data_dir=tmp_path / "set", output_dir=tmp_path / "out", target="bodies")
    result = convert(data_dir=tmp_path / "set", output_dir=tmp_path / "out", max_bad_fraction=0.02)
    assert result.images == 123


@pytest.mark.parametrize(
    ("name", "breed"),
    [("american_bulldog_12", "american_bulldog"), ("Abyssinian_1", "Abyssinian"), ("Abyssinian", ""), ("a_b", "")],
)
def test_the_class_is_the_name_without_its_number(name, breed):
    assert class_of(name) == breed


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8), (64, 48), (501, 333)])
def test_a_mask_is_a_png_of_zeros_and_ones(size):
    mask = np.random.default_rng(3).random(size[::-1]) < 0.5
    mask[0, 0] = True
    image = Image.open(io.BytesIO(encode_mask(pack_mask(mask))))
    assert image.size == size
    assert np.array_equal(np.asarray(image), mask)


def test_the_box_of_a_mask_is_tight():
    mask = np.zeros((10, 20), bool)
    assert bounding_box(pack_mask(mask)) == (None, 0)
    mask[3, 4] = mask[7, 12] = True
    assert bounding_box(pack_mask(mask)) == (Box(4, 3, 13, 8), 2)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 7), (64, 48), (500, 375)])
def test_the_area_of_a_mask_is_its_pixels(size):
    mask = np.random.default_rng(4).random(size[::-1]) < 0.7
    mask[0, 0] = True
    assert bounding_box(pack_mask(mask))[1] == mask.sum()


def png_of(mode, **options):
    file = io.BytesIO()
    image = Image.fromarray(trimap(3)).convert(mode)
    if mode == "P":  # the numbers are what counts, not the colours behind them
        image = Image.fromarray(trimap(3)).copy()
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("L", {"compress_level": 0}),
        ("P", {}),
        ("P", {"bits": 4}),
        ("P", {"bits": 2}),
        ("P", {"transparency": 1}),
    ],
)
def test_a_trimap_is_read_by_its_numbers(mode, options):
    assert same_mask(read_trimap(png_of(mode, **options)), trimap(3) != 2)


def same_mask(mask, expected):
    packed = pack_mask(expected)
    return mask.width == packed.width and np.array_equal(mask.lines, packed.lines)


def test_an_interlaced_trimap_is_read():
    numbers = trimap(3)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # Adam7
    lines = b"".join(
        b"\0" + line.tobytes() for x, y, step_x, step_y in passes for line in numbers[y::step_y, x::step_x]
    )
    height, width = numbers.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    assert same_mask(read_trimap(png_from(chunks)), numbers != 2)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8), (301, 450)])
def test_lines_of_every_filter_are_read(size, parts):
    width, height = size
    generator = np.random.default_rng(5)
    filtered = generator.integers(0, 256, (height, 1 + width), dtype=np.uint8)
    filtered[:, 0] = generator.integers(0, 5, height)
    packed = zlib.compress(filtered.tobytes())
    cuts = [len(packed) * part // parts for part in range(parts + 1)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = [(b"IDAT", packed[start:end]) for start, end in itertools.pairwise(cuts)]
    png = png_from([(b"IHDR", header), *pixels, (b"IEND", b"")])
    assert same_mask(read_trimap(png), np.asarray(Image.open(io.BytesIO(png))) != 2)


def test_bytes_after_the_last_line_do_not_matter():
    header = struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(65 * 48) + bytes(1 << 24))
    assert read_trimap(png_from([(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")])).lines.any()


def png_from(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(("mode", "words"), [("RGB", "type 2"), ("1", "with 1 bits"), ("LA", "type 4"), ("I;16", "16")])
def test_a_trimap_whose_pixels_are_no_single_numbers_is_refused(mode, words):
    with pytest.raises(ImageError, match=words):
        read_trimap(png_of(mode))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda png: png[:-20], "cut off"),
        (lambda png: png[:60] + bytes([png[60] ^ 255]) + png[61:], "checksum"),
        (lambda png: b"GIF89a" + png[6:], "without a header"),
        (lambda png: b"", "without a header"),
    ],
)
def test_a_damaged_trimap_is_refused(damage, words):
    with pytest.raises(ImageError, match=words):
        read_trimap(damage(png_of("L")))


WHOLE = zlib.compress(bytes(65 * 48))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no deflate", WHOLE[:-5], WHOLE[:-4] + b"sums", zlib.compress(b"\0" * 50), zlib.compress(b"\7" * 65 * 48),
    ],
)  # fmt: skip
def test_a_trimap_with_sound_checksums_and_wrong_pixels_is_refused(body):
    header = struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_trimap(png_from([(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]))


@pytest.mark.slow
def test_official_vision_reads_the_masks_as_zeros_and_ones(pets, tmp_path):
    import tensorflow as tf
    from official.vision.dataloaders import tf_example_decoder

    convert(data_dir=pets, output_dir=tmp_path / "out", target="bodies")
    records = RecordSet.open(tmp_path / "out")
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)
    read = 0
    for record in tf.data.TFRecordDataset([str(path) for path in records.shards("test")]):
        name = decode(record.numpy())["image/filename"][0].decode()
        tensors = decoder.decode(record)
        masks = tensors["groundtruth_instance_masks"].numpy()
        assert np.array_equal(masks, [(trimap(len(name) - 4) != 2).astype(np.float32)])
        assert tensors["groundtruth_area"].numpy() == [masks.sum()]
        read += 1
    assert read == 120
