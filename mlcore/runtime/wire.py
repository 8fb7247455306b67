"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding), for messages that are mostly one value.

Its library copies a large value into a message and out of it again; around a value that stays where it is, a few bytes
are written here.
"""

_BYTES = [bytes([number]) for number in range(128)]


def varint(number: int) -> bytes:
    """A whole number from 0 on, seven bits to a byte, the lowest first."""
    if number < 128:
        return _BYTES[number]
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
