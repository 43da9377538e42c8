"""What travels with a job, what is refused before anything is sent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from ray.exceptions import GetTimeoutError

from m3dist import config
from m3dist.cli import main as cli
from m3dist.cluster import jobs, package, place, settings
from m3dist.distributed import nodes


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/base.yaml").write_text("seed: 3\nout: /mnt/shared/run\n")
    (tmp_path / "configs/search.yaml").write_text("base: base.yaml\nlist:\n  - ../parts/secret.json\n")
    (tmp_path / "parts/secret.json").write_text("{}")
    (tmp_path / "parts/not-named.yaml").write_text("x: 1")
    find = "base: {data: /mnt/data}\nspace: {merge.lr: {choice: [0.1, 0.2]}}\nbudget: {trials: 2}\n"
    (tmp_path / "configs/find.yaml").write_text(find)
    monkeypatch.chdir(tmp_path / "parts")
    return tmp_path


def test_named_files_travel_with_the_base_of_a_search_and_keep_their_places(project, tmp_path_factory):
    job = package.plan(["prepare", "tables", "../configs/search.yaml", "/mnt/shared/data"])
    assert {p.name for p in job.files} == {"search.yaml", "base.yaml"}  # no file that some other value happens to name
    assert job.places == {"dst": "/mnt/shared"}
    folder = tmp_path_factory.mktemp("staged")
    start, words = package.stage(job, folder)
    assert words == ["prepare", "tables", "../configs/search.yaml", "/mnt/shared/data"]
    assert (folder / start / words[2]).is_file()
    assert (folder / start / words[2]).with_name("base.yaml").read_text() == "seed: 3\nout: /mnt/shared/run\n"
    assert not list(folder.rglob("not-named.yaml"))


@pytest.mark.parametrize("base", ["../../private.yaml", "link.yaml", "ABSOLUTE"])
def test_a_base_from_elsewhere_does_not_travel(project, base):
    private = project.parent / "private.yaml"
    private.write_text("seed: 3\n")
    (project / "configs/link.yaml").symlink_to(private)
    (project / "configs/search.yaml").write_text(f"base: {base.replace('ABSOLUTE', str(private))}\n")
    with pytest.raises(ValueError, match=r"search.yaml: base: .* does not travel; copy it there"):
        package.plan(["prepare", "tables", "../configs/search.yaml", "/mnt/shared/data"])


def test_absolute_paths_of_travelling_files_become_relative(project, tmp_path_factory):
    job = package.plan(["train", str(project / "configs/base.yaml"), "seed=4"])
    folder = tmp_path_factory.mktemp("staged")
    start, words = package.stage(job, folder)
    assert words == ["train", "../configs/base.yaml", "seed=4"]
    command = package.entrypoint(job, words, start, None)
    assert command[:5] == ["python", "-m", "m3dist.cluster.enter", "--start", "parts"]
    assert str(project) not in " ".join(command)
    assert job.config is not None
    assert job.config.seed == 4


def test_a_resumed_run_fills_stages_and_data(project):
    run = project / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data: /mnt/d\nbackbone: {loss: softmax}\nstages: [align, invariance]\n")
    job = package.plan(["train", "--resume", str(run), "workers=2"])
    assert (job.stages, job.dataset) == ("align,invariance", "/mnt/d")
    assert job.places == {"resume": str(run), "data": "/mnt/d"}
    assert job.config is not None
    assert job.config.workers == 2
    seen = {}

    class Client:
        def submit_job(self, **given):
            seen.update(given)
            return "j"

    assert jobs.submit(Client(), job, settings.Cluster()) == "j"
    assert seen["metadata"]["stages"] == "align,invariance"
    assert seen["metadata"]["dataset"] == "/mnt/d"
    assert seen["metadata"]["out"] == str(run)
    elsewhere = package.plan(["train", "--resume", "/mnt/not-here"])
    assert (elsewhere.stages, elsewhere.places) == ("", {"resume": "/mnt/not-here"})


def test_packages_and_variables_of_a_job(project):
    given = settings.Cluster(env={"MLFLOW_TRACKING_URI": "http://mlflow"}, runtime_env={"pip": ("mlflow",)})
    environment = package.runtime_env(given)
    assert environment["pip"] == ["mlflow"]
    assert environment["env_vars"]["MLFLOW_TRACKING_URI"] == "http://mlflow"
    job = package.plan(["train", "../configs/base.yaml", "cluster.runtime_env.uv=[mlflow]"])
    assert package.runtime_env(package.settings(job))["uv"] == ["mlflow"]


def test_a_search_is_read_before_it_is_sent(project):
    job = package.plan(["tune", "../configs/find.yaml", "out=/mnt/shared/s", "data=/mnt/other"])
    assert job.places == {"out": "/mnt/shared/s", "data": "/mnt/other"}
    assert (job.stages, job.dataset) == (",".join(config.Config().stage_names), "/mnt/other")
    assert [p.name for p in job.files] == ["find.yaml"]


def test_a_file_to_write_does_not_travel(project):
    old = project / "top.parquet"
    old.write_text("from before")
    job = package.plan(["recommend", "/mnt/x", "--out", str(old)])
    assert not job.files
    assert job.places == {"out": str(project)}


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["recommend", "/mnt/x", "--out", "/mnt/y/top.parquet"], {"out": "/mnt/y"}),
        (["recommend", "s3://b/x", "--out=s3://b/y/top.parquet?region=r"], {"out": "s3://b/y?region=r"}),
        (["reproduce", "table3", "--out", "/mnt/y", "--data", "/mnt/d"], {"data": "/mnt/d", "out": "/mnt/y"}),
        (["prepare", "mmrec", "/mnt/raw", "/mnt/data/sports"], {"dst": "/mnt/data"}),
        (
            ["prepare", "tables", "/mnt/raw", "/mnt/data/sports", "--engine", "ray"],
            {"src": "/mnt/raw", "dst": "/mnt/data"},
        ),
        (["prepare", "download", "ml-1m", "/mnt/raw"], {"folder": "/mnt/raw"}),
        (["features", "images", "/mnt/pics", "/mnt/f/x.parquet", "--model", "/mnt/vit"], {"out": "/mnt/f"}),
        (
            ["features", "images", "/mnt/pics", "/mnt/f/x.parquet", "--model", "/mnt/vit", "--workers", "2"],
            {"src": "/mnt/pics", "model": "/mnt/vit", "out": "/mnt/f"},
        ),
        (
            ["features", "audio", "/mnt/wav", "/mnt/f/x.parquet", "--model", "mel", "--workers", "2"],
            {"src": "/mnt/wav", "out": "/mnt/f"},
        ),
        (["report", "/mnt/a", "s3://b/c", "--out", "/mnt/r/report.html"], {"out": "/mnt/r"}),
        (["evaluate", "/mnt/x"], {}),
        (["train", "--resume", "/mnt/x", "workers=2"], {"resume": "/mnt/x"}),
    ],
)
def test_folders_that_every_node_must_reach(project, arguments, places):
    assert package.plan(arguments).places == places


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "out=runs/x"], "out=runs/x: a relative path"),
        (["train", "out=/mnt/x", "data=mine"], "data=mine: a relative path"),
        (["train", "out=/mnt/x", "artifacts=store"], "artifacts=store: a relative path"),
        (["train", "out=/mnt/x", "sede=1"], "did you mean seed"),
        (["train", "missing.yaml"], "no such file"),
        (["recommend", "/mnt/x", "--out", "top.parquet"], "out=top.parquet: a relative path"),
        (["recommend", "runs/a", "--out", "/mnt/top.parquet"], "run=runs/a: a relative path"),
        (["evaluate", "--split", "val", "runs/a"], "run=runs/a: a relative path"),
        (["reproduce", "table3", "--data", "d", "--out", "/mnt/x"], "data=d: a relative path"),
        (["reproduce", "table3", "--data=/mnt/d"], "out=studies/NAME (the default): a relative path"),
        (["reproduce", "table3", "--data", "/mnt/d", "--out", "s3://b/x"], "out=s3://b/x: this command takes no URI"),
        (["reproduce", "shift", "--data", "/mnt/d", "--out", "/mnt/x", "--temporal", "t"], "temporal=t: a relative"),
        (["prepare", "mmrec", "/mnt/raw", "data/sports"], "dst=data/sports: a relative path"),
        (["prepare", "mmrec", "raw", "/mnt/sports"], "src=raw: a relative path"),
        (["prepare", "synthetic", "--users", "9", "here"], "dst=here: a relative path"),
        (["prepare", "download", "ml-1m"], "folder=data/raw (the default): a relative path"),
        (["features", "images", "pics", "/mnt/x.parquet", "--model", "/mnt/vit"], "src=pics: a relative path"),
        (["features", "images", "/mnt/pics", "x.parquet", "--model", "/mnt/vit"], "out=x.parquet: a relative path"),
        (["features", "images", "/mnt/pics", "/mnt/x.parquet", "--model", "vit"], "model=vit: a relative path"),
        (["report", "/mnt/a", "runs/b", "--out", "/mnt/report.html"], "runs=runs/b: a relative path"),
        (["report", "/mnt/a", "--out", "report.html"], "out=report.html: a relative path"),
        (["report", "/mnt/a", "--out", "/mnt/r.html", "--pictures", "pics"], "pictures=pics: a relative path"),
        (["recommend", "/mnt/x", "--out", "/mnt/top.parquet", "--new-items", "new"], "new_items=new: a relative path"),
        (["train", "--resume", "runs/a"], "resume=runs/a: a relative path"),
        (["tune", "../configs/find.yaml"], "out=runs/search-find: a relative path"),
        (["tune", "../configs/find.yaml", "out=/mnt/x", "budget.trails=1"], "did you mean budget.trials"),
        (["tune", "../configs/find.yaml", "out=s3://bucket/x"], "a URI cannot be locked"),
        (["tune", "out=/mnt/x"], "expected a search file"),
        (["paint"], "one of prepare"),
        (["submit", "train"], "runs on this machine"),
        (["docs", "data"], "runs on this machine"),
    ],
)
def test_refused_before_anything_is_sent(project, capsys, arguments, said):
    assert run("submit", "--address", "http://127.0.0.1:9", "--", *arguments) == 2
    assert said in capsys.readouterr().err


def test_data_does_not_travel(project, monkeypatch):
    monkeypatch.setattr(package, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"base.yaml: 0 MiB is data"):
        package.plan(["train", "../configs/base.yaml"])


@pytest.mark.parametrize(
    "argument",
    [
        "auth_token=hunter22",
        "--token=hunter22",
        "RAY_AUTH_TOKEN=hunter22",
        "http://me:hunter22@host",
        "out=s3://me:hunter22@bucket/x",
        "--set=data=s3://me:hunter22@bucket/x",
        "data=abfs://c@a/x?sig=hunter22",
        "data=s3://bucket/x?region=r&secret_key=hunter22",
    ],
)
def test_tokens_on_the_command_line_are_refused_and_not_repeated(capsys, argument):
    assert run("submit", "--address", "http://127.0.0.1:9", "--", "train", "out=/mnt/x", argument) == 2
    said = capsys.readouterr()
    assert "RAY_AUTH_TOKEN_PATH" in said.err
    assert "hunter22" not in said.err + said.out


@pytest.mark.parametrize(
    "line", ["data: s3://me:hunter22@bucket/x", "baseline: {options: {url: 'http://x?client_secret=hunter22'}}"]
)
def test_secrets_in_files_that_travel_are_refused_and_not_repeated(project, capsys, line):
    (project / "configs/bad.yaml").write_text(f"out: /mnt/x\n{line}\n")
    assert run("submit", "--address", "http://127.0.0.1:9", "--", "train", "../configs/bad.yaml") == 2
    said = capsys.readouterr()
    assert "holds credentials" in said.err
    assert "hunter22" not in said.err + said.out


def test_tokens_in_cluster_files_are_refused_and_not_repeated(tmp_path, capsys):
    file = tmp_path / "cluster.yaml"
    file.write_text("address: http://127.0.0.1:9\nauth_token: hunter22\n")
    assert run("submit", "--cluster", file, "--", "train", "out=/mnt/x") == 2
    said = capsys.readouterr().err
    assert "auth_token" in said
    assert "hunter22" not in said


def test_a_place_that_does_not_answer(capsys, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert run("jobs", "list", "--address", "http://127.0.0.1:9") == 3
    assert "nothing answers" in capsys.readouterr().err
    assert run("jobs", "list") == 2
    assert "no cluster to submit to" in capsys.readouterr().err
    assert run("jobs", "list", "--cluster", "nowhere.yaml") == 2
    assert "no such cluster file" in capsys.readouterr().err


def test_cluster_files(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("address: host:8265")
    with place.reach(str(tmp_path / "a.yaml")) as address:
        assert address == "http://host:8265"
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="expected Ray's cluster YAML"), place.reach(str(tmp_path / "b.yaml")):
        pass
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter22")
    assert place.redacted("no hunter22 here") == "no *** here"


def test_a_dropped_connection_is_tried_again_and_nothing_is_told_twice(monkeypatch):
    tries = []

    class Client:
        async def tail_job_logs(self, job):
            tries.append(job)
            yield "one "
            if len(tries) == 1:
                raise aiohttp.ServerDisconnectedError
            yield "two"

        def get_job_info(self, job):
            return SimpleNamespace(status=SimpleNamespace(value="SUCCEEDED"), driver_exit_code=0)

        def get_job_logs(self, job):
            return "one two"

    said: list[str] = []
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    assert jobs.follow(Client(), "j", said.append) == 0
    assert "".join(said) == "one two"
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("status", "code", "message", "expected", "said"),
    [
        ("SUCCEEDED", 0, "", 0, ""),
        ("STOPPED", None, "", 130, ""),
        ("FAILED", 2, "", 2, ""),
        ("FAILED", 4, "", 4, ""),
        ("FAILED", -9, "", 3, "the job's process was ended by signal 9"),
        ("FAILED", None, "Job supervisor actor died\nmore", 3, "lost the job (Job supervisor actor died)"),
    ],
)
def test_exit_codes_of_jobs(status, code, message, expected, said, capsys):
    class Client:
        async def tail_job_logs(self, job):
            yield "log"

        def get_job_info(self, job):
            return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message=message)

        def get_job_logs(self, job):
            return "log"

    assert jobs.follow(Client(), "j", lambda text: None) == expected
    assert said in capsys.readouterr().err


def test_storage_that_is_denied_or_hangs_is_one_line(monkeypatch):
    node = {"NodeID": "1111aaaa", "NodeManagerHostname": "host"}

    class Bound:
        def remote(self, *arguments):
            return nodes._exists._function("nowhere://x")

    def late(asked, timeout=None):
        raise GetTimeoutError

    monkeypatch.setattr(nodes, "alive", lambda: [node])
    monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    monkeypatch.setattr(nodes, "on", lambda node, task, **options: Bound())
    monkeypatch.setattr(nodes.ray, "get", lambda asked, timeout=None: asked)
    (found,) = nodes.storage_faults("data", "nowhere://x")
    assert "host 1111aaaa cannot read there (ValueError" in found
    monkeypatch.setattr(nodes.ray, "get", late)
    monkeypatch.setattr(nodes.ray, "wait", lambda asked, num_returns, timeout: ([], asked))
    for what in ("data", "out"):
        (found,) = nodes.storage_faults(what, "/mnt/hangs")
        assert "no answer from host 1111aaaa in 90 s" in found
