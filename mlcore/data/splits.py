"""Which images are for training, validation and testing.

Where a data set has no lists of its own, a hash of the image's name and the seed decides. It depends on nothing else:
adding or removing images moves no other image, and every machine decides alike.
"""

import hashlib
from collections.abc import Iterable, Mapping


def stable_hash(name: str, seed: int | str) -> int:
    """64 bits of SHA-256 over the seed and the name."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()[:8], "big")


def split_of(name: str, *, seed: int, val_fraction: float, test_fraction: float) -> str:
    """train, val or test for an image of this name."""
    position = stable_hash(name, seed) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def in_stable_order(names: Iterable[str], seed: int) -> list[str]:
    """The names shuffled, by the seed and each name alone: two neighbours stay in their order whatever is added."""
    return sorted(names, key=lambda name: (stable_hash(name, f"order {seed}"), name))


def source_ids(names: Iterable[str]) -> Mapping[str, int]:
    """A whole number for each name, unique among them and below 2**53.

    COCO metrics want integers as image ids. official.vision turns image/source_id into an int64 with
    `tf.strings.to_number` (official/vision/dataloaders/utils.py, process_source_id; evaluation/coco_utils.py) and keeps
    it so; below 2**53 it also survives a float64 and JSON. The id is 53 bits of a hash of the name, so it does not
    change when images are added; of two names with the same bits (1 chance in 10**5 for a million images) the later one
    in alphabetical order gets the next free number.
    """
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = stable_hash(name, "source_id") >> 11
        while number in taken:
            number = (number + 1) % 2**53
        taken.add(number)
        ids[name] = number
    return ids


def shard_count(images: int, wanted: int = 0) -> int:
    """Shards for a split of this many images.

    Args:
        images: Images of the split.
        wanted: The user's number; 0 to choose: one for every 32 images up to ten (as in TensorFlow's own script), so
            that several readers have something to read, then one for every 1,000 images (100 MB of photographs).

    Returns:
        At least 1, and never more than there are images.
    """
    chosen = wanted or max(min(10, -(-images // 32)), -(-images // 1000))
    return max(1, min(chosen, images))
