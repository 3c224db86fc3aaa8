"""Dashboards and alerts speak of metrics that there are, Prometheus takes all of it, and finds every replica."""

import json
import os
import re

import pytest
import yaml
from conftest import DEPLOY, ROOT, needs, run
from metrics import asked, described, labels, selected, sources

MONITORING = DEPLOY / "monitoring"
CHART = DEPLOY / "helm/cloudphone"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
RULES = [rule for group in yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = {
    f"{name}: {panel['title']}": target["expr"]
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
}


def test_there_is_a_dashboard_for_each_concern():
    assert set(DASHBOARDS) == {"cluster", "gateway", "coordination", "payments", "realtime", "devices"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_and_label_of_a_dashboard_is_one_of_ours(where):
    expression = EXPRESSIONS[where]

    assert asked(expression) and asked(expression) <= described()
    assert selected(expression) <= labels()
    assert expression.count("{") == expression.count('namespace="$namespace"')


def test_every_label_of_an_alert_is_one_of_ours():
    for rule in RULES:
        assert selected(rule["expr"]) <= labels(), rule["alert"]


def test_a_metric_or_label_that_is_not_ours_is_found():
    assert not asked('sum by (service) (rate(gateway_requests_lost_total{namespace="a"}[5m]))') <= described()
    assert not selected('sum by (colour) (registry_instances{namespace="a"})') <= labels()


def test_every_metric_that_is_described_is_counted_somewhere():
    text = "".join(each for each in sources() if "const HELP: [(&str, &str)" not in each)

    # Invariants are counted by their name and `_total`.
    unknown = {name for name in described() if f'"{name}"' not in text and f'"{name.removesuffix("_total")}"' not in text}
    assert not unknown


def test_panels_do_not_overlap():
    for name, board in DASHBOARDS.items():
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24 and not cells & taken, f"{name}: {panel['title']}"
            taken |= cells


def test_every_alert_has_an_entry_in_the_runbook():
    runbook = (MONITORING / "runbook.md").read_text()

    entries = set(re.findall(r"^## (\w+)$", runbook, re.M))
    assert entries == {rule["alert"] for rule in RULES}


@needs("promtool")
def test_prometheus_takes_the_configuration_and_the_alerts(tmp_path):
    (tmp_path / "prometheus.yaml").write_text((MONITORING / "prometheus.yaml").read_text())
    (tmp_path / "alerts.yaml").write_text((CHART / "alerts.yaml").read_text())

    said = run("promtool", "check", "config", tmp_path / "prometheus.yaml").stdout

    assert f"{len(RULES)} rules found" in said


@needs("promtool")
def test_prometheus_takes_the_expressions_of_dashboards(tmp_path):
    rules = [
        {"record": f"dashboard:panel_{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$", "")}
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))

    run("promtool", "check", "rules", tmp_path / "rules.yaml")


def test_the_targets_are_the_replicas_of_the_cluster(tmp_path):
    instances = [{"service": "users", "instance": "instance-0", "address": "10.0.0.5:41000"}]
    status = tmp_path / "status"
    status.write_text(f"#!/bin/sh\n[ \"$*\" = 'status --json' ] && echo '{json.dumps(instances)}'\n")
    status.chmod(0o755)
    file = tmp_path / "targets/cloudphone.json"

    run(MONITORING / "targets", file, env=os.environ | {"GATEWAY": str(status)})
    written = json.loads(file.read_text())
    status.write_text("#!/bin/sh\nexit 1\n")
    failed = run(MONITORING / "targets", file, env=os.environ | {"GATEWAY": str(status)}, check=False)

    assert written == [{"targets": ["10.0.0.5:41000"], "labels": {"namespace": "cloudphone", "pod": "users/instance-0"}}]
    assert failed.returncode != 0 and json.loads(file.read_text()) == written


def test_the_program_is_documented_to_be_scraped_like_that():
    assert "deploy/monitoring" in (ROOT / "README.md").read_text()
