"""A head and a node for real: submit from elsewhere, follow, stop, lose a node; doctor meets its faults."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from local_places import TINY, Place, command, start  # type: ignore[import-not-found]

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
    _wait(lambda: (small / "long/metrics.jsonl").exists(), 120)
    running = [pid for pid in cluster.pids() if f"out={small}/long" in command(pid)]
    assert running
    assert cluster.m3dist("jobs", "stop", "--address", cluster.address, job) == (0, f"{job}: STOPPED\n")
    _wait(lambda: not any(f"out={small}/long" in command(pid) for pid in cluster.pids()), 30)
    busy = lambda: [command(pid) for pid in cluster.pids() - before if _busy(command(pid))]  # noqa: E731
    with contextlib.suppress(AssertionError):
        _wait(lambda: not busy(), 60)
    assert not busy()
    assert cluster.m3dist("jobs", "logs", "--address", cluster.address, job)[1].count("align 0") == 1
    assert cluster.m3dist("jobs", "logs", "--address", cluster.address, "nonsense")[0] == 2


_RAYS_OWN = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor")  # live as long as a cluster


def _busy(command: str) -> bool:
    return command.startswith("ray::") and not any(name in command for name in _RAYS_OWN)


def _wait(true, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)


def test_a_run_outlives_a_node(tmp_path):
    """Three nodes of two CPUs, a run of two workers on the nodes that are not the head; one of these is killed."""
    folder = Path(tempfile.mkdtemp(prefix="m3k"))
    (tmp_path / "small.yaml").write_text(SMALL)
    place = start(folder, tmp_path, nodes=2)
    try:
        out = tmp_path / "run"
        arguments = ("train", "small.yaml", f"out={out}", "workers=3", "merge.epochs=30", "merge.patience=0")
        fast = ("resources_per_worker={CPU: 1}", "max_failures=3")
        process = place.popen("submit", "--address", place.address, "--", *arguments, *fast)
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stdout or []), daemon=True)
        reader.start()
        _wait(lambda: any(line.startswith("merge 2") for line in said) or process.poll() is not None, 240)
        assert process.poll() is None, "".join(said)
        victim = next(  # a node with a training worker that is not the head
            name for name in ("node1", "node2")
            if any("RayTrainWorker" in command(pid) for pid in _family(int((place.state / f"{name}.pid").read_text())))
        )  # fmt: skip
        for pid in _family(int((place.state / f"{victim}.pid").read_text())):
            os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=300) == 0, "".join(said)
        reader.join(5)
        result = json.loads((out / "result.json").read_text())
        (tmp_path / "alone").mkdir()
        merged = ["merge.epochs=30", "merge.patience=0", f"out={tmp_path}/alone"]
        alone = pipeline.run(config.load(tmp_path / "small.yaml", merged), quiet=True)
        assert result["test"] == pytest.approx(alone["test"], abs=5e-3)
    finally:
        place.script("--stop")


def _job(place: Place, *arguments: str) -> tuple[Any, list[str]]:
    """A submitted command that runs, and the lines that it has printed so far."""
    process = place.popen("submit", "--address", place.address, "--", *arguments)
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stdout or []), daemon=True).start()
    return process, said


def _says(process: Any, said: list[str], text: str, seconds: float = 500) -> None:
    _wait(lambda: any(text in line for line in said) or process.poll() is not None, seconds)
    assert any(text in line for line in said), "".join(said)


LONG = (  # minutes of small steps
    "merge.epochs=3000", "merge.patience=0", "merge.batch_size=64", "merge.evaluate_every=100",
    "checkpoint.every_epochs=10",
)  # fmt: skip


def test_an_elastic_run_grows_and_shrinks(tmp_path):
    """A head of one CPU, which holds one worker; a node comes, and goes again."""
    folder = Path(tempfile.mkdtemp(prefix="m3e"))
    (tmp_path / "small.yaml").write_text(SMALL)
    place = start(folder, tmp_path, nodes=0, CPUS="1")
    try:
        out = tmp_path / "run"
        elastic = ("workers=[1,2]", "cluster.resize_seconds=2", *LONG)
        process, said = _job(place, "train", "small.yaml", f"out={out}", *elastic)
        _says(process, said, "1 worker on ")
        assert place.script("add", "1", CPUS="1").returncode == 0
        _says(process, said, "2 workers now, 1 before, new: ")
        _wait(lambda: _workers_logged(out) == {1.0, 2.0}, 500)
        assert place.script("remove", "1").returncode == 0
        _says(process, said, "lost its node, which left the cluster; starting again (failure 1, max_failures=3)")
        _says(process, said, "1 worker now, 2 before; they go on from the last checkpoint")
        assert process.wait(timeout=900) == 0, "".join(said)
        assert not any(raw in line for raw in ("Traceback", "(raylet)") for line in said)
        result = json.loads((out / "result.json").read_text())
        alone = pipeline.run(config.load(tmp_path / "small.yaml", [*LONG, f"out={tmp_path}/alone"]), quiet=True)
        assert result["test"] == pytest.approx(alone["test"], abs=1e-6)
    finally:
        place.script("--stop")


def _workers_logged(out: Path) -> set[float]:
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return set()
    return {json.loads(line).get("workers") for line in lines if line.endswith("}")}


def test_a_job_whose_head_is_killed_goes_on_when_submitted_again(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="m3h"))
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ("train", "small.yaml", f"out={tmp_path}/run", "workers=1", *LONG)
    place = start(folder, tmp_path, nodes=1)
    try:
        process, said = _job(place, *arguments)
        _says(process, said, "merge 50: loss")
        for pid in _family(int((place.state / "head.pid").read_text())):
            os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=300) == 3, "".join(said)
        assert "submit the same command again when it is back" in said[-1]
    finally:
        place.script("--stop")
    place = start(folder, tmp_path, nodes=1)
    try:
        process, said = _job(place, *arguments)
        assert process.wait(timeout=900) == 0, "".join(said)
        assert not any(line.startswith("align 0") for line in said)  # a finished stage is not trained again
        result = json.loads((tmp_path / "run/result.json").read_text())
        alone = pipeline.run(config.load(tmp_path / "small.yaml", [*LONG, f"out={tmp_path}/alone"]), quiet=True)
        assert result["test"] == pytest.approx(alone["test"], abs=1e-6)
    finally:
        place.script("--stop")


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(stat.parent.name))
    out = [pid]
    for each in out:
        out += children.get(each, [])
    return out


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
