"""What stands in ``otel/`` fits together, and goes by the names that leave the agent.

Without PyYAML the files that are YAML are held against their text only; without promql-parser queries are looked at for
their names and brackets only.
"""

from __future__ import annotations

import itertools
import json
import re
from datetime import date
from pathlib import Path

import pytest

from syncagent.attribution import ranks
from syncagent.telemetry import semconv

STACK = Path(__file__).parents[2] / "otel"
DASHBOARDS = {
    path.name: json.loads(path.read_text("utf-8")) for path in sorted(STACK.glob("grafana/dashboards/*.json"))
}
YAML = sorted(STACK.rglob("*.yaml"))
README = (STACK / "README.md").read_text("utf-8")

NAMES = [value for name, value in vars(semconv).items() if name.isupper()]
ATTRIBUTES = {name for value in NAMES for name in ((value,) if isinstance(value, str) else value) if "." in name}

SENT = {
    "syncagent.stall.duration": "histogram in seconds",
    "syncagent.step.duration": "histogram in seconds",
    "syncagent.step.collective_wait": "histogram in seconds",
    "syncagent.kept.duration": "histogram in seconds",  # the collector's, from the spans of kept traces
    "syncagent.syncs": "counter",
    "syncagent.events.dropped": "counter",
    "syncagent.spans.dropped": "counter",
    "syncagent.spans.calls": "counter",  # the collector's, from all spans of syncs
    "syncagent.step.stall_ratio": "gauge",
}
SUFFIXES = {
    "histogram in seconds": ("_seconds_bucket", "_seconds_sum", "_seconds_count"),
    "counter": ("_total",),
    "gauge": ("",),
}
METRICS = {name.replace(".", "_") + suffix for name, kind in SENT.items() for suffix in SUFFIXES[kind]}
LABELS = {name.replace(".", "_") for name in ATTRIBUTES} | {"le", "job", "instance", "alertname", "__name__"}


def text(name: str) -> str:
    return (STACK / name).read_text("utf-8")


def load(name: str):
    return pytest.importorskip("yaml", exc_type=ImportError).safe_load(text(name))


def panels() -> list:
    return [
        pytest.param(board, panel, id=f"{name}-{panel['id']}")
        for name, board in DASHBOARDS.items()
        for panel in board["panels"]
    ]


def dashboard_queries() -> list[str]:
    return [
        target["expr"]
        for board in DASHBOARDS.values()
        for panel in board["panels"]
        for target in panel["targets"]
        if "expr" in target
    ]


def rules() -> list[dict]:
    return [rule for group in load("prometheus/rules.yaml")["groups"] for rule in group["rules"]]


