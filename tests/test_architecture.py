"""The floors of the house: a module imports only from its own floor or below, and the lower ones never TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlcore

ROOT = Path(mlcore.__file__).parent
FLOORS = {"runtime": 0, "data": 1, "cluster": 1, "detection": 2, "mnist": 2, "serving": 2, "kubeflow": 2}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_has_a_floor():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_its_floor_or_below(path):
    floor = FLOORS[path.relative_to(ROOT).parts[0]]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mlcore":
            assert parts[1] in FLOORS or parts[1] == "__version__", f"{path}: imports {name}"
            assert FLOORS.get(parts[1], 0) <= floor, f"{path}: imports {name} from a floor above"


@pytest.mark.parametrize("package", ["runtime", "data", "kubeflow"])
def test_package_never_loads_tensorflow(package):
    names = [
        ".".join(("mlcore", *path.relative_to(ROOT).with_suffix("").parts))
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    script = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["runtime", "data", "kubeflow"])
def test_source_never_imports_tensorflow(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] not in {"tensorflow", "tf_keras", "keras", "official", "orbit"}, f"{path}: {name}"
