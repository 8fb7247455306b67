import hashlib
import threading

import pytest

from mlcore.data.ordered_digests import OrderedDigests


def test_digests_come_back_in_order_and_the_thread_ends() -> None:
    pieces = [bytes([number]) * (1 << (number % 20)) for number in range(40)]
    threads = threading.active_count()
    with OrderedDigests() as digests:
        for piece in pieces:
            digests.put(piece)
        found = [digests.next() for _ in pieces]
    assert found == [hashlib.sha256(piece).hexdigest().encode() for piece in pieces]
    assert threading.active_count() == threads


def test_the_thread_ends_with_an_error_too() -> None:
    threads = threading.active_count()
    with pytest.raises(KeyError), OrderedDigests() as digests:
        digests.put(b"not taken out")
        raise KeyError
    assert threading.active_count() == threads
