"""Write what is generated for Kubeflow.

    python -m manifests.generate            manifests/images/kustomization.yaml, build/pipelines/*.yaml
    python -m manifests.generate --check    exit 1 if the image component does not name every image of docker-bake.hcl

REGISTRY and TAG in the environment say which images, as they do for `docker buildx bake`; without them the component
keeps what it has. The pipelines are not kept in the repository: they hold these names and the version of the SDK.
"""

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

from mlcore.cli import STEPS

ROOT = Path(__file__).resolve().parent
IMAGES = ROOT / "images" / "kustomization.yaml"
PIPELINES = {"mnist": "mnist", "pets": "pets", "pets_distributed": "pets"}  # pipeline -> its module
GPU = ("mnist-train", "train")  # steps that have an image with CUDA as well
OTHERS = (("tensorflow/serving", "2.20.0"), ("tensorflow/tensorflow", "2.20.0"))
_HEAD = """\
# The one place of image names and tags: `make manifests REGISTRY=registry.example.org/ml TAG=1.2.0` writes it anew.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
configurations: [image-fields.yaml]
images:
"""


def registry_and_tag() -> tuple[str, str]:
    """What the environment says, else what the component has."""
    text = IMAGES.read_text() if IMAGES.exists() else ""
    match = re.search(r"newName: (\S+)/download, newTag: (\S+)}", text)
    registry, tag = match.groups() if match else ("mlcore", "latest")
    return os.environ.get("REGISTRY") or registry, os.environ.get("TAG") or tag


def images() -> str:
    """The component of image names."""
    registry, tag = registry_and_tag()
    lines = [f"  - {{name: mlcore/{name}, newName: {registry}/{name}, newTag: {tag}}}\n" for name in sorted(STEPS)]
    lines += [f"  - {{name: mlcore/{name}-gpu, newName: {registry}/{name}, newTag: {tag}-gpu}}\n" for name in GPU]
    lines.append("  # Of others.\n")
    lines += [f"  - {{name: {name}, newName: {name}, newTag: {version}}}\n" for name, version in OTHERS]
    return _HEAD + "".join(lines)


def compile_pipelines(folder: Path) -> list[Path]:
    """The pipelines as files that Pipelines takes."""
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, module_name in PIPELINES.items():
        module = importlib.import_module(f"manifests.pipelines.{module_name}")
        path = folder / f"{name}.yaml"
        compiler.Compiler().compile(getattr(module, name), str(path))
        paths.append(path)
    return paths


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the component is stale")
    parser.add_argument("--output-dir", type=Path, default=ROOT.parent / "build" / "pipelines", help="for pipelines")
    arguments = parser.parse_args()
    if arguments.check:
        if IMAGES.read_text() == images():
            return 0
        print(f"{IMAGES} is stale: run make manifests", file=sys.stderr)
        return 1
    IMAGES.write_text(images())
    for path in (IMAGES, *compile_pipelines(arguments.output_dir)):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
