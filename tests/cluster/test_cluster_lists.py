"""Lists in parts as a job on a head and a node: the same as without a cluster, and made once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_places import TINY  # type: ignore[import-not-found]

import m3dist
from m3dist import config, pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_submitted_lists_equal_those_of_a_run(cluster, tmp_path):
    small, run, out = tmp_path / "small.yaml", tmp_path / "run", tmp_path / "top"
    small.write_text(TINY + "merge: {epochs: 3, evaluate_every: 1, masks: learned}\n")
    pipeline.run(config.load(small, [f"out={run}"]), quiet=True)
    words = ["recommend", str(run), "--k", "5", "--parts", "3", "--workers", "2", "--out", str(out)]
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *words)
    assert code == 0, log
    assert "3 of 3 parts" in log
    made = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])
    opened = m3dist.load(run)
    expected = opened.recommend(opened.dataset.user_ids.to_pylist(), 5)
    assert made.column_names == expected.column_names
    assert made.select(["user", "rank", "item"]).equals(expected.select(["user", "rank", "item"]))
    (out / "part-00001-of-00003.parquet").unlink()
    code, log = cluster.m3dist("submit", "--address", cluster.address, "--", *words)
    assert code == 0, log
    assert "1 of 3 parts" in log
    assert (out / "part-00001-of-00003.parquet").exists()
