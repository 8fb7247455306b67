"""Progress: a bar on a terminal, a log line every ten seconds elsewhere."""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def format_amount(amount: float, unit: str) -> str:
    """`1.5 GB` for bytes (unit `B`, powers of 1000), `1,234 images` for anything else."""
    if unit != "B":
        return f"{amount:,.0f} {unit}" if amount >= 100 or amount == int(amount) else f"{amount:,.2f} {unit}"
    step = 0
    while amount >= 1000 and step < len(_BYTE_UNITS) - 1:
        amount, step = amount / 1000, step + 1
    return f"{amount:.0f} B" if step == 0 else f"{amount:.1f} {_BYTE_UNITS[step]}"


def format_duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """How far a piece of work is: what, how much of how much, rate, time left.

    Safe to update from several threads. Use it as a context manager.

    Args:
        what: Name of the work, such as `convert` or a file's name.
        total: Amount that is done at the end, in `unit`; None where it is not known.
        unit: `B` for bytes, else a plural such as `images`.
        initial: Amount that was done before (a resumed transfer); it does not count for the rate.
        quiet: Print nothing (a part of a larger progress).
    """

    def __init__(
        self, what: str, total: float | None = None, unit: str = "items", *, initial: float = 0, quiet: bool = False
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = initial
        self.note = ""
        self._initial = initial
        self._quiet = quiet
        self._lock = threading.Lock()
        self._started = self._logged = time.monotonic()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what, total=total, initial=initial, unit=unit, unit_scale=unit == "B", leave=False, file=sys.stderr
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Amount a second since the start."""
        return (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def update(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more as done; `note` (such as `loss 0.31`) is shown beside it."""
        with self._lock:
            self.done += amount
            self.note = note or self.note
            if self._quiet:
                return
            if self._bar is not None:
                if note:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(amount)
            elif time.monotonic() - self._logged >= LOG_INTERVAL_S:
                self._logged = time.monotonic()
                log.info("%s", self.describe())

    def describe(self) -> str:
        """One line: `convert: 1,200 of 7,390 images (16 %), 310 images/s, 20 s left`."""
        of, left = "", ""
        if self.total:
            of = f" of {format_amount(self.total, self.unit)} ({100 * self.done / self.total:.0f} %)"
            if self.rate > 0:
                left = f", {format_duration(max(self.total - self.done, 0) / self.rate)} left"
        amount = format_amount(self.done, self.unit)
        if of and self.unit != "B":
            amount = amount.rpartition(f" {self.unit}")[0]
        note = f", {self.note}" if self.note else ""
        return f"{self.what}: {amount}{of}, {format_amount(self.rate, self.unit)}/s{left}{note}"

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
