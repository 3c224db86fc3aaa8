"""What a pod may do, who reaches it, and where secrets stand."""

import json

from conftest import SERVICES, rendered


def test_nobody_is_root_or_may_become_it(every):
    for whose, pod in every.pods().items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, whose
        assert security["runAsUser"] > 0 and security["runAsGroup"] > 0, whose
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, whose
    for whose, container in every.containers():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, whose
        assert security["capabilities"] == {"drop": ["ALL"]}, whose
        assert not security.get("privileged"), whose


def test_root_file_systems_are_read_only_and_nothing_is_the_machines(every):
    for whose, container in every.containers():
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, whose
    for whose, pod in every.pods().items():
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), whose
        assert not any(pod.get(name) for name in ["hostNetwork", "hostPID", "hostIPC"]), whose


def test_what_the_program_writes_is_no_part_of_its_image(every):
    for service in SERVICES:
        pod = every.deployment(service)["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert "emptyDir" in volumes[mounts[every.settings()["CLOUDPHONE_HOME"]]["name"]]
        writes = [mount for mount in mounts.values() if not mount.get("readOnly")]
        stored = service in ["apps", "media"] and "OBJECTS_S3_BUCKET" not in every.settings()
        assert len(writes) == (2 if stored else 1), service
        if stored:
            objects = volumes[mounts[every.settings()["OBJECTS_FOLDER"]]["name"]]
            assert "persistentVolumeClaim" in objects


def test_a_token_is_the_devices_alone_where_phones_are_pods():
    for name in ["production", "kubernetes"]:
        manifests = rendered(name)
        with_token = {whose for whose, pod in manifests.pods().items() if pod["automountServiceAccountToken"]}
        expected = {"Deployment phones-cloudphone-devices"} if name == "kubernetes" else set()
        assert with_token == expected
        assert not any(each["automountServiceAccountToken"] for each in manifests.of("ServiceAccount"))


def test_phones_get_a_role_in_their_namespace_and_nothing_wider():
    kubernetes = rendered("kubernetes")

    [role] = kubernetes.of("Role")
    [binding] = kubernetes.of("RoleBinding")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "tenants"
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {
        "pods",
        "services",
        "persistentvolumeclaims",
    }
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "phones-cloudphone-devices", "namespace": "prod"}
    ]
    assert not kubernetes.of("ClusterRole", "ClusterRoleBinding")
    assert not rendered("production").of("Role", "RoleBinding")


