"""PM2 itself runs the services by the files of deploy/pm2: as many as shown, reloaded without a failed request, and gone at the end."""

import json
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import DEPLOY, GATEWAY, HERE, built, needs, run, until

pytestmark = built
NAMES = [
    "api-gateway",
    "user-service",
    "device-service",
    "app-service",
    "media-service",
    "billing-service",
    "notification-service",
]
PM2 = HERE / "node_modules/.bin"


class Pm2:
    """PM2 with a daemon of its own."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def __call__(self, *arguments: str) -> str:
        return run("pm2", *arguments, cwd=DEPLOY / "pm2", env=self.environment, timeout=600).stdout

    def processes(self, name: str | None = None) -> list[dict]:
        listed = self("jlist")
        processes = json.loads(listed[listed.rindex("\n[") + 1 if "\n[" in listed else 0 :])
        return [each for each in processes if name in (None, each["name"])]

    def pids(self, name: str) -> set[int]:
        """Of those that serve."""
        return {each["pid"] for each in self.processes(name) if each["pm2_env"]["status"] == "online"}

    def alone(self) -> bool:
        """Whether each application has its three replicas, and nothing else is in the list."""
        processes = self.processes()
        online = all(each["pm2_env"]["status"] == "online" for each in processes)
        return online and sorted(each["name"] for each in processes) == sorted(NAMES * 3 + ["daily-reload"])


def install(folder: Path, version: str):
    """The program as a version to which `current` leads from now on."""
    (folder / version).mkdir()
    try:
        os.link(GATEWAY, folder / version / "gateway")
    except OSError:
        shutil.copy(GATEWAY, folder / version)
    (folder / "next").symlink_to(version)
    (folder / "next").rename(folder / "current")


def program(process: Path) -> str | None:
    """What a process runs; None where it has just ended."""
    try:
        return os.readlink(process / "exe")
    except OSError:
        return None


class Prometheus:
    """Prometheus at an address, with `prometheus.yaml` of a folder."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder

    @contextmanager
    def running(self):
        arguments = [
            f"--config.file={self.folder}/prometheus.yaml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={self.address}",
        ]
        with open(self.folder / "log", "w") as log:
            process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    def rules(self) -> dict[str, str]:
        """The alerts, and whether each fires."""
        with urllib.request.urlopen(f"http://{self.address}/api/v1/rules", timeout=10) as answer:
            groups = json.load(answer)["data"]["groups"]
        return {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}

    def value(self, expression: str) -> float | None:
        """Of one series; None as long as there is none."""
        try:
            query = urllib.parse.urlencode({"query": expression})
            with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}", timeout=10) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return None
        return float(result[0]["value"][1]) if result else None


@pytest.fixture(scope="module")
def pm2(place):
    settings = place | {
        "PATH": f"{PM2}:{place['PATH']}",
        "PM2_HOME": f"{place['HOME']}/pm2",
        "PM2_WORKER_INTERVAL": "1000",
        "CLOUDPHONE_GATEWAY": f"{place['HOME']}/current/gateway",
    }
    install(Path(place["HOME"]), "1.0")
    pm2 = Pm2(settings)
    yield pm2
    # `kill` alone does not wait for all of them.
    run("pm2", "delete", "all", env=settings, check=False)
    pm2("kill")
    left = [path for path in Path("/proc").glob("[0-9]*") if str(program(path)).startswith(place["HOME"])]
    assert not left, left


@pytest.fixture(scope="module")
def started(pm2, door):
    """Everything, by the command that users know."""
    pm2("start", "ecosystem.config.development.js")
    until(pm2.alone, what="21 replicas")
    until(door.healthy, what="a healthy cluster")
    door.sign_in()
    return pm2


def test_the_documented_command_starts_every_service_three_times(started):
    status = started("status")

    for name in NAMES:
        assert status.count(f" {name} ") == 3, status
        for process in started.processes(name):
            environment = process["pm2_env"]
            assert environment["exec_mode"] == "fork_mode"
            assert environment["max_memory_restart"] == 600 * 1024 * 1024


def test_what_replicas_say_stands_in_one_file_a_service_with_the_time(started, place):
    [log] = {each["pm2_env"]["pm_err_log_path"] for each in started.processes("device-service")}

    lines = Path(log).read_text().splitlines()
    assert Path(log).parent == Path(place["CLOUDPHONE_HOME"], "logs")
    datetime.strptime(lines[0][:30], "%Y-%m-%d %H:%M:%S.%f %z")


def test_device_service_says_which_ports_it_gave(started, door):
    status, device = door.ask("POST", "/api/devices", {"name": "device1"})
    assert status in (200, 201, 202), device

    until(lambda: "Allocated ports: ADB=" in started("logs", "device-service", "--lines", "50", "--nostream"))


