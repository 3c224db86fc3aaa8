"""What pods are told is what the program knows, and what it wants to hear."""

import os
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import settings
from conftest import ROOT, SERVICES, SETS, rendered

# The program, where it is built; whoever names it wants it tried.
GATEWAY = Path(os.environ.get("CLOUDPHONE_GATEWAY", ROOT / "target/debug/gateway"))
# As good as those that operators give.
SECRETS = {
    "REDIS_URL": "redis://redis:6379",
    "DATABASE_URL": "postgres://cloudphone@postgres/cloudphone",
    "REDLOCK_URLS": "redis://a:6379,redis://b:6379,redis://c:6379",
    "AUTH_SIGNING_KEY": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=",
    "SERVICE_SECRET": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=",
    "PAYMENT_WEBHOOK_SECRETS": "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=",
    "OBJECTS_S3_SECRET_ACCESS_KEY": "secret",
}


def test_every_setting_is_one_that_the_program_knows(every):
    names = set(every.settings())
    for _, container in every.containers():
        if container.get("command") == ["/gateway"]:
            names |= {each["name"] for each in container.get("env", [])}

    unknown = {name.removesuffix("_FILE") for name in names} - settings.known()
    assert not unknown


def test_operators_may_set_all_that_the_chart_does_not():
    assert settings.in_schema() == settings.for_operators(), "run `python3 tests/helm/settings.py`"


def test_nothing_that_other_programs_are_told_passes_for_a_setting(every):
    assert not any(pod["enableServiceLinks"] for pod in every.pods().values())


def test_pods_tell_the_others_their_own_address(every):
    for service in SERVICES:
        [container] = every.deployment(service)["spec"]["template"]["spec"]["containers"]
        by_name = {each["name"]: each for each in container["env"]}
        assert by_name["ADVERTISE_ADDRESS"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_numbers_are_written_as_they_are_read():
    told = rendered("single").settings()

    assert told["APPS_MAX_UPLOAD_BYTES"] == "2147483648"
    assert told["ACCESS_LOG_SAMPLE"] == "0.05"
    assert told["RATE_LIMITS"] == "true"


def stores(name: str) -> dict[str, str]:
    """The URLs of the stores that a set of values makes."""
    return rendered(name).named("Secret", "phones-cloudphone")["stringData"]


def test_urls_name_the_stores_as_the_program_reads_them():
    assert stores("small")["REDIS_URL"] == "redis://:trial1@phones-cloudphone-redis:6379/0"
    assert stores("sentinel")["REDIS_URL"] == (
        "redis-sentinel://:secret1@sentinel-0:26379/0?node=sentinel-1:26379&node=sentinel-2:26379&sentinelServiceName=main"
    )
    assert stores("cluster")["REDIS_URL"] == "rediss-cluster://cloudphone:secret1@redis-0:7000?node=redis-1:7001"
    assert stores("sentinel")["REDLOCK_URLS"].count(",") == 2


def test_any_password_stays_what_it_is_in_a_url():
    redis, database = urlsplit(stores("single")["REDIS_URL"]), urlsplit(stores("single")["DATABASE_URL"])

    assert (redis.scheme, redis.hostname, redis.port, redis.path) == ("rediss", "redis.example.com", 6380, "/3")
    assert unquote(redis.password) == "a b+c/d@e:f"
    assert unquote(database.password) == "p?a#s%s"
    for url in [redis, database]:
        assert parse_qs(url.query)["sslrootcert"] == ["/etc/cloudphone/stores/ca.pem"]
    assert parse_qs(database.query)["sslmode"] == ["verify-full"]


def test_failovers_forget_no_lease_unless_operators_say_otherwise():
    assert "REDIS_WAIT_REPLICAS" not in rendered("single").settings()
    assert rendered("sentinel").settings()["REDIS_WAIT_REPLICAS"] == "1"
    assert rendered("cluster").settings()["REDIS_WAIT_REPLICAS"] == "2"


def test_the_gateway_finds_its_certificate():
    [container] = rendered("single").deployment("gateway")["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    folder = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls")

    assert told["GATEWAY_TLS_CERT"] == f"{folder}/tls.crt" and told["GATEWAY_TLS_KEY"] == f"{folder}/tls.key"
    # A file by itself would not be renewed.
    assert not any("subPath" in mount for mount in container["volumeMounts"])


@pytest.mark.parametrize("name", SETS)
def test_the_program_takes_what_pods_are_told(name, tmp_path):
    if not GATEWAY.exists():
        assert "CLOUDPHONE_GATEWAY" not in os.environ, f"{GATEWAY} is missing"
        pytest.skip(f"{GATEWAY} is not built")
    manifests = rendered(name)
    secrets = SECRETS | next(
        (each["stringData"] for each in manifests.of("Secret") if each["metadata"]["name"] == "phones-cloudphone"), {}
    )
    told = {}
    for setting, value in manifests.settings().items():
        if setting.endswith("_FILE"):
            file = tmp_path / Path(value).name
            file.write_text(secrets[file.name])
            value = str(file)
        told[setting] = value

    checked = subprocess.run(
        [GATEWAY, "config", "check"],
        env=told | {"ADVERTISE_ADDRESS": "10.0.0.7", "ZONE": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