def test_phones_reach_nothing_of_the_private_network():
    policy = rendered("kubernetes").named("NetworkPolicy", "phones-cloudphone-devices-phones")

    assert policy["metadata"]["namespace"] == "tenants"
    internet = policy["spec"]["egress"][0]["to"][0]["ipBlock"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(internet["except"])


def secrets_of(manifests) -> list[str]:
    """The values of the chart's own secrets, and the passwords in their URLs."""
    values = [value for each in manifests.of("Secret") for value in each["stringData"].values()]
    passwords = [value.split("://")[1].split("@")[0].split(":")[-1] for value in values if "@" in value]
    return [value for value in values + passwords if len(value) > 5]


def test_no_secret_stands_outside_of_secrets(every):
    others = json.dumps([each for each in every if each["kind"] != "Secret"])

    for secret in secrets_of(every):
        assert secret not in others


def test_a_secret_of_the_operators_is_all_there_is():
    for name in ["production", "existing-secret", "gateway-api", "kubernetes"]:
        assert not rendered(name).of("Secret")


def test_every_name_of_a_file_is_a_file_that_is_mounted(every):
    named = {value for name, value in every.settings().items() if name.endswith("_FILE")}
    for service in SERVICES:
        pod = every.deployment(service)["spec"]["template"]["spec"]
        [secrets] = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets"]
        [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "secrets"]
        assert named == {f"{mount['mountPath']}/{item['path']}" for item in secrets["items"]}
        for each in every.of("Secret"):
            if each["metadata"]["name"] == secrets["secretName"]:
                assert {item["key"] for item in secrets["items"]} == set(each["stringData"])


def test_every_image_is_one_version(every):
    for whose, container in every.containers():
        image = container["image"]
        tag = image.rpartition("/")[2].partition(":")[2]
        assert "@sha256:" in image or tag not in ["", "latest"], whose


def test_every_pod_of_ours_hears_only_whom_it_must():
    for name in ["small", "production", "single", "sentinel", "cluster", "gateway-api", "kubernetes"]:
        manifests = rendered(name)
        guarded = [policy["spec"]["podSelector"].get("matchLabels") for policy in manifests.of("NetworkPolicy")]
        for each in manifests.of("Deployment", "StatefulSet", "Job"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert any(selector and selector.items() <= labels.items() for selector in guarded), each["metadata"]
    for service in SERVICES[1:]:
        policy = rendered("production").named("NetworkPolicy", f"phones-cloudphone-{service}")
        assert all(rule.get("from") for rule in policy["spec"]["ingress"]), service


def test_gateways_reach_the_ports_that_instances_choose():
    for service in SERVICES:
        policy = rendered("production").named("NetworkPolicy", f"phones-cloudphone-{service}")
        component = "app.kubernetes.io/component"
        wide = [rule for rule in policy["spec"]["ingress"] if rule["ports"] == [{"protocol": "TCP", "port": 1024, "endPort": 65535}]]
        whose = {peer["podSelector"]["matchLabels"][component] for rule in wide for peer in rule["from"]}
        # Packages are streamed from apps to devices; notifications are written to addresses that users have.
        asking = {"apps": {"devices"}, "devices": {"apps"}, "users": {"notifications"}}
        assert whose == {"gateway"} | asking.get(service, set()), service


def test_who_talks_to_the_outside_may_and_nobody_else():
    for name, expected in [("production", {"billing", "notifications"}), ("bucket", {"billing", "notifications", "apps", "media"})]:
        manifests = rendered(name)
        wide = {}
        for service in SERVICES:
            policy = manifests.named("NetworkPolicy", f"phones-cloudphone-{service}")
            wide[service] = [rule for rule in policy["spec"]["egress"] if not rule.get("ports")]
        assert {service for service in SERVICES if wide[service]} - {"devices"} == expected
    [rule] = wide["billing"]
    assert rule["to"] == [{"ipBlock": {"cidr": "203.0.113.0/24"}}]


def test_nothing_is_mounted_where_objects_are_in_a_bucket():
    manifests = rendered("bucket")
    assert not manifests.of("PersistentVolumeClaim")
    assert manifests.settings()["OBJECTS_S3_SECRET_ACCESS_KEY_FILE"].endswith("/OBJECTS_S3_SECRET_ACCESS_KEY")
    for service in ["apps", "media"]:
        pod = manifests.deployment(service)["spec"]["template"]["spec"]
        assert "objects" not in {volume["name"] for volume in pod["volumes"]}


def test_where_addresses_are_believed_only_proxies_reach_the_gateway():
    for name in ["production", "gateway-api"]:
        policy = rendered(name).named("NetworkPolicy", "phones-cloudphone-gateway")
        assert all(rule["from"] for rule in policy["spec"]["ingress"])


def test_stores_are_reached_at_their_ports():
    expected = {
        "small": {5432, 6379},
        "production": {5432, 6379, 26379},
        "single": {5432, 6380},
        "sentinel": {5432, 6379, 6390, 26379},
        "cluster": {5432, 6379, 7000, 7001},
    }
    for name, ports in expected.items():
        policy = rendered(name).named("NetworkPolicy", "phones-cloudphone-users")
        assert {port["port"] for port in policy["spec"]["egress"][1]["ports"]} == ports
        assert len(policy["spec"]["egress"]) == 2