@needs("prometheus")
def test_prometheus_finds_every_replica(started, place, tmp_path):
    replicas = dict(place) | {"GATEWAY": str(GATEWAY)}
    # The files as they are mounted by Compose.
    for file in [DEPLOY / "monitoring/prometheus.yaml", DEPLOY / "helm/cloudphone/alerts.yaml"]:
        shutil.copy(file, tmp_path)
    run(DEPLOY / "monitoring/targets", tmp_path / "targets/cloudphone.json", env=replicas)
    with socket.create_server((place["LISTEN_ADDRESS"], 0)) as free:
        at = f"{place['LISTEN_ADDRESS']}:{free.getsockname()[1]}"
    prometheus = Prometheus(at, tmp_path)

    with prometheus.running():
        up = 'count(up{namespace="cloudphone", job="cloudphone"} == 1)'
        until(lambda: prometheus.value(up) == 21, 60, "21 replicas that are scraped")
        assert prometheus.value('max by (service) (registry_instances{namespace="cloudphone", service="users"})') == 3
        assert len(prometheus.rules()) == (DEPLOY / "helm/cloudphone/alerts.yaml").read_text().count("- alert: ")
        assert "firing" not in prometheus.rules().values()


def test_each_service_is_replaced_by_the_documented_commands_and_no_request_fails(started, door, place):
    commands = ["reload", "reload", "restart", "restart", "reload", "restart", "restart"]
    before = {name: started.pids(name) for name in NAMES}
    install(Path(place["HOME"]), "2.0")

    with door.under_load() as failures:
        for command, name in zip(commands, NAMES, strict=True):
            started(command, name)
            assert len(started.pids(name)) == 3
            assert not started.pids(name) & before[name], f"some of {name} are the old ones"
            programs = {os.readlink(f"/proc/{pid}/exe") for pid in started.pids(name)}
            assert programs == {f"{place['HOME']}/2.0/gateway"}

    assert failures == []


def test_the_daily_reload_replaces_one_service_after_the_other_and_no_request_fails(started, door):
    first = NAMES[:2]
    before = {name: started.pids(name) for name in first}
    soon = (datetime.now() + timedelta(seconds=15)).strftime("%H:%M:%S")

    with door.under_load() as failures:
        run(
            "pm2",
            *["restart", "daily-reload", "--update-env"],
            env=started.environment | {"DAILY_RELOAD_AT": soon},
        )
        until(lambda: all(not started.pids(name) & before[name] for name in first), what="a reload")
        # In the middle of the third: nothing comes of that.
        started("restart", "daily-reload")
        until(started.alone)

    assert failures == []


def test_one_that_grows_too_large_is_restarted_and_no_request_fails(started, door, tmp_path):
    # All of them are at any time: PM2 looks each second here, and each 30 s elsewhere.
    small = tmp_path / "small.config.js"
    small.write_text(
        f"const {{ apps }} = require({json.dumps(str(DEPLOY / 'pm2/development.config.js'))});\n"
        "module.exports = { apps: apps.map((app) => ({ ...app, max_memory_restart: '10M' })) };\n"
    )
    started("delete", "media-service")

    def restarts() -> dict[int, int]:
        return {each["pm_id"]: each["pm2_env"]["restart_time"] for each in started.processes("media-service")}

    with door.under_load() as failures:
        # While nobody serves it, requests to it fail. The command returns when all are ready.
        started("start", str(small), "--only", "media-service")
        until(lambda: door.ask("GET", "/api/media/tasks")[0] == 200, what="media")
        before = restarts()
        failures.clear()
        until(lambda: all(after > before[each] for each, after in restarts().items()), what="three restarts")
        restarted = failures.copy()
        started("delete", "media-service")

    started("start", "ecosystem.config.development.js")
    until(started.alone)
    assert restarted == []


def test_the_documented_command_starts_what_is_missing_and_leaves_the_rest_alone(started, door):
    others = {name: started.pids(name) for name in NAMES if name != "media-service"}
    started("delete", "media-service")

    started("start", "ecosystem.config.development.js", "--only", "media-service")
    until(started.alone)

    assert {name: started.pids(name) for name in others} == others


def test_a_replica_that_is_killed_comes_back(started):
    victim = min(started.pids("billing-service"))

    os.kill(victim, 9)

    until(lambda: len(started.pids("billing-service") - {victim}) == 3)


def test_what_is_stopped_leaves_nothing_behind(started, door):
    pids = set().union(*(started.pids(name) for name in NAMES))

    started("delete", "all")

    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    with pytest.raises(ConnectionRefusedError):
        door.ask("GET", "/health")


def test_a_wrong_configuration_is_not_tried_again_and_again(pm2, place, tmp_path):
    wrong = tmp_path / "production.env"
    wrong.write_text("PROFILE=production\nREDIS_URL=\nDATABASE_URL=\n")
    environment = {name: value for name, value in pm2.environment.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    production = Pm2(environment | {"CLOUDPHONE_ENV_FILE": str(wrong), "CLOUDPHONE_LOGS": str(tmp_path)})

    # The daemon that has run so far knows the stores.
    production("kill")
    production("start", "ecosystem.config.production.js")
    replicas = lambda: [each["pm2_env"] for each in production.processes() if each["name"] in NAMES]
    until(lambda: [each.get("exit_code") for each in replicas()] == [78] * 21, what="all to have ended")

    # The first ones ended long before the last ones did, and would have been started again 200 ms later.
    assert all(each["restart_time"] == 0 for each in replicas())
    assert "AUTH_SIGNING_KEY" in (tmp_path / "api-gateway.error.log").read_text()
