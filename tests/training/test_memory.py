"""What a run holds in memory at most, on real data, and what interactions take of it against the prediction."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sizes import Size, made
from m3dist.config import load
from m3dist.training import memory

RAW = Path(__file__).parents[3] / "shared" / "data" / "ml1m"
TRAIN = "from m3dist.cli.main import main; main()"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not RAW.is_dir(), reason=f"needs MovieLens 1M with features at {RAW}")
def test_ml1m_end_to_end_in_one_and_a_half_gibibytes(tmp_path: Path) -> None:
    """One epoch and one round of every stage, which hold what more of them hold."""
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", TRAIN, "prepare", "tables", str(RAW), str(data)], check=True)
    short = ["align.epochs=1", "invariance.rounds=1", "merge.epochs=1"]
    child = subprocess.Popen([sys.executable, "-c", TRAIN, "train", f"data={data}", f"out={tmp_path / 'run'}", *short])
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.2 * 2**30 < peak < 1.5 * 2**30


GROW = """
import sys
import torch
from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Plan
from m3dist.method import invariance
from m3dist.training.context import Context

context = Context(Dataset(sys.argv[1]), load(None, sys.argv[2:]))
draws = context.data.draws(1, 4096, Plan(8))
draws.seek(0, 0)
draws.draw()
seen = context.evaluator.seen(None)
if context.config.invariance.rounds:
    shapes = {"member.user": context.data.n_users, "member.item": context.data.n_items, "representation.0": 2000}
    invariance.train(context, {name: torch.zeros(n, 4) for name, n in shapes.items()})
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say how high memory was")
@pytest.mark.parametrize("rounds", [0, 1])
def test_interactions_take_what_is_predicted(rounds: int, tmp_path: Path) -> None:
    """Between 3 * 10^6 and 6 * 10^6 of them, within a fifth, with stage 2 and without."""
    values = ["model=invrl", "backbone.loss=softmax", "merge.masks=learned", f"invariance.rounds={rounds}"]
    values += ["invariance.environment_steps=3", "invariance.mask_steps=3"]
    peaks, predicted = [], []
    for n in (3 * 10**6, 6 * 10**6):
        dataset = made(Size(20_000, 2000, n, (4,)), tmp_path / str(n))
        command = [sys.executable, "-c", GROW, str(dataset.root), *values]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) * 1024)
        predicted.append(memory.interactions(load(None, values), dataset))
    print([x / 2**20 for x in (*peaks, *predicted)])
    assert peaks[1] - peaks[0] == pytest.approx(predicted[1] - predicted[0], rel=0.2)


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        (["model=ultragcn"], 2 * 5),  # as they are prepared, and as the member reads them
        ([], 2 * 5 + 5 + 5),  # and the representations that stage 1 leaves: the features, and all of them once more
        (["align.shared=code"], 2 * 5 + 5 + 7),
        (["align.encoder=linear", "align.shared=both"], 2 * 5 + 2 * 7 + 7 + 5),
    ],
)
def test_features_count_as_often_as_they_are_held(values: list[str], columns: int, tmp_path: Path) -> None:
    dataset = made(Size(users=30, items=20, pairs=100, widths=(3, 2)), tmp_path / "data")
    config = load(None, ["align.dim=7", *values])
    assert memory.predict(config, dataset)["features"] == 4 * 20 * columns
