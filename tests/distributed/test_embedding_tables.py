"""Tables that workers share out train, resume and end as whole ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_helpers import engine_of, fitted, planted, small, spawn, trajectories
from safetensors.torch import load_file
from test_invariance_to_workers import RUNS, STEPS, agree, same_everywhere

from m3dist import pipeline
from m3dist.config import Config, ConfigError
from m3dist.data.sampling import share
from m3dist.distributed import tables
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import RowTable, Touched, pull_rows, push_rows, routes
from m3dist.seeding import torch_rng
from m3dist.training.tracking import Tracker

pytestmark = pytest.mark.timeout(600)  # many workers may share few cores
SHARDED = "embeddings=sharded"
ZERO = ("align", small("strategy=deepspeed", "zero_stage=3"))
BOTH = pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "data", small())


def sharded(config: Config) -> Config:
    return config.model_copy(update={"embeddings": "sharded"})


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_the_numbers_of_whole_tables(world: int, root: Path) -> None:
    """Of both stages that train tables, with shared and own negatives, lazy and dense Adam, and beside ZeRO 3."""
    alone = trajectories(0, 1, RUNS, root, STEPS)
    runs = [(stage, sharded(config)) for stage, config in [*RUNS, ZERO]]
    results = spawn(world, trajectories, runs, root, STEPS, timeout=280)
    for at in range(len(runs)):
        agree(results[0][at], alone[at % len(RUNS)])
        same_everywhere([ranks[at] for ranks in results])
        for rank, ours in enumerate(results):
            for name, rows in ours[at]["held"].items():
                low, high = share(97 if name.endswith("user") else 70, rank, world)
                assert rows == high - low


def test_one_worker_holds_all(root: Path) -> None:
    ours, theirs = trajectories(0, 1, [("merge", sharded(small())), ("merge", small())], root, 5)
    assert ours["losses"] == theirs["losses"]


@pytest.mark.parametrize(
    ("stage", "world", "then"),
    [
        ("align", 2, None),
        pytest.param("align", 3, 2, marks=pytest.mark.slow),
        pytest.param("merge", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_checkpoints_go_on_anywhere(stage: str, world: int, then: int | None, root: Path, tmp_path: Path) -> None:
    """Begun with shards, gone on by another number of shards, ended by one worker with whole tables; and back."""
    config = small(f"{stage}.epochs=4", f"{stage}.patience=0")
    straight = fitted(0, 1, stage, config, root, tmp_path / "straight", None)
    saved = tmp_path / "there"
    spawn(world, fitted, stage, sharded(config), root, saved, 0, timeout=200)
    assert len(list(saved.glob("0*/rows-*"))) == world
    if then is not None:
        spawn(then, fitted, stage, sharded(config), root, saved, 1, timeout=200)
    ends = [fitted(0, 1, stage, config, root, saved, None)]
    saved = tmp_path / "back"
    fitted(0, 1, stage, config, root, saved, 1)
    ends += spawn(world, fitted, stage, sharded(config), root, saved, None, timeout=200)
    for end in ends:
        assert set(end) == set(straight)
        for name, value in straight.items():
            torch.testing.assert_close(end[name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def all_steps(rank: int, world: int, config: Config) -> None:
    with Tracker(None) as tracker:
        pipeline.work(config, tuple(pipeline.planned(config, True)), engine_of(config, rank, world), tracker)


@BOTH
def test_a_run_leaves_the_same_artifacts(world: int, root: Path, tmp_path: Path) -> None:
    """Every stage: tables are written whole, read by the next stages, and rank every user."""
    few = (
        "align.epochs=1",
        "merge.epochs=2",
        "merge.init=align",
        "merge.fusion=attention",
        "checkpoint.every_epochs=0",
    )
    configs = [small(f"data={root}", f"out={tmp_path / name}", *few) for name in ("alone", "many")]
    all_steps(0, 1, configs[0])
    spawn(world, all_steps, sharded(configs[1]), timeout=200)
    written = [
        {path.parent.name: load_file(path) for path in (tmp_path / name / "artifacts").glob("*/tensors.safetensors")}
        for name in ("alone", "many")
    ]
    assert written[0].keys() == written[1].keys()
    assert len(written[0]) == 4
    for stage, tensors in written[0].items():
        assert tensors.keys() == written[1][stage].keys()
        for name, value in tensors.items():
            if name.startswith("environment"):
                assert float((written[1][stage][name] != value).double().mean()) < 1e-3
            else:  # the gate's Adam divides by gradients near nothing
                close = 1e-2 if name.startswith("gate") else 1e-5
                torch.testing.assert_close(written[1][stage][name], value, rtol=1e-3, atol=close)


def test_rows_are_drawn_without_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BLOCK", 10)
    n = 37
    rng = torch_rng(0, "t")
    whole = RowTable.random(n, 3, 0.5, rng)
    after = torch.rand(1, generator=rng)
    assert len(torch.unique(whole.weight)) == n * 3
    assert 0.3 < float(whole.weight.std()) < 0.7
    for world in (2, 3, 5, 40):
        parts = []
        for rank in range(world):
            rng = torch_rng(0, "t")
            parts.append(RowTable.random(n, 3, 0.5, rng, bounds=share(n, rank, world)).weight)
            assert torch.equal(torch.rand(1, generator=rng), after)
        assert torch.equal(torch.cat(parts), whole.weight)


def one_step(rank: int, world: int, n: int) -> tuple[int, list[torch.Tensor]]:
    """Bytes of a step over the same ids scattered in a table of n rows, and that table's moved rows."""
    engine = Engine(rank, world)
    ids = torch.tensor([[0, 1, 4, 6], [1, 4, 5, 7]][rank]) * (n // 8)
    table = RowTable(torch.zeros(n // world, 3), low=rank * (n // world), n=n)
    (route,) = routes(engine, [(ids, n)])
    touched = Touched(ids, route=route)
    (rows,) = pull_rows(engine, [(table, touched)])
    rows.grad = torch.full_like(rows, rank + 1.0)
    push_rows(engine, [(table, touched, rows)], 0.1)
    return engine.sent, [table.first[route.rows_G] * 10, table.weight[route.rows_G]]


def steps_of(rank: int, world: int, sizes: list[int]) -> list[tuple[int, list[torch.Tensor]]]:
    return [one_step(rank, world, n) for n in sizes]


def test_bytes_do_not_grow_with_the_table() -> None:
    both = spawn(2, steps_of, [80, 800_000])
    few, many = ([ranks[at] for ranks in both] for at in (0, 1))
    assert [sent for sent, _ in few] == [sent for sent, _ in many]
    # worker 0 asks for two rows of worker 1, gives it one, and pushes two gradients; the other way about
    assert [sent for sent, _ in few] == [2 * 4 + 1 * 12 + 2 * 12, 1 * 4 + 2 * 12 + 1 * 12]
    first = torch.cat([kept[0] for _, kept in few])
    torch.testing.assert_close(first[:, 0], torch.tensor([1.0, 3, 3, 2, 1, 2]) / 2)  # ids 0, 1, 4, 5, 6, 7
    torch.testing.assert_close(torch.cat([kept[1] for _, kept in many]), torch.full((6, 3), -0.1))


def test_a_recommender_keeps_whole_tables() -> None:
    with pytest.raises(ConfigError, match="embeddings: grcn trains whole tables"):
        small("model=grcn", SHARDED)


def test_predicted_memory_falls_with_workers(root: Path) -> None:
    def predicted(*extra: str) -> dict[str, Any]:
        config = small(f"data={root}", *extra)
        return pipeline.predict_memory(config, pipeline.open_data(config))

    whole = predicted("workers=4")
    assert predicted("workers=4", SHARDED)["tables"] == whole["tables"] // 4
    assert predicted(SHARDED) == whole
