"""Doctor's checks one by one, each with its fault; those that need a cluster are in test_local_cluster.py."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from m3dist import config
from m3dist.cli import main as cli
from m3dist.cluster import doctor, jobs, place, probe
from m3dist.distributed import nodes, placement

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "m3dist": "0.1.0", "cuda": 0, "free": 8 << 30}


@pytest.mark.parametrize(
    ("what", "other", "found"),
    [("ray", "2.59.0", True), ("m3dist", "0.0.9", True), ("torch", "2.12.0", True), ("python", "3.12.7", True),
     ("python", "3.11.9", False)],
)  # fmt: skip
def test_versions(what, other, found):
    check = doctor.versions(HERE, {"a 1": HERE, "b 2": HERE | {what: other}})
    assert (check.state == "fault") is found
    if found:
        assert what in check.text
        assert "b 2" in check.text
        assert check.fix


def test_client_against_cluster():
    old = HERE | {"ray": "2.59.0"}
    assert doctor.versions(HERE, {"a 1": old}).state == "fault"
    assert doctor.versions(HERE, {"a 1": HERE}).state == "ok"


def test_dashboard_extra(monkeypatch):
    assert doctor.extra().state == "ok"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp_cors" else found(name))
    check = doctor.extra()
    assert check.state == "fault"
    assert "aiohttp_cors" in check.text
    assert "ray[default]" in check.fix


def _node(**resources: float) -> dict[str, Any]:
    return {"NodeID": "1234abcd", "Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("values", "resources", "said"),
    [
        (["workers=5"], {"CPU": 4.0}, "workers: 5 x 1 CPU do not fit"),
        (
            ["workers=2", "use_gpu=true"],
            {"CPU": 4.0, "GPU": 1.0},
            "workers: 2 x 1 CPU + 1 GPU do not fit",
        ),
        (["workers=[3,9]"], {"CPU": 4.0}, None),
        (["workers=9", "autoscaling=true"], {"CPU": 4.0}, None),
    ],
)
def test_resources(values, resources, said):
    facts = {"host 1234abcd": HERE | {"cuda": 1}}
    (check,) = doctor.resources(config.load(None, values), [_node(**resources)], facts)
    assert (check.state, said in check.text if said else None) == (("fault", True) if said else ("ok", None))


def test_gpus_that_torch_does_not_see():
    (check,) = doctor.resources(None, [_node(CPU=4, GPU=1)], {"host 1234abcd": HERE})
    assert check.state == "fault"
    assert "torch sees none" in check.text


def test_memory(tmp_path):
    values = ["synthetic={users: 120, items: 60, interactions: 20}", f"out={tmp_path}"]
    assert doctor.memory(config.load(None, values), {"a 1": HERE}).state == "ok"
    check = doctor.memory(config.load(None, values), {"a 1": HERE, "b 2": HERE | {"free": 1 << 20}})
    assert check.state == "fault"
    assert "b 2 has 0.00 GiB free" in check.text


def test_memory_of_workers_that_share_a_node(tmp_path):
    values = ["synthetic={users: 120, items: 60, interactions: 20}", f"out={tmp_path}", "workers=4"]
    one = doctor.memory(config.load(None, values), {"a 1": HERE | {"free": 1 << 40}})
    need = int(float(one.text.split("about ")[1].split()[0]) * 2**30)
    for count, state in ((4, "ok"), (2, "fault")):
        facts = {f"a {n}": HERE | {"free": int(1.5 * need)} for n in range(count)}
        assert doctor.memory(config.load(None, values), facts).state == state


def test_probes_on_one_node(ray_here, tmp_path):
    assert nodes.storage_faults("out", str(tmp_path / "new")) == []
    assert list((tmp_path / "new").iterdir()) == []
    (found,) = nodes.storage_faults("out", "/proc/nothing")
    assert "cannot write there" in found
    assert "not there on" in nodes.storage_faults("data", str(tmp_path / "none"))[0]
    assert probe.all_reduce("gloo") == (2, None)
    world, wrong = probe.all_reduce("no-backend")
    assert world == 2
    assert wrong


def test_storage_that_nodes_do_not_share(monkeypatch, tmp_path):
    """What each node writes lands in a folder of its own, as on local disks."""
    folders = {"1111aaaa": tmp_path / "a", "2222bbbb": tmp_path / "b"}
    known = [{"NodeID": key, "NodeManagerHostname": "host"} for key in folders]
    bodies = {task: task._function for task in (nodes._write, nodes._read, nodes._remove, nodes._exists)}
    asked = []

    class Bound:
        def __init__(self, node, task):
            self.node, self.body = node, bodies[task]

        def remote(self, place, *arguments):
            asked.append(self.body)
            return self.body(str(folders[self.node["NodeID"]]), *arguments)

    monkeypatch.setattr(nodes, "alive", lambda: known)
    monkeypatch.setattr(nodes, "on", lambda node, task, **options: Bound(node, task))
    monkeypatch.setattr(nodes.ray, "get", lambda values, timeout=None: values)
    monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    (found,) = nodes.storage_faults("out", "/mnt/x")
    assert "not shared" in found
    assert "host 1111aaaa, host 2222bbbb" in found
    assert not list(tmp_path.rglob(".probe*"))
    (tmp_path / "b").rmdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert nodes.storage_faults("out", "/mnt/x") == []
    before = len(asked)
    assert nodes.storage_faults("out", "/mnt/x") == []  # what was found shared is not looked at again
    assert len(asked) == before
    nodes._checked.clear()


def test_what_the_job_api_answers_in_one_line():
    assert "pip install" in place.explain(RuntimeError("requires the ray[default] installation"))
    assert "RAY_AUTH_TOKEN_PATH" in place.explain(RuntimeError("Authentication required: 401"))


@pytest.mark.parametrize(
    ("environment", "mode", "said"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "none"}, 0o600, "no such file"),
        ({"RAY_AUTH_TOKEN_PATH": "token"}, 0o644, "others on this machine can read the token"),
        ({"RAY_AUTH_MODE": "token"}, 0o600, "there is no token here"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "token"}, 0o600, None),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "hunter22"}, 0o600, None),
    ],
)
def test_login(environment, mode, said, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("hunter22")
    (tmp_path / "token").chmod(mode)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name.endswith("PATH") else value)
    check = doctor.login()
    assert (check.state, said is None or said in check.text) == ("fault" if said else "ok", True)
    assert bool(check.fix) is bool(said)
    assert "hunter22" not in check.text + check.fix


def test_a_place_that_does_not_answer(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--address", "http://127.0.0.1:9"])
    assert end.value.code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("FAULT address")
    assert "nothing answers" in last
    assert "fix: is the cluster up" in last


class _Client:
    """A job API that refuses jobs, or whose jobs end at once."""

    def __init__(self, refuses: bool):
        self.refuses = refuses

    def submit_job(self, **job):
        if self.refuses:
            raise RuntimeError("No available agent")
        return job["submission_id"]


@pytest.mark.parametrize(
    ("refuses", "said"), [(True, "takes no job: No available agent"), (False, "ended with code 3: boom")]
)
def test_jobs_that_do_not_run(refuses, said, monkeypatch):
    monkeypatch.setattr(place, "client", lambda address: _Client(refuses))
    monkeypatch.setattr(jobs, "follow", lambda client, job, write: (write("\nboom\n"), 3)[1])
    checks: list[doctor.Check] = []
    assert not doctor.outside("http://127.0.0.1:9", [], {}, checks.append)
    assert (checks[-1].name, checks[-1].state) == ("jobs", "fault")
    assert said in checks[-1].text
    assert checks[-1].fix


def test_nodes_that_cannot_talk(monkeypatch):
    monkeypatch.setattr(placement, "connect", lambda: None)
    monkeypatch.setattr(probe, "all_facts", lambda: {"host 1234abcd": HERE})
    monkeypatch.setattr(nodes, "alive", lambda: [_node(CPU=4.0)])
    monkeypatch.setattr(probe, "all_reduce", lambda backend: (2, "connect timed out"))
    checks = {check.name: check for check in doctor.inside(None, HERE, {})}
    assert checks["gloo"].state == "fault"
    assert "2 processes failed: connect timed out" in checks["gloo"].text
    assert "GLOO_SOCKET_IFNAME" in checks["gloo"].fix
    assert [checks[name].state for name in ("storage", "memory")] == ["skipped", "skipped"]