def names_in(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels of a query."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)"
    labels = {label.strip() for part in re.findall(grouping, bare) for label in part.split(",") if label.strip()}
    bare = re.sub(grouping, " ", bare)
    for matchers in re.findall(r"\{([^{}]*)\}", bare):
        labels |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    bare = re.sub(r"\{[^{}]*\}|\[[^\]]*\]|\boffset\s+\w+", "", bare)
    words = set(re.findall(r"(?<![\w:$.])[A-Za-z_:][\w:]*(?![\w:])(?!\s*\()", bare))
    return words - {"and", "or", "unless"}, labels


def is_balanced(query: str) -> bool:
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", query)
    while (shorter := re.sub(r"\([^()\[\]{}]*\)|\[[^()\[\]{}]*\]|\{[^()\[\]{}]*\}", "", bare)) != bare:
        bare = shorter
    return not re.search(r"[()\[\]{}\"]", bare)


def filled(query: str) -> str:
    """The query with Grafana's variables replaced, as Prometheus gets it."""
    return re.sub(r"\$\w+", "x", query.replace("$__rate_interval", "1m").replace("$__range", "1h"))


def test_the_checks_of_this_file_see_what_is_wrong():
    assert names_in('sum by (a, b) (rate(m{c=~"x|y", d!=""}[5m] offset 1d)) / on () group_left () n > 0.2') == (
        {"m", "n"},
        {"a", "b", "c", "d"},
    )
    assert is_balanced('a{b="}"}[5m]')
    assert not is_balanced("sum(a")
    assert not is_balanced("(a]")


class TestImages:
    VERSIONS = README[README.index("\n## Versions") :]
    TAGS = dict(re.findall(r"(?m)^\| (\w[\w./-]+) \| (v?\d+\.\d+\.\d+) \| \S.* \|$", VERSIONS))

    def test_every_image_is_of_the_version_in_the_readme(self):
        named = [image for path in YAML for image in re.findall(r"(?m)^\s*image:\s*(\S+)", path.read_text("utf-8"))]
        images = [tuple(image.rsplit(":", 1)) for image in named if not image.startswith("registry.example.com/")]
        assert len(images) >= 7
        assert {name for name, _ in images} == self.TAGS.keys()
        for name, tag in images:
            assert tag == self.TAGS[name], name

    def test_the_readme_says_when_they_were_looked_up(self):
        (day,) = re.findall(r"Looked up on (\S+):\n\n\| image \| tag \|", self.VERSIONS)
        date.fromisoformat(day)

    def test_dashboards_are_checked_by_the_types_of_the_grafana_that_shows_them(self):
        package = json.loads((STACK.parent / "tests/stack/schemas/package.json").read_text("utf-8"))
        assert package["dependencies"]["@grafana/schema"] == self.TAGS["grafana/grafana"]


class TestDashboards:
    def test_there_are_four_with_uids_of_their_own(self):
        assert sorted(DASHBOARDS) == ["overview.json", "policy.json", "ranks.json", "site.json"]
        assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)

    @pytest.mark.parametrize(("board", "panel"), panels())
    def test_a_panel_asks_data_sources_that_are_provisioned(self, board, panel):
        provisioned = set(
            re.findall(r"(?m)^    uid: (\S+)$", text("grafana/provisioning/datasources/datasources.yaml"))
        )
        assert panel["targets"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"]["uid"] in provisioned
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])

    @pytest.mark.parametrize("board", [*DASHBOARDS.values()], ids=[*DASHBOARDS])
    def test_panels_have_ids_of_their_own_and_do_not_overlap(self, board):
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        for one, other in itertools.combinations([panel["gridPos"] for panel in board["panels"]], 2):
            apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert apart_x or apart_y
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])

    @pytest.mark.parametrize("board", [*DASHBOARDS.values()], ids=[*DASHBOARDS])
    def test_variables_are_defined_before_they_are_used(self, board):
        known = {"__rate_interval", "__range", "__url_time_range", "__data"}
        for variable in board["templating"]["list"]:
            assert variable["query"]["query"] == variable["definition"]
            assert set(re.findall(r"\$\{?(\w+)", variable["definition"])) <= known
            known.add(variable["name"])
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) <= known

    def test_links_lead_to_dashboards_that_exist(self):
        uids = {board["uid"] for board in DASHBOARDS.values()}
        linked = set(re.findall(r'"/d/([^?"/]+)', json.dumps(list(DASHBOARDS.values()))))
        assert linked == {"syncagent-site"}
        assert linked <= uids

    def test_grafana_finds_them_where_compose_mounts_them(self):
        compose = text("docker-compose.yaml")
        (mounted,) = re.findall(r"- \./grafana/dashboards:(\S+):ro", compose)
        assert f"path: {mounted}\n" in text("grafana/provisioning/dashboards/dashboards.yaml")
        assert re.findall(rf"{mounted}/(\S+)", compose) == ["overview.json"]


