"""`m3dist prepare`: what it prints, and how it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import FEATURES, SMALL, pairs, sorted_pairs, text

from m3dist.cli import main as cli
from m3dist.cli import prepare
from m3dist.data.dataset import Dataset


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main(["prepare", *map(str, arguments)])
    return int(done.value.code or 0)


def test_report(folder, tmp_path, capsys):
    (folder / "train.tsv").write_text(text([*SMALL["train"], (0, 0)]))
    (folder / "val.tsv").write_text(text([*SMALL["val"], (0, 1)]))
    dst = tmp_path / "dst"
    assert run("tables", folder, dst, "--overlap", "drop") == 0
    printed = capsys.readouterr().out
    rows = {cells[1].strip(): cells[2].strip() for line in printed.splitlines() if len(cells := line.split("│")) > 3}
    assert rows.pop("fingerprint") == Dataset(dst).fingerprint
    assert rows == {
        "users": "3",
        "items": "4",
        "train interactions": "4",
        "val interactions": "2",
        "test interactions": "2",
        "sparsity": "33.3333 %",
        "modality visual": "width 2, 3 of 4 items have it",
        "cold items": "1 (in val 1, in test 0)",
        "cold users": "0",
        "duplicates dropped": "1 (train 1)",
        "overlaps dropped": "1 (val 1)",
    }
    assert pairs(Dataset(dst)) == sorted_pairs(SMALL)


def test_a_refusal_is_one_line_and_exit_code_2(folder, tmp_path):
    """In a process of its own: no traceback, and nothing at the destination."""
    (folder / "val.tsv").write_text("userID\titemID\n0\t2\n1\t77\n")
    (folder / "items.tsv").unlink()
    dst = tmp_path / "out" / "dst"
    code = "from m3dist.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", "tables", str(folder), str(dst)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: val.tsv, line 3: item id 77 is out of range 0..3, the rows of visual_small.npy; "
        "if ids are not row numbers, list them in an items table in the features' order (--items); "
        "--on-bad-row drop leaves such rows out (help: m3dist docs data)\n"
    )
    assert done.stdout == ""
    assert not dst.parent.exists()


@pytest.mark.parametrize("format_", ["tables", "invrl", "mmrec", "scipy"])
def test_a_folder_that_is_not_what_the_format_says(format_, tmp_path, capsys):
    src = tmp_path / "photos"
    src.mkdir()
    (src / "holiday.jpg").write_text("x")
    assert run(format_, src, tmp_path / "dst") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: photos: ")
    assert error.count("\n") == 1
    assert run(format_, tmp_path / "nowhere", tmp_path / "dst") == 2
    assert "nowhere" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_options_reach_the_importer(tmp_path, monkeypatch):
    src = tmp_path / "src"
    src.mkdir()
    rows = [(f"u{u}", 10 + i, 1 + (u + i) % 5, 100 * u + i) for u in range(4) for i in range(25)]
    (src / "log.csv").write_text(text(rows, "who,what,stars,when", ","))
    np.save(src / "pictures.npy", np.arange(50.0).reshape(25, 2))
    np.save(src / "flags.npy", np.arange(25) > 0)
    (src / "catalogue.tsv").write_text(text([(10 + i,) for i in range(25)], "what"))
    monkeypatch.chdir(src)
    options = [
        *("--user-column", "who", "--item-column", "what", "--threshold", 2, "--items", "catalogue.tsv"),
        *("--feature", "visual=pictures.npy", "--present", "visual=flags.npy"),
        *("--split", "temporal", "--time-column", "when", "--ratios", 0.5, 0.25, 0.25),
    ]
    assert run("tables", "log.csv", tmp_path / "dst", *options) == 0
    data = Dataset(tmp_path / "dst")
    assert [data.size(s) for s in ("train", "val", "test")] == [40, 20, 20]
    assert data.present("visual").sum() == 24
    assert data.meta["provenance"]["options"] == {
        "user_column": "who",
        "item_column": "what",
        "threshold": 2.0,
        "items": "catalogue.tsv",
        "present": {"visual": "flags.npy"},
        "split": "temporal",
        "time_column": "when",
        "ratios": [0.5, 0.25, 0.25],
        "seed": 0,
        "overlap": "error",
    }
    assert run("tables", "log.csv", tmp_path / "e", "--feature", "visual") == 2
    assert run("tables", "log.csv", tmp_path / "e", "--split", "by-moon") == 2


def test_the_seed_changes_a_random_split(tmp_path):
    (tmp_path / "a.csv").write_text(text([(u, i) for u in range(5) for i in range(20)], "user,item", ","))
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        assert run("tables", tmp_path / "a.csv", tmp_path / name, "--split", "random", "--seed", seed) == 0
    x, y, z = (Dataset(tmp_path / name).fingerprint for name in "xyz")
    assert x == y != z


def test_cold(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(text([(u, i) for u in range(5) for i in range(20)], "user,item", ","))
    assert run("tables", tmp_path / "a.csv", tmp_path / "x", "--split", "random", "--cold", 0.2) == 0
    meta = Dataset(tmp_path / "x").meta
    assert meta["cold_items"] == {"all": 4, "val": 2, "test": 2}
    assert meta["provenance"]["options"]["cold"] == 0.2
    assert "4 (in val 2, in test 2)" in capsys.readouterr().out
    assert run("tables", tmp_path / "a.csv", tmp_path / "y", "--cold", 0.2) == 2
    assert "--cold chooses the items of val and test, so it needs --split" in capsys.readouterr().err


def test_synthetic(tmp_path, capsys):
    pytest.importorskip("m3dist.data.synthetic")
    sizes = ["--users", 30, "--items", 60, "--interactions", 20, "--modalities", 2]
    assert run("synthetic", tmp_path / "s", *sizes, "--seed", 3) == 0
    data = Dataset(tmp_path / "s")
    assert (data.n_users, data.n_items, len(data.modalities)) == (30, 60, 2)
    assert run("synthetic", tmp_path / "t", *sizes, "--seed", 4) == 0
    assert Dataset(tmp_path / "t").fingerprint != data.fingerprint
    capsys.readouterr()
    assert run("synthetic", tmp_path / "u", "--users", 0) == 2
    assert "users: Input should be greater than 0" in capsys.readouterr().err


def test_other_formats_through_the_command(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    rows = [(u, i, code) for code, split in enumerate(SMALL) for u, i in SMALL[split]]
    (src / "x.inter").write_text(text(rows, "userID\titemID\tx_label"))
    np.save(src / "image_feat.npy", FEATURES)
    assert run("mmrec", src, tmp_path / "m") == 0
    assert run("mmrec", src, tmp_path / "n", "--feature", "picture=image_feat.npy") == 0
    assert list(Dataset(tmp_path / "n").modalities) == ["picture"]
    assert pairs(Dataset(tmp_path / "m")) == sorted_pairs(SMALL)


def test_the_page_on_data_names_every_format_and_option():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    group = prepare.command
    for name in group.list_commands(None):
        assert f"`{name}`" in page or f"prepare {name}" in page
        if name == "synthetic":
            continue
        for option in group.get_command(None, name).params:
            assert option.param_type_name == "argument" or option.opts[0] in page, option.opts[0]


def test_help_of_every_format(capsys):
    for name in prepare.command.list_commands(None):
        assert run(name, "--help") == 0
        assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_what_names_would_do_to_a_terminal_is_shown_and_not_done(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters and rich's markup in names of columns, files and the destination, and in ids."""
    evil = "\x1b]0;owned\x07[red]\u202e"
    src = tmp_path / "src"
    src.mkdir()
    rows = "".join(f"u{u}{evil},{i},{('train', 'val', 'test')[i % 3]}\n" for u in range(3) for i in range(6))
    (src / "interactions.csv").write_text(f"user_id,item_id,split,more{evil}\n" + rows.replace("\n", ",x\n"))
    (src / f"notes{evil}.bin").write_bytes(b"?")
    np.save(tmp_path / f"x{evil}.npy", np.ones((6, 2)))
    feature = f"look={tmp_path / f'x{evil}.npy'}"
    assert run("tables", src, tmp_path / f"dst{evil}", "--feature", feature, *options) == 0
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\u202e")
    assert r"notes\x1b]0;owned\x07[red]\u202e.bin" in out
    assert r"x\x1b]0;owned\x07[red]\u202e.npy" in out
