"""`mlcore extract` against GNU tar: a 600 MB tar.gz of JPEGs, CPU and wall time of whole processes, alternately.

    python benchmarks/extract.py SCRATCH DATA [--megabytes=600] [--rounds=5]

DATA is a tar.gz with JPEGs (such as bccd.tar.gz); they are encoded again to about 100 kB each, distinct within gzip's
window, so that they compress as photographs do. SCRATCH needs room for 600 MB a run. Bounds: CPU 0.65 times GNU tar's,
wall 0.9 times.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from PIL import Image
from processes import Cost, run, settle


def make_archive(source: Path, archive: Path, megabytes: int) -> None:
    """A tar.gz of JPEGs, packed by gzip itself at its default level."""
    images = []
    with tarfile.open(source) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                image, encoded = Image.open(file), io.BytesIO()
                image.resize((800, 600)).save(encoded, "JPEG", quality=96)
                images.append(encoded.getvalue())
            if len(images) == 200:
                break
    with archive.open("wb") as target:
        gzip = subprocess.Popen(["gzip"], stdin=subprocess.PIPE, stdout=target)
        with tarfile.open(fileobj=gzip.stdin, mode="w|") as tar:
            size, number = 0, 0
            while size < megabytes * 1_000_000:
                data = images[number % len(images)]
                info = tarfile.TarInfo(f"images/breed_{number}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                size, number = size + len(data), number + 1
        assert gzip.stdin is not None
        gzip.stdin.close()
        if gzip.wait():
            raise SystemExit("gzip failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    archive, outputs = arguments.scratch / f"images-{arguments.megabytes}.tar.gz", arguments.scratch / "unpacked"
    if not archive.exists():
        make_archive(arguments.data, archive, arguments.megabytes)
    shutil.rmtree(outputs, ignore_errors=True)
    commands = {
        "tar": ["tar", "-xzf", str(archive), "-C"],
        "mlcore": [sys.executable, "-m", "mlcore", "extract", f"--archive={archive}", "--output-dir"],
    }
    runs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            # Kept to the end: where many files were deleted within a minute, ext4 looks long for a place for new ones.
            output = outputs / f"{name}-{number}"
            output.mkdir(parents=True)
            settle(arguments.scratch, arguments.megabytes)
            runs[name].append(run([*command, str(output)]))
    shutil.rmtree(outputs)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    for name, (cpu, wall, peak) in medians.items():
        print(f"{name:7} cpu {cpu:5.2f} s   wall {wall:5.2f} s   peak {peak:4.0f} MB")
    (cpu, wall, _), (peer_cpu, peer_wall, _) = medians["mlcore"], medians["tar"]
    print(f"ratio   cpu {cpu / peer_cpu:5.2f}     wall {wall / peer_wall:5.2f}")


if __name__ == "__main__":
    main()
