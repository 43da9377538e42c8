"""The number of workers changes neither losses nor metrics nor parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from parallel_helpers import (
    RUNS,
    STEPS,
    ULTRAGCN,
    agree,
    rounds,
    rounds_between,
    same_everywhere,
    small,
    spawn,
    trajectories,
    whole_run,
)  # fmt: skip

from m3dist.cli.main import cli
from m3dist.config import Config, load
from m3dist.storage.artifacts import Store


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_workers_share_the_same_numbers(world: int, root: Path, alone: list[dict[str, Any]]) -> None:
    results = spawn(world, trajectories, RUNS, root, STEPS)
    for at, single in enumerate(alone):
        agree(results[0][at], single)
        same_everywhere([ranks[at] for ranks in results])


def deepspeed(stage: int, *extra: str) -> Any:
    return small("strategy=deepspeed", f"zero_stage={stage}", *extra)


ROUNDS = [small(), small(ULTRAGCN, "invariance.gate=hard_sigmoid", "invariance.empty=drop")]
TERMS = ("loss", "fit", "variance", "size", "effect", "mask")  # what a round reports of a representation's masks


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_workers_find_the_same_environments_and_masks(world: int, root: Path) -> None:
    alone = rounds(0, 1, ROUNDS, root)
    runs = [*ROUNDS, *(deepspeed(stage) for stage in ((2,) if world == 2 else (0, 1, 2, 3)))]
    results = spawn(world, rounds, runs, root, timeout=240)
    for at, config in enumerate(runs):
        ours, theirs = results[0][at], alone[ROUNDS.index(config) if config in ROUNDS else 0]
        for mine, other in zip(ours.meta["rounds"], theirs.meta["rounds"], strict=True):
            for name, value in other.items():
                if name.split("/")[-1] in TERMS:
                    assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        for name, x in theirs.tensors.items():
            torch.testing.assert_close(ours.tensors[name], x, rtol=1e-4, atol=1e-5)
        for name, x in theirs.interactions.items():
            mine = torch.cat([rank[at].interactions[name] for rank in results])
            assert float((mine != x).double().mean()) < 1e-3, name  # where two score the same
        for other in results[1:]:
            for name, x in ours.tensors.items():
                assert torch.equal(other[at].tensors[name], x), name


@pytest.mark.parametrize(
    "workers", [[2, 1, 2], *(pytest.param(x, marks=pytest.mark.slow) for x in ([2] * 3, [4, 2, 4]))]
)
def test_rounds_go_on_with_any_number_of_workers(workers: list[int], root: Path, tmp_path: Path) -> None:
    """Each worker writes its own interactions' environments, and whoever goes on reads those of its own.

    workers: of each of three rounds. Of as many as before, they go on with the same bits.
    """
    config = small("invariance.rounds=3", "invariance.moved=0")
    straight = rounds(0, 1, [config], root)[0]
    for at, some in enumerate(workers[:-1]):
        if some == 1:
            rounds_between(0, 1, config, root, tmp_path, at)
        else:
            spawn(some, rounds_between, config, root, tmp_path, at)
        (saved,) = (tmp_path / "saves").glob(f"{at + 1:05d}-*")
        assert len([*saved.glob("rows-*")]) == some
    ends = spawn(workers[-1], rounds_between, config, root, tmp_path, None)
    found = Store(tmp_path).interactions("invariance", "key")
    for name, x in straight.interactions.items():
        assert torch.equal(found[name], torch.cat([end.interactions[name] for end in ends]))
        assert float((found[name] != x).double().mean()) < 1e-3, name
    for name, x in straight.tensors.items():
        torch.testing.assert_close(ends[0].tensors[name], x, rtol=1e-4, atol=1e-5)
    if len({*workers}) == 1:
        unbroken = spawn(workers[0], rounds_between, config, root, tmp_path / "unbroken", None)
        for end, other in zip(ends, unbroken, strict=True):
            for name, x in (other.tensors | other.interactions).items():
                assert torch.equal((end.tensors | end.interactions)[name], x), name


EVERY = [(), *(("strategy=deepspeed", f"zero_stage={stage}") for stage in (1, 2, 3)), ("embeddings=sharded",)]
EVERY.append(("embeddings=sharded", "strategy=deepspeed", "zero_stage=3"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("world", [2, 4])
def test_a_whole_run_has_the_metrics_of_one_worker(world: int, root: Path, tmp_path: Path) -> None:
    """All stages one after the other, each from what the workers left of those before, under every strategy."""

    def metrics(name: str) -> dict[str, float]:
        found = {}
        for stage, key in (("test", "metrics"), ("merge", "validation")):
            (path,) = (tmp_path / name / "artifacts").glob(f"{stage}-*/meta.json")
            found |= {f"{stage}/{metric}": x for metric, x in json.loads(path.read_text())[key].items()}
        return found

    def config_of(name: str, how: tuple[str, ...]) -> Config:
        return small(f"data={root}", f"out={tmp_path / name}", "checkpoint.every_epochs=0", *how)

    whole_run(0, 1, config_of("alone", ()))
    expected = metrics("alone")
    assert len(expected) > 10
    for at, how in enumerate(EVERY):
        spawn(world, whole_run, config_of(str(at), how))
        assert metrics(str(at)) == pytest.approx(expected, abs=1e-6), how


RAW = Path(__file__).parents[3] / "shared" / "data" / "ml100k"
SOFTMAX = "backbone.loss=softmax"


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens 100K, whose 942 users four workers cannot share evenly."""
    data = tmp_path_factory.mktemp("ml100k") / "data"
    assert CliRunner().invoke(cli, ["prepare", "tables", str(RAW), str(data)]).exit_code == 0
    return data


