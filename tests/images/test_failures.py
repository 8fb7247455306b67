"""Failures in containers: their exit code, the one line that says why, and nothing that a later step could take up."""

import re
from typing import NamedTuple

import pytest

from tests.images.containers import OFFLINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

XML = (
    "<annotation><object><name>cell</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    "</object></annotation>"
)
# A picture of noise, far larger than the room on the disk that the test gives.
DRAW = (
    "import os; from PIL import Image; "
    "Image.frombytes('RGB', (900, 900), os.urandom(2430000)).save('/data/set/images/a.png')"
)


class Failure(NamedTuple):
    """What is prepared on /data with which image, the flags, and what comes of it."""

    step: str
    prepare: str
    flags: tuple[str, ...]
    code: int
    words: str
    options: tuple[str, ...] = ()


FAILURES = {
    "a truncated archive is bad data": Failure(
        "extract",
        "head -c 1000000 /dev/urandom > /tmp/noise && tar -czf - -C /tmp noise | head -c 700000 > /data/cut.tar.gz",
        ("--archive=/data/cut.tar.gz", "--output-dir=/data/out"),
        65,
        r"^mlcore extract: error: /data/cut\.tar\.gz: 'noise': the archive is cut here$",
    ),
    "a data set of unreadable pictures is bad data": Failure(
        "convert",
        f"mkdir -p /data/set/images /data/set/Annotations && echo none > /data/set/images/a.jpg && "
        f"echo '{XML}' > /data/set/Annotations/a.xml",
        ("--data-dir=/data/set", "--output-dir=/data/out"),
        65,
        r"^mlcore convert: error: /data/set: 1 of 1 images rejected .*image-unreadable \(images/a\.jpg: ",
    ),
    "a server that refuses may be there later": Failure(
        "download",
        "true",
        ("--url=http://127.0.0.1:9/x.tar.gz", "--output-dir=/data/out", "--retries=1"),
        75,
        r"^mlcore download: error: /data/out/x\.tar\.gz: http://127\.0\.0\.1:9/x\.tar\.gz: connection refused$",
    ),
    "a full disk may have room later": Failure(
        "convert",
        f'mkdir -p /data/set/images /data/set/Annotations && python -c "{DRAW}" && '
        f"echo '{XML}' > /data/set/Annotations/a.xml",
        ("--data-dir=/data/set", "--output-dir=/small/out"),
        75,
        r"^mlcore convert: error: /small/.*: cannot be written \(No space left on device\); at least [\d,]+ bytes more",
        ("--tmpfs=/small:size=1m,mode=1777",),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_has_its_exit_code_and_one_line_and_leaves_no_output(images, volume, case):
    failure = FAILURES[case]
    images["convert"].shell(f"{failure.prepare}; chown -R 10001:0 /data", [f"--volume={volume}:/data"])
    options = (*OFFLINE, f"--volume={volume}:/data", *failure.options)
    result = images[failure.step].run(*failure.flags, options=options)
    assert result.returncode == failure.code, result.stderr
    assert re.search(failure.words, result.stderr.splitlines()[-1]), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    left = images["convert"].shell("ls -A /data/out 2>/dev/null; true", [f"--volume={volume}:/data"])
    assert left.strip() == "", left
