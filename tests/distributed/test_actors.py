"""Environment models and masks as Ray actors: the numbers of one process, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from parallel_helpers import aligned, planted, small
from torch import Tensor

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.distributed import actors as pools
from m3dist.distributed.actors import ActorSettings, Pool
from m3dist.distributed.engine import Engine
from m3dist.method import invariance, registry
from m3dist.method.trainer import Trainer
from m3dist.storage.artifacts import Output
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.training.context import Context
from m3dist.training.tracking import RunFailed, Tracker

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(240)]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test
HALF = {"CPU": 0.5}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Tensor]]:
    """Planted data and what stage 1 makes of it before its first step."""
    config = small()
    dataset = Dataset(planted(tmp_path_factory.mktemp("planted") / "data", config))
    return dataset, aligned(dataset, config)


def trained(config: Config, given: tuple[Dataset, dict[str, Tensor]]) -> Output:
    return invariance.train(Context(given[0], config), given[1])


@pytest.fixture(scope="module")
def series(given: tuple[Dataset, dict[str, Tensor]]) -> Output:
    torch.set_num_threads(1)
    return trained(small(), given)


def same(ours: Output, theirs: Output) -> None:
    assert ours.meta == theirs.meta
    kept = ours.tensors | ours.interactions
    for name, x in (theirs.tensors | theirs.interactions).items():
        assert torch.equal(kept[name], x), name


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2])
def test_actors_give_the_bits_of_one_process(
    actors: int, given: tuple[Dataset, dict[str, Tensor]], series: Output
) -> None:
    same(trained(small(f"actors={actors}", "actor_resources.CPU=0.5"), given), series)


def test_a_killed_actor_among_three_changes_no_bit(
    given: tuple[Dataset, dict[str, Tensor]], series: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when the first task of all is done, while the others work."""
    victims: list[int] = []

    class Watched(Pool):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            victims.append(self.processes()[0])

        def __exit__(self, *error: Any) -> None:
            victims.append(self.processes()[0])
            super().__exit__(*error)

    killed: list[int] = []

    def kill_once() -> bool:
        if not killed:
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)
        return False

    monkeypatch.setattr(pools, "Pool", Watched)
    config = small("actors=3", "actor_resources.CPU=0.5")
    result = invariance.train(Context(given[0], config, tracker=Tracker(None, stop=kill_once)), given[1])
    assert killed == victims[:1] != victims[1:]
    same(result, series)


class Numbers:
    """A state that knows how often it was asked."""

    def __init__(self, tensors: dict[str, Tensor], device: str, add: int):
        self.x, self.add = tensors["x"], add


def scaled(state: Numbers, by: int, more: Tensor) -> tuple[Tensor, int]:
    if by == 13:
        raise ValueError("thirteen")
    time.sleep(0.02 * (by % 3))
    return state.x * by + state.add + more.sum(), os.getpid()


def always_dies(state: Numbers) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two actors, which are gone afterwards while Ray stays."""
    with Pool(Numbers, {"x": torch.arange(3.0)}, ActorSettings(2, HALF), 5) as pool:
        pids = pool.processes()
        yield pool
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert ray.is_initialized()


def test_results_come_in_the_order_of_tasks_from_all_actors(pool: Pool) -> None:
    assert sum(name.startswith("m3dist-environments-") for name in ray.util.list_named_actors()) == 2
    more = pool.put(torch.ones(4))
    out = pool.map(scaled, [(by, more) for by in range(12)])
    for by, (value, _) in enumerate(out):
        assert torch.equal(value, torch.arange(3.0) * by + 9)
    assert {pid for _, pid in out} == set(pool.processes())
    assert os.getpid() not in pool.processes()


def test_errors_of_tasks_are_raised(pool: Pool) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        pool.map(scaled, [(by, torch.ones(1)) for by in (1, 13, 2)])


def test_an_actor_that_keeps_dying_is_one_clear_error() -> None:
    with (
        Pool(Numbers, {"x": torch.ones(1)}, ActorSettings(1, HALF, failures=1), 0) as pool,
        pytest.raises(RunFailed, match=r"died more than max_failures=1 times"),
    ):
        pool.map(always_dies, [()])


def test_more_actors_than_the_cluster_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"actors: 9 x 1 CPU do not fit the cluster, which has 2 CPU"):
        Pool(Numbers, {"x": torch.ones(1)}, ActorSettings(9), 0)
    with pytest.raises(ValueError, match="GPU do not fit the cluster, which has 0 GPU"):
        Pool(Numbers, {"x": torch.ones(1)}, ActorSettings(1, {"GPU": 0.5}), 0)


def test_a_stop_request_ends_a_map(pool: Pool) -> None:
    with pytest.raises(KeyboardInterrupt):
        pool.map(scaled, [(2, torch.ones(1))] * 100, stop=lambda: True)


def test_an_interrupted_stage_goes_on_between_rounds(
    given: tuple[Dataset, dict[str, Tensor]], series: Output, tmp_path: Path
) -> None:
    config = small()
    saved = Checkpoints(Folder(tmp_path), "key", config.checkpoint, Engine())
    stage = registry.model(config.model).stage("invariance")
    interrupted = Tracker(None, stop=lambda: Folder(tmp_path).names() != [])
    with pytest.raises(KeyboardInterrupt):
        invariance.train(Context(given[0], config, tracker=interrupted).at(stage, saved), given[1])
    assert saved.latest() is not None
    assert len(saved.latest().meta["history"]) == 1  # type: ignore[union-attr]
    same(invariance.train(Context(given[0], config).at(stage, saved), given[1]), series)


def test_an_interrupt_is_heard_inside_a_round(
    given: tuple[Dataset, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process; not only where one half of a round ends, which on large data is minutes away."""
    looks: list[int] = []

    def at_the_second_step() -> bool:
        looks.append(1)
        return len(looks) == 2

    monkeypatch.setattr(Trainer, "assign", lambda *_: pytest.fail("the environments were trained to their end"))
    with pytest.raises(KeyboardInterrupt):
        invariance.train(Context(given[0], small(), tracker=Tracker(None, stop=at_the_second_step)), given[1])


def test_what_a_build_raises_is_raised_as_it_is(ray_here: None) -> None:
    """And is not told as the death of an actor."""

    def build(tensors: dict[str, Tensor], device: str) -> None:
        raise ValueError("data/mine: not a prepared data set")

    with (
        Pool(build, {}, ActorSettings(1, HALF)) as pool,
        pytest.raises(ValueError, match=r"^data/mine: not a prepared"),
    ):
        pool.map(lambda state: state, [()])


def test_actors_start_without_a_word(ray_here: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray warns, past Python, of actors that may not start again since their constructors are given references."""
    with Pool(lambda tensors, device: tensors["x"], {"x": torch.ones(4)}, ActorSettings(1, HALF)) as pool:
        assert pool.map(lambda x: float(x.sum()), [()]) == [4.0]
    said = capfd.readouterr()
    assert not said.err, said.err
    assert not said.out, said.out
