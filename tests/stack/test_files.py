"""The files of ``otel/``, as far as available programs can check them: promtool, and Kubernetes' own schemas."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml
from places import OTEL


@pytest.fixture
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")

    def run(*words):
        return subprocess.run(
            ["promtool", *words], cwd=OTEL / "prometheus", capture_output=True, text=True, timeout=100, check=False
        )

    return run


@pytest.mark.parametrize("name", ["prometheus.yaml", "ranks.yaml"])
def test_prometheus_takes_its_configuration(promtool, name):
    done = promtool("check", "config", name)
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


def test_alerts_fire_when_they_should(promtool):
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stderr + done.stdout


def test_kubernetes_takes_its_objects():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for name in ("collector.yaml", "gateway.yaml"):
        for one in yaml.safe_load_all((OTEL / "kubernetes" / name).read_text()):
            kubernetes_validate.validate(one, "1.33", strict=True)


def test_the_pods_of_the_training_job_are_pods():
    """The job itself is the training operator's, whose schema is not Kubernetes'."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((OTEL / "kubernetes" / "pytorchjob.yaml").read_text())
    for name, replica in job["spec"]["pytorchReplicaSpecs"].items():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name.lower()}}
        kubernetes_validate.validate(pod | {"template": replica["template"]}, "1.33", strict=True)
