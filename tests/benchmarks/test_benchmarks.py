"""The benchmark's reference computes m3dist's loss and metrics, and its reports compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import __main__ as cli
from benchmarks import costs, growth, measure, peers, timed, whole
from benchmarks.measure import Report, Row
from benchmarks.plain import PlainBackbone, PlainEnvironment, batches, ndcg
from benchmarks.sizes import SIZES, Size, made
from benchmarks.subjects import STEPS, Subject, stepping
from m3dist.distributed.engine import Engine
from m3dist.evaluation import metrics, ranking
from m3dist.method.environments import EnvironmentModels

SMALL = [
    "backbone.dim=8", "backbone.content_dim=8", "backbone.negatives=12", "backbone.l2=0.01",
    "merge.batch_size=64", "align.batch_size=64", "align.dim=8", "invariance.negatives=16", "invariance.batch_size=96",
    "invariance.environments=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    size = Size(users=200, items=300, pairs=4000, widths=(6, 5))
    return Subject(made(size, tmp_path_factory.mktemp("bench") / "data"), *SMALL)


def plain(subject: Subject, content: torch.Tensor) -> PlainBackbone:
    return PlainBackbone(subject.data.n_users, content, subject.resolved, subject.weights)


@pytest.mark.parametrize(
    "values",
    [
        ["backbone.loss=ultragcn", "backbone.nu=0.3", "backbone.sampling=per_positive"],
        ["backbone.loss=softmax", "backbone.nu=0.3", "backbone.groups=1"],
        ["backbone.loss=softmax", "backbone.groups=1", "backbone.content=concat"],
    ],
)
def test_plain_backbone_computes_our_loss(subject: Subject, values: list[str]) -> None:
    task = subject.other("backbone.init_std=0.3", *values).backbone
    project, content = task.members.models[0].project, task.contents.each()[0]
    assert project is not None
    assert content is not None
    model = plain(subject.other(*values), content[: subject.data.n_items])
    model.user.weight.data.copy_(task.members.user.weight[0])
    model.item.weight.data.copy_(task.members.item.weight[0])
    model.project.load_state_dict(project.state_dict())
    task.draws.seek(0, 0)
    batch = task.draws.draw()
    user_b = batch.user_Pb[0]
    negative_bn = batch.negative[0].expand(len(user_b), -1)  # own ones, or those that all share
    theirs = model.loss(user_b, batch.item_Pb[0], negative_bn, batch.columns_s)
    assert float(theirs.detach()) == pytest.approx(float(task.step()["loss"]), rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
def test_plain_environments_compute_our_loss(subject: Subject, loss: str) -> None:
    """Each environment's mean over its own interactions, weighted by its share of the batch, and L2."""
    subject = subject.other(f"backbone.loss={loss}")
    frozen, psi = subject.trainer.frozen, subject.representations[0]
    E, n, l2 = 3, len(subject.user), subject.config.invariance.projection_l2
    ours = EnvironmentModels(frozen, {0: range(E)}, {0: torch.ones(psi.shape[1])}, 0)
    draws = frozen.draws("t")
    draws.seek(0, 0)
    step = frozen.step(draws)
    batch, environment_n = step.batch, (torch.arange(n) % E).to(torch.int16)
    user_b, item_b, environment_b = batch.user_Pb[0], batch.item_Pb[0], environment_n[batch.index_Pb[0]]
    ids = (frozen.id_Ud, frozen.item_Id[:-1]) if loss == "ultragcn" else None
    total = 0.0
    for e, (W, b) in enumerate(zip(ours.W_0, ours.b_0, strict=True)):
        model = PlainEnvironment(frozen.content_Uc, ids, psi, plain(subject, psi))
        model.project.weight.data.copy_(W)
        model.project.bias.data.copy_(b)
        mine = environment_b == e
        count = int(mine.sum())
        fit = model.loss(user_b[mine], item_b[mine], batch.negative.expand(count, -1))
        total += float(fit.detach()) * count / len(user_b) + l2 / E * float(W.detach().square().sum())
    assert total == pytest.approx(float(ours(step, environment_n[None]).detach()), rel=1e-5)


