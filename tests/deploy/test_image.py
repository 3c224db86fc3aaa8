"""The image is made of the program that is built, runs as nobody in particular with a root that it cannot write, and serves."""

import gzip
import json
import os

import pytest
from conftest import DEPLOY, GATEWAY, TARGET, built, needs, run, until

DOCKER = DEPLOY / "docker"
pytestmark = [
    built,
    needs("docker"),
    needs("dockerd"),
    pytest.mark.skipif(os.getuid() != 0, reason="an engine of one's own needs root"),
]


def test_the_image_names_its_version_and_a_numeric_user(image):
    config = image["Config"]

    assert config["User"] == "65532:65532"
    assert config["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    assert config["Healthcheck"]["Test"] == ["CMD", "/gateway", "healthcheck"]
    assert config["Entrypoint"] == ["/gateway"] and config["Cmd"] == ["serve"]
    assert not [each for each in config["Env"] if "SECRET" in each or "KEY" in each]


def test_the_image_holds_the_program_and_its_libraries_alone(docker, image, tmp_path):
    container = docker("create", "cloudphone:test").stdout.strip()
    docker("export", "-o", tmp_path / "root.tar", container)

    files = run("tar", "-tf", tmp_path / "root.tar").stdout.split()
    # What the engine adds to every container.
    added = ("dev/", "proc/", "sys/", ".dockerenv", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf")
    files = {each for each in files if not each.endswith("/") and not each.startswith(added)}
    libraries = {each for each in files if each.startswith("lib")}
    assert files - libraries == {
        "gateway",
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
    }
    assert len(libraries) <= 6, libraries


def test_it_serves_with_a_root_that_cannot_be_written(docker, image, door, place):
    settings = [f"--env={name}={value}" for name, value in place.items() if name.isupper() and name not in ("HOME", "PATH")]
    container = docker(
        *["run", "--detach", "--read-only", "--user=65532:65532", "--network=host", "--cap-drop=ALL"],
        *["--security-opt=no-new-privileges", "--tmpfs=/var/lib/cloudphone:uid=65532,gid=65532,mode=0700"],
        *settings,
        *["--env=CLOUDPHONE_HOME=/var/lib/cloudphone", "--env=PROFILE=development", "cloudphone:test"],
    ).stdout.strip()

    try:
        until(door.healthy, what="a healthy replica")
        asked = docker("exec", container, "/gateway", "healthcheck", check=False)
        assert (asked.returncode, asked.stdout) == (0, "ready\n"), asked.stderr
    except AssertionError:
        raise AssertionError(docker("logs", container).stderr) from None
    docker("stop", "--time=60", container)

    [state] = json.loads(docker("inspect", container).stdout)
    assert state["State"]["ExitCode"] == 0


def test_it_refuses_to_run_without_what_production_needs(docker, image):
    ran = docker("run", "--rm", "--read-only", "--network=none", "cloudphone:test", check=False)

    assert ran.returncode == 78
    assert "AUTH_SIGNING_KEY" in ran.stderr


def test_the_chart_gives_the_same_user_and_folder():
    pod = (DEPLOY / "helm/cloudphone/templates/_pod.tpl").read_text()

    assert "runAsUser: 65532" in pod and "mountPath: /var/lib/cloudphone" in pod
    assert "program: /gateway" in (DEPLOY / "helm/cloudphone/values.yaml").read_text()


@pytest.mark.skipif(not (TARGET / "release/gateway").exists(), reason="no release build")
def test_a_release_is_no_more_than_40_megabytes_to_pull(tmp_path):
    run(DOCKER / "rootfs", TARGET / "release/gateway", tmp_path / "root")
    run("tar", "-cf", tmp_path / "layer.tar", "-C", tmp_path / "root", ".")

    with open(tmp_path / "layer.tar", "rb") as layer:
        assert len(gzip.compress(layer.read(), 6)) < 40e6
