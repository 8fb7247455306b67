"""Experiments and presets: names, files, configurations."""

import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlcore.detection.experiment import (
    DEFAULT_PRESET,
    EXPERIMENT_FILE,
    EXPERIMENTS,
    SECTIONS,
    check_experiment_name,
    describe_experiment,
    load_preset,
    presets,
)
from mlcore.runtime.errors import DataError, UsageError


def test_the_default_preset_comes_first() -> None:
    assert presets()[0] == DEFAULT_PRESET


@pytest.mark.parametrize("name", presets())
def test_a_preset_names_an_experiment_and_sections_of_it(name: str) -> None:
    preset = load_preset(name)
    check_experiment_name(preset["experiment"])
    assert set(preset) <= {"experiment", *SECTIONS}


def test_every_preset_says_what_it_is_for() -> None:
    for name in presets():
        text = importlib.resources.files("mlcore.detection.presets").joinpath(f"{name}.yaml").read_text()
        assert text.startswith("# "), name


@pytest.mark.parametrize(
    ("check", "flag", "hint"),
    [
        (lambda: load_preset("retinanet-mobil"), "--preset=retinanet-mobil", "did you mean retinanet-mobile?"),
        (lambda: check_experiment_name("fasterrcnn"), "--experiment=fasterrcnn", "fasterrcnn_resnetfpn_coco"),
    ],
    ids=["preset", "experiment"],
)
def test_an_unknown_name_is_answered_with_the_list(check: object, flag: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check()  # type: ignore[operator]
    message = str(caught.value)
    assert message.startswith(flag)
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no experiment.yaml"),
        ("a: [1", "cannot be read"),
        ("- 1\n", "expected the keys"),
        ("experiment: retinanet\n", "expected the keys"),
    ],
    ids=["missing", "no YAML", "no mapping", "half"],
)
def test_a_damaged_description_is_a_data_error(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / EXPERIMENT_FILE).write_text(content)
    with pytest.raises(DataError, match=expected):
        describe_experiment(tmp_path)


@pytest.mark.slow
def test_official_knows_every_experiment_and_every_preset_fits(tmp_path: Path) -> None:
    """In a process of its own, which loads TensorFlow once for all presets and no rarely used package."""
    program = f"""
import sys
from mlcore.detection.experiment import *
for name in {EXPERIMENTS}:
    new_config(name)
from official.core import exp_factory
from official.vision.configs import maskrcnn, retinanet
detection = {{name for name in exp_factory._REGISTERED_CONFIGS
              if isinstance(exp_factory.get_exp_config(name).task, (maskrcnn.MaskRCNNTask, retinanet.RetinaNetTask))}}
assert detection == set({EXPERIMENTS}), detection
for name in {presets()}:
    preset = load_preset(name)
    config = new_config(preset.pop("experiment"))
    override(config, preset, name)
    config.validate()
assert not [m for m in sys.modules if m.startswith("tensorflow_datasets.")]
assert "matplotlib.axes" not in sys.modules
import matplotlib.pyplot as plt
plt.figure()
from pathlib import Path
try:
    override(config, {{"task": {{"model": {{"min_levle": 3}}}}}}, "--overrides")
except Exception as error:
    print(error)
folder, sections = Path({str(tmp_path)!r}), new_config("retinanet").as_dict()
write_experiment(folder, {{"experiment": "retinanet", "classes": ["a"], **sections}})
assert load_experiment(folder).as_dict() == sections
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "--overrides: task.model.min_levle: no such setting (did you mean min_level?)\n"
    assert yaml.safe_load((tmp_path / EXPERIMENT_FILE).read_text())["classes"] == ["a"]
