"""Logs on stderr: one line an event, in UTC, as text or as JSON."""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "module": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def in_json() -> bool:
    """Whether the logs of this process are JSON."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logging.getLogger().handlers)


def _formatter(log_format: LogFormat) -> logging.Formatter:
    kind = _JsonFormatter if log_format == "json" else logging.Formatter
    formatter = kind("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a notebook or a test may put another stream in its place.

    Through tqdm where a bar is on the screen, so that a log line does not tear it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=self.stream, nolock=False):
            super().emit(record)


def _warning_in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())} ({Path(filename).name}:{lineno})"


def configure(level: str = "INFO", log_format: LogFormat = "text") -> None:
    """Send the logs and warnings of this process to stderr; messages of libraries from WARNING on only."""
    handler = _StderrHandler()
    handler.setFormatter(_formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlcore").setLevel(level)
    warnings.formatwarning = _warning_in_one_line
    logging.captureWarnings(True)
