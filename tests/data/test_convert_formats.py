"""Label maps, TFRecord framing, tf.Example, splits."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data import example, splits
from mlcore.data.label_map import build_label_map, read_label_map, write_label_map
from mlcore.data.tfrecord import TFRecordWriter, masked_crc32c, read_records
from mlcore.runtime.errors import DataError, UsageError

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=50)
@given(st.lists(NAMES, min_size=1, unique=True))
def test_a_label_map_reads_back_as_written(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("map") / "label_map.pbtxt"
    label_map = build_label_map(names)
    write_label_map(path, label_map)
    assert read_label_map(path) == label_map
    assert sorted(label_map) == list(range(1, len(names) + 1))


def test_classes_are_sorted_without_regard_to_case():
    assert build_label_map(["beagle", "Bengal", "american_bulldog", "Abyssinian"]) == {
        1: "Abyssinian", 2: "american_bulldog", 3: "beagle", 4: "Bengal",
    }  # fmt: skip


def test_a_label_map_of_other_writers_is_read(tmp_path):
    path = tmp_path / "map.pbtxt"
    path.write_text(
        "\ufeff# classes\nitem {\n  name: \"/m/01g317\"\n  id: 7 # first\n  display_name: 'a } person'\n"
        "  keypoints { id: 3 label: 'nose' }\n}\nitem: {id:2, name:'it\\'s'}\nitem { id: 0 name: 'background' }\n",
        encoding="utf-8",
    )
    assert read_label_map(path) == {2: "it's", 7: "/m/01g317"}


def test_escapes_mean_what_protobuf_means_by_them(tmp_path):
    path = tmp_path / "map.pbtxt"
    path.write_text(
        r"""item { id: 1 name: "caf\303\251" } item { id: 2 name: "\x41\u00e9\n" } item { id: 3 name: "ca" 't'
            "s" display_name: "other" } item { name: "a\\b\"" id: 4 }"""
    )
    assert read_label_map(path) == {1: "caf\u00e9", 2: "A\u00e9\n", 3: "cats", 4: 'a\\b"'}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item { id: 99999999999999999999 name: 'a' }", "at most 2,147,483,647"),
        (r"item { id: 1 name: '\303' }", "no text in UTF-8"),
        ("", "no item"),
        ("item { name: 'a' }", "without id"),
        ("item { id: 1 }", "without name"),
        ("item { id: 1 name: 'a' } item { id: 1 name: 'b' }", "occurs twice"),
        ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "2 ids"),
        ("item { id: -1 name: 'a' }", "id -1"),
        ("item { id: 1 name: 'a'", "ends within"),
        ("item { id: 'x' name: 'a' }", "expected id"),
        ('{"cat": 1}', "expected item"),
    ],
)
def test_a_wrong_label_map_is_refused_by_file_and_reason(tmp_path, text, words):
    path = tmp_path / "map.pbtxt"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as error:
        read_label_map(path)
    assert str(path) in str(error.value)


def test_a_missing_label_map_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_label_map(tmp_path / "none.pbtxt")


def test_crc32c_is_masked_as_the_format_says():
    crc = 0xE3069283  # the check value of CRC-32C
    assert masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(b"1234", b"", b"56789") == masked_crc32c(b"123456789")


def test_records_are_framed_and_read_back(tmp_path):
    path = tmp_path / "a.tfrecord"
    records = [b"one", b"", b"x" * 3_000_000, *(b"%d" % number for number in range(2000))]
    with TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record[:2], record[2:])
    assert list(read_records(path)) == records
    assert path.stat().st_size == writer.size == sum(map(len, records)) + 16 * len(records)
    assert writer.records == len(records)
    assert path.read_bytes()[:8] == struct.pack("<Q", 3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-3], "ends within its 7 bytes"),
        (lambda data: data + b"\1\2", "ends within its header"),
        (lambda data: data[:14] + b"X" + data[15:], "checksum of its 7 bytes"),
        (lambda data: b"\xff" * 12 + data, "checksum of its length"),
    ],
    ids=["cut", "rest", "flipped", "no tfrecord"],
)
def test_a_damaged_record_file_is_named_with_the_place(tmp_path, damage, words):
    path = tmp_path / "a.tfrecord"
    with TFRecordWriter(path) as writer:
        writer.write(b"content")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=words) as error:
        list(read_records(path))
    assert f"{path}: record" in str(error.value)


def test_an_example_holds_its_features_around_the_picture():
    features = {
        "bytes_lists": {"name": [b"a", b""], "none": []},
        "float_lists": {"x": [0.5, -1.0]},
        "int64_lists": {"n": [-3, 2**62]},
    }
    expected = {"name": [b"a", b""], "none": [], "x": [0.5, -1.0], "n": [-3, 2**62]}
    assert example.decode(example.encode(**features)) == expected
    encoder = example.ExampleEncoder(**features)  # takes their names
    for content in (b"", b"p" * 100, b"p" * 70_000):
        head = encoder.encode_around(expected, "picture", len(content))
        assert example.decode(head + content) == {**expected, "picture": [content]}


def test_an_encoder_keeps_nothing_of_the_example_before():
    encoder = example.ExampleEncoder(bytes_lists=["name"], int64_lists=["n"])
    empty = encoder.encode({"name": [], "n": []})
    full = encoder.encode({"name": [b"a"], "n": [1, 2]})
    assert encoder.encode({"name": [], "n": []}) == empty
    assert encoder.encode({"name": [b"a"], "n": [1, 2]}) == full
    assert example.decode(empty) == {"name": [], "n": []}
    with pytest.raises(ValueError, match="features"):
        encoder.encode({"name": []})


@settings(deadline=None)
@given(st.sets(st.text(min_size=1), min_size=2, max_size=30), st.integers(), st.data())
def test_adding_images_moves_no_other(names, seed, data):
    def splits_of(some):
        return {name: splits.split_of(name, seed=seed, val_fraction=0.2, test_fraction=0.1) for name in some}

    fewer = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1))
    every = splits_of(names)
    assert splits_of(fewer) == {name: every[name] for name in fewer}
    order = splits.in_stable_order(names, seed)
    assert [name for name in order if name in fewer] == splits.in_stable_order(fewer, seed)


def test_a_split_has_its_share():
    names = [f"image_{number}" for number in range(5000)]
    found = [splits.split_of(name, seed=1, val_fraction=0.2, test_fraction=0.1) for name in names]
    assert 0.18 < found.count("val") / 5000 < 0.22
    assert 0.08 < found.count("test") / 5000 < 0.12
    other = [splits.split_of(name, seed=2, val_fraction=0.2, test_fraction=0.1) for name in names]
    assert found != other
    everything = {splits.split_of(name, seed=1, val_fraction=0, test_fraction=1) for name in names}
    assert everything == {"test"}


def test_source_ids_are_unique_whole_numbers_that_do_not_change():
    ids = splits.source_ids(f"image_{number}" for number in range(20_000))
    assert len(set(ids.values())) == 20_000
    assert all(0 <= number < 2**53 and float(number) == number for number in ids.values())
    assert splits.source_ids(["image_7"]) == {"image_7": ids["image_7"]}


@pytest.mark.parametrize(
    ("images", "wanted", "shards"), [(1, 0, 1), (205, 0, 7), (3680, 0, 10), (118_287, 0, 119), (3, 10, 3), (99, 10, 10)]
)
def test_shards_fit_the_number_of_images(images, wanted, shards):
    assert splits.shard_count(images, wanted) == shards
