"""Values of variables that are on parameter servers, in one message for each server instead of one for each variable.

A step of a small network is short beside the way to the servers, and it is the number of messages that costs.
"""

from collections.abc import Sequence
from typing import Any

from mlcore.mnist.tensorflow import tf


def read_together(variables: Sequence[Any]) -> list[Any]:
    """The variables' values, in a graph; those that are here are just read."""
    values = [None if _is_far(variable) else variable.read_value() for variable in variables]
    for device, indices in _by_server(variables).items():
        with tf.device(device):
            packed = tf.concat([tf.reshape(variables[index].read_value(), [-1]) for index in indices], axis=0)
        for index, value in zip(indices, _unpack(packed, [variables[index] for index in indices]), strict=True):
            values[index] = value
    return values


def send_together(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The gradients, each where its variable is."""
    sent = list(gradients)
    for device, indices in _by_server(variables).items():
        packed = tf.concat([tf.reshape(gradients[index], [-1]) for index in indices], axis=0)
        with tf.device(device):
            for index, value in zip(indices, _unpack(packed, [variables[index] for index in indices]), strict=True):
                sent[index] = value
    return sent


def _is_far(variable: Any) -> bool:
    return "/job:ps/" in variable.device


def _by_server(variables: Sequence[Any]) -> dict[str, list[int]]:
    """Device of each parameter server -> indices of the variables there."""
    servers: dict[str, list[int]] = {}
    for index, variable in enumerate(variables):
        if _is_far(variable):
            servers.setdefault(variable.device, []).append(index)
    return servers


def _unpack(packed: Any, variables: Sequence[Any]) -> list[Any]:
    parts = tf.split(packed, [variable.shape.num_elements() for variable in variables])
    return [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]
