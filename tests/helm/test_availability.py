"""How pods start, leave, spread and scale."""

import yaml
from conftest import SERVICES, SETS, Manifests, rendered, template

PORTS = dict(zip(SERVICES, [30000, 30001, 30002, 30003, 30004, 30005, 30006], strict=True))


def test_every_service_is_probed_at_its_routes(every):
    for service in SERVICES:
        [container] = every.deployment(service)["spec"]["template"]["spec"]["containers"]
        assert container["ports"][0] == {"name": "http", "containerPort": PORTS[service]}
        paths = {name: container[f"{name}Probe"]["httpGet"] for name in ["startup", "readiness", "liveness"]}
        assert paths == {
            "startup": {"path": "/health/liveness", "port": "http"},
            "readiness": {"path": "/health/readiness", "port": "http"},
            "liveness": {"path": "/health/liveness", "port": "http"},
        }
        # Readiness asks the database for a second.
        assert container["readinessProbe"]["timeoutSeconds"] > 1


def test_whoever_leaves_has_the_time_that_it_takes(every):
    grace = int(every.settings()["SHUTDOWN_GRACE_SECONDS"])
    for service in SERVICES:
        pod = every.deployment(service)["spec"]["template"]["spec"]
        sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Each of the last steps gets a second, however late it is.
        assert pod["terminationGracePeriodSeconds"] >= sleep + grace + 6


def test_balancers_hear_of_a_leaving_gateway_before_it_stops_accepting():
    [container] = rendered("production").deployment("gateway")["spec"]["template"]["spec"]["containers"]

    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] > 0
    [container] = rendered("single").deployment("gateway")["spec"]["template"]["spec"]["containers"]
    assert "lifecycle" not in container


def test_an_upgrade_takes_nobody_away_before_another_is_ready(every):
    for each in every.of("Deployment"):
        rolling = each["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0 and rolling["maxSurge"] > 0


def test_pods_of_a_service_spread_over_zones_and_machines(every):
    for each in every.of("Deployment"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for one in spread:
            assert one["labelSelector"]["matchLabels"].items() <= labels.items()


def test_evictions_leave_all_but_one():
    production = rendered("production")
    assert len(production.of("PodDisruptionBudget")) == len(SERVICES)
    for budget in production.of("PodDisruptionBudget"):
        deployment = production.named("Deployment", budget["metadata"]["name"])
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]


def test_where_a_scaler_decides_nobody_else_does(every):
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in every.of("HorizontalPodAutoscaler")}
    for each in every.of("Deployment"):
        assert ("replicas" in each["spec"]) != (each["metadata"]["name"] in scaled)


def test_services_scale_by_processor_by_requests_and_by_sockets():
    single = rendered("single")
    metrics = {
        service: single.named("HorizontalPodAutoscaler", f"phones-cloudphone-{service}")["spec"]["metrics"]
        for service in ["gateway", "notifications"]
    }

    assert [metric["type"] for metric in metrics["gateway"]] == ["Resource", "Pods"]
    [sockets] = metrics["notifications"]
    assert sockets["pods"]["metric"] == {"name": "cloudphone_sockets_open"}
    assert sockets["pods"]["target"] == {"type": "AverageValue", "averageValue": "5000"}


def test_every_container_says_what_it_needs_and_what_it_may_have(every):
    for whose, container in every.containers():
        for bound in ["requests", "limits"]:
            assert set(container["resources"][bound]) == {"cpu", "memory"}, whose


def test_no_service_keeps_clients_with_a_pod(every):
    for each in every.of("Service"):
        assert each["spec"].get("sessionAffinity", "None") == "None"
    for each in every.of("Ingress"):
        assert not any("affinity" in key for key in each["metadata"].get("annotations", {}))


def test_a_balancer_of_connections_keeps_the_addresses_of_clients():
    service = rendered("single").named("Service", "phones-cloudphone-gateway")["spec"]

    assert service["type"] == "LoadBalancer" and service["externalTrafficPolicy"] == "Local"
    assert [port["port"] for port in service["ports"]] == [80, 443]


def test_what_comes_from_outside_comes_to_the_gateway():
    [ingress] = rendered("production").of("Ingress")
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/", "Prefix")
    assert path["backend"]["service"] == {"name": "phones-cloudphone-gateway", "port": {"name": "http"}}

    [route] = rendered("gateway-api").of("HTTPRoute")
    [rule] = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "phones-cloudphone-gateway", "port": 80}]
    # Sockets last.
    assert rule["timeouts"]["request"] == "0s"


def test_the_database_is_brought_up_to_date_before_pods_change():
    [job] = rendered("production").of("Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"

    # At the first installation trial stores are made after it.
    [job] = rendered("small").of("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert not rendered("existing-secret").of("Job")


def test_the_migration_brings_what_it_needs(every):
    for job in every.of("Job"):
        pod = job["spec"]["template"]["spec"]
        # Nothing else of the release is there yet.
        assert "envFrom" not in pod["containers"][0] and "serviceAccountName" not in pod
        given = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        assert every.settings().items() <= given.items()
        for volume in pod["volumes"]:
            for secret in every.of("Secret"):
                if secret["metadata"]["name"] == volume.get("secret", {}).get("secretName"):
                    assert "helm.sh/hook" in secret["metadata"]["annotations"]


def test_pods_are_replaced_when_settings_or_secrets_change():
    def checksum(*more):
        outcome = template(*SETS["single"], *more)
        assert outcome.code == 0, outcome.error
        manifests = Manifests(each for each in yaml.safe_load_all(outcome.out) if each)
        return manifests.deployment("users")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    before = checksum()
    assert checksum("--set", "settings.RATE_LIMIT_BURST=7") != before
    assert checksum("--set", "postgresql.password=other1") != before
    assert checksum("--set", "defaults.replicas=7") == before
