"""The Compose file is one that Compose takes; what it tells the program is what it needs, and its replicas serve as one cluster."""

import json
import os
import shutil

import pytest
import yaml
from conftest import DEPLOY, GATEWAY, SERVICES, built, needs, run, until

FOLDER = DEPLOY / "compose"
pytestmark = needs("docker-compose")


def compose(folder, *arguments, **options):
    """Compose with the files in a folder."""
    return run("docker-compose", "-f", folder / "compose.yaml", *arguments, cwd=folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy with new secrets."""
    deploy = tmp_path_factory.mktemp("deploy")
    shutil.copytree(FOLDER, deploy / "compose", ignore=shutil.ignore_patterns("secrets", "targets"))
    for beside in ["monitoring", "helm"]:
        (deploy / beside).symlink_to(DEPLOY / beside)
    run(deploy / "compose/init")
    return deploy / "compose"


@pytest.fixture(scope="module")
def config(folder):
    return yaml.safe_load(compose(folder, "config").stdout)


def test_every_service_has_two_replicas_and_limits(config):
    for name in SERVICES:
        deploy = config["services"][name]["deploy"]
        assert deploy["replicas"] == 2, name
        assert set(deploy["resources"]["limits"]) == {"cpus", "memory"}
    assert {"redis", "postgres", "prometheus", "grafana", "migrate"} < set(config["services"])


def test_replicas_may_do_nothing_but_serve(config):
    for name in [*SERVICES, "migrate"]:
        service = config["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_they_wait_for_healthy_stores_and_the_migration(config):
    for name in SERVICES:
        waits = config["services"][name]["depends_on"]
        assert {each: wait["condition"] for each, wait in waits.items()} == {
            "redis": "service_healthy",
            "postgres": "service_healthy",
            "migrate": "service_completed_successfully",
        }
    for name in ["redis", "postgres", "prometheus", "grafana"]:
        assert config["services"][name]["healthcheck"]["test"], name


def test_stores_and_dashboards_are_not_open_to_the_world(config):
    for name in ["redis", "postgres"]:
        for port in config["services"][name]["ports"]:
            assert (port if isinstance(port, str) else port["host_ip"]).startswith("127.0.0.1")
    assert "--web.listen-address=127.0.0.1:9090" in config["services"]["prometheus"]["command"]
    assert config["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_no_secret_stands_in_the_configuration(config, folder):
    secrets = [(folder / "secrets" / name).read_text() for name in os.listdir(folder / "secrets")]

    said = json.dumps(config)
    assert len(secrets) == 10
    assert not [secret for secret in secrets if secret in said]
    assert (folder / "secrets").stat().st_mode & 0o077 == 0


def test_secrets_that_are_there_stay(folder):
    before = {name: (folder / "secrets" / name).read_text() for name in os.listdir(folder / "secrets")}

    run(folder / "init")

    assert before == {name: (folder / "secrets" / name).read_text() for name in os.listdir(folder / "secrets")}


def test_what_is_mounted_is_there(config, folder):
    for name, service in config["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            if source.startswith("/") and not source.endswith("/targets"):
                assert os.path.exists(source), f"{name}: {source}"


def test_the_connections_of_all_replicas_are_fewer_than_the_database_has(config):
    processes = sum(config["services"][name]["deploy"]["replicas"] for name in SERVICES)
    each = int(config["services"]["users"]["environment"]["DATABASE_POOL_MAX"]) + 1
    [limit] = [
        int(part.split("=")[1]) for part in config["services"]["postgres"]["command"] if part.startswith("max_connections")
    ]

    # And as many again while a second set of replicas replaces the first.
    assert processes * each < limit


@pytest.fixture(scope="module")
def with_minio(folder):
    files = ["--file", folder / "compose.yaml", "--file", folder / "minio.yaml"]
    return yaml.safe_load(run("docker-compose", *files, "config", cwd=folder).stdout)


def test_with_minio_every_replica_waits_for_the_bucket_that_it_uses(with_minio, folder):
    services = with_minio["services"]
    secret = (folder / "secrets/objects-secret-access-key").read_text()

    for name in SERVICES:
        assert services[name]["environment"]["OBJECTS_S3_BUCKET"] == services["bucket"]["environment"]["BUCKET"]
        waits = {each: wait["condition"] for each, wait in services[name]["depends_on"].items()}
        assert waits["bucket"] == waits["migrate"] == "service_completed_successfully", name
        assert "objects-secret-access-key" in json.dumps(services[name]["secrets"])
    assert services["bucket"]["depends_on"]["minio"]["condition"] == "service_healthy"
    assert services["minio"]["healthcheck"]["test"]
    assert "127.0.0.1:9000" in services["minio"]["command"]
    assert secret not in json.dumps(with_minio)


@built
@pytest.mark.parametrize("files", ["config", "with_minio"])
def test_the_program_takes_its_settings(files, folder, tmp_path, request):
    service = request.getfixturevalue(files)["services"]["gateway"]
    settings = {
        name: str(value).replace("/run/secrets/", f"{folder}/secrets/") for name, value in service["environment"].items()
    }

    checked = run(GATEWAY, "config", "check", env=settings | {"CLOUDPHONE_HOME": str(tmp_path)}, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@built
@needs("dockerd")
@pytest.mark.skipif(os.getuid() != 0, reason="an engine of one's own needs root")
def test_its_replicas_are_one_cluster_and_one_version_follows_the_other(docker, image, folder, door, stores):
    secrets = {"redis-url": stores["REDIS_URL"], "database-url": stores["DATABASE_URL"]}
    for name, secret in secrets.items():
        (folder / "secrets" / name).chmod(0o600)
        (folder / "secrets" / name).write_text(secret)
        (folder / "secrets" / name).chmod(0o444)
    environment = docker.environment | {
        "CLOUDPHONE_IMAGE": "cloudphone:test",
        "LISTEN_ADDRESS": door.address,
        "DEVICE_NODE_ADDRESS": door.address,
    }
    up = ["up", "--detach", "--no-deps"]

    compose(folder, *up, "migrate", env=environment)
    until(lambda: docker("ps", "-q", "--filter=name=migrate").stdout == "", what="the migration's end")
    compose(folder, *up, *SERVICES, env=environment, timeout=600)
    try:
        until(door.healthy, what="a healthy cluster")
        first = docker("ps", "-q", "--filter=name=cloudphone_").stdout.split()
        assert len(first) == 14
        door.sign_in()
        with door.under_load() as failures:
            # Two of a service's replicas beside the first ones, then the first ones leave.
            old = docker("ps", "-q", "--filter=name=cloudphone_users_").stdout.split()
            compose(folder, *up, "--no-recreate", "--scale=users=4", "users", env=environment)
            until(lambda: door.ask("GET", "/health")[0] == 200)
            until(lambda: ready(docker) >= 4, what="four instances of users")
            docker("stop", "--time=60", *old)
        assert failures == []
    except AssertionError:
        print(compose(folder, "logs", "--tail=20", env=environment, check=False).stdout[-8000:])
        raise
    finally:
        compose(folder, "down", "--volumes", "--timeout=60", env=environment, timeout=600)
    assert docker("ps", "-aq").stdout == ""


def ready(docker) -> int:
    """How many instances of users the cluster knows."""
    container = docker("ps", "-q", "--filter=name=cloudphone_gateway_1").stdout.strip()
    instances = json.loads(docker("exec", container, "/gateway", "status", "--json").stdout)
    return len([each for each in instances if each["service"] == "users"])