def test_plain_batches_have_every_interaction_once_an_epoch() -> None:
    user, item = torch.arange(10, dtype=torch.int32), torch.arange(10, dtype=torch.int32) % 4
    drawn = batches(user, item, items=4, size=4, negatives=200)
    epochs = [[next(drawn) for _ in range(3)] for _ in range(2)]
    users = [torch.cat([batch.user_b for batch in epoch]) for epoch in epochs]
    assert not torch.equal(*users)
    for epoch, user_n in zip(epochs, users, strict=True):
        assert sorted(user_n.tolist()) == list(range(10))
        assert [len(batch.user_b) for batch in epoch] == [4, 4, 2]
        for batch in epoch:
            assert torch.equal(batch.item_b, batch.user_b % 4)
            assert batch.negative_bn.shape == (len(batch.user_b), 200)
            assert batch.negative_bn.unique().tolist() == [0, 1, 2, 3]


def test_stepping_goes_through_epochs_as_a_fit_does(subject: Subject) -> None:
    task = subject.other("merge.epochs=2").ids
    step, steps, seen = stepping(task, task.config), task.draws.steps, []
    real = task.step

    def noted() -> dict[str, torch.Tensor]:
        seen.append((int(task.draws.number), float(task.lr.now)))
        return real()

    task.step = noted  # type: ignore[method-assign]
    for _ in range(2 * steps + 1):
        step()
    assert [number for number, _ in seen] == [*range(2 * steps), 0]
    assert [lr for _, lr in seen] == pytest.approx(
        [task.config.lr * (1 - number / (2 * steps)) for number, _ in seen], abs=1e-8
    )


def test_plain_loop_ranks_as_ours(subject: Subject) -> None:
    data = subject.data
    generator = torch.Generator().manual_seed(1)
    score_UI = torch.randn(data.n_users, data.n_items, generator=generator)
    pairs = [subject.dataset.interactions(split) for split in ("train", "val")]
    sets = [[set(item[user == u].tolist()) for u in range(data.n_users)] for user, item in pairs]
    seen, held = (ranking.Seen.of(pair, data.n_users) for pair in pairs)
    lists = ranking.Ranking(lambda u, mask: (score_UI[u].clone(), None), [seen], data.n_items, 20, 64)
    judged = metrics.Judged(held, (20,))
    ours = metrics.evaluate(lists, np.arange(data.n_users), judged)[0].means(Engine(), None)
    assert ndcg(score_UI.numpy(), *sets, 20) == pytest.approx(ours["ndcg@20"], rel=1e-6)


def test_made_data_has_its_size(subject: Subject) -> None:
    assert (subject.data.n_users, subject.data.n_items, len(subject.user)) == (200, 300, 4000)
    assert len(np.unique(subject.user.numpy() * 300 + subject.item.numpy())) == 4000


def test_cost_of_a_backbone_step_by_hand() -> None:
    cost = costs.backbone(costs.Samples(B=2, N=3, s=1), costs.Rows(d=4, c=5, U=2, R=4), w=6)
    assert cost.flop == 3 * 2 * (2 * 9 * 3) + 3 * 2 * 2 * 2 * 9 + 2 * 2 * (4 * 6 * 5)
    assert cost.moved == 6 * 4 * (2 * 9 + 4 * 4) + 4 * 4 * 6


def test_cost_of_content_that_is_added_to_ids_by_hand() -> None:
    cost = costs.backbone(costs.Samples(B=2, N=3), costs.Rows(d=4, c=0, U=2, R=4), w=6)
    assert cost.flop == 3 * 2 * (2 * 4 * 3) + 3 * 2 * 2 * 4 + 2 * 2 * (4 * 6 * 4)
    assert cost.moved == 6 * 4 * (2 * 4 + 4 * 4) + 4 * 4 * 6


