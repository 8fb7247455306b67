"""The size of each image over its base, its bound, and the layers that weigh most: `make sizes`.

Needs the images (`docker buildx bake`), and nothing but Python and docker. Exits 1 if an image is above its bound.
"""

import json
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# Flavour -> most megabytes (10^6 bytes, uncompressed) that its images may have over the base image.
BOUNDS = {
    "fetch": 60,
    "data": 120,
    "convert": 120,
    "client": 250,
    "kubeflow": 80,
    "serving": 1200,
    "tensorflow": 1000,
    "predict": 1000,
    "detection": 1500,
}


def docker(*arguments: str) -> str:
    """What a docker command prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, cwd=PROJECT).stdout


def steps() -> dict[str, tuple[str, str]]:
    """Step -> the reference of its image and its flavour, as docker-bake.hcl has them."""
    targets = json.loads(docker("buildx", "bake", "--print"))["target"]
    return {name: (target["tags"][0], target["args"]["FLAVOUR"]) for name, target in targets.items()}


def base_size() -> int:
    """Bytes of the base image."""
    targets = json.loads(docker("buildx", "bake", "--print"))["target"].values()
    (base,) = {target["contexts"]["base"].removeprefix("docker-image://") for target in targets}
    return size(base)


def size(image: str) -> int:
    """Bytes of an image, uncompressed."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def layers(image: str) -> list[tuple[int, str]]:
    """Bytes and origin of each layer above the base, the heaviest first."""
    text = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    rows = [line.partition("\t") for line in text.splitlines()]
    named = [(int(bytes_), origin.removeprefix("RUN /bin/sh -c ").split("#")[0].strip()) for bytes_, _, origin in rows]
    return sorted([(bytes_, origin) for bytes_, origin in named[:-1] if bytes_], reverse=True)


def main() -> int:
    """Print the table."""
    base = base_size()
    over = 0
    print(f"{'image':<32}{'over base':>12}{'bound':>10}")
    for reference, flavour in steps().values():
        megabytes, bound = (size(reference) - base) / 1e6, BOUNDS[flavour]
        over += megabytes > bound
        print(f"{reference:<32}{megabytes:>9.0f} MB{bound:>7} MB")
        for bytes_, origin in layers(reference)[:3]:
            print(f"    {bytes_ / 1e6:>8.1f} MB  {origin.split('/')[-1][:70]}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
