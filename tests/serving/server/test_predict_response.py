"""PredictResponse as bytes: what TensorFlow Serving's own message reads from them."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([[np.nan, np.inf, -0.0]], np.float64),
        np.arange(2000, dtype=np.float32).reshape(2, 1000),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not in order in memory
        np.zeros((0, 10), np.float32),
        np.float32(1.5).reshape(()),
        np.array([-1, 2**40], np.int64),
        np.array([255, 0, 128], np.uint8),
        np.array([-128, 127], np.int8),
        np.array([2**32 - 1], np.uint32),
        np.array([2**64 - 1, 0], np.uint64),
        np.arange(-100, 100, dtype=np.int32).reshape(2, 100),
        np.zeros((2, 0), np.int64),
        np.array([b"text"] * 100, object),
        np.array([True, False]),
        np.array([[b"one", b""], [b"\xff", b"four"]], object),
        np.array([0.5], np.float16),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}",
)
def test_the_message_holds_name_version_shape_and_values(value):
    from tensorflow_serving.apis import predict_pb2

    from mlcore.serving.server.predict_response import predict_response

    other = np.array([7.0], np.float32)
    for _ in range(2):  # the second time with what was kept of the first
        message = predict_pb2.PredictResponse.FromString(predict_response("m", "s", 300, {"y": value, "other": other}))
        spec = message.model_spec
        assert (spec.name, spec.signature_name, spec.version.value) == ("m", "s", 300)
        assert sorted(message.outputs) == ["other", "y"]
        read = tf.make_ndarray(message.outputs["y"])
        assert read.dtype == value.dtype and read.shape == value.shape
        np.testing.assert_array_equal(read, value)
        assert tf.make_ndarray(message.outputs["other"]).tolist() == [7.0]


def test_values_are_in_the_typed_fields_and_not_in_tensor_content():
    from tensorflow_serving.apis import predict_pb2

    from mlcore.serving.server.predict_response import predict_response

    outputs = {
        "f": np.array([0.5], np.float32),
        "d": np.array([0.25]),
        "i": np.array([3]),
        "s": np.array([b"x"], object),
    }
    message = predict_pb2.PredictResponse.FromString(predict_response("m", "s", 1, outputs))
    assert list(message.outputs["f"].float_val) == [0.5] and list(message.outputs["d"].double_val) == [0.25]
    assert list(message.outputs["i"].int64_val) == [3] and list(message.outputs["s"].string_val) == [b"x"]
    assert not any(tensor.tensor_content for tensor in message.outputs.values())