def test_cost_of_a_step_of_stage_2_by_hand() -> None:
    cost = costs.stage2(costs.Samples(B=2, N=3), costs.Rows(d=4, c=5, U=2, R=4), widths=[6, 7])
    assert cost.flop == 2 * (2 * 4 * 3) + 2 * 2 * (2 * 5 * 13) + 2 * 2 * (2 * 13 * 3)
    assert cost.moved == 4 * (2 * 9 + 4 * (4 + 13))


def test_alternate_takes_turns() -> None:
    order: list[str] = []
    measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4


def test_a_report_is_written_and_compared(tmp_path: Path) -> None:
    machine = {"GFLOP/s": 1.0, "GB/s": 1.0, "threads": 1}
    old, new = (Report(machine, [Row("steps", "x", {"ms": ms, "only here": 1.0})]) for ms in (2.0, 3.0))
    new.rows[0].values.pop("only here")
    old.write(tmp_path / "old.json")
    console = Console(record=True, width=120)
    measure.compare(Report.read(tmp_path / "old.json"), new, console)
    text = console.export_text()
    assert "1.50" in text
    assert "only here" not in text


@pytest.mark.parametrize(
    ("sections", "ends"),
    [
        (["steps", "plain"], {"merge step", "align step", "evaluation"}),
        (["gpu"], {*(f"{kind} step" for kind in STEPS), "ranking of all users"}),
        (["launches"], {*(f"{kind} step" for kind in STEPS), "evaluation block"}),
    ],
)
def test_the_command_writes_json(
    sections: list[str], ends: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", Size(users=150, items=200, pairs=3000, widths=(6,)))
    monkeypatch.setattr(measure, "roof", lambda device: measure.Roof(1e11, 1e10))
    out = tmp_path / "out.json"
    result = CliRunner().invoke(cli.main, [*sections, "--size", "tiny", "--json", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert {row["section"] for row in rows} == {*sections}
    assert {row["what"].split(",")[0] for row in rows} >= ends
    assert all(0 < value < 2 for row in rows for name, value in row["values"].items() if name.startswith("share"))
    assert all("on the CPU" in row["note"] for row in rows if row["section"] == "gpu")


def test_a_gpu_is_measured_without_a_device_that_stands_in_for_one() -> None:
    """Once PyTorch's spare backend is registered, autograd takes it for the accelerator and fails on a real one."""
    code = "import sys, benchmarks.__main__; sys.exit('benchmarks.standin' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for bad in (["stepz"], ["--size", "huge"], ["steps", "--compare", str(tmp_path / "none.json")], ["peers"],
                ["--peer", "nobody"], ["growth", "--device", "cuda"]):  # fmt: skip
        refused = CliRunner().invoke(cli.main, bad)
        assert refused.exit_code == 2
        assert "Traceback" not in refused.output


def test_a_course_says_when_the_target_is_reached_and_when_to_end() -> None:
    course = peers.Course(peers.Limits(seconds=100, target=0.2, patience=2))
    assert [course.add(2.0 * (at + 1), x) for at, x in enumerate((0.1, 0.21, 0.2, 0.19))] == [True, True, True, False]
    assert course.values() == {"s per epoch": 2.0, "epochs": 4.0, "best ndcg@10": 0.21, "s to ndcg@10 0.2": 4.0}
    assert not peers.Course(peers.Limits(1.0, 0.2)).add(1.5, 0.1)


FAKE_PEER = """
import sys, numpy as np
sys.argv[0] = {script!r}
sys.path.insert(0, {folder!r})
import train
def fit(given):
    given.start()
    scores = np.zeros((given.users, given.items), dtype=np.float32)
    while True:
        scores[given.user, given.item] += 1
        given.told(lambda: scores)
given = train.Given(__import__("pathlib").Path(sys.argv[2]), 1)
try:
    fit(given)
except train.Enough:
    pass
"""


def test_a_peer_trains_in_a_process_of_its_own(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of the training pairs alone are masked before they rank, so a peer that learns by heart has chance."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE_PEER.format(script=str(peers.SCRIPT), folder=str(peers.SCRIPT.parent)))
    monkeypatch.setattr(peers, "SCRIPT", script)
    rank = peers.validation(subject)
    limits = peers.Limits(seconds=100, target=0.9, patience=3)
    row = peers.theirs("implicit BPR", subject, rank, (sys.executable,), limits)
    if row.values:  # implicit is installed
        pytest.fail("the fake peer needs a package that is there") if row.values["epochs"] != 4 else None
    monkeypatch.setitem(peers.THEIRS, "fake", ("numpy", "ids"))
    row = peers.theirs("fake", subject, rank, ("/no/python", os.path.relpath(sys.executable)), limits)
    assert row.values["epochs"] == 4
    assert row.values["best ndcg@10"] == rank(np.zeros((subject.data.n_users, subject.data.n_items), np.float32))
    monkeypatch.setitem(peers.THEIRS, "absent", ("no_such_package", "ids"))
    row = peers.theirs("absent", subject, rank, (sys.executable,), limits)
    assert (row.values, "not installed" in row.note) == ({}, True)
    script.write_text("raise ValueError('broken')")
    row = peers.theirs("fake", subject, rank, (sys.executable,), limits)
    assert (row.values, "broken" in row.note) == ({}, True)


def test_wall_clock_is_booked_once() -> None:
    parts = [
        {"entered": 13.0, "left": 20.0, "clocks": {"steps": 6.0, "other": 1.0}},
        {"entered": 24.0, "left": 30.0, "clocks": {"steps": 5.0, "evaluation": 1.0}},
    ]
    values = whole.account(10.0, 22.0, [12.0, 20.0], parts)
    assert values["share start-up"] == pytest.approx((2 + 1 + 4) / 22)
    assert values["share steps"] == pytest.approx(11 / 22)
    assert values["share waiting and exit"] == pytest.approx(2 / 22)
    assert values["share not steps or evaluation"] == pytest.approx(10 / 22)
    assert sum(x for name, x in values.items() if name.startswith("share") and "not" not in name) == pytest.approx(1)


def test_clocks_inside_clocks_stop_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(x) for x in range(100))
    monkeypatch.setattr(timed.time, "perf_counter", lambda: next(now))

    class Work:
        def outer(self) -> None:
            self.inner()

        def inner(self) -> None:
            pass

    clocks = timed.Clocks()
    clocks.around(Work, "outer", "a")
    clocks.around(Work, "inner", "b")
    Work().outer()
    assert clocks.seconds == {"a": 2.0, "b": 1.0}


def test_a_run_accounts_for_its_wall_clock(tmp_path: Path) -> None:
    data = made(Size(users=60, items=50, pairs=900, widths=(4,)), tmp_path / "data").root
    row = whole.train(Path(data), 0, ("align.epochs=1", "invariance.rounds=1", "merge.epochs=1"))
    shares = {name: x for name, x in row.values.items() if name.startswith("share") and "not" not in name}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < x < 1 for x in shares.values())
    assert row.values["start-ups"] == 1


def test_growth_is_relative_to_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "seconds", lambda call, *args: (call(), 0.5)[1])
    small = Size(users=80, items=70, pairs=600, widths=(4,))
    rows = [
        *growth.tables("users", (10**4,), tmp_path, 5000),
        *growth.environments(small, "tiny", (1, 3), tmp_path),
        *growth.modalities((1, 2), tmp_path, small),
        *growth.evaluation((100, 200)),
    ]
    for row in rows:
        if any(row.what.endswith(end) for end in ("10,000 users", "E=1, tiny", "M=1", "100 items")):
            assert next(x for name, x in row.values.items() if name.startswith("times")) == 1
    assert {row.what for row in rows} >= {"masks, E=3, tiny", "round of stage 2, M=2", "evaluation, 200 items"}
    assert next(row for row in rows if row.what.endswith("M=2")).values["ms per representation"] == pytest.approx(
        500 / 3
    )
