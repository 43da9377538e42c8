"""Environment models and masks as Ray actors: the numbers of one process, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from parallel_helpers import planted, small
from torch import Tensor

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.distributed.actors import Pool
from m3dist.distributed.engine import Engine
from m3dist.method import invariance
from m3dist.method.align import AlignTask
from m3dist.method.backbone import Data
from m3dist.training.tracking import RunFailed, Tracker

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(240)]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test
HALF = {"CPU": 0.5}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Tensor]]:
    """Planted data and what stage 1 makes of it before its first step."""
    config = small()
    dataset = Dataset(planted(tmp_path_factory.mktemp("planted") / "data", config))
    task = AlignTask(Data(dataset, config), config)
    named = {f"representation.{r}": x for r, x in enumerate(task.representations())}
    return dataset, {**task.state(), **named}


def trained(config: Config, given: tuple[Dataset, dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict]:
    with Tracker(None) as tracker:
        return invariance.run(given[0], config, given[1], tracker)


@pytest.fixture(scope="module")
def series(given: tuple[Dataset, dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict]:
    torch.set_num_threads(1)
    return trained(small(), given)


def same(ours: tuple[dict[str, Tensor], dict], theirs: tuple[dict[str, Tensor], dict]) -> None:
    assert ours[1] == theirs[1]
    for name, x in theirs[0].items():
        assert torch.equal(ours[0][name], x), name


@pytest.mark.parametrize("actors", [1, 3])
def test_actors_give_the_bits_of_one_process(
    actors: int, given: tuple[Dataset, dict[str, Tensor]], series: tuple[dict[str, Tensor], dict]
) -> None:
    same(trained(small(f"actors={actors}", "actor_resources.CPU=0.5"), given), series)


def test_a_killed_actor_changes_nothing(
    given: tuple[Dataset, dict[str, Tensor]],
    series: tuple[dict[str, Tensor], dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = []

    class Watched(Pool):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            victim = self.processes()[0]

            def kill() -> None:
                time.sleep(0.3)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

            threading.Thread(target=kill).start()

        def __exit__(self, *error: Any) -> None:
            assert killed  # while rounds still ran
            killed.append(self.processes()[0])
            super().__exit__(*error)

    monkeypatch.setattr(invariance, "Pool", Watched)
    config = small("actors=2", "actor_resources.CPU=0.5", "invariance.rounds=6", "invariance.moved=0")
    result = trained(config, given)
    assert len(killed) == 2
    assert killed[0] != killed[1]
    monkeypatch.undo()
    same(result, trained(small("invariance.rounds=6", "invariance.moved=0"), given))


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


def test_results_come_in_the_order_of_tasks_from_all_actors() -> None:
    x = torch.arange(3.0)
    with Pool(Numbers, {"x": x}, 5, actors=2, resources=HALF) as pool:
        pool.processes()  # both are up
        assert sum(name.startswith("m3dist-environments-") for name in ray.util.list_named_actors()) == 2
        more = pool.put(torch.ones(4))
        out = pool.map(scaled, [(by, more) for by in range(12)])
    for by, (value, _) in enumerate(out):
        assert torch.equal(value, x * by + 9)
    assert len({pid for _, pid in out}) == 2
    assert os.getpid() not in {pid for _, pid in out}


def test_errors_of_tasks_are_raised_and_actors_end() -> None:
    with Pool(Numbers, {"x": torch.ones(1)}, 0, actors=1) as pool:
        pids = pool.processes()
        with pytest.raises(ValueError, match="thirteen"):
            pool.map(scaled, [(by, torch.ones(1)) for by in (1, 13, 2)])
    until = time.monotonic() + 20
    while Path(f"/proc/{pids[0]}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{pids[0]}").exists()
    assert ray.is_initialized()


def test_an_actor_that_keeps_dying_is_one_clear_error() -> None:
    with (
        Pool(Numbers, {"x": torch.ones(1)}, 0, actors=1, resources=HALF, failures=1) as pool,
        pytest.raises(RunFailed, match=r"died more than max_failures=1 times"),
    ):
        pool.map(always_dies, [()])


def test_more_actors_than_the_cluster_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"actors: 9 x 1 CPU do not fit the cluster, which has 2 CPU"):
        Pool(Numbers, {"x": torch.ones(1)}, 0, actors=9)
    with pytest.raises(ValueError, match="GPU do not fit the cluster, which has 0 GPU"):
        Pool(Numbers, {"x": torch.ones(1)}, 0, actors=1, resources={"GPU": 0.5})


def test_a_wish_to_stop_ends_a_map() -> None:
    with Pool(Numbers, {"x": torch.ones(1)}, 0, actors=1) as pool, pytest.raises(KeyboardInterrupt):
        pool.map(scaled, [(2, torch.ones(1))] * 100, stop=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        Pool(Numbers, {"x": torch.ones(1)}, 0).map(scaled, [(2, torch.ones(1))], stop=lambda: True)


def test_fewer_parts_where_they_bring_nothing() -> None:
    assert [invariance._parts(actors, 4, 10) for actors in (0, 1, 2, 3, 4, 8)] == [1, 1, 1, 2, 1, 2]
    assert invariance._parts(100, 4, 10) == 10


def test_an_interrupted_stage_goes_on_between_rounds(
    given: tuple[Dataset, dict[str, Tensor]], series: tuple[dict[str, Tensor], dict], tmp_path: Path
) -> None:
    from m3dist.storage.checkpoints import Checkpoints
    from m3dist.storage.folders import Folder

    config, looks = small(), []

    def after_first() -> bool:
        looks.append(1)
        return Folder(tmp_path).names() != []

    saved = Checkpoints(Folder(tmp_path), "key", config.checkpoint, Engine())
    with pytest.raises(KeyboardInterrupt), Tracker(None, stop=after_first) as tracker:
        invariance.run(given[0], config, given[1], tracker, checkpoints=saved)
    assert saved.latest() is not None
    assert len(saved.latest().meta["history"]) == 1  # type: ignore[union-attr]
    with Tracker(None) as tracker:
        same(invariance.run(given[0], config, given[1], tracker, checkpoints=saved), series)


def test_an_interrupt_is_heard_inside_a_round(
    given: tuple[Dataset, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process; not only where one half of a round ends, which on large data is minutes away."""
    looks: list[int] = []

    def at_the_second_step() -> bool:
        looks.append(1)
        return len(looks) == 3

    monkeypatch.setattr(invariance, "assign", lambda *_: pytest.fail("the environments were trained to their end"))
    with pytest.raises(KeyboardInterrupt), Tracker(None, stop=at_the_second_step) as tracker:
        invariance.run(given[0], small(), given[1], tracker)