class TestQueries:
    @pytest.mark.parametrize("query", dashboard_queries())
    def test_a_panel_uses_names_that_someone_sends(self, query):
        recorded = set(re.findall(r"record: (\S+)", text("prometheus/rules.yaml")))
        metrics, labels = names_in(query)
        assert metrics <= METRICS | recorded | {"ALERTS"}
        assert labels <= LABELS
        assert is_balanced(query)

    @pytest.mark.parametrize("board", [*DASHBOARDS.values()], ids=[*DASHBOARDS])
    def test_a_variable_uses_names_that_someone_sends(self, board):
        for variable in board["templating"]["list"]:
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
            metrics, labels = names_in(series)
            assert metrics <= METRICS
            assert labels | {label} <= LABELS

    def test_rules_use_names_that_someone_sends(self):
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for rule in rules():
            metrics, labels = names_in(rule["expr"])
            assert metrics <= METRICS | recorded | {"up"}
            told = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))))
            assert labels | told <= LABELS
            assert is_balanced(rule["expr"])

    def test_every_query_is_promql(self):
        parser = pytest.importorskip("promql_parser", exc_type=ImportError)
        for query in [*dashboard_queries(), *(rule["expr"] for rule in rules())]:
            parser.parse(filled(query))

    def test_traces_are_asked_for_by_the_agents_attributes(self):
        queries = [
            target["query"]
            for board in DASHBOARDS.values()
            for panel in board["panels"]
            for target in panel["targets"]
            if target.get("queryType") == "traceql"
        ]
        assert queries
        for query in queries:
            assert set(re.findall(r"\bspan\.([\w.]+)", query)) <= ATTRIBUTES


class TestAlerts:
    def test_an_alert_waits_and_says_what_is_wrong(self):
        alerts = [rule for rule in rules() if "alert" in rule]
        assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 3
        for rule in alerts:
            assert re.fullmatch(r"\d+[smh]", rule["for"])
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}
            assert rule["annotations"].keys() == {"summary", "description"}
            assert all(rule["annotations"].values())

    def test_each_is_described_and_tried(self):
        for alert in re.findall(r"alert: (\w+)", text("prometheus/rules.yaml")):
            assert f"alertname: {alert}\n" in text("prometheus/rules_test.yaml")
            assert alert in README