def gaps(ours: dict[str, Any], theirs: dict[str, Any], config: Config) -> dict[str, float]:
    """The largest differences over all steps: of losses, relative; of terms, in parts of the loss that they make up;
    and of metrics.

    CLUB's q sharpens as it learns and so amplifies rounding. Its bound counts as the loss weighs it; its own loss,
    which falls from near 600 through 0 meanwhile, is measured by what it started from.
    """
    out = {"loss": 0.0, "terms": 0.0, "q": 0.0}
    for a, b in zip(ours["losses"], theirs["losses"], strict=True):
        for name, value in b.items():
            gap = abs(a[name] - value)
            if name == "loss":
                out["loss"] = max(out["loss"], gap / value)
            elif name == "club_nll":
                out["q"] = max(out["q"], gap / theirs["losses"][0][name])
            else:
                weight = config.align.lambda_mi if name == "club" else 1.0
                out["terms"] = max(out["terms"], weight * gap / max(weight * abs(value), b["loss"]))
    out["metrics"] = max(abs(ours["metrics"][name] - value) for name, value in theirs["metrics"].items())
    return out


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not RAW.is_dir(), reason=f"needs MovieLens 100K with features at {RAW}")
@pytest.mark.parametrize("world", [2, 4])
def test_on_movielens_every_stage_and_strategy_has_the_numbers_of_one_worker(world: int, movies: Path) -> None:
    runs = [(stage, load(None, [SOFTMAX, *how])) for stage in ("align", "merge") for how in EVERY]
    alone = {
        stage: trajectories(0, 1, [(stage, load(None, [SOFTMAX]))], movies, STEPS)[0] for stage in ("align", "merge")
    }
    results = spawn(world, trajectories, runs, movies, STEPS, timeout=600)
    for at, (stage, config) in enumerate(runs):
        apart = gaps(results[0][at], alone[stage], config)
        how = config.strategy if config.strategy == "ddp" else f"ZeRO {config.zero_stage}"
        shown = " ".join(f"{name} {gap:.1e}" for name, gap in apart.items())
        print(f"{stage} {world} {how} {config.embeddings}: {shown}")
        assert apart["loss"] < 1e-5
        assert apart["terms"] < 1e-5
        assert apart["q"] < 1e-4
        assert apart["metrics"] < 1e-6
        same_everywhere([ranks[at] for ranks in results])
    few = (SOFTMAX, "invariance.rounds=1", "invariance.environment_steps=84", "invariance.mask_steps=84")
    few += ("invariance.gamma_warmup=false",)  # the penalty counts from the first round on
    how = [load(None, [*few, *values]) for values in EVERY[:4]]
    single, many = rounds(0, 1, how[:1], movies)[0], spawn(world, rounds, how, movies, timeout=600)
    for at, config in enumerate(how):
        ours = many[0][at]
        report, other = ours.meta["rounds"][0], single.meta["rounds"][0]
        terms = [name for name in other if name.split("/")[-1] in TERMS]
        differ = {name: abs(report[name] / other[name] - 1) for name in terms if other[name]}
        moved = {
            name.removeprefix("environment."): float(
                (torch.cat([rank[at].interactions[name] for rank in many]) != x).double().mean()
            )
            for name, x in single.interactions.items()
        }
        shown = f"{max(differ.values()):.1e}, environments {max(moved.values()):.1e}"
        print(f"invariance {world} {config.strategy} {config.zero_stage}: {shown}")
        assert len(moved) == 4
        assert max(moved.values()) < 1e-4  # interactions that two environments score the same, but for rounding
        for name, gap in differ.items():  # whose representation's masks then see two environments that differ by them
            assert gap < 1e-5 + config.invariance.environments * moved[name.split("/")[0]], name
        assert len(differ) >= 3 * 4
