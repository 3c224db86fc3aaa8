"""The chart, rendered once for each set of values, and what the tests ask of it."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHART = ROOT / "deploy/helm/cloudphone"
SERVICES = ["gateway", "users", "devices", "apps", "media", "billing", "notifications"]

# What a user gives to helm for each of them.
SETS = {
    "small": ["-f", CHART / "values-small.yaml", "--set", "trialStores.password=trial1"],
    "production": ["-f", CHART / "values-production.yaml"],
} | {path.stem: ["-f", path] for path in sorted((HERE / "values").glob("*.yaml"))}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    error: str


def helm(*arguments) -> Outcome:
    """Runs helm, for 60 s at most."""
    done = subprocess.run(
        ["helm", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def template(*arguments) -> Outcome:
    """Renders the chart in a namespace of its own."""
    return helm("template", "phones", CHART, "--namespace", "prod", *arguments)


class Manifests(list):
    """The objects that a set of values makes."""

    def of(self, *kinds: str) -> list[dict]:
        """Those of some kinds."""
        return [each for each in self if each["kind"] in kinds]

    def named(self, kind: str, name: str) -> dict:
        """The one of a kind with a name."""
        found = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name} is there {len(found)} times"
        return found[0]

    def deployment(self, service: str) -> dict:
        """That of a service."""
        return self.named("Deployment", f"phones-cloudphone-{service}")

    def pods(self) -> dict[str, dict]:
        """What pods are to be, by the kind and name of who makes them."""
        pods = {}
        for each in self.of("Deployment", "StatefulSet", "Job"):
            pods[f"{each['kind']} {each['metadata']['name']}"] = each["spec"]["template"]["spec"]
        for each in self.of("Pod"):
            pods[f"Pod {each['metadata']['name']}"] = each["spec"]
        return pods

    def containers(self) -> list[tuple[str, dict]]:
        """Every container, with whose it is."""
        return [
            (whose, container)
            for whose, pod in self.pods().items()
            for container in pod.get("initContainers", []) + pod["containers"]
        ]

    def settings(self) -> dict[str, str]:
        """What pods of the program find in their environment."""
        return self.named("ConfigMap", "phones-cloudphone")["data"]


@functools.cache
def rendered(name: str) -> Manifests:
    """The objects of a set."""
    outcome = template(*SETS[name])
    assert outcome.code == 0, outcome.error
    return Manifests(each for each in yaml.safe_load_all(outcome.out) if each)


@pytest.fixture(params=SETS)
def every(request) -> Manifests:
    """The objects of each set, one after the other."""
    return rendered(request.param)
