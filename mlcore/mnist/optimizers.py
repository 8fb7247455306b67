"""Optimisers as TensorFlow's own fused operations: one for each variable and step, without Keras.

Constants are those of Keras, so that a learning rate found with it holds here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mlcore.mnist.tensorflow import tf

OptimizerName = Literal["adam", "sgd", "momentum", "rmsprop", "adagrad"]

_EPSILON = 1e-7
# Slot -> its first value.
_SLOTS: Mapping[str, Mapping[str, float]] = {
    "adam": {"m": 0.0, "v": 0.0},
    "sgd": {},
    "momentum": {"accum": 0.0},
    "rmsprop": {"ms": 0.0, "mom": 0.0},
    "adagrad": {"accum": 0.1},
}


def parts_of(variable: Any) -> list[Any]:
    """The variables that hold a variable: itself, or the shards that a partitioner made of it."""
    return list(getattr(variable, "variables", [variable]))


class Optimizer(tf.Module):  # type: ignore[misc]
    """Changes variables by their gradients.

    Its slots live where their variables do, so that each parameter server does the work for what it holds. A sharded
    variable gets slots of the same shards, so that a checkpoint looks the same with and without them.

    Args:
        name: Which one.
        variables: What it trains.
    """

    def __init__(self, name: OptimizerName, variables: Sequence[Any]) -> None:
        super().__init__(name="optimizer")
        self.kind = name
        parts = [part for variable in variables for part in parts_of(variable)]
        # A function: a checkpoint would take a list for variables of its own, which shards are not.
        self._parts: Callable[[], list[Any]] = lambda: parts
        self.slots = {
            slot: [_slot_like(variable, slot, first) for variable in variables] for slot, first in _SLOTS[name].items()
        }

    @property
    def parts(self) -> list[Any]:
        """The variables that it trains, the shards of a sharded one each by itself."""
        return self._parts()

    def apply(self, gradients: Sequence[Any], *, step: Any, learning_rate: Any) -> None:
        """Change the variables.

        Args:
            gradients: One for each of `parts`; where processes train in step, the share of this one.
            step: Number of this step, from 1, as float32.
            learning_rate: float32 scalar.
        """
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        update = _UPDATES[self.kind]
        slots = {name: [part for slot in slots for part in parts_of(slot)] for name, slots in self.slots.items()}
        for index, (part, gradient) in enumerate(zip(self.parts, gradients, strict=True)):
            handles = {name: parts[index].handle for name, parts in slots.items()}
            update(part.handle, handles, gradient, step, learning_rate)


def _slot_like(variable: Any, name: str, first: float) -> Any:
    parts = parts_of(variable)
    slots = []
    for part in parts:
        with tf.distribute.get_strategy().extended.colocate_vars_with(part):
            shape = part.shape
            slots.append(
                tf.Variable(
                    lambda shape=shape: tf.fill(shape, first),
                    shape=shape,
                    dtype=tf.float32,
                    trainable=False,
                    name=f"{part.name.partition(':')[0]}/{name}",
                )
            )
    return slots[0] if parts[0] is variable else type(variable)(slots, name=f"{variable.name}/{name}")


def _adam(variable: Any, slots: Mapping[str, Any], gradient: Any, step: Any, rate: Any) -> None:
    tf.raw_ops.ResourceApplyAdam(
        var=variable, m=slots["m"], v=slots["v"], beta1_power=tf.pow(0.9, step), beta2_power=tf.pow(0.999, step),
        lr=rate, beta1=0.9, beta2=0.999, epsilon=_EPSILON, grad=gradient,
    )  # fmt: skip


def _sgd(variable: Any, _slots: Mapping[str, Any], gradient: Any, _step: Any, rate: Any) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=variable, alpha=rate, delta=gradient)


def _momentum(variable: Any, slots: Mapping[str, Any], gradient: Any, _step: Any, rate: Any) -> None:
    tf.raw_ops.ResourceApplyKerasMomentum(var=variable, accum=slots["accum"], lr=rate, grad=gradient, momentum=0.9)


def _rmsprop(variable: Any, slots: Mapping[str, Any], gradient: Any, _step: Any, rate: Any) -> None:
    tf.raw_ops.ResourceApplyRMSProp(
        var=variable, ms=slots["ms"], mom=slots["mom"], lr=rate, rho=0.9, momentum=0.0, epsilon=_EPSILON, grad=gradient
    )


def _adagrad(variable: Any, slots: Mapping[str, Any], gradient: Any, _step: Any, rate: Any) -> None:
    tf.raw_ops.ResourceApplyAdagradV2(var=variable, accum=slots["accum"], lr=rate, epsilon=_EPSILON, grad=gradient)


_UPDATES: Mapping[str, Callable[[Any, Mapping[str, Any], Any, Any, Any], None]] = {
    "adam": _adam,
    "sgd": _sgd,
    "momentum": _momentum,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}
