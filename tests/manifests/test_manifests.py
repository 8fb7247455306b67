"""Every overlay, rendered as `kubectl apply -k` does, passes every check."""

import pytest

from tests.manifests import apis
from tests.manifests.conftest import CHECKS, OVERLAYS, rendered, with_runtime


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_definitions_of_kubernetes_and_kubeflow_hold(overlay, kubeflow):
    assert apis.schemas(rendered(overlay), kubeflow) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_check_passes(overlay):
    found = {name: check(with_runtime(overlay)) for name, check in CHECKS.items()}
    assert {name: problems for name, problems in found.items() if problems} == {}
