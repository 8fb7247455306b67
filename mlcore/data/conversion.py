"""One conversion: the plan, the two rounds over its shards, and what is written beside the records.

Round one reads the annotations, which decides the classes and how pixels are counted. Round two writes the shards. Both
run in the same worker processes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlcore.data import splits
from mlcore.data.boxes import counts_from_one
from mlcore.data.irregularities import (
    DROPPED,
    LEFT_OUT,
    RULES,
    Irregularity,
    top_reasons,
    write_rejects,
)  # fmt: skip
from mlcore.data.label_map import build_label_map, write_label_map
from mlcore.data.memory import collector_paused, exit_without_collecting
from mlcore.data.plan import Decisions, Evidence, Job, Orientation, ShardResult
from mlcore.data.records import LABEL_MAP, REJECTS, SPLITS
from mlcore.data.shards import Converter
from mlcore.data.sources import Item, Source
from mlcore.data.workers import Workers
from mlcore.runtime.cores import usable_cores
from mlcore.runtime.errors import DataError
from mlcore.runtime.progress import Progress

log = logging.getLogger(__name__)

Shard = tuple[str, int]


@collector_paused()
def plan(
    source: Source, *, shards: int, seed: int, keep_empty: bool, keep_difficult: bool, orientation: Orientation,
    verify_images: bool,
) -> Job:  # fmt: skip
    """Which item goes into which shard: items in a stable random order, dealt out in turn."""
    dealt: dict[Shard, list[Item]] = {}
    counts = {}
    for split in SPLITS:
        by_name = {item.name: item for item in source.items.get(split, ())}
        if not by_name:
            continue
        counts[split] = splits.shard_count(len(by_name), shards)
        ordered = splits.in_stable_order(by_name, seed)
        for index in range(counts[split]):
            dealt[split, index] = [by_name[name] for name in ordered[index :: counts[split]]]
    return Job(
        root=source.root,
        annotations=source.annotations,
        shards=dealt,
        counts=counts,
        source_ids=splits.source_ids(item.name for items in dealt.values() for item in items),
        keep_empty=keep_empty,
        keep_difficult=keep_difficult,
        orientation=orientation,
        verify_images=verify_images,
    )


@dataclass(frozen=True)
class Conversion:
    """A planned conversion.

    Attributes:
        source: The raw data set.
        job: The plan.
        given_classes: The user's label map, or None to build one.
        box_origin: auto, 0 or 1.
        max_bad_fraction: Share of rejected images above which it fails.
        workers: Processes; 0 for one on each core.
    """

    source: Source
    job: Job
    given_classes: Mapping[int, str] | None
    box_origin: str
    max_bad_fraction: float
    workers: int

    def run(self, directory: Path, shards: Sequence[Shard]) -> tuple[list[ShardResult], Decisions]:
        """Write these shards into `directory`; all annotations are read, since the decisions depend on them.

        Raises:
            TransientError: A worker process was killed, or the disk is full.
        """
        exit_without_collecting()
        mine = set(shards)
        count = self.workers or usable_cores()
        # The largest first, and those to be converted before those that are only scanned, so that the work is even.
        scanned = sorted(self.job.shards, key=lambda shard: (shard not in mine, -len(self.job.shards[shard]), shard))
        if self.job.annotations == "trimap":
            scanned = [shard for shard in scanned if shard in mine]
        total = sum(len(self.job.shards[shard]) for shard in mine)
        with Workers(partial(Converter, self.job), min(count, max(1, len(scanned)))) as workers:
            decisions = self._decide(workers, scanned, mine)
            converted = [shard for shard in scanned if shard in mine]
            results: list[ShardResult] = []
            with Progress("convert", total=total, unit="images") as progress:
                tasks = [(split, index, directory, decisions) for split, index in converted]
                for _, result in workers.run("convert", tasks, progress.update):
                    results.append(result)
        order = list(self.job.shards)
        return sorted(results, key=lambda result: order.index((result.split, result.index))), decisions

    def _decide(self, workers: Workers, scanned: Sequence[Shard], mine: set[Shard]) -> Decisions:
        evidence = Evidence()
        if self.job.annotations == "trimap":  # the classes are in the names; nothing to read
            evidence.classes.update(item.label for items in self.job.shards.values() for item in items)
        else:
            tasks = [(split, index, (split, index) in mine) for split, index in scanned]
            for _, part in workers.run("scan", tasks):
                evidence.add(part)
        return self.decide(evidence)

    def decide(self, evidence: Evidence) -> Decisions:
        """Classes and box origin from what the annotations hold.

        Raises:
            DataError: There is no object in the whole data set.
        """
        if not evidence.classes:
            raise DataError(f"{self.source.root}: no annotation has an object; expected boxes to train on")
        classes = self.given_classes or build_label_map(evidence.classes)
        for folded, count in Counter(name.casefold() for name in classes.values()).items():
            if count > 1:
                names = ", ".join(sorted(name for name in classes.values() if name.casefold() == folded))
                log.warning("classes differ in capitals only: %s; if they are one class, mend the annotations", names)
        one_based = counts_from_one(evidence.starts_at_0, evidence.starts_at_1)
        if self.box_origin != "auto":
            one_based = self.box_origin == "1"
        elif self.job.annotations == "xml":  # boxes around masks are edges
            log.info(
                "pixels are counted from %d: %d boxes start at 0, %d at 1",
                one_based, evidence.starts_at_0, evidence.starts_at_1,
            )  # fmt: skip
        return Decisions({name: number for number, name in classes.items()}, one_based)

    def finish(self, directory: Path, results: Sequence[ShardResult], decisions: Decisions) -> dict[str, Any]:
        """Check the whole, write label map, rejects and report into `directory`, and return the results to record.

        Raises:
            DataError: Too many images were rejected, or nothing is left.
        """
        from mlcore.data.convert_report import write_report

        found = [*self.source.found, *(item for result in results for item in result.found)]
        self._check(results, found)
        kept = [result for result in results if _split_images(results, result.split)]
        for result in results:
            if result not in kept:  # a split whose every image was rejected or left out
                (directory / result.file).unlink()
        classes = dict(sorted((number, name) for name, number in decisions.class_ids.items()))
        write_label_map(directory / LABEL_MAP, classes)
        write_rejects(directory / REJECTS, found)
        summary = self._summary(kept, results, found, classes, decisions)
        write_report(directory, self.source, summary=summary, results=kept, found=found)
        self._log(summary, found)
        return summary

    def _check(self, results: Sequence[ShardResult], found: Sequence[Irregularity]) -> None:
        planned = self.source.rejected + sum(map(len, self.job.shards.values()))
        rejected = self.source.rejected + sum(result.rejected for result in results)
        if rejected > self.max_bad_fraction * planned + 1e-6:  # 0.58 * 50 is less than 29 in binary
            raise DataError(
                f"{self.source.root}: {rejected} of {planned} images rejected ({rejected / planned:.1%}), more than "
                f"--max-bad-fraction={self.max_bad_fraction:g} allows: {top_reasons(found)}"
            )
        if not sum(result.boxes for result in results):
            reasons = Counter(item.reason for item in found if RULES[item.reason].action in (DROPPED, LEFT_OUT))
            why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)) or "no object in any image"
            raise DataError(f"{self.source.root}: no box is left to train on ({why})")

    def _summary(
        self, kept: Sequence[ShardResult], results: Sequence[ShardResult], found: Sequence[Irregularity],
        classes: Mapping[int, str], decisions: Decisions,
    ) -> dict[str, Any]:  # fmt: skip
        by_split: dict[str, Any] = {}
        digest = hashlib.sha256()
        for result in kept:
            digest.update(f"{result.file} {result.digest}\n".encode())
            entry = by_split.setdefault(
                result.split,
                {
                    "images": 0,
                    "boxes": 0,
                    "negatives": 0,
                    "boxes_by_class": dict.fromkeys(classes.values(), 0),
                    "shards": {},
                },
            )
            entry["images"] += result.images
            entry["boxes"] += result.boxes
            entry["negatives"] += result.negatives
            for name, number in result.boxes_by_class.items():
                entry["boxes_by_class"][name] += number
            entry["shards"][result.file] = {
                "size": result.size, "images": result.images, "boxes": result.boxes, "digest": result.digest,
            }  # fmt: skip
        boxes = sum(result.boxes for result in kept)
        dropped = sum(result.boxes_dropped for result in results)
        return {
            "images": sum(result.images for result in kept),
            "boxes": boxes,
            "boxes_kept": boxes,
            "boxes_dropped": dropped,
            "boxes_annotated": boxes + dropped,
            "rejected": self.source.rejected + sum(result.rejected for result in results),
            "left_out": sum(RULES[item.reason].action == LEFT_OUT for item in found),
            "irregularities": dict(sorted(Counter(item.reason for item in found).items())),
            "classes": {str(number): name for number, name in classes.items()},
            "splits": by_split,
            "box_origin": 1 if decisions.one_based else 0,
            "masks": self.job.annotations == "trimap",
            "digest": digest.hexdigest(),
        }

    def _log(self, summary: Mapping[str, Any], found: Sequence[Irregularity]) -> None:
        parts = ", ".join(f"{split} {entry['images']:,}" for split, entry in summary["splits"].items())
        log.info(
            "%d images (%s), %d boxes, %d classes", summary["images"], parts, summary["boxes"], len(summary["classes"])
        )
        for reason, count in sorted(summary["irregularities"].items()):
            rule = RULES[reason]
            log.info("%d x %s: %s (%s)", count, reason, rule.action, rule.text)
        if summary["boxes_dropped"] > self.max_bad_fraction * summary["boxes_annotated"]:
            log.warning(
                "%d of %d annotated boxes are not in the records; see %s",
                summary["boxes_dropped"], summary["boxes_annotated"], REJECTS,
            )  # fmt: skip
        if "train" not in summary["splits"]:
            log.warning("no image for training; see --val-fraction, --test-fraction and --use-lists")


def _split_images(results: Sequence[ShardResult], split: str) -> int:
    return sum(result.images for result in results if result.split == split)


def nothing_to_convert(source: Source) -> DataError:
    """The error for a data set without one usable item."""
    reasons = Counter(item.reason for item in source.found)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)) or "its folders are empty"
    return DataError(f"{source.root}: no image with an annotation ({why})")
