"""The units are ones that systemd takes, allow little, and start a replica on the ports that they hold."""

import re
import subprocess

from conftest import DEPLOY, GATEWAY, SERVICES, built, needs, run, until

UNITS = DEPLOY / "systemd"
pytestmark = needs("systemd-analyze")


def unit(name: str) -> dict[str, list[str]]:
    """What a unit says; of what it says several times, all."""
    found = {}
    for line in (UNITS / name).read_text().splitlines():
        if line[:1] not in ("", "#", ";", "["):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


SERVICE, SOCKET = unit("cloudphone@.service"), unit("cloudphone@.socket")


def test_systemd_takes_the_units(tmp_path):
    for name in ["cloudphone@.service", "cloudphone@.socket"]:
        # The program is not installed here; anything else that is said is a fault.
        text = (UNITS / name).read_text().replace("/opt/cloudphone/current/gateway", "/bin/true")
        (tmp_path / name).write_text(text)
    instances = [tmp_path / "cloudphone@1.service", tmp_path / "cloudphone@1.socket"]

    checked = run("systemd-analyze", "verify", "--man=no", *instances, check=False)

    assert checked.returncode == 0 and checked.stderr == "", checked.stderr


def test_a_unit_that_is_wrong_is_found(tmp_path):
    wrong = tmp_path / "cloudphone@.service"
    wrong.write_text((UNITS / "cloudphone@.service").read_text().replace("ExecStart=", "ExecStrat="))

    assert run("systemd-analyze", "verify", "--man=no", tmp_path / "cloudphone@1.service", check=False).stderr


@needs("systemd-sysusers")
def test_the_user_is_made(tmp_path):
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "cloudphone.sysusers.conf")

    assert "cloudphone:" in (tmp_path / "etc/passwd").read_text()
    assert SERVICE["User"] == ["cloudphone"]


def test_the_service_is_exposed_to_little():
    file = UNITS / "cloudphone@.service"

    checked = run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", file, check=False)

    assert checked.returncode == 0, checked.stdout


def test_systemd_waits_longer_than_a_replica_takes_to_leave():
    settings = (DEPLOY / "config/production.env").read_text()
    grace = int(re.search(r"^SHUTDOWN_GRACE_SECONDS=(\d+)$", settings, re.M)[1])

    assert int(SERVICE["TimeoutStopSec"][0]) >= grace + 10
    assert SERVICE["Type"] == ["notify"] and SERVICE["RestartPreventExitStatus"] == ["78"]


def test_the_socket_holds_the_port_of_each_service():
    settings = (DEPLOY / "config/development.env").read_text()

    ports = [re.search(rf"^{service.upper()}_PORT=(\d+)$", settings, re.M)[1] for service in SERVICES]

    assert SOCKET["ListenStream"] == ports
    assert SOCKET["ReusePort"] == ["yes"]


@built
@needs("systemd-socket-activate")
def test_the_command_of_the_unit_serves_on_the_sockets_of_the_other_with_secrets_from_files(place, door, stores, tmp_path):
    secrets = {
        "redis-url": stores["REDIS_URL"],
        "database-url": stores["DATABASE_URL"],
        "auth-signing-key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        "service-secret": "0123456789012345678901234567890123456789",
    }
    for name, secret in secrets.items():
        # As systemd calls the files of a folder of credentials.
        (tmp_path / f"secrets_{name}").write_text(secret)
    settings = tmp_path / "production.env"
    settings.write_text(
        (DEPLOY / "config/production.env")
        .read_text()
        .replace("\nPAYMENT_WEBHOOK_SECRETS=\n", "\nPAYMENT_WEBHOOK_SECRETS=whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz\n")
    )
    environment = {name: place[name] for name in place if name not in stores} | {
        "OBJECTS_FOLDER": str(tmp_path / "objects")
    }
    for line in SERVICE["Environment"]:
        for setting in line.split():
            name, value = setting.split("=", 1)
            environment.setdefault(name, value.replace("%d", str(tmp_path)))
    [command] = SERVICE["ExecStart"]
    command = command.replace("/opt/cloudphone/current/gateway", str(GATEWAY)).replace(" $SERVE_OPTIONS", "")
    command = command.replace("/etc/cloudphone/production.env", str(settings)).split()
    listen = [f"--listen={door.address}:{port}" for port in SOCKET["ListenStream"]]
    passed = [f"--setenv={name}" for name in environment]

    with open(tmp_path / "log", "w+") as log:
        activator = ["systemd-socket-activate", *listen, *passed, *command]
        running = subprocess.Popen(activator, env=environment, stderr=log, stdout=log)
        try:
            # The first connection has the program started, and waits until it is.
            until(door.healthy, what="a healthy replica")
            assert door.ask("GET", "/health")[1]["environment"] == "production"
        finally:
            running.terminate()
            code = running.wait(60)
        log.seek(0)
        said = log.read()
    assert code == 0, said
    assert not [secret for secret in secrets.values() if secret in said]
    assert "no service wants" not in said
