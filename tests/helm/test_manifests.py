"""What helm makes is what Kubernetes takes."""

import json

import jsonschema
import kubernetes_validate
import pytest
from conftest import CHART, HERE, SETS, helm, rendered, template

# The oldest version that the chart is for, and the newest that there are schemas of.
VERSIONS = ["1.30", "1.37"]
CUSTOM = json.loads((HERE / "custom.schema.json").read_text())


@pytest.mark.parametrize("name", SETS)
def test_lint_finds_nothing(name):
    outcome = helm("lint", "--strict", CHART, *SETS[name])

    assert outcome.code == 0, outcome.out + outcome.error


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(every, version):
    for each in every:
        kind = each["kind"]
        if kind in CUSTOM:
            jsonschema.validate(each, CUSTOM[kind])
        else:
            kubernetes_validate.validate(each, version, strict=True)


def test_nothing_is_there_twice(every):
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in every]

    assert len(names) == len(set(names))


def test_rendering_twice_gives_the_same():
    assert template(*SETS["single"]).out == template(*SETS["single"]).out


@pytest.mark.parametrize("name", ["small", "production", "single", "gateway-api"])
def test_the_notes_tell_how_to_go_on(name):
    outcome = helm("install", "phones", CHART, "--namespace", "prod", "--dry-run=client", *SETS[name])

    assert outcome.code == 0, outcome.error
    notes = outcome.out.split("\nNOTES:\n")[1]
    for part in ["helm -n prod test phones", "/gateway admin create", "max_connections"]:
        assert part in notes
    assert "%!" not in notes and "<nil>" not in notes


def test_each_service_is_made_once_and_serves_itself_alone(every):
    served = {each["spec"]["template"]["spec"]["containers"][0]["args"][2] for each in every.of("Deployment")}

    assert served == {"gateway", "users", "devices", "apps", "media", "billing", "notifications"}
    for each in every.of("Deployment"):
        pod = each["spec"]["template"]
        selector = each["spec"]["selector"]["matchLabels"]
        service = every.named("Service", each["metadata"]["name"])
        assert selector.items() <= pod["metadata"]["labels"].items()
        assert service["spec"]["selector"] == selector
        assert pod["spec"]["containers"][0]["args"][:2] == ["serve", "--services"]


def test_a_value_of_a_service_wins_over_the_defaults():
    production = rendered("production")

    most = {
        each["metadata"]["name"].removeprefix("phones-cloudphone-"): each["spec"]["maxReplicas"]
        for each in production.of("HorizontalPodAutoscaler")
    }
    assert most.pop("gateway") == 10
    assert set(most.values()) == {6}