class TestCollector:
    def test_attributes_are_the_agents(self):
        config = text("collector/config.yaml")
        used = set(re.findall(r'attributes\["([\w.]+)"\]', config)) | set(
            re.findall(r"- name: ([a-z_]+\.[\w.]+)", config)
        )
        assert {"syncagent.op", "syncagent.allowed", "syncagent.policy", "syncagent.stall_ms", "syncagent.rank"} <= used
        assert used <= ATTRIBUTES

    @pytest.mark.parametrize("name", ["config.yaml", "node.yaml"])
    def test_pipelines_use_what_is_defined_and_nothing_is_left_over(self, name):
        config = load(f"collector/{name}")
        pipelines = config["service"]["pipelines"].values()
        connectors = config.get("connectors", {}).keys()
        for kind in ("receivers", "processors", "exporters"):
            used = {name for pipeline in pipelines for name in pipeline.get(kind, ())}
            assert used - connectors == config[kind].keys()
            if kind != "processors":
                assert used & connectors == connectors
        assert set(config["service"]["extensions"]) == config["extensions"].keys()
        for pipeline in pipelines:
            assert pipeline["processors"][0] in {"memory_limiter", "filter/syncs"}

    def test_violations_long_stalls_and_a_share_of_the_rest_are_kept(self):
        policies = load("collector/config.yaml")["processors"]["tail_sampling"]["policies"]
        assert [policy["name"] for policy in policies] == ["violations", "long-stalls", "share-of-the-rest"]
        for policy in policies:
            assert policy[policy["type"]]

    def test_the_connectors_metrics_have_the_names_that_are_asked_for(self):
        for name, options in load("collector/config.yaml")["connectors"].items():
            if name.startswith("span_metrics"):
                disabled = options["histogram"].get("disable", False)
                assert f"{options['namespace']}.{'calls' if disabled else 'duration'}" in SENT

    def test_its_settings_are_those_of_compose_kubernetes_and_the_readme(self):
        asked = set(re.findall(r"\$\{env:(\w+)", text("collector/config.yaml")))
        assert set(re.findall(r"name: ([A-Z_]+)$", text("kubernetes/gateway.yaml"), re.MULTILINE)) == asked
        assert set(load("docker-compose.yaml")["services"]["collector"]["environment"]) <= asked
        assert all(f"`{name}`" in README for name in asked)

    def test_the_settings_of_the_node_are_those_of_kubernetes_and_the_readme(self):
        asked = set(re.findall(r"\$\{env:(\w+)", text("collector/node.yaml")))
        set_there = set(re.findall(r"name: ([A-Z_]+)\b", text("kubernetes/collector.yaml")))
        assert set_there == asked
        assert all(f"`{name}`" in README for name in asked)

    @pytest.mark.parametrize("name", ["collector.yaml", "gateway.yaml"])
    def test_it_refuses_spans_before_kubernetes_kills_it_for_its_memory(self, name):
        (limit,) = re.findall(r"name: MEMORY_LIMIT_MIB\s+value: \"(\d+)\"", text(f"kubernetes/{name}"))
        (memory,) = re.findall(r"limits:\s+memory: (\d+)Mi", text(f"kubernetes/{name}"))
        assert 1.2 * int(limit) <= int(memory)

    def test_the_node_takes_what_the_gateway_takes_and_passes_all_of_it_on(self):
        whole, node = load("collector/config.yaml"), load("collector/node.yaml")
        assert node["receivers"]["otlp"]["protocols"].keys() == whole["receivers"]["otlp"]["protocols"].keys()
        assert node["processors"] == {"memory_limiter": whole["processors"]["memory_limiter"]}
        (gateway,) = re.findall(r"\$\{env:GATEWAY_ENDPOINT:-([\w-]+):4317\}", text("collector/node.yaml"))
        assert f"value: {gateway}.observability.svc:4317\n" in text("kubernetes/collector.yaml")
        assert f"kind: Service\nmetadata:\n  name: {gateway}\n  namespace: observability\n" in text(
            "kubernetes/gateway.yaml"
        )
        for pipeline in node["service"]["pipelines"].values():
            assert pipeline == {
                "receivers": ["otlp"], "processors": ["memory_limiter"], "exporters": ["otlp_grpc/gateway"],
            }  # fmt: skip

    def test_what_the_node_has_answered_for_is_on_disk_until_the_gateway_has_it(self):
        node = load("collector/node.yaml")
        exporter = node["exporters"]["otlp_grpc/gateway"]
        queue, storage = exporter["sending_queue"], node["extensions"]["file_storage/queue"]
        assert queue["storage"] in node["service"]["extensions"]
        assert exporter["retry_on_failure"]["max_elapsed_time"] == 0
        assert queue["batch"]["max_size"] <= 4 * 2**20 / 2  # what a gateway takes at once, with room
        (room,) = re.findall(r"QUEUE_BYTES:-(\d+)", queue["queue_size"])
        assert 2 * int(room) <= storage["max_size"]

    def test_the_nodes_volume_has_room_for_both_files_and_the_copy_of_one(self):
        storage = load("collector/node.yaml")["extensions"]["file_storage/queue"]
        (gib,) = re.findall(r"sizeLimit: (\d+)Gi", text("kubernetes/collector.yaml"))
        assert int(gib) * 2**30 >= 3 * storage["max_size"]
        (mounted,) = re.findall(r"name: queue\s+mountPath: (\S+)", text("kubernetes/collector.yaml"))
        (folder,) = re.findall(r"name: QUEUE_DIRECTORY\s+value: (\S+)", text("kubernetes/collector.yaml"))
        assert folder.startswith(f"{mounted}/")


