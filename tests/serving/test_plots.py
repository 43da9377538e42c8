"""What a notebook shows of a run: plots and tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import trained

import m3dist


@pytest.fixture
def plot(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> m3dist.Run:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install '.[plot]'")
    matplotlib.use("Agg")
    yield m3dist.load(finished_run, "cpu")
    matplotlib.pyplot.close("all")


def test_masks(plot: m3dist.Run, finished_run: Path) -> None:
    axes = plot.plot.masks()
    assert [axis.get_title() for axis in axes] == ["modality0", "modality1", "modality2", "common"]
    table = pq.read_table(finished_run / "masks.parquet").to_pylist()
    for axis in axes:
        bars = sorted(axis.patches, key=lambda bar: bar.get_x())
        drawn = [bar.get_height() for bar in bars]
        expected = [row["mask"] for row in table if row["representation"] == axis.get_title()]
        assert drawn == pytest.approx(sorted(expected, reverse=True))
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["planted", "spurious"]


def test_environments(plot: m3dist.Run) -> None:
    axes = plot.plot.environments()
    rounds = plot.result["stages"]["invariance"]["rounds"]
    assert len(axes) == 4
    for r, axis in enumerate(axes):
        assert [bars.get_label() for bars in axis.containers] == ["0", "1", "2"]
        for e, bars in enumerate(axis.containers):
            assert [bar.get_height() for bar in bars] == [one[f"{r}/environment {e}"] for one in rounds]
            assert [round(bar.get_center()[0], 6) for bar in bars] == [1, 2]
        tops = [bar.get_y() + bar.get_height() for bar in axis.containers[-1]]
        assert tops == [sum(one[f"{r}/environment {e}"] for e in range(3)) for one in rounds]


def test_fusion(plot: m3dist.Run) -> None:
    (axis,) = plot.plot.fusion()
    users = plot.result["test"]
    assert (
        sum(bar.get_height() for bar in axis.patches)
        == 3 * pq.read_table(Path(plot.config.out) / "test_users.parquet").num_rows
    )
    assert len(users) > 3


def test_curves(plot: m3dist.Run) -> None:
    loss, metric = plot.plot.curves()
    assert {line.get_label() for line in loss.lines} == {"align", "merge"}
    assert metric.get_title() == "ndcg@10"
    (merge,) = [line for line in metric.lines if line.get_label() == "merge"]
    assert merge.get_xdata().tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"plot.curves: taste@3 was never logged"):
        plot.plot.curves("taste@3")


def test_what_a_run_has_not(tmp_path: Path, plot: m3dist.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, "model=vbpr", "baseline.epochs=1")
    run = m3dist.load(tmp_path, "cpu")
    for name, said in (("masks", "learns no masks"), ("environments", "found none"), ("fusion", "no modalities")):
        with pytest.raises(ValueError, match=said):
            getattr(run.plot, name)()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'matplotlib is not installed; pip install "m3dist\[plot\]"'):
        plot.plot.fusion()


def test_tables_in_a_notebook_and_a_terminal(finished_run: Path) -> None:
    table = pa.table({"user": ["<b>", None], "score": [0.123456, np.nan], "vector": [[1.0, 2.0, 3.0, 4.0], [1.0]]})
    shown = m3dist.show(table)
    assert "<td>&lt;b&gt;</td><td>0.1235</td><td>[1.0000, 2.0000, 3.0000, ...]</td>" in shown._repr_html_()
    assert repr(shown).splitlines()[0] == "user  score   vector"
    assert repr(m3dist.show(table, 1)).splitlines()[-1] == "... 1 more rows"
    assert "1 more rows" in m3dist.show(table, 1)._repr_html_()
    run = m3dist.load(finished_run, "cpu")
    (row,) = [row for row in run.metrics().to_pylist() if row["metric"] == "ndcg@10"]
    assert row == {
        "metric": "ndcg@10",
        "validation": run.result["validation"]["ndcg@10"],
        "test": run.result["test"]["ndcg@10"],
    }
    assert f"<td>ndcg@10</td><td>{row['validation']:.4f}</td>" in run._repr_html_()
