"""Tables that workers share out train, resume and end as whole ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_helpers import (
    RUNS,
    STEPS,
    agree,
    engine_of,
    fitted,
    same_everywhere,
    small,
    spawn,
    task_of,
    trajectories,
    whole_run,
)

from m3dist import pipeline
from m3dist.config import Config, ConfigError
from m3dist.data.dataset import Dataset
from m3dist.data.parts import share
from m3dist.storage.artifacts import Store
from m3dist.training import memory

pytestmark = pytest.mark.timeout(600)  # many workers may share few cores
SHARDED = "embeddings=sharded"
ZERO = ("align", small("strategy=deepspeed", "zero_stage=3"))
BOTH = pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])


def sharded(config: Config) -> Config:
    return config.model_copy(update={"embeddings": "sharded"})


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_the_numbers_of_whole_tables(world: int, root: Path, alone: list[dict[str, Any]]) -> None:
    """Of both stages that train tables, with shared and own negatives, lazy and dense Adam, and beside ZeRO 3."""
    runs = [(stage, sharded(config)) for stage, config in [*RUNS, ZERO]]
    results = spawn(world, trajectories, runs, root, STEPS)
    for at in range(len(runs)):
        agree(results[0][at], alone[at % len(RUNS)])
        same_everywhere([ranks[at] for ranks in results])
        for rank, ours in enumerate(results):
            for name, rows in ours[at]["held"].items():
                users = Dataset(root).part(rank, world).users  # a worker's own, whose interactions it holds
                low, high = users if name.endswith("user") else share(70, rank, world)
                assert rows == high - low


def test_one_worker_holds_all(root: Path) -> None:
    ours, theirs = trajectories(0, 1, [("merge", sharded(small())), ("merge", small())], root, 5)
    assert ours["losses"] == theirs["losses"]


@pytest.mark.parametrize(
    ("stage", "world", "then", "embeddings"),
    [
        ("align", 2, None, "sharded"),
        ("merge", 2, None, "sharded"),
        ("merge", 2, None, "replicated"),
        pytest.param("align", 3, 2, "sharded", marks=pytest.mark.slow),
        pytest.param("merge", 2, 4, "sharded", marks=pytest.mark.slow),
        pytest.param("align", 3, 2, "replicated", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_go_on_anywhere(
    stage: str, world: int, then: int | None, embeddings: str, root: Path, tmp_path: Path
) -> None:
    """Begun with users' rows in parts and items' in parts or whole, gone on by another number of workers, ended by one
    worker with whole tables; and back."""
    config = small(f"{stage}.epochs=4", f"{stage}.patience=0")
    shared = config.model_copy(update={"embeddings": embeddings})
    straight = fitted(0, 1, stage, config, root, tmp_path / "straight", None)
    saved = tmp_path / "there"
    spawn(world, fitted, stage, shared, root, saved, 0)
    assert len(list(saved.glob("0*/rows-*"))) == world
    if then is not None:
        spawn(then, fitted, stage, shared, root, saved, 1)
    ends = [fitted(0, 1, stage, config, root, saved, None)]
    saved = tmp_path / "back"
    fitted(0, 1, stage, config, root, saved, 1)
    ends += spawn(world, fitted, stage, shared, root, saved, None)
    for end in ends:
        assert set(end) == set(straight)
        for name, value in straight.items():
            torch.testing.assert_close(end[name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@BOTH
def test_a_run_leaves_the_same_artifacts(world: int, root: Path, tmp_path: Path) -> None:
    """Every stage, races among them: tables are written whole, read by the next stages, and rank every user."""
    few = (
        "backbone.loss=auto",
        "merge.masks=auto",
        "align.epochs=1",
        "merge.epochs=2",
        "merge.init=align",
        "merge.fusion=attention",
        "checkpoint.every_epochs=0",
    )
    configs = [small(f"data={root}", f"out={tmp_path / name}", *few) for name in ("alone", "many")]
    whole_run(0, 1, configs[0])
    spawn(world, whole_run, sharded(configs[1]))
    written = []
    for name in ("alone", "many"):
        root = tmp_path / name / "artifacts"
        store, names = Store(root), [path.name.split("-", 1) for path in root.iterdir()]
        written.append({"-".join(x): store.load(*x)[0] | store.interactions(*x) for x in names})
    (tables,) = (tmp_path / "many" / "artifacts").glob("merge-*")
    assert len([*tables.glob("rows-*")]) == world
    assert written[0].keys() == written[1].keys()
    assert len(written[0]) == 8
    for stage, tensors in written[0].items():
        assert tensors.keys() == written[1][stage].keys()
        for name, value in tensors.items():
            if name.startswith("environment"):
                assert float((written[1][stage][name] != value).double().mean()) < 1e-3
            else:  # the gate's Adam divides by gradients near nothing, and the fusion weights are the gate's
                close = 1e-2 if name.startswith(("gate", "fusion weight")) else 1e-5
                torch.testing.assert_close(written[1][stage][name], value, rtol=1e-3, atol=close)


def begun_early(rank: int, world: int, root: Path) -> list[list[torch.Tensor]]:
    """What steps read, by a fit that goes from step to step and elsewhere, and of the batch alone, in turns."""
    task = task_of("merge", sharded(small()), root, engine_of(small(), rank, world))
    out, last = [], task.draws.steps - 1
    for epoch, step in [(0, 0), (0, 1), (0, 2), (0, 4), (0, 1), (1, 2), (1, last), (2, 0), (2, 1), (0, 2)]:
        task.draws.seek(epoch, step)
        for sampled in (task.ahead(), task.members.sample(task.draws.draw())):
            route = sampled.item.route
            kept = [sampled.batch.index_Pb, sampled.item.slots.ids_R, route.asked_A, route.rows_G, route.at_A]
            out.append([x.clone() for x in kept] + [torch.tensor([route.send, route.receive])])
    return out


def test_what_is_asked_for_early_is_what_the_step_reads(root: Path) -> None:
    """Also at an epoch's end, and for a fit that goes on elsewhere than where it has asked."""
    for found in spawn(2, begun_early, root):
        for ours, theirs in zip(found[::2], found[1::2], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
        assert not torch.equal(found[0][0], found[2][0])


def test_a_recommender_keeps_whole_tables() -> None:
    with pytest.raises(ConfigError, match="embeddings: grcn trains whole tables"):
        small("model=grcn", SHARDED)


def test_predicted_memory_falls_with_workers(root: Path) -> None:
    def predicted(*extra: str) -> dict[str, Any]:
        config = small(f"data={root}", *extra)
        return memory.predict(config, pipeline.open_data(config))

    alone, whole, parted = predicted(), predicted("workers=4"), predicted("workers=4", SHARDED)
    assert predicted(SHARDED) == alone  # a worker alone
    assert parted["tables"] == pytest.approx(alone["tables"] / 4, rel=0.01)
    items = whole["tables"] - parted["tables"]  # three fourths of them; users' rows are shared out in both
    assert whole["tables"] == pytest.approx((alone["tables"] - 4 / 3 * items) / 4 + 4 / 3 * items, rel=0.01)
    assert 0.3 < items / alone["tables"] < 0.4  # 70 of them, and 130 users with rows as wide
    assert 3.5 < alone["interactions"] / whole["interactions"] < 4
