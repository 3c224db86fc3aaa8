"""Clusters that real supervisors run: private stores, an address of one's own, and clients that count what fails."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEPLOY = ROOT / "deploy"
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
GATEWAY = Path(os.environ.get("CLOUDPHONE_GATEWAY", TARGET / "debug/gateway"))
WITH_STORES = Path(os.environ.get("CLOUDPHONE_WITH_STORES", GATEWAY.with_name("with-stores")))
SERVICES = ["gateway", "users", "devices", "apps", "media", "billing", "notifications"]

def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what starts replicas or a container engine")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        slow = [item for item in items if {"stores", "docker"} & set(item.fixturenames)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


built = pytest.mark.skipif(not GATEWAY.exists(), reason=f"{GATEWAY} is not built")


def run(*command, check: bool = True, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """What a command says, for `timeout` seconds at most."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def until(holds, seconds: float = 120, what: str = "the condition"):
    """Waits until a condition holds, and returns what it gave."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def stores():
    """REDIS_URL and DATABASE_URL of a private Redis and PostgreSQL, which end with the tests of a file."""
    command = [WITH_STORES, "sh", "-c", 'echo "$REDIS_URL"; echo "$DATABASE_URL"; exec cat']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        yield {"REDIS_URL": running.stdout.readline().strip(), "DATABASE_URL": running.stdout.readline().strip()}
        running.stdin.close()
    assert running.returncode == 0


class Door:
    """The front door of a cluster at an address of loopback that no other one has."""

    def __init__(self, address: str, port: int = 30000):
        self.address, self.port = address, port
        self.token = None

    def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, dict]:
        """One request over a connection of its own, and never a second try."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=30)
        try:
            if self.token:
                headers["Authorization"] = f"Bearer {self.token}"
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else {"text": text.decode()}
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Whether every service behind it answers."""
        try:
            status, health = self.ask("GET", "/health")
        except OSError:
            return False
        services = health.get("services", {})
        return status == 200 and len(services) == 6 and all(s["status"] == "healthy" for s in services.values())

    def sign_in(self):
        """Has a user of its own from now on."""
        alice = {"username": "alice", "email": "alice@example.com", "password": "Correct1horse"}
        status, said = self.ask("POST", "/api/auth/register", alice)
        assert status in (201, 409), said
        status, said = self.ask("POST", "/api/auth/login", alice)
        assert status == 200, said
        self.token = said["access_token"]

    @contextmanager
    def under_load(self):
        """Four clients call every service meanwhile; yields the failures, which the caller holds to be none."""
        paths = ["auth/me", "devices", "apps", "media/tasks", "billing/plans", "notifications", "health"]
        failures, done, over = [], [0], threading.Event()

        def client(first: int):
            turn = first
            while not over.is_set():
                path = paths[turn % len(paths)]
                turn += 1
                try:
                    status, said = self.ask("GET", f"/{path}" if path == "health" else f"/api/{path}")
                    if status != 200:
                        failures.append((path, status, said))
                except (OSError, http.client.HTTPException) as error:
                    failures.append((path, repr(error)))
                done[0] += 1

        clients = [threading.Thread(target=client, args=(each,)) for each in range(4)]
        for each in clients:
            each.start()
        try:
            until(lambda: done[0] > 20, what="load")
            yield failures
            before = done[0]
            until(lambda: done[0] > before + 20, what="load afterwards")
        finally:
            over.set()
            for each in clients:
                each.join()


@pytest.fixture(scope="module")
def door(request):
    """An address for the tests of a file alone; 127.0.0.0/8 is all of this machine."""
    number = os.getpid() % 60000
    return Door(f"127.{80 + len(request.module.__name__)}.{number // 250}.{number % 250 + 1}")


@pytest.fixture(scope="module")
def place(door, stores, tmp_path_factory) -> dict[str, str]:
    """The environment of a cluster that meets no other one on this machine."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: os.environ[name] for name in ["PATH", "LANG", "USER", "TZ"] if name in os.environ}
    return kept | stores | {
        "HOME": str(home),
        "CLOUDPHONE_HOME": str(home / "cloudphone"),
        "LISTEN_ADDRESS": door.address,
        "ADVERTISE_ADDRESS": door.address,
        "DEVICE_NODE_ADDRESS": door.address,
        "DEVICE_RUNTIME": "simulated",
    }


@pytest.fixture(scope="session")
def docker(tmp_path_factory):
    """The command, with an engine of its own that has no image."""
    # The path of a socket is short.
    folder = tmp_path_factory.mktemp("d")
    host = f"unix://{folder}/s"
    arguments = [
        "dockerd",
        *["--host", host, "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"],
        *["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"],
    ]
    with open(folder / "log", "w") as log:
        engine = subprocess.Popen(list(map(str, arguments)), stdout=log, stderr=log)

    environment = os.environ | {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}

    def docker(*command, **options):
        return run("docker", *command, env=environment, **options)

    docker.environment = environment

    try:
        until(
            lambda: engine.poll() is not None or docker("version", check=False).returncode == 0, 60, "an engine's answer"
        )
        if engine.poll() is not None:
            pytest.skip(f"no engine could be started: {(folder / 'log').read_text()[-500:]}")
        yield docker
        for container in docker("ps", "-aq").stdout.split():
            docker("rm", "-f", container)
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(60)
        # The network of the host, which an engine leaves mounted.
        run("umount", folder / "exec/netns/default", check=False)


@pytest.fixture(scope="session")
def image(docker):
    run(DEPLOY / "docker/image", GATEWAY, "cloudphone:test", "--build-arg", "VERSION=1.2.3", env=docker.environment)
    [made] = json.loads(docker("image", "inspect", "cloudphone:test").stdout)
    return made


def needs(program: str):
    """Skips what a program is missing for."""
    missing = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin") is None
    return pytest.mark.skipif(missing, reason=f"{program} is not installed")
