"""Our descriptors against the real ones: bytes of each are read by the other, field by field."""

import numpy as np
import pytest

from mlcore.serving.clients import open_inference, tensor_proto, v2_grpc

REAL_TENSORFLOW = {
    "TensorShapeProto": ("tensorflow.core.framework.tensor_shape_pb2", "TensorShapeProto"),
    "TensorProto": ("tensorflow.core.framework.tensor_pb2", "TensorProto"),
    "TensorInfo": ("tensorflow.core.protobuf.meta_graph_pb2", "TensorInfo"),
    "SignatureDef": ("tensorflow.core.protobuf.meta_graph_pb2", "SignatureDef"),
    "SignatureDefMap": ("tensorflow_serving.apis.get_model_metadata_pb2", "SignatureDefMap"),
    "Int64Value": ("google.protobuf.wrappers_pb2", "Int64Value"),
    "Any": ("google.protobuf.any_pb2", "Any"),
    "ModelSpec": ("tensorflow_serving.apis.model_pb2", "ModelSpec"),
    "PredictRequest": ("tensorflow_serving.apis.predict_pb2", "PredictRequest"),
    "PredictResponse": ("tensorflow_serving.apis.predict_pb2", "PredictResponse"),
    "GetModelMetadataRequest": ("tensorflow_serving.apis.get_model_metadata_pb2", "GetModelMetadataRequest"),
    "GetModelMetadataResponse": ("tensorflow_serving.apis.get_model_metadata_pb2", "GetModelMetadataResponse"),
    "ModelVersionStatus": ("tensorflow_serving.apis.get_model_status_pb2", "ModelVersionStatus"),
    "StatusProto": ("tensorflow_serving.apis.status_pb2", "StatusProto"),
    "GetModelStatusRequest": ("tensorflow_serving.apis.get_model_status_pb2", "GetModelStatusRequest"),
    "GetModelStatusResponse": ("tensorflow_serving.apis.get_model_status_pb2", "GetModelStatusResponse"),
}
KSERVE = "kserve.protocol.grpc.grpc_predict_v2_pb2"
REAL_OPEN_INFERENCE = {
    "InferTensor": (KSERVE, "ModelInferRequest.InferInputTensor"),
    "TensorMetadata": (KSERVE, "ModelMetadataResponse.TensorMetadata"),
    **{
        name: (KSERVE, name)
        for name in (
            "InferParameter", "InferTensorContents", "ModelReadyRequest", "ModelReadyResponse", "ModelMetadataRequest",
            "ModelMetadataResponse", "ModelInferRequest", "ModelInferResponse",
        )
    },
}  # fmt: skip


def real(place):
    module, name = place
    found = __import__(module, fromlist=["x"])
    for part in name.split("."):
        found = getattr(found, part)
    return found


def fill(message, depth=0):
    """A value in every field of one of our messages, no two the same."""
    for number, field in enumerate(message.DESCRIPTOR.fields, start=1):
        if field.containing_oneof is not None and field.number != field.containing_oneof.fields[0].number:
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            target = getattr(message, field.name)
            if entry.fields_by_name["value"].message_type is not None:
                fill(target[f"key{number}"], depth + 1)
        elif entry is not None:
            fill(getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name), depth + 1)
        else:
            value = {
                "bool": True, "str": f"t{depth}{number}", "bytes": f"b{depth}{number}".encode(),
                "float": number + 0.5, "int": 10 * (number + depth),
            }[kind(field)]  # fmt: skip
            if field.is_repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
    return message


def kind(field):
    kinds = {field.TYPE_BOOL: "bool", field.TYPE_STRING: "str", field.TYPE_BYTES: "bytes",
             field.TYPE_FLOAT: "float", field.TYPE_DOUBLE: "float"}  # fmt: skip
    return kinds.get(field.type, "int")


def as_data(message):
    """All that a message holds, by the names of its fields, as plain values."""
    return {field.name: plain(field, value) for field, value in message.ListFields()}


