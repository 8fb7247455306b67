"""JSON as TensorFlow Serving's REST interface has it, without a server."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlcore.serving.server import json_tensors, v2_tensors
from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.signature import TensorSpec, make_signature


def spec(name="x", dtype=np.float32, shape=(None, 2)):
    return TensorSpec(name, np.dtype(dtype), shape, f"{name}:0")


def decode(body, *specs):
    signature = make_signature("s", {s.name: s for s in specs}, {"y": spec("y")})
    content = json_tensors.loads(json.dumps(body).encode() if not isinstance(body, bytes) else body)
    _, form = json_tensors.read_request(content)
    return json_tensors.decode(signature, content, form)


def encode(form, **outputs):
    return json_tensors.encode({name: np.array(value) for name, value in outputs.items()}, form).decode()


@pytest.mark.parametrize(
    "body",
    [{"instances": [[1, 2], [3, 4]]}, {"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}, {"inputs": [[1, 2], [3, 4]]},
     {"inputs": {"x": [[1, 2], [3, 4]]}}],
)  # fmt: skip
def test_rows_and_columns_with_and_without_names(body):
    (value,) = decode(body, spec()).values()
    assert (value.dtype, value.tolist()) == (np.float32, [[1, 2], [3, 4]])


def test_several_inputs_by_name():
    values = decode({"instances": [{"x": [1, 2], "n": 3}]}, spec(), spec("n", np.int64, (None,)))
    assert (values["x"].shape, values["n"].tolist()) == ((1, 2), [3])


def test_bytes_are_base64_or_text():
    b64 = base64.b64encode(b"\xff\x00").decode()
    values = decode({"instances": [{"b64": b64}, "é"]}, spec(dtype=object, shape=(None,)))
    assert values["x"].tolist() == [b"\xff\x00", "é".encode()]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.int32, 1.5), (np.int32, "1"), (np.uint8, 256), (np.uint8, -1), (np.float32, "a"), (np.bool_, 1),
     (np.float32, True), (np.int64, 2**70), (object, 3), (np.float32, {"b64": "AA=="})],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(dtype, value):
    with pytest.raises(RequestError, match="'x'"):
        decode({"inputs": {"x": [value]}}, spec(dtype=dtype, shape=(None,)))


def test_not_finite_numbers_are_taken_and_written_as_tensorflow_serving_does():
    (value,) = decode(b'{"instances": [[NaN, -Infinity]]}', spec()).values()
    assert np.isnan(value[0, 0]) and value[0, 1] == -np.inf
    assert encode("inputs", y=[np.nan, np.inf, 1.0]) == '{"outputs":[NaN,Infinity,1.0]}'


def test_one_output_has_no_name_and_several_do():
    assert encode("instances", y=[1, 2]) == '{"predictions":[1,2]}'
    assert json.loads(encode("instances", y=[1, 2], z=[[3], [4]])) == {
        "predictions": [{"y": 1, "z": [3]}, {"y": 2, "z": [4]}]
    }
    assert json.loads(encode("inputs", y=[1], z=2)) == {"outputs": {"y": [1], "z": 2}}


def test_bytes_in_answers():
    texts = np.array([b"cat", b"\xff"], object)
    assert json.loads(json_tensors.encode({"label": texts}, "inputs")) == {"outputs": ["cat", {"b64": "/w=="}]}
    assert json.loads(json_tensors.encode({"image_bytes": texts[:1]}, "inputs")) == {"outputs": [{"b64": "Y2F0"}]}


def test_rows_of_outputs_that_have_none_are_refused():
    with pytest.raises(RequestError, match="send 'inputs'"):
        encode("instances", y=[1, 2], z=3)


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4)))
def test_floats_come_back_bit_for_bit(values):
    answer = json.loads(json_tensors.encode({"y": values}, "inputs"))["outputs"]
    assert np.array_equal(np.array(answer, np.float32), values, equal_nan=True)


NUMBERS = [np.bool_, np.uint8, np.int8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64]


@given(
    st.sampled_from(NUMBERS).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_side=0))),
    st.binary(max_size=9), st.binary(max_size=9),
)  # fmt: skip
def test_v2_binary_tensors_come_back_from_wherever_they_are(values, before, after):
    there = spec(dtype=values.dtype, shape=None)
    raw = v2_tensors.to_raw(values)
    back = v2_tensors.from_raw(there, list(values.shape), before + raw + after, len(before), len(raw))
    assert back.dtype == values.dtype and np.array_equal(back, values, equal_nan=values.dtype.kind == "f")


@given(st.lists(st.binary(max_size=20)), st.binary(max_size=9), st.binary(max_size=9))
def test_v2_binary_strings_come_back_from_wherever_they_are(texts, before, after):
    values = np.empty(len(texts), object)
    values[:] = texts
    there = spec(dtype=object, shape=None)
    raw = v2_tensors.to_raw(values)
    back = v2_tensors.from_raw(there, [len(texts)], before + raw + after, len(before), len(raw))
    assert back.tolist() == texts


@pytest.mark.parametrize("shape", [[1], [3], [2**62, 4], [1] * 100])
def test_v2_binary_tensors_of_another_shape_are_refused(shape):
    with pytest.raises(RequestError, match=r"'x': 8 bytes do not make shape \["):
        v2_tensors.from_raw(spec(dtype=np.dtype(np.float32), shape=None), shape, bytes(8))
    with pytest.raises(RequestError, match="bytes do not make shape"):
        v2_tensors.from_raw(spec(dtype=np.dtype(np.float32), shape=None), [1] * 100, bytes(4))


@given(st.binary(max_size=40), st.integers(0, 5))
def test_v2_binary_strings_that_are_damaged_are_refused_and_never_crash(raw, count):
    try:
        values = v2_tensors.from_raw(spec(dtype=object, shape=None), [count], raw)
    except RequestError as error:
        assert "'x'" in str(error)
    else:
        assert v2_tensors.to_raw(values) == raw
