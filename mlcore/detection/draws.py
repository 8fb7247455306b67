"""Random numbers that are a function of the seed and of the example they are drawn for.

TensorFlow's random operations count their calls: in several threads it is chance which example gets which number, and a
run that goes on after a stop starts to count anew. While official.vision's augmentation is traced within `Draws`, its
operations become those without a state, seeded with the number of the example:

    with Draws(seed) as draws:

        def parse(number, example):
            draws.begin(number)
            return augment(example)                 # tf.random.uniform(...), tf.image.random_flip_left_right(...)

        dataset = numbered.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from mlcore.detection.tensorflow import import_tensorflow

_SEEDS = 2**31 - 1  # seeds of operations are taken below this prime


class Draws:
    """Traces random operations as functions of the seed, the example's number and their place in the graph.

    In loops on tensors they stay as they are, because each round would get the same number; `keep_state` says so.

    Args:
        seed: Seed of the run; a tensor (int64) where it is known on a worker only.
    """

    def __init__(self, seed: Any) -> None:
        self._seed = seed
        self._originals: dict[tuple[Any, str], Any] = {}
        self._number: Any = None
        self._graph: Any = None
        self._place = 0

    def __enter__(self) -> Self:
        for (module, name), stateless in _stateless_operations().items():
            original = self._originals[module, name] = getattr(module, name)
            setattr(module, name, self._without_state(original, stateless))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (module, name), original in self._originals.items():
            setattr(module, name, original)

    def begin(self, number: Any) -> None:
        """Say for which example what is traced now draws.

        Args:
            number: Number of the example, an int64 scalar.
        """
        self._number, self._graph, self._place = number, number.graph, 0

    def keep_state(self) -> bool:
        """Whether there are random operations left whose numbers depend on how often they were run before."""
        definition = self._graph.as_graph_def()
        nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
        return any(_has_random_state(node.op) for node in nodes)

    def _without_state(self, original: Callable[..., Any], stateless: Callable[..., Any]) -> Callable[..., Any]:
        tf = import_tensorflow()

        def draw(*args: Any, seed: int = 0, seed2: int = 0, **kwargs: Any) -> Any:
            if self._number is None or _in_loop(tf.compat.v1.get_default_graph()):
                return original(*args, seed=seed, seed2=seed2, **kwargs)
            self._place += 1
            own = tf.convert_to_tensor((self._seed * 1_000_003 + self._place) % _SEEDS, tf.int64)
            return stateless(*args, seed=tf.stack([own, self._number]), **kwargs)

        return draw


def _stateless_operations() -> Mapping[tuple[Any, str], Callable[..., Any]]:
    """Module and name of what TensorFlow's functions with a state call -> the same without one."""
    tf = import_tensorflow()
    from tensorflow.python.ops import gen_image_ops, gen_random_ops

    def uniform(shape: Any, dtype: Any, **more: Any) -> Any:
        return tf.random.stateless_uniform(shape, dtype=dtype, **more)

    def uniform_int(shape: Any, low: Any, high: Any, **more: Any) -> Any:
        return tf.random.stateless_uniform(shape, minval=low, maxval=high, dtype=low.dtype, **more)

    def normal(shape: Any, dtype: Any, **more: Any) -> Any:
        return tf.random.stateless_normal(shape, dtype=dtype, **more)

    def truncated_normal(shape: Any, dtype: Any, **more: Any) -> Any:
        return tf.random.stateless_truncated_normal(shape, dtype=dtype, **more)

    return {
        (gen_random_ops, "random_uniform"): uniform,
        (gen_random_ops, "random_uniform_int"): uniform_int,
        (gen_random_ops, "random_standard_normal"): normal,
        (gen_random_ops, "truncated_normal"): truncated_normal,
        (gen_random_ops, "random_shuffle"): tf.random.experimental.stateless_shuffle,
        (gen_image_ops, "sample_distorted_bounding_box_v2"): gen_image_ops.stateless_sample_distorted_bounding_box,
    }


def _in_loop(graph: Any) -> bool:
    from tensorflow.python.ops.control_flow_v2_func_graphs import WhileBodyFuncGraph, WhileCondFuncGraph

    while graph is not None:
        if isinstance(graph, (WhileBodyFuncGraph, WhileCondFuncGraph)):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _has_random_state(operation: str) -> bool:
    kinds = ("Random", "Multinomial", "TruncatedNormal", "SampleDistortedBoundingBox")
    return any(kind in operation for kind in kinds) and not operation.startswith("Stateless")
