"""The steps as components, with the image names of manifests/images, and how a task of a pipeline runs.

Every task mounts one claim at /data. Pipelines' own cache is off: a step looks at what is on the volume, and is done in
seconds where that was made from the same input; the cache would say so, too, after somebody has emptied the volume.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import components, dsl, kubernetes

from manifests.generate import registry_and_tag

MOUNT = "/data"
CLAIM = "data"
RETRY = True  # off where somebody watches (manifests.pipelines.local)
MANIFESTS = Path(__file__).resolve().parent.parent
STEPS = MANIFESTS.parent / "steps"


def image_of(step: str) -> str:
    """The image of a step."""
    registry, tag = registry_and_tag()
    return f"{registry}/{step}:{tag}"


def component(step: str, *given: str) -> Any:
    """A step as a component.

    Args:
        step: Its name.
        given: Whole numbers without a default that the pipeline gives. The others are left out: the local runner wants
            to make an int of every input of that type, and fails where there is none.
    """
    content = yaml.safe_load((STEPS / step / "component.yaml").read_text())
    content["implementation"]["container"]["image"] = image_of(step)
    content["inputs"] = [
        entry
        for entry in content["inputs"]
        if entry["type"] != "Integer" or "default" in entry or not entry.get("optional") or entry["name"] in given
    ]
    return components.load_component_from_text(yaml.safe_dump(content, sort_keys=False))


def manifest_of(base: str, replaced: Mapping[str, str], more: Sequence[str]) -> str:
    """The TFJob of manifests/base as text for the step launch.

    Args:
        base: Folder in manifests/base.
        replaced: Flags of its members -> what stands in their place, such as a placeholder of launch.
        more: Further flags.
    """
    job = yaml.safe_load((MANIFESTS / "base" / base / "train.yaml").read_text())
    members = job["spec"]["tfReplicaSpecs"] = {
        role: copy.deepcopy(replica)  # they share one template by an anchor
        for role, replica in job["spec"]["tfReplicaSpecs"].items()
    }
    for replica in members.values():
        pod = replica["template"]["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            container["image"] = image_of(container["image"].removeprefix("mlcore/"))
        (member,) = pod["containers"]
        missing = set(replaced) - set(member["args"])
        assert not missing, f"{base}: {sorted(missing)} is not there"
        member["args"] = [replaced.get(flag, flag) for flag in member["args"]] + list(more)
    return yaml.safe_dump(job, sort_keys=False)


def on_volume(
    task: dsl.PipelineTask, claim: Any, *, cpu: str, memory: str, memory_limit: str, retries: int = 3, timeout_s: int
) -> dsl.PipelineTask:
    """A task with the volume, its resources, and tries after a failure: a step goes on where it was.

    Args:
        task: The task.
        claim: Name of the claim.
        cpu: Cores to ask for.
        memory: Memory to ask for.
        memory_limit: Memory at which it is killed.
        retries: Tries after the first.
        timeout_s: Seconds after which a try is ended.
    """
    kubernetes.mount_pvc(task, pvc_name=claim, mount_path=MOUNT)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=10001, run_as_group=0, run_as_non_root=True)
    kubernetes.set_timeout(task, timeout_s)
    kubernetes.add_pod_annotation(task, "sidecar.istio.io/inject", "false")
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory_limit)
    if RETRY:
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    return task.set_caching_options(False)
