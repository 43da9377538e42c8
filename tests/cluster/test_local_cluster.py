"""A head and a node for real: submit from elsewhere, follow, stop; doctor meets its faults."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
from local_places import TINY, Place, command, start, wait  # type: ignore[import-not-found]

from m3dist import config, pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = TINY + "merge: {epochs: 2, masks: learned}\n"


@pytest.fixture
def small(cluster, tmp_path) -> Path:
    """The config, in the folder that commands run in; out is given by each test."""
    (cluster.elsewhere / "small.yaml").write_text(SMALL)
    return tmp_path / "shared"


def test_nothing_listens_on_a_public_interface(cluster):
    mine = {f"socket:[{inode}]" for inode, _ in _listening(public=True)}
    for pid in cluster.pids():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                assert os.readlink(descriptor) not in mine, (pid, Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                continue
    assert any(port == cluster.port for _, port in _listening(public=False))


def _listening(public: bool) -> list[tuple[str, int]]:
    """(inode, port) of listening TCP sockets that are bound beyond the loopback interface, or to it."""
    loopback = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    out = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            host, port = words[1].split(":")
            if words[3] == "0A" and (host in loopback) != public:
                out.append((words[9], int(port, 16)))
    return out


def test_a_submitted_run_equals_one_without_a_cluster(cluster, small):
    arguments = ("train", "small.yaml", f"out={small}/run")
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--name", "mine", "--", *arguments)
    assert code == 0, log
    for line in ("align 0: loss", "merge 1: loss", f"{small}/run"):
        assert line in log
    here = small.parent / "here"
    alone = pipeline.run(config.load(cluster.elsewhere / "small.yaml", [f"out={here}"]), quiet=True)
    there = json.loads((small / "run/result.json").read_text())
    assert there["test"] == alone["test"]
    assert there["validation"] == alone["validation"]
    assert list((small / "run/tb").glob("events*"))
    code, listed = cluster.m3dist("jobs", "list", "--address", cluster.address)
    assert code == 0
    row = next(line for line in listed.splitlines() if str(small) in line)
    assert all(word in row for word in ("SUCCEEDED", "mine", "align,invariance,merge", "synthetic"))


@pytest.mark.parametrize(
    "values",
    [
        ["workers=2"],
        ["workers=2", "strategy=deepspeed", "zero_stage=3"],
        ["workers=2", "embeddings=sharded"],
        ["workers=2", "actors=2"],
    ],
    ids=["ddp", "deepspeed", "sharded", "actors"],
)
def test_workers_on_the_cluster_give_the_same_metrics(cluster, small, values):
    arguments = ("train", "small.yaml", f"out={small}/two", *values)
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *arguments)
    assert code == 0, log
    assert "2 workers on " in log
    alone = pipeline.run(config.load(cluster.elsewhere / "small.yaml", [f"out={small.parent}/here"]), quiet=True)
    there = json.loads((small / "two/result.json").read_text())
    assert there["test"] == pytest.approx(alone["test"], abs=1e-6)
    assert there["validation"] == pytest.approx(alone["validation"], abs=1e-6)
    lines = [json.loads(line) for line in (small / "two/metrics.jsonl").read_text().splitlines()]
    assert {line["workers"] for line in lines if line["stage"] == "merge"} == {2.0}


def test_exit_codes_and_errors_come_back(cluster, small):
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", "evaluate", f"{small}/nothing")
    assert code == 2
    assert "not a finished run" in log
    assert "Traceback" not in log


def test_stopping_a_job_leaves_no_process(cluster, small):
    before = cluster.pids()
    arguments = ("train", "small.yaml", f"out={small}/long", "merge.epochs=100000", "merge.patience=0", "workers=2")
    code, out = cluster.m3dist("submit", "--address", cluster.address, "--no-wait", "--", *arguments)
    assert code == 0
    job = out.split()[-1]
    wait(lambda: (small / "long/metrics.jsonl").exists(), 120)
    running = [pid for pid in cluster.pids() if f"out={small}/long" in command(pid)]
    assert running
    assert cluster.m3dist("jobs", "stop", "--address", cluster.address, job) == (0, f"{job}: STOPPED\n")
    wait(lambda: not any(f"out={small}/long" in command(pid) for pid in cluster.pids()), 30)
    busy = lambda: [command(pid) for pid in cluster.pids() - before if _busy(command(pid))]  # noqa: E731
    with contextlib.suppress(AssertionError):
        wait(lambda: not busy(), 60)
    assert not busy()
    assert cluster.m3dist("jobs", "logs", "--address", cluster.address, job)[1].count("align 0") == 1
    assert cluster.m3dist("jobs", "logs", "--address", cluster.address, "nonsense")[0] == 2


_RAYS_OWN = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor")  # live as long as a cluster


def _busy(command: str) -> bool:
    return command.startswith("ray::") and not any(name in command for name in _RAYS_OWN)


# doctor


def _doctor(place: Place, *arguments: str, **environment: str) -> tuple[int, dict[str, str]]:
    """Exit code, and check: line."""
    code, out = place.m3dist("doctor", "--address", place.address, *arguments, **environment)
    lines = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith(("ok", "FAULT", "-"))]
    return code, {words[1]: f"{words[0]} {words[2]}" for words in lines}


def test_doctor_is_green_where_nothing_is_wrong(cluster, small):
    code, checks = _doctor(cluster, "small.yaml", f"out={small}/run")
    assert code == 0, checks
    names = ["dashboard", "auth", "address", "versions", "resources", "storage", "gloo", "memory"]
    assert list(checks) == names
    assert all(line.startswith("ok ") for line in checks.values())


def test_doctor_finds_too_few_cpus_gpus_and_storage_and_memory(cluster, small):
    big = "synthetic={users: 120, items: 60, interactions: 20}"
    code, checks = _doctor(cluster, big, "out=/proc/nothing", "workers=9", "evaluation.block=2000000000")
    assert code == 1
    assert checks["resources"].startswith("FAULT workers: 9 x 1 CPU do not fit")
    assert checks["storage"].startswith("FAULT out=/proc/nothing")
    assert "cannot write there" in checks["storage"]
    assert checks["memory"].startswith("FAULT a worker needs about")
    assert checks["gloo"].startswith("ok")
    assert all("fix: " in line for line in checks.values() if line.startswith("FAULT"))
    code, checks = _doctor(cluster, big, f"out={small}/run", "use_gpu=true", "data=/nowhere")
    assert code == 1
    assert checks["resources"].startswith("FAULT workers: 1 x 1 GPU do not fit")
    assert checks["storage"].startswith("FAULT data=/nowhere: not there on")
    assert checks["memory"].startswith("- the data cannot be read")


def test_doctor_finds_a_missing_or_wrong_token(tmp_path):
    """A cluster with token login; tokens reach neither logs nor job metadata nor the run folder."""
    folder = Path(tempfile.mkdtemp(prefix="m3t"))
    right, wrong, open_ = folder / "right", folder / "wrong", folder / "open"
    for path, text in (
        (right, "hunter22-" + "a" * 32),
        (wrong, "hunter22-" + "b" * 32),
        (open_, "hunter22-" + "a" * 32),
    ):
        path.write_text(text)
        path.chmod(0o644 if path is open_ else 0o600)
    (tmp_path / "small.yaml").write_text(SMALL)
    login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(right)}
    place = start(folder, tmp_path, **login)
    try:
        for given, said in (
            ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
            ({**login, "RAY_AUTH_TOKEN_PATH": str(wrong)}, "asks for a token"),
            ({**login, "RAY_AUTH_TOKEN_PATH": str(folder / "none")}, "no such file"),
            ({**login, "RAY_AUTH_TOKEN_PATH": str(open_)}, "others on this machine can read the token"),
        ):
            code, checks = _doctor(place, **given)
            assert code == 1
            assert checks["auth"].startswith("FAULT")
            assert said in checks["auth"]
        code, log = place.m3dist(
            "submit", "--address", place.address, "--", "train", "small.yaml", f"out={tmp_path}/run", **login
        )
        assert code == 0, log
        code, listed = place.m3dist("jobs", "list", "--address", place.address, **login)
        assert code == 0
        assert "SUCCEEDED" in listed
        assert "hunter22" not in log + listed
        written = [path for root in (tmp_path, place.state) for path in root.rglob("*") if path.is_file()]
        assert not [path for path in written if b"hunter22" in path.read_bytes()]
    finally:
        place.script("--stop", **login)
