"""What is lost with a store, and what comes back: by itself for Redis, from a backup for PostgreSQL."""

import subprocess
from contextlib import contextmanager

from conftest import DEPLOY, GATEWAY, built, run, until

pytestmark = built


@contextmanager
def replicas(place, door, tmp_path, number=2):
    """So many replicas of everything."""
    running = []
    try:
        for each in range(number):
            with open(tmp_path / f"replica-{each}.log", "a") as log:
                running.append(subprocess.Popen([GATEWAY, "serve"], env=place, stdout=log, stderr=log))
        until(door.healthy, what="a healthy cluster")
        yield
    finally:
        for each in running:
            each.terminate()
        assert [each.wait(60) for each in running] == [0] * number


def redis(place, *command) -> str:
    return run("redis-cli", "--no-auth-warning", "-u", place["REDIS_URL"], *command).stdout


def device(door, name: str) -> dict:
    """A device that is made and runs."""
    status, made = door.ask("POST", "/api/devices", {"name": name})
    assert status in (200, 201, 202), made

    def running():
        found = door.ask("GET", f"/api/devices/{made['id']}")[1]
        return found if found.get("status") == "running" else None

    return until(running, what=f"{name} running")


def ports(door, device: dict) -> set[int]:
    status, held = door.ask("GET", f"/api/devices/{device['id']}/ports")
    assert status == 200, held
    found = {value for value in held.values() if isinstance(value, int)}
    assert len(found) >= 3, held
    return found


def test_all_of_redis_may_be_lost_while_replicas_run(place, door, tmp_path):
    with replicas(place, door, tmp_path):
        door.sign_in()
        first = device(door, "before")

        redis(place, "flushall")

        until(door.healthy, what="a healthy cluster")
        second = device(door, "after")
        assert not ports(door, first) & ports(door, second)
        assert door.ask("GET", f"/api/devices/{first['id']}")[1]["status"] == "running"


def test_a_backup_brings_back_what_was_there_and_its_ports(place, door, tmp_path):
    environment = place | {"GATEWAY": str(GATEWAY), "OBJECTS_FOLDER": str(tmp_path / "objects")}
    environment["PATH"] += ":/usr/sbin"
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/package").write_text("bytes")
    with replicas(place, door, tmp_path):
        door.sign_in()
        kept = device(door, "kept")
        its = ports(door, kept)
        run(DEPLOY / "backup", tmp_path / "backup", env=environment)
        lost = device(door, "lost")
        refused = run(DEPLOY / "restore", tmp_path / "backup", env=environment, check=False)
        assert refused.returncode == 75 and "are running" in refused.stderr

    (tmp_path / "objects/package").unlink()
    run(DEPLOY / "restore", tmp_path / "backup", env=environment)

    assert redis(place, "dbsize").strip() == "0"
    assert (tmp_path / "objects/package").read_text() == "bytes"
    with replicas(place, door, tmp_path):
        door.sign_in()
        assert door.ask("GET", f"/api/devices/{lost['id']}")[0] == 404
        until(lambda: door.ask("GET", f"/api/devices/{kept['id']}")[1]["status"] == "running", what="the device")
        assert ports(door, kept) == its
        assert not ports(door, device(door, "new")) & its


def test_a_backup_that_is_broken_changes_nothing(place, door, tmp_path):
    environment = place | {"GATEWAY": str(GATEWAY)}
    run(DEPLOY / "backup", tmp_path / "backup", env=environment)
    whole = (tmp_path / "backup/database").read_bytes()
    (tmp_path / "backup/database").write_bytes(whole[: len(whole) * 3 // 4])

    broken = run(DEPLOY / "restore", tmp_path / "backup", env=environment, check=False)

    assert broken.returncode != 0
    with replicas(place, door, tmp_path, 1):
        door.sign_in()
        assert "kept" in [each["name"] for each in door.ask("GET", "/api/devices")[1]]
