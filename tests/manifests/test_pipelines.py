"""The components of the steps, and the pipelines of them as Pipelines gets them."""

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from kfp import compiler, components

from mlcore.cli import STEPS, load_step, run_step
from mlcore.kubeflow import job_template
from mlcore.runtime.parameters import parameters_of
from mlcore.runtime.results import names_of
from tests.conftest import PROJECT
from tests.data.voc_sets import VocSet
from tests.manifests import apis, pipelines
from tests.manifests.conftest import CHECKS, known_images, rendered

NAMES = ("mnist", "pets", "pets_distributed")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[Any]]:
    """Name -> the two documents of the pipeline that `make manifests` writes."""
    from manifests.generate import compile_pipelines

    paths = compile_pipelines(tmp_path_factory.mktemp("pipelines"))
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in paths}


@pytest.mark.parametrize("step", STEPS)
def test_the_component_has_the_parameters_and_results_of_the_step_and_compiles(step, tmp_path):
    component = components.load_component_from_file(str(PROJECT / "steps" / step / "component.yaml"))
    parameters = {parameter.name: parameter for parameter in parameters_of(load_step(step))}
    assert set(component.component_spec.inputs) == set(parameters)
    for name, entry in component.component_spec.inputs.items():
        assert entry.optional is not parameters[name].required
    assert set(component.component_spec.outputs) - {"metrics", "report"} == set(names_of(load_step(step))) - {"metrics"}
    compiler.Compiler().compile(component, str(tmp_path / "component.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_the_pipeline_has_the_form_that_pipelines_reads(compiled, name):
    assert pipelines.form(compiled[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_its_tasks_are_steps_with_valid_flags(compiled, name):
    assert pipelines.tasks(compiled[name], known_images()) == []


def test_the_job_that_the_distributed_pipeline_launches_passes_the_checks_of_manifests(compiled, kubeflow):
    inputs = compiled["pets_distributed"][0]["root"]["dag"]["tasks"]["launch"]["inputs"]["parameters"]
    text = inputs["manifest"]["runtimeValue"]["constant"]
    assert "{{" not in text  # Pipelines would take it for a placeholder of its own
    job = job_template.render(text, "the pipeline", {"steps": "100", "preset": "retinanet-resnet50"})
    documents = [*rendered("pets"), job | {"metadata": {"name": "launched", "namespace": "mlcore"}}]
    assert apis.schemas(documents, kubeflow) == []
    assert {name: found for name, check in CHECKS.items() if (found := check(documents))} == {}


def executor(documents, name="mnist-train"):
    return documents[0]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def kubernetes(documents, name="mnist-train"):
    return documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]


def task(documents, name="mnist-train"):
    return documents[0]["root"]["dag"]["tasks"][name]


def root_default(documents, name, value):
    documents[0]["root"]["inputDefinitions"]["parameters"][name]["defaultValue"] = value


MUTATIONS: list[tuple[Any, Any, str]] = [
    ("form", lambda d: d[0].update(roots={}), "roots"),
    ("form", lambda d: executor(d).update(argz=[]), "argz"),
    ("form", lambda d: kubernetes(d).update(pvcMounts=[]), "pvcMounts"),
    ("form", lambda d: task(d).update(retry=3), "retry"),
    ("tasks", lambda d: executor(d).update(image="mlcore/train:other"), "not in manifests/images"),
    ("tasks", lambda d: executor(d).update(image="busybox"), "of no step"),
    ("tasks", lambda d: executor(d).update(command=["python"]), "command"),
    ("tasks", lambda d: executor(d)["args"].append("--no-such=1"), "has no --no-such"),
    ("tasks", lambda d: executor(d)["args"].append("--seed={{$.inputs.parameters['sed']}}"), "no such input"),
    ("tasks", lambda d: executor(d)["args"].append('{"Concat": ["--seed=", "1"]}'), "does not resolve"),
    ("tasks", lambda d: executor(d)["args"].remove("--executor-input={{$}}"), "--executor-input"),
    ("tasks", lambda d: executor(d)["args"].remove(
        "--result-file=loss={{$.outputs.parameters['loss'].output_file}}"), "not the results"),
    ("tasks", lambda d: root_default(d, "epochs", 0.0), "--epochs=0"),
    ("tasks", lambda d: root_default(d, "hidden", ["x"]), "--hidden"),
    ("tasks", lambda d: root_default(d, "folder", "/mnt"), "not on the volume"),
    ("tasks", lambda d: kubernetes(d)["pvcMount"][0].update(mountPath="/mnt"), "no claim at /data"),
    ("tasks", lambda d: kubernetes(d).pop("securityContext"), "root"),
    ("tasks", lambda d: executor(d).pop("resources"), "no resourceCpuRequest"),
    ("tasks", lambda d: task(d).pop("retryPolicy"), "no second try"),
    ("tasks", lambda d: kubernetes(d).pop("activeDeadlineSeconds"), "no bound"),
    ("tasks", lambda d: task(d).update(cachingOptions={"enableCache": True}), "cache"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "change", "said"), MUTATIONS, ids=[f"{entry[0]}: {entry[2]}" for entry in MUTATIONS])
def test_a_mistake_is_found(compiled, check, change, said):
    documents = copy.deepcopy(compiled["mnist"])
    change(documents)
    found = pipelines.form(documents) if check == "form" else pipelines.tasks(documents, known_images())
    assert any(said in problem for problem in found), found


def test_registry_and_tag_reach_the_images_of_a_pipeline(tmp_path):
    environment = {**os.environ, "REGISTRY": "registry.example.org/ml", "TAG": "1.2.0"}
    script = f"from manifests.generate import *; compile_pipelines(Path({str(tmp_path)!r})); print(images())"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "image: registry.example.org/ml/convert:1.2.0" in (tmp_path / "pets.yaml").read_text()
    assert "newName: registry.example.org/ml/train, newTag: 1.2.0-gpu}" in done.stdout


def test_the_image_component_names_every_image():
    done = subprocess.run([sys.executable, "-m", "manifests.generate", "--check"], cwd=PROJECT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_task_takes_its_inputs_from_pipelines_and_writes_its_artifacts(tmp_path):
    VocSet(tmp_path / "voc").fill(8)
    report = tmp_path / "artifacts" / "report"
    executor_input = {
        "inputs": {"parameterValues": {"shards": 2, "use_lists": False, "label_map": None, "keep_empty": True}},
        "outputs": {
            "outputFile": str(tmp_path / "out" / "executor_output.json"),
            "artifacts": {
                "metrics": {"artifacts": [{"name": "m", "uri": "s3://bucket/m", "metadata": {"kept": 1}}]},
                "report": {"artifacts": [{"name": "r", "uri": str(report)}]},
            },
        },
    }
    code = run_step("convert", [f"--data-dir={tmp_path / 'voc'}", f"--output-dir={tmp_path / 'records'}",
                                f"--executor-input={json.dumps(executor_input)}",
                                f"--result-file=images={tmp_path / 'images'}"])  # fmt: skip
    assert code == 0
    made = json.loads((tmp_path / "records" / "_SUCCESS.json").read_text())
    assert made["parameters"]["shards"] == 2
    assert made["parameters"]["use_lists"] is False
    written = json.loads((tmp_path / "out" / "executor_output.json").read_text())["artifacts"]
    metadata = written["metrics"]["artifacts"][0]["metadata"]
    assert metadata["kept"] == 1
    assert metadata["images"] == made["results"]["images"] == int((tmp_path / "images").read_text())
    assert report.read_text() == (tmp_path / "records" / "report.html").read_text()


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"outputs": {}}', '{"outputs": {"outputFile": "x", "artifacts": 3}}']
)
def test_an_executor_input_of_another_form_is_wrong_use(tmp_path, capsys, text):
    assert run_step("extract", [f"--archive={tmp_path}/a.tar", "--output-dir=x", f"--executor-input={text}"]) == 2
    assert "--executor-input" in capsys.readouterr().err


def test_a_wrong_input_is_named(tmp_path, capsys):
    text = json.dumps({"inputs": {"parameterValues": {"shards": "many"}}, "outputs": {"outputFile": "x"}})
    assert run_step("convert", ["--data-dir=x", "--output-dir=y", f"--executor-input={text}"]) == 2
    assert "--executor-input: shards=many" in capsys.readouterr().err
