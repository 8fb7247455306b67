"""A version of a SavedModel in memory: loaded as TensorFlow Serving loads it, warmed up, called with arrays.

TensorFlow's session is what TensorFlow Serving runs. A call through it costs a small part of one through
`tf.saved_model.load`, whose signatures wrap each tensor in Python: 0.03 ms in place of 0.28 for MNIST.
"""

import io
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.mnist.tensorflow import tf
from mlcore.runtime.errors import DataError
from mlcore.serving.server.signature import DEFAULT_SIGNATURE, Array, Arrays, Signature, TensorSpec, make_signature

log = logging.getLogger(__name__)

_PREDICT = "tensorflow/serving/predict"
_SERVE = "serve"
_IN_CALLERS_THREAD = -1  # of RunOptions.inter_op_thread_pool
_SHORT_S = 0.001  # handing operations to other threads costs a short model more than it gains
_UNKNOWN_SIZE = 64  # of a dimension that may have any size, in the warm-up


class SavedModel:
    """A loaded version.

    Args:
        directory: Its directory.
        threads: Threads of an operation; 0: as many as there are cores.

    Raises:
        DataError: It cannot be loaded or run.
    """

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self.directory = directory
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, [_SERVE], str(directory))
            self.signature_defs = {
                name: definition
                for name, definition in meta_graph.signature_def.items()
                if definition.method_name == _PREDICT and definition.inputs and definition.outputs
            }
            if not self.signature_defs:
                raise DataError(f"{directory}: holds no signature that can be called")
            self.signatures = {name: _signature(name, value) for name, value in self.signature_defs.items()}
            self._calls = {name: self._callable(signature) for name, signature in self.signatures.items()}
        except DataError:
            self._session.close()
            raise
        except Exception as error:  # protobuf, ValueError, KeyError, OpError: whatever is wrong with the files
            self._session.close()
            raise DataError(f"{directory}: cannot be loaded: {_short(error)}") from error

    def _callable(self, signature: Signature, pool: int = 0) -> Callable[..., list[Array]]:
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions()
        options.feed.extend(spec.tensor for spec in signature.inputs.values())
        options.fetch.extend(spec.tensor for spec in signature.outputs.values())
        options.run_options.inter_op_thread_pool = pool
        # The public make_callable takes no run options.
        return self._session._make_callable_from_options(options)

    @property
    def default_signature(self) -> str:
        """The signature of a request that names none."""
        return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in self.signatures else next(iter(self.signatures))

    def run(self, signature: str, inputs: Arrays) -> dict[str, Array]:
        """The outputs for inputs that were checked against the signature."""
        specs = self.signatures[signature]
        values = self._calls[signature](*(inputs[name] for name in specs.inputs))
        return dict(zip(specs.outputs, values, strict=True))

    def warm_up(self) -> None:
        """Call every signature, with one example and with two, so that no request pays for the first call.

        Raises:
            DataError: It does not run.
        """
        for name, signature in self.signatures.items():
            calls = 0
            for candidate in _samples(signature):
                try:
                    self.run(name, candidate)
                except (tf.errors.OpError, UnicodeDecodeError) as error:
                    if not is_bad_input(error):
                        raise DataError(f"{self.directory}: signature {name} does not run: {_short(error)}") from error
                    log.debug("%s: warm-up of %s: %s", self.directory, name, _short(error))
                    continue  # made-up values need not suit the model
                calls += 1
                if signature.one_size:
                    self._choose_threads(name, candidate)
                if signature.joinable:
                    self.run(name, {key: np.repeat(value, 2, axis=0) for key, value in candidate.items()})
            if not calls:
                log.info("%s: no made-up example suits the signature %s; it is not warmed up", self.directory, name)

    def _choose_threads(self, name: str, sample: Arrays) -> None:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            self.run(name, sample)
            times.append(time.perf_counter() - started)
        if min(times) < _SHORT_S:
            self._calls[name] = self._callable(self.signatures[name], _IN_CALLERS_THREAD)
            self.run(name, sample)

    def close(self) -> None:
        """Free its memory. Nobody may call it any more."""
        self._calls.clear()
        self._session.close()


def load(directory: Path, threads: int = 0) -> SavedModel:
    """A version, loaded and warmed up.

    Raises:
        DataError: It cannot be loaded or run.
    """
    model = SavedModel(directory, threads)
    try:
        model.warm_up()
    except BaseException:
        model.close()
        raise
    return model


def is_bad_input(error: BaseException) -> bool:
    """Whether a failed call is the fault of its inputs.

    A UnicodeDecodeError is TensorFlow failing to tell us a message that quotes the bytes of an input.
    """
    kinds = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, tf.errors.DataLossError, UnicodeDecodeError)
    return isinstance(error, kinds)


def message_of(error: BaseException) -> str:
    """The part of TensorFlow's message that says something to a client."""
    return _short(error)


def _short(error: BaseException) -> str:
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    lines = ["".join(letter if letter.isprintable() else "?" for letter in line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("[[", "Original stack", "Detected at node"))]
    return " ".join(lines[:2])[:500] or type(error).__name__


def _signature(name: str, definition: Any) -> Signature:
    return make_signature(name, _specs(name, definition.inputs), _specs(name, definition.outputs))


def _specs(signature: str, infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name in sorted(infos):
        info = infos[name]
        if not info.name:
            raise DataError(f"signature {signature}: tensor {name!r} is sparse or composite, which is not served")
        shape = None
        if not info.tensor_shape.unknown_rank:
            shape = tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim)
        dtype = np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
        specs[name] = TensorSpec(name, dtype, shape, info.name)
    return specs


def _samples(signature: Signature) -> list[dict[str, Array]]:
    """Made-up inputs of one example: numbers are 0; for strings encoded pictures and a tf.Example that holds one."""
    if all(spec.dtype != object for spec in signature.inputs.values()):
        return [{name: _zeros(spec) for name, spec in signature.inputs.items()}]
    return [
        {
            name: np.full(_sizes(spec), text, object) if spec.dtype == object else _zeros(spec)
            for name, spec in signature.inputs.items()
        }
        for text in _texts()
    ]


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    shape = spec.shape if spec.shape is not None else (1,)
    return tuple((1 if index == 0 else _UNKNOWN_SIZE) if size is None else size for index, size in enumerate(shape))


def _zeros(spec: TensorSpec) -> Array:
    return np.zeros(_sizes(spec), spec.dtype)


def _texts() -> list[bytes]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (_UNKNOWN_SIZE, _UNKNOWN_SIZE)).save(file, "JPEG")
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.getvalue()]))
    example = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
    return [file.getvalue(), example.SerializeToString()]
