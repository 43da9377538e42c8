"""The benchmark's reference computes m3dist's loss and metrics, and its reports compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import __main__ as cli
from benchmarks import costs, measure
from benchmarks.measure import Report, Row
from benchmarks.plain import PlainEnvironment, PlainUltraGCN, ndcg
from benchmarks.sizes import SIZES, Size, made
from benchmarks.subjects import Subject
from m3dist import ranking
from m3dist.seeding import numpy_rng
from m3dist.stages import invariance

SMALL = [
    "backbone.dim=8", "backbone.content_dim=8", "backbone.negatives=12", "backbone.nu=0.3", "backbone.l2=0.01",
    "merge.batch_size=64", "align.batch_size=64", "align.dim=8", "invariance.negatives=16", "invariance.batch_size=96",
    "invariance.environments=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    size = Size(users=200, items=300, pairs=4000, widths=(6, 5))
    return Subject(made(size, tmp_path_factory.mktemp("bench") / "data"), *SMALL)


def plain(subject: Subject, content: torch.Tensor) -> PlainUltraGCN:
    return PlainUltraGCN(subject.data.n_users, content, subject.config.backbone, subject.data.weights)


def test_plain_backbone_computes_our_loss(subject: Subject) -> None:
    task = subject.other("backbone.sampling=per_positive", "backbone.init_std=0.3").backbone
    member, content = task.members[0], task.contents[0]
    assert content is not None
    model = plain(subject, content)
    model.user.weight.data.copy_(member.user.weight)
    model.item.weight.data.copy_(member.item.weight)
    model.project.load_state_dict(member.model.project.state_dict())
    batch = task.sampler(0, 0)
    columns = numpy_rng(batch.seed, "neighbours").permutation(10)[: subject.config.backbone.neighbour_samples]
    theirs = model.loss(batch.user_b, batch.item_b, batch.negative, torch.from_numpy(columns))
    assert float(theirs.detach()) == pytest.approx(float(task.step(batch)["loss"]), rel=1e-5)


def test_plain_environments_compute_our_loss(subject: Subject) -> None:
    """Each environment's mean over its own interactions, weighted by its share of the batch."""
    frozen, psi = subject.frozen, subject.representations[0]
    E, D, c = 3, psi.shape[1], subject.config.backbone.content_dim
    batch = subject.data.sampler(96, "t", 16)(0, 0)
    environment_b = torch.arange(96) % E
    models = {e: invariance.fresh(subject.config, c, D, "t", e) for e in range(E)}
    models = {e: (W.requires_grad_(), b.requires_grad_()) for e, (W, b) in models.items()}
    ours = float(invariance.environment_loss(frozen, batch, 0, torch.ones(D), environment_b, models).detach())
    total = 0.0
    for e in range(E):
        model = PlainEnvironment(frozen.user_Uk, frozen.item_Id, psi, plain(subject, psi))
        model.project.weight.data.copy_(models[e][0])
        model.project.bias.data.copy_(models[e][1])
        mine = environment_b == e
        negative_bn = batch.negative.expand(int(mine.sum()), -1)
        total += float(model.loss(batch.user_b[mine], batch.item_b[mine], negative_bn).detach()) / E
    assert total == pytest.approx(ours, rel=1e-5)


def test_plain_loop_ranks_as_ours(subject: Subject) -> None:
    data = subject.data
    generator = torch.Generator().manual_seed(1)
    score_UI = torch.randn(data.n_users, data.n_items, generator=generator)
    pairs = [subject.dataset.interactions(split) for split in ("train", "val")]
    sets = [[set(item[user == u].tolist()) for u in range(data.n_users)] for user, item in pairs]
    seen, held = (ranking.Seen.of([pair], data.n_users) for pair in pairs)
    everyone = torch.arange(data.n_users)
    ours = ranking.evaluate(lambda u: score_UI[u].clone(), everyone, seen, held, data.n_items, (20,), 64)[0].means()
    assert ndcg(score_UI.numpy(), *sets, 20) == pytest.approx(ours["ndcg@20"], rel=1e-6)


def test_made_data_has_its_size(subject: Subject) -> None:
    assert (subject.data.n_users, subject.data.n_items, len(subject.data.user)) == (200, 300, 4000)
    assert len(np.unique(subject.data.user.numpy() * 300 + subject.data.item.numpy())) == 4000


def test_cost_of_a_backbone_step_by_hand() -> None:
    cost = costs.backbone(B=2, N=3, d=4, c=5, w=6, s=1, U=2, R=4)
    assert cost.flop == 3 * 2 * (2 * 9 * 3) + 3 * 2 * 2 * 2 * 9 + 2 * 2 * (4 * 6 * 5)
    assert cost.moved == 6 * 4 * (2 * 9 + 4 * 4) + 4 * 4 * 6


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


def test_the_command_writes_json_and_refuses_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", Size(users=150, items=200, pairs=3000, widths=(6,)))
    monkeypatch.setattr(measure, "roof", lambda: measure.Roof(1e11, 1e10))
    out = tmp_path / "out.json"
    result = CliRunner().invoke(cli.main, ["steps", "--size", "tiny", "--json", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert any(row["what"] == "merge step, tiny" and row["values"]["ms"] > 0 for row in rows)
    assert all(0 < value < 2 for row in rows for name, value in row["values"].items() if name.startswith("share"))
    for bad in (["stepz"], ["--size", "huge"], ["steps", "--compare", str(tmp_path / "none.json")]):
        refused = CliRunner().invoke(cli.main, bad)
        assert refused.exit_code == 2
        assert "Traceback" not in refused.output
