"""tf.train.Example without TensorFlow.

The messages are those of tensorflow/core/example/{example,feature}.proto, built here in a descriptor pool of their own:
TensorFlow registers the same names in the default pool of the process, and the two must not meet.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mlcore.runtime.wire import varint

Values = list[bytes] | list[float] | list[int]


@cache
def _example_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mlcore/example.proto", package="tensorflow", syntax="proto3")

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        message(name).field.add(name="value", number=1, label=field.LABEL_REPEATED, type=kind)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = ".tensorflow." + "".join(part.capitalize() for part in name.split("_"))
        feature.field.add(
            name=name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE, type_name=type_name,
            oneof_index=0,
        )  # fmt: skip
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE, type_name=".tensorflow.Feature"
    )
    features.field.add(
        name="feature", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
    )  # fmt: skip
    message("Example").field.add(
        name="features", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


class ExampleEncoder:
    """Makes tf.train.Examples that have the same features, one after the other; not for two threads at once.

    It fills one message again and again, which takes a tenth of the time of making the features anew.

    Args:
        bytes_lists: Names of the features that are lists of bytes.
        float_lists: Names of those that are lists of floats.
        int64_lists: Names of those that are lists of integers.
    """

    def __init__(
        self, *, bytes_lists: Iterable[str] = (), float_lists: Iterable[str] = (), int64_lists: Iterable[str] = ()
    ) -> None:
        self._features = _example_class()().features
        self._values: dict[str, Any] = {}
        for kind, names in (("bytes_list", bytes_lists), ("float_list", float_lists), ("int64_list", int64_lists)):
            for name in names:
                values = getattr(self._features.feature[name], kind)
                values.SetInParent()  # an empty list is one too, whatever was in it before
                self._values[name] = values.value

    def encode(self, values: Mapping[str, Iterable[Any]]) -> bytes:
        """A serialised tf.train.Example with these values; the same bytes for the same values."""
        body = self._serialise(values)
        return b"\x0a" + varint(len(body)) + body

    def encode_around(self, values: Mapping[str, Iterable[Any]], name: str, size: int) -> bytes:
        """The bytes to which a content is added to make a tf.train.Example with these values and `name: [content]`.

        A record is mostly one picture. Where it comes last in the message, it need not be copied into the message, out
        of it and once more into the file; that was a quarter of the time of a conversion.

        Args:
            values: Values of all features of this encoder.
            name: The feature that is added.
            size: Bytes of its content.
        """
        others = self._serialise(values)
        key = name.encode()
        # One more entry of the map: key (field 1) and Feature (2), in it BytesList (1), in it the value (1). The
        # entries have no order in the format, and each length counts all that follows up to the end of its message.
        value_head = b"\x0a" + varint(size)
        list_head = b"\x0a" + varint(len(value_head) + size)
        feature_head = b"\x12" + varint(len(list_head) + len(value_head) + size)
        entry_body = b"\x0a" + varint(len(key)) + key + feature_head + list_head + value_head
        entry = b"\x0a" + varint(len(entry_body) + size) + entry_body
        return b"\x0a" + varint(len(others) + len(entry) + size) + others + entry

    def _serialise(self, values: Mapping[str, Iterable[Any]]) -> bytes:
        if values.keys() != self._values.keys():
            raise ValueError(f"features {sorted(values)}; expected {sorted(self._values)}")
        for name, container in self._values.items():
            container[:] = values[name]
        return self._features.SerializeToString(deterministic=True)  # sorts the map by its keys


def encode(
    *,
    bytes_lists: Mapping[str, Iterable[bytes]],
    float_lists: Mapping[str, Iterable[float]],
    int64_lists: Mapping[str, Iterable[int]],
) -> bytes:
    """A serialised tf.train.Example with these features; the same bytes for the same values."""
    encoder = ExampleEncoder(bytes_lists=bytes_lists, float_lists=float_lists, int64_lists=int64_lists)
    return encoder.encode({**bytes_lists, **float_lists, **int64_lists})


def decode(data: bytes) -> dict[str, Values]:
    """The features of a serialised tf.train.Example: name -> list of bytes, floats or ints.

    Raises:
        google.protobuf.message.DecodeError: The bytes are no tf.train.Example.
    """
    features: dict[str, Values] = {}
    for name, feature in _example_class().FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    return features
