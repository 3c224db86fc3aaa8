"""Alerts and scrapes speak of metrics that there are."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import CHART, ROOT, rendered

RULES = [
    rule for group in yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def metrics(expression: str) -> set[str]:
    """The names before a selector."""
    return set(re.findall(r"([a-z_]+)\{", expression))


def test_every_metric_of_an_alert_is_one_of_ours():
    help = (ROOT / "crates/gateway/src/metric_help.rs").read_text()
    ours = set(re.findall(r'\(\s*"([a-z_]+)",', help))

    for rule in RULES:
        named = metrics(rule["expr"])
        assert named, rule["alert"]
        assert named - {"up"} <= ours, rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules():
    command = ["promtool", "check", "rules", CHART / "alerts.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_says_what_happened_and_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ["critical", "warning"], rule["alert"]


def test_what_must_be_zero_is_watched():
    watched = {name for rule in RULES for name in metrics(rule["expr"])}

    assert {
        "double_lease_total",
        "cron_slot_duplicates_total",
        "cron_slot_gaps_total",
        "orders_paid_twice_total",
        "ledger_imbalance",
        "invariant_checked_timestamp_seconds",
    } <= watched


def test_alerts_are_about_the_release_alone():
    [rules] = rendered("single").of("PrometheusRule")

    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert len(expressions) == len(RULES)
    for expression in expressions:
        assert expression.count('namespace="prod"') == expression.count("{"), expression
        assert 'namespace="cloudphone"' not in expression


def test_every_pod_is_scraped_and_keeps_its_own_labels():
    single = rendered("single")
    [monitor] = single.of("ServiceMonitor")
    [endpoint] = monitor["spec"]["endpoints"]

    assert endpoint["path"] == "/metrics" and endpoint["honorLabels"] is True
    for each in single.of("Service"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        assert endpoint["port"] in [port["name"] for port in each["spec"]["ports"]]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    # By it alerts know our scrapes.
    for each in single.of("Service"):
        assert each["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "cloudphone"


def test_every_dashboard_is_shipped_as_it_is():
    boards = sorted((CHART / "dashboards").glob("*.json"))
    shipped = {}
    for each in rendered("production").of("ConfigMap"):
        if each["metadata"]["labels"].get("grafana_dashboard") == "1":
            shipped |= each["data"]

    assert len(boards) == 6
    assert {name: json.loads(text) for name, text in shipped.items()} == {
        board.name: json.loads(board.read_text()) for board in boards
    }
    # Without it, none.
    assert not [each for each in rendered("small").of("ConfigMap") if "dashboard" in each["metadata"]["name"]]
