"""The files of ``otel/``, as far as available programs can check them.

promtool for Prometheus; compose-go, by which ``docker compose`` loads its files; Kubernetes' schemas and the types of
Kubeflow's jobs; Grafana's types of its dashboards.  What is not here and cannot be fetched is skipped, with the reason.
Nothing checks ``tempo/`` and ``grafana/provisioning/``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from places import OTEL

SCHEMAS = Path(__file__).parent / "schemas"
COMPOSE = OTEL / "docker-compose.yaml"

compiles = pytest.mark.timeout(900)
"""The first to use ``check`` waits for a compiler: a minute and a half on two cores, besides the downloads."""


def run(*words, cwd, timeout_s=600, **variables):
    """What hangs, as a download may where packets are dropped, has failed."""
    options = {"cwd": cwd, "env": os.environ | variables, "capture_output": True, "text": True, "check": False}
    try:
        return subprocess.run(words, timeout=timeout_s, **options)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(words, 124, "", str(late))


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1]


# --- Prometheus


@pytest.fixture
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    return lambda *words: run("promtool", *words, cwd=OTEL / "prometheus", timeout_s=100)


@pytest.mark.parametrize("name", ["prometheus.yaml", "ranks.yaml"])
def test_prometheus_takes_its_configuration(promtool, name):
    done = promtool("check", "config", name)
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


def test_alerts_fire_when_they_should(promtool):
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stderr + done.stdout


# --- docker compose


@pytest.fixture(scope="session")
def check(tmp_path_factory):
    """The program of ``schemas/``: call it with a kind and a file."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    fetched = run("go", "mod", "download", cwd=SCHEMAS)
    if fetched.returncode:
        pytest.skip(f"Go modules cannot be fetched: {last_line(fetched.stderr)}")
    program = tmp_path_factory.mktemp("schemas") / "schemas"
    built = run("go", "build", "-buildvcs=false", "-o", str(program), ".", cwd=SCHEMAS)
    assert built.returncode == 0, built.stderr
    return lambda kind, path, **variables: run(str(program), kind, str(path), cwd=path.parent, **variables)


@compiles
def test_compose_resolves_its_file(check):
    done = check("compose", COMPOSE, OTLP_ADDRESS="", LONG_STALL_MS="", TRACE_PERCENT="")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    written = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {name: service["image"] for name, service in services.items()} == {
        name: service["image"] for name, service in written.items()
    }
    assert services["collector"]["environment"].items() >= {"LONG_STALL_MS": "50", "TRACE_PERCENT": "10"}.items()
    for service in services.values():
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}
        for volume in service.get("volumes", ()):
            assert volume["type"] == "volume" or Path(volume["source"]).exists()


@compiles
def test_composes_settings_are_those_of_the_environment(check):
    done = check("compose", COMPOSE, OTLP_ADDRESS="0.0.0.0", LONG_STALL_MS="5", TRACE_PERCENT="100")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services["collector"]["environment"].items() >= {"LONG_STALL_MS": "5", "TRACE_PERCENT": "100"}.items()
    opened = {
        (name, port["target"])
        for name, service in services.items()
        for port in service.get("ports", ())
        if port["host_ip"] == "0.0.0.0"
    }
    assert opened == {("collector", 4317), ("collector", 4318)}


@compiles
@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("image: grafana/", "imaje: grafana/", "imaje"),
        ("depends_on: [collector]", "depends_on: [colector]", "undefined service"),
    ],
)
def test_compose_refuses_a_mistake(check, tmp_path, right, wrong, said):
    text = COMPOSE.read_text()
    assert right in text
    (tmp_path / "docker-compose.yaml").write_text(text.replace(right, wrong))
    done = check("compose", tmp_path / "docker-compose.yaml")
    assert done.returncode == 1
    assert said in done.stderr


# --- Kubernetes


def objects(name):
    return list(yaml.safe_load_all((OTEL / "kubernetes" / name).read_text()))


def conforms(thing):
    """Validate by the newest schemas that are there, which know every field."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)


def pod(spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "train-0"}, "spec": spec}


def test_kubernetes_takes_its_objects():
    for name in ("collector.yaml", "gateway.yaml"):
        for thing in objects(name):
            conforms(thing)


def test_the_pods_of_the_training_job_are_pods():
    (job,) = objects("pytorchjob.yaml")
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        conforms(pod(replica["template"]["spec"]))


@compiles
def test_the_training_operator_takes_its_job(check, tmp_path):
    """By the types of its release 1.8, the newest that there is as a module."""
    job = OTEL / "kubernetes" / "pytorchjob.yaml"
    done = check("pytorchjob", job)
    assert done.returncode == 0, done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(job.read_text().replace("nprocPerNode", "procPerNode"))
    done = check("pytorchjob", wrong)
    assert done.returncode == 1
    assert 'procPerNode"' in done.stderr


def test_the_trainer_takes_its_job():
    """Its types leave out what they do not know, so a job has to come back whole."""
    module = pytest.importorskip("kubeflow_trainer_api.models.trainer_v1alpha1_train_job")
    (job,) = objects("trainjob.yaml")
    assert module.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    trainer = job["spec"]["trainer"]
    container = {name: trainer[name] for name in ("image", "command", "env")}
    conforms(pod({"containers": [container | {"name": "node", "resources": trainer["resourcesPerNode"]}]}))


# --- Grafana


@pytest.mark.timeout(300)
def test_dashboards_have_the_fields_that_grafana_knows(tmp_path):
    """``dashboards.ts`` contains mistakes, each of which the compiler has to find as well."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it comes with Node.js")
    for name in ("package.json", "dashboards.ts"):
        shutil.copy(SCHEMAS / name, tmp_path)
    installed = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", cwd=tmp_path, timeout_s=200)
    if installed.returncode:
        pytest.skip(f"Grafana's types cannot be fetched: {last_line(installed.stderr)}")
    boards = sorted((OTEL / "grafana" / "dashboards").glob("*.json"))
    assert boards
    for board in boards:
        text = f'import type {{ File }} from "./dashboards";\nexport const board: File = {board.read_text()}'
        (tmp_path / board.name).with_suffix(".ts").write_text(text)
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    done = run("node_modules/.bin/tsc", *options, *map(str, tmp_path.glob("*.ts")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