class TestCompose:
    def test_what_is_mounted_exists(self):
        compose = load("docker-compose.yaml")
        for service in compose["services"].values():
            for source in (volume.split(":")[0] for volume in service.get("volumes", ())):
                assert (STACK / source).exists() if source.startswith(".") else source in compose["volumes"]

    def test_addresses_name_services_and_ports_that_are_listened_on(self):
        services = load("docker-compose.yaml")["services"]
        collector = load("collector/config.yaml")
        listening = {
            ("collector", collector["exporters"]["prometheus"]["endpoint"].split(":")[1]),
            ("collector", "8888"),
            ("tempo", "4317"),
            ("tempo", "3200"),
            ("jaeger", "4317"),
            ("jaeger", "16686"),
            ("prometheus", "9090"),
        }
        used = "".join(
            text(name)
            for name in (
                "collector/config.yaml",
                "prometheus/prometheus.yaml",
                "grafana/provisioning/datasources/datasources.yaml",
            )
        )
        found = set(re.findall(rf"\b({'|'.join(services)}):(\d+)", used))
        assert found == listening

    def test_only_otlp_can_be_opened_to_other_machines(self):
        for name, service in load("docker-compose.yaml")["services"].items():
            for port in service.get("ports", ()):
                assert port.startswith("127.0.0.1:") or (
                    name == "collector" and port.startswith("${OTLP_ADDRESS:-127.0.0.1}:")
                )


def jobs() -> dict[str, tuple[str, list[dict]]]:
    """Of each way to start the job: the label by which its pods have its name, and their containers."""
    job = load("kubernetes/pytorchjob.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"].values()
    pods = [one for replica in replicas for one in replica["template"]["spec"]["containers"]]
    trainer = load("kubernetes/trainjob.yaml")["spec"]["trainer"]
    return {
        "pytorchjob": ("training.kubeflow.org/job-name", pods),
        "trainjob": ("jobset.sigs.k8s.io/jobset-name", [trainer]),
    }


class TestKubernetes:
    def test_the_job_sends_to_the_collector_of_its_node(self):
        daemon = load("kubernetes/collector.yaml")
        (collector,) = daemon["spec"]["template"]["spec"]["containers"]
        ports = {port["hostPort"] for port in collector["ports"] if "hostPort" in port}
        for _, containers in jobs().values():
            for container in containers:
                variables = {variable["name"]: variable.get("value") for variable in container["env"]}
                endpoint = re.fullmatch(r"http://\$\((\w+)\):(\d+)", variables["OTEL_EXPORTER_OTLP_ENDPOINT"])
                assert int(endpoint[2]) in ports
                order = list(variables)
                for name, value in variables.items():
                    assert all(
                        order.index(used) < order.index(name) for used in re.findall(r"\$\((\w+)\)", value or "")
                    )

    @pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
    def test_its_pods_know_that_they_are_one_job(self, kind):
        """Kubeflow gives no name to a job that is not elastic, and its pods are on several machines."""
        label, containers = jobs()[kind]
        found = set()
        for number, container in enumerate([*containers, *containers]):
            given = {
                "metadata.name": f"train-{number}",
                "metadata.namespace": "vision",
                "status.hostIP": f"10.0.0.{number}",
            }
            given[f"metadata.labels['{label}']"] = "train"
            environ = {"WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}
            for variable in container["env"]:
                value = variable.get("value") or given[variable["valueFrom"]["fieldRef"]["fieldPath"]]
                environ[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda used: environ[used[1]], value)  # noqa: B023 - used at once
            found.add(ranks.job(environ))
        (job,) = found
        assert job.id == "vision/train"

    def test_the_jobs_have_the_same_settings(self):
        told = [
            {variable["name"]: variable.get("value") for variable in container["env"]}
            for _, containers in jobs().values()
            for container in containers
        ]
        assert all(one == told[0] for one in told)

    def test_its_settings_are_the_agents(self):
        from dataclasses import fields

        from syncagent.settings.schema import Settings

        known = {"SYNCAGENT"} | {f"SYNCAGENT_{field.name.upper()}" for field in fields(Settings)}
        for name in ("pytorchjob.yaml", "trainjob.yaml"):
            used = set(re.findall(r"name: (SYNCAGENT\w*)", text(f"kubernetes/{name}")))
            assert {"SYNCAGENT"} <= used <= known
