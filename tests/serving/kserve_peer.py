"""kserve's own ModelServer, with models whose answers are known: `python kserve_peer.py HTTP_PORT GRPC_PORT`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer

# By its path: this program must not depend on where it is started.
_spec = importlib.util.spec_from_file_location("models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


class Blocks(Model):
    """The block classifier: imgs -> probabilities, class_ids, classes."""

    def __init__(self):
        super().__init__("blocks")
        self.ready = True

    def get_input_types(self):
        return [{"name": "imgs", "datatype": "FP32", "shape": [-1, 28, 28, 1]}]

    def get_output_types(self):
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
            {"name": "classes", "datatype": "BYTES", "shape": [-1]},
        ]

    def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, dict):  # V1
            imgs = np.asarray(payload["instances"], np.float32)
        else:
            imgs = payload.inputs[0].as_numpy()
        probabilities = models.block_probabilities(imgs)
        class_ids = probabilities.argmax(axis=1)
        names = [f"block {number}" for number in class_ids]
        if isinstance(payload, dict):
            rows = zip(probabilities.tolist(), class_ids.tolist(), names, strict=True)
            return {"predictions": [{"probabilities": p, "class_ids": c, "classes": n} for p, c, n in rows]}
        outputs = []
        for name, kind, array in (
            ("probabilities", "FP32", probabilities),
            ("class_ids", "INT64", class_ids),
            ("classes", "BYTES", np.array([name.encode() for name in names], dtype=object)),
        ):
            output = InferOutput(name, list(array.shape), kind)
            output.set_data_from_numpy(array, binary_data=payload.from_grpc or payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(payload.id or "1", "blocks", outputs, use_binary_outputs=payload.use_binary_outputs)


class Lengths(Model):
    """The length of each of the bytes that it gets."""

    def __init__(self):
        super().__init__("lengths")
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        values = payload.inputs[0].as_numpy()
        lengths = np.array(
            [len(value.encode() if isinstance(value, str) else value) for value in values.ravel()], np.int32
        ).reshape(values.shape)
        output = InferOutput("lengths", list(lengths.shape), "INT32")
        output.set_data_from_numpy(lengths, binary_data=payload.from_grpc)
        return InferResponse(payload.id or "1", "lengths", [output])


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), workers=1).start([Blocks(), Lengths()])
