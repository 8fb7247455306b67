"""The JSON of a V2 request, which may be read once for many requests."""

import json

import numpy as np
import pytest

from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.signature import TensorSpec, make_signature
from mlcore.serving.server.v2_head import Head


def signature(name="s", dtype=np.float32, outputs=("y", "z")):
    specs = {output: TensorSpec(output, np.dtype(np.float32), (None,), f"{output}:0") for output in outputs}
    return make_signature(name, {"x": TensorSpec("x", np.dtype(dtype), (None, 2), "x:0")}, specs)


def head(size=8, shape=(1, 2), datatype="FP32", **more):
    tensor = {"name": "x", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}
    return Head(json.dumps({"inputs": [tensor], **more}).encode())


def test_each_request_has_its_own_values_and_the_same_plan():
    kept, own = head(parameters={"binary_data_output": True}), signature()
    plan = kept.plan(own)
    for number in range(3):
        values = np.array([[number, -number]], np.float32)
        assert kept.plan(own) is plan
        inputs, examples = plan.decode(b"head" + values.tobytes(), 4)
        assert (inputs["x"].tolist(), examples) == (values.tolist(), 1)
    assert plan.wanted == {"y": True, "z": True}


def test_another_version_or_signature_is_compared_anew():
    kept = head()
    assert kept.plan(signature()).wanted == {"y": False, "z": False}
    assert kept.plan(signature(outputs=("y",))).wanted == {"y": False}
    with pytest.raises(RequestError, match="'x': expected datatype INT32, not FP32"):
        kept.plan(signature(dtype=np.int32))
    assert kept.plan(signature()).wanted == {"y": False, "z": False}


@pytest.mark.parametrize(
    ("size", "shape", "sent", "words"),
    [
        (8, (1, 2), 4, "binary_data_size is 8, 4 bytes are left"),
        (8, (1, 2), 12, "4 bytes more than"),
        (8, (1, 3), 8, r"8 bytes do not make shape \[1, 3\]"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_each_time_and_spoil_nothing(size, shape, sent, words):
    kept = head(size, shape)
    for _ in range(2):
        with pytest.raises(RequestError, match=words):
            kept.plan(signature()).decode(bytes(sent), 0)
    if shape == (1, 2):
        assert kept.plan(signature()).decode(bytes(size), 0)[0]["x"].shape == shape


def test_values_in_the_json_stand_beside_binary_ones():
    text = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}], "id": 7}
    kept = Head(json.dumps(text).encode())
    assert kept.id == "7"
    assert kept.plan(signature()).decode(b"", 0)[0]["x"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("size", [-1, "8", 1.5, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(RequestError, match="binary_data_size is"):
        head(size).plan(signature())
