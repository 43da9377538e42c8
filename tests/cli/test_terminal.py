"""Tables of other commands than prepare: names are shown as they are, and their control characters not obeyed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_helpers import call

from m3dist.cluster import place

EVIL = "\x1b]0;owned\x07[/red]\u202e"
SHOWN = r"\x1b]0;owned\x07[/red]\u202e"


def test_jobs_of_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Client:
        def list_jobs(self) -> list[Any]:
            status = SimpleNamespace(value="RUNNING")
            details = {"submission_id": f"job{EVIL}", "status": status, "start_time": 1, "end_time": 2}
            return [SimpleNamespace(**details, metadata={"name": f"name{EVIL}", "out": f"/mnt/{EVIL}"})]

    monkeypatch.setattr(place, "reach", lambda cluster, address: contextlib.nullcontext())
    monkeypatch.setattr(place, "client", lambda reached: Client())
    assert call("jobs", "list") == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\u202e")
    assert all(f"{before}{SHOWN}" in out for before in ("job", "name", "/mnt/"))


def test_a_search_and_a_run(planted_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"data{EVIL.replace('/', '')}").symlink_to(planted_root)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"{{model: ultragcn, out: {tmp_path}/run, merge: {{epochs: 1}}, backbone: {{loss: softmax, dim: 4}}, "
        f'data: "{tmp_path}/data\\x1b]0;owned\\x07[red]\\u202e"}}'
    )
    assert call("train", str(config)) == 0
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set("\x1b\x07\u202e")
    assert "ultragcn on" in said.out
    assert "[red]" in said.out
    search = tmp_path / "search.yaml"
    search.write_text(
        f"base: {{model: ultragcn, data: {planted_root}}}\nspace: {{merge.lr: {{choice: [0.1, 0.2]}}}}\n"
        "budget: {trials: 2}\n"
        f'out: "{tmp_path}/s[red]\\x1b]0;"\n'
    )
    assert call("tune", str(search), "--dry-run") == 0
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set("\x1b\x07\u202e")
    assert r"/s[red]\x1b]0;" in said.out.replace("\n", "")  # the folder may be longer than a line
