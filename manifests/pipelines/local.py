"""Run a pipeline on this machine, with the images of the steps and no cluster.

    python -m manifests.pipelines.local mnist --volume=mnist epochs=3
    python -m manifests.pipelines.local mnist --volume=mnist --network=host 'mirror=["http://127.0.0.1:8000"]'

The volume of the engine stands for the claim; numbers and reports are in --root. What is there afterwards tells whether
a run succeeded: the runner takes a container that is gone before it looks for a success.
"""

import argparse
import importlib
import json
import logging
from pathlib import Path

from manifests.generate import PIPELINES
from manifests.pipelines import components


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=PIPELINES)
    parser.add_argument("--volume", required=True, help="volume of the container engine, mounted at /data")
    parser.add_argument("--root", type=Path, default=Path("build/pipelines/local"), help="folder for the artifacts")
    parser.add_argument("--network", default="bridge", help="network of the containers, such as host or none")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="parameters of the pipeline; JSON or text")
    arguments = parser.parse_intermixed_args()
    given = {}
    for text in arguments.parameters:
        name, equals, value = text.partition("=")
        if not equals:
            parser.error(f"{text}: expected name=value")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    run(arguments.pipeline, arguments.volume, arguments.root, arguments.network, given)
    return 0


def run(pipeline: str, volume: str, root: Path, network: str, parameters: dict[str, object]) -> None:
    """Run a pipeline of this folder.

    Args:
        pipeline: Its name.
        volume: Volume of the engine, mounted at /data.
        root: Folder for the artifacts; the containers write to it as users of their own.
        network: Network of the containers.
        parameters: Parameters of the pipeline that differ from its defaults.
    """
    from kfp import local

    import docker

    components.RETRY = False
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o777)
    logging.basicConfig(level=logging.INFO)
    runner = local.DockerRunner(
        entrypoint=[""],  # the runner leaves the image's own, before a command that is whole already
        mounts=[docker.types.Mount(target=components.MOUNT, source=volume, type="volume")],
        network_mode=network,
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    local.init(runner, pipeline_root=str(root), raise_on_error=True)
    module = importlib.import_module(f"manifests.pipelines.{PIPELINES[pipeline]}")
    getattr(module, pipeline)(**parameters)


if __name__ == "__main__":
    raise SystemExit(main())