def plain(field, value):
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return {key: as_data(each) if hasattr(each, "ListFields") else each for key, each in value.items()}
    if entry is not None:
        return [as_data(each) for each in value] if field.is_repeated else as_data(value)
    return list(value) if field.is_repeated else value


@pytest.mark.parametrize(
    ("ours", "place"),
    [(tensor_proto.messages()[name], place) for name, place in REAL_TENSORFLOW.items()]
    + [(v2_grpc.messages()[name], place) for name, place in REAL_OPEN_INFERENCE.items()],
    ids=[*REAL_TENSORFLOW, *REAL_OPEN_INFERENCE],
)
def test_messages_have_the_numbers_names_and_types_of_the_real_ones(ours, place):
    message = fill(ours())
    assert message.ListFields()
    theirs = real(place).FromString(message.SerializeToString())
    assert as_data(theirs) == as_data(message)
    assert as_data(ours.FromString(theirs.SerializeToString())) == as_data(message)


NUMBERS = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
           "bool", "complex64", "complex128"]  # fmt: skip


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,)], ids=str)
def test_a_tensor_is_the_same_for_tensorflow_and_back(dtype, shape):
    import tensorflow as tf

    array = (np.arange(np.prod(shape, dtype=int)) * 3 - 2).astype(dtype).reshape(shape)
    ours = tensor_proto.messages()["TensorProto"]
    message = ours()
    tensor_proto.fill_tensor(message, array)
    theirs = tf.make_ndarray(real(REAL_TENSORFLOW["TensorProto"]).FromString(message.SerializeToString()))
    assert theirs.dtype == array.dtype and np.array_equal(theirs, array) and theirs.shape == shape
    for value in (array, np.full(shape, 1, dtype)):  # equal values are sent once
        back = tensor_proto.read_tensor(ours.FromString(tf.make_tensor_proto(value).SerializeToString()))
        assert back.dtype == value.dtype and np.array_equal(back, value) and back.shape == shape


def test_texts_are_the_same_for_tensorflow_and_back():
    import tensorflow as tf

    array = np.array([[b"a", "ä".encode()], [b"", b"\xff\x00"]], dtype=object)
    ours = tensor_proto.messages()["TensorProto"]
    message = ours()
    tensor_proto.fill_tensor(message, array)
    theirs = tf.make_ndarray(real(REAL_TENSORFLOW["TensorProto"]).FromString(message.SerializeToString()))
    assert theirs.tolist() == array.tolist()
    back = tensor_proto.read_tensor(ours.FromString(tf.make_tensor_proto(array).SerializeToString()))
    assert back.tolist() == array.tolist()


def test_types_and_states_have_the_numbers_of_the_real_ones():
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import get_model_status_pb2

    for name, number in tensor_proto.DTYPE_NAMES.items():
        assert types_pb2.DataType.Value(name) == number
    states = get_model_status_pb2.ModelVersionStatus.State
    assert {states.Value(name): name for name in states.keys()} == tensor_proto.STATES  # noqa: SIM118 (no dict)


@pytest.mark.parametrize("dtype", [*NUMBERS[:-2], "object"])
def test_raw_data_of_open_inference_is_kserves(dtype):
    from kserve import InferInput

    if dtype == "object":
        array = np.array([[b"a", b"\xff\x00"], [b"", b"long" * 100]], dtype=object)
    else:
        array = (np.arange(6) - 2).astype(dtype).reshape(2, 3)
    datatype = open_inference.datatype_of(array)
    theirs = InferInput("x", list(array.shape), datatype)
    theirs.set_data_from_numpy(array, binary_data=True)
    assert theirs._raw_data == open_inference.to_raw(array)
    back = open_inference.from_raw(theirs._raw_data, datatype, array.shape)
    assert back.dtype == array.dtype and back.tolist() == array.tolist()


@pytest.mark.parametrize("content", [b"\x05\x00\x00\x00ab", b"\x01"], ids=["short element", "short length"])
def test_damaged_raw_data_is_an_error(content):
    with pytest.raises((ValueError, __import__("struct").error)):
        open_inference.from_raw(content, "BYTES", (1,))
