"""A step's loss and gradients of its rows against autograd on a dense float64 computation over whole tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F

from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.method.backbone import Backbones, backbone_loss
from m3dist.method.content import Contents
from m3dist.method.merge import MergeTask
from m3dist.training.context import Context

SMALL = [
    "synthetic.users=60", "synthetic.items=90", "synthetic.interactions=20", "backbone.dim=5", "backbone.content_dim=4",
    "backbone.negatives=7", "backbone.init_std=0.5", "merge.batch_size=150", "backbone.kappa=0.7", "backbone.w2=0.6",
    "backbone.w4=1.3", "backbone.l2=0.02", "backbone.content_l2=0.05", "backbone.loss=ultragcn",
]  # fmt: skip
OWN = ["backbone.sampling=per_positive", "backbone.neighbour_samples=2"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("backbone") / "data"
    synthetic.write(root, load(None, SMALL).synthetic, 0)
    return Dataset(root)


@pytest.mark.parametrize("members", ["ids", "all", "each"])
@pytest.mark.parametrize(
    "values",
    [
        [],
        ["backbone.groups=1", "backbone.neighbour_samples=3"],
        ["backbone.nu=0", "backbone.groups=7"],
        ["backbone.content=add"],
        [*OWN, "backbone.negatives=5"],  # of which the scores of all of a step's items are found
        [*OWN, "backbone.negatives=1"],  # and of which alone
        [*OWN, "backbone.negatives=5", "backbone.nu=0"],
        ["backbone.loss=softmax", "backbone.kappa=0"],
        ["backbone.loss=softmax", "backbone.tau=0.1", "backbone.groups=1", "backbone.nu=0.2"],
        ["backbone.loss=softmax", "backbone.content=concat"],
        ["backbone.loss=softmax", "backbone.id_dropout=0.4"],
        ["backbone.id_dropout=0.4"],
    ],
)
@pytest.mark.parametrize("step", [0, -1])
def test_a_step_against_autograd(members: str, values: list[str], step: int, dataset: Dataset) -> None:
    """The first step of an epoch has an interaction more than the last, whose shapes have a place for it, too."""
    context = Context(dataset, load(None, [*SMALL, *values]))
    features = context.data.features
    task = MergeTask(
        context, Contents.beside({"ids": [None], "all": [context.data.all_features], "each": features}[members])
    )
    backbones, draws = task.members, task.draws
    draws.seek(0, step % draws.steps)
    batch = draws.draw()
    assert int(batch.valid_Pb.sum()) == (138 if step == 0 else 137)
    sampled = backbones.sample(batch)
    assert float(sampled.part) == pytest.approx(1)
    rows = backbones.rows(sampled)
    ids_R = sampled.item.slots.ids_R
    projects = [model.project for model in backbones.models]
    pairs = [*zip(projects, task.contents.each(), strict=True)]
    contents = [None if p is None or x is None else p(x[ids_R]) for p, x in pairs]
    terms, loss, grads = backbone_loss(backbones, sampled, rows, contents)
    torch.testing.assert_close(loss.detach(), torch.stack([*terms.values()]).sum())
    for m, (project, x) in enumerate(pairs):
        leaves = [table.weight[m].double().requires_grad_() for table in (backbones.user, backbones.item)]
        item_Ik = id_Id = leaves[1]
        if sampled.kept_MR1 is not None:
            kept_I1 = torch.ones(len(item_Ik) + 1, 1, dtype=torch.float64)
            kept_I1[ids_R] = sampled.kept_MR1[m].double()
            item_Ik = id_Id = id_Id * kept_I1[:-1]
        if project is not None and x is not None:
            leaves += [p.detach().double().requires_grad_() for p in project.parameters()]
            content_Ic = x[:-1].double() @ leaves[2].T + leaves[3]
            item_Ik = item_Ik + content_Ic if backbones.adds else torch.cat([item_Ik, content_Ic], dim=1)
        want = plain.terms(batch, backbones, [leaves[0], item_Ik, id_Id])
        assert terms.keys() == want.keys()
        for name, value in want.items():
            assert float(terms[name][m]) == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-8), name
        of_user, of_item, *of_project = torch.autograd.grad(torch.stack([*want.values()]).sum(), leaves)
        found = [(sampled.user, grads.user_MRk, of_user), (sampled.item, grads.id_MRd, of_item)]
        for touched, grad_MRk, full in found:
            there = touched.slots.ids_R < touched.table.n
            mine = torch.zeros_like(full)
            mine[touched.slots.ids_R[there]] = grad_MRk[m, there].double()
            torch.testing.assert_close(mine, full, rtol=1e-4, atol=1e-6)  # and 0 of rows that no step touches
            assert grad_MRk[m, ~there].count_nonzero() == 0
        if project is not None:
            mine = torch.autograd.grad(loss, [*project.parameters()], retain_graph=True)
            for a, b in zip(mine, of_project, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


def test_a_step_leaves_out_ids_beside_content(dataset: Dataset) -> None:
    """Others in each step and for each member; the same of an item whichever other items a step reads; none of ids
    alone."""
    context = Context(dataset, load(None, [*SMALL, "backbone.loss=softmax", "backbone.id_dropout=0.4"]))
    x, I = context.data.all_features, context.data.n_items
    task = MergeTask(context, Contents.beside([x, x]))
    found = []
    for number in range(2):
        task.draws.seek(0, number)
        batch = task.draws.draw()
        every = dataclasses.replace(batch, negative=torch.arange(I).repeat(len(batch.negative), 1))
        sampled, further = task.members.sample(every), task.members.sample(batch)
        assert sampled.kept_MR1 is not None
        assert further.kept_MR1 is not None
        assert sampled.item.slots.ids_R[:I].tolist() == [*range(I)]  # and the spare row where a place has no item
        there = further.item.slots.ids_R < I
        assert torch.equal(sampled.kept_MR1[:, further.item.slots.ids_R[there]], further.kept_MR1[:, there])
        found.append(sampled.kept_MR1[:, :I])
    kept = torch.stack(found)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.6, abs=0.08)  # of 360
    for a, b in [(kept[0, 0], kept[0, 1]), (kept[0, 0], kept[1, 0]), (kept[0, 1], kept[1, 0])]:
        assert 0.3 < float((a != b).double().mean()) < 0.7  # 0.48 where they are independent
    alone = MergeTask(context, Contents.beside([None]))
    alone.draws.seek(0, 0)
    assert alone.members.sample(alone.draws.draw()).kept_MR1 is None


def test_members_start_from_seeds_of_their_own_or_from_given_tables(dataset: Dataset) -> None:
    config = load(None, SMALL)
    context = Context(dataset, config)
    widths, keys = [4, 4], [("merge", 0), ("merge", 1)]
    both, second = Backbones(context.data, config, widths, keys), Backbones(context.data, config, [4], keys[1:])
    assert (both.user.weight[0] != both.user.weight[1]).all()
    assert torch.equal(both.user.weight[1], second.user.weight[0])
    assert torch.equal(both.item.weight[1], second.item.weight[0])
    for name, p in second.models[0].named_parameters():
        assert torch.equal(dict(both.models[1].named_parameters())[name], p)
    given = {"user": torch.rand(60, 9), "item": torch.rand(90, 5)}
    begun = Backbones(context.data, config, widths, keys, given)
    for m in range(2):
        assert torch.equal(begun.user.weight[m, :, :5], given["user"][:, :5])
        assert torch.equal(begun.user.weight[m, :, 5:], both.user.weight[m, :, 5:])  # content starts fresh
        assert torch.equal(begun.item.weight[m], given["item"])


def test_live_rows_by_name(dataset: Dataset) -> None:
    config = load(None, SMALL)
    tables = Backbones(Context(dataset, config).data, config, [0, 0], [("a",), ("b",)])
    named = tables.tables("{}.")
    assert named.keys() == {"0.user", "1.user", "0.item", "1.item"}
    tables.item.weight[1, 3] = 7
    assert (named["1.item"][3] == 7).all()


def test_a_step_moves_the_rows_that_it_touches_alone(dataset: Dataset, tmp_path: Path) -> None:
    config = load(None, [*SMALL, "merge.batch_size=8", "backbone.groups=2"])
    context = Context(dataset, config)
    task = MergeTask(context, Contents.beside(context.data.features))
    task.draws.seek(0, 0)
    batch = task.draws.draw()
    near_sX = task.members.weights.neighbours(batch.item_B, batch.columns_s)[0]
    before = [table.weight.clone() for table in (task.members.user, task.members.item)]
    task.step()
    items = torch.cat([batch.item_B, batch.negative_B.flatten(), near_sX.flatten()])
    read = (batch.user_Pb.view(-1), items)
    for table, was, ids in zip((task.members.user, task.members.item), before, read, strict=True):
        touched = torch.isin(torch.arange(table.n), ids)
        assert torch.equal(table.weight[:, ~touched], was[:, ~touched])
        moved = (table.weight[:, touched] - was[:, touched]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, config.merge.lr), rtol=1e-3, atol=0)  # Adam's first


COLD_USERS, COLD_ITEMS = [6, 11], [0, 7, 13]  # without training interactions


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 users and 14 items, of whom some only turn up in validation."""
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.permutation(12 * 14), 14)
    known = ~np.isin(user, COLD_USERS) & ~np.isin(item, COLD_ITEMS)
    train, rest = np.flatnonzero(known)[:70], np.flatnonzero(~known)
    assert set(item[train]) == set(range(14)) - set(COLD_ITEMS)
    root = tmp_path_factory.mktemp("cold") / "data"
    with Writer(root) as out:
        out.features("visual", rng.standard_normal((14, 3)).astype(np.float32))
        out.features("text", rng.standard_normal((14, 2)).astype(np.float32))
        parts = {"train": train, "val": rest[:20], "test": rest[20:40]}
        out.interactions(12, 14, {split: (user[at], item[at]) for split, at in parts.items()})
        out.finish()
    return Dataset(root)


def trained(dataset: Dataset, values: list[str], ids_alone: bool = False) -> MergeTask:
    """Members on each modality, or one on ids alone, after an epoch."""
    small = ["merge.batch_size=8", "backbone.groups=2", "backbone.negatives=6", "backbone.dim=4", "merge.lr=0.05"]
    context = Context(dataset, load(None, [*small, "backbone.content_dim=3", *values]))
    task = MergeTask(context, Contents.beside([None] if ids_alone else context.data.features))
    task.draws.seek(0, 0)
    for _ in range(task.draws.steps):
        task.step()
        task.draws.advance()
    return task


def drawn(task: MergeTask) -> set[int]:
    """Items that are negatives in some epochs."""
    found = set()
    for epoch in range(20):
        task.draws.seek(epoch, 0)
        for _ in range(task.draws.steps):
            found |= set(task.draws.draw().negative.flatten().tolist())
            task.draws.advance()
    return found


LOSSES = [["backbone.loss=softmax"], ["backbone.loss=ultragcn"], ["backbone.loss=ultragcn", "backbone.content=add"]]


@pytest.mark.parametrize("values", LOSSES)
def test_an_item_that_was_never_seen_ranks_by_content_alone(values: list[str], cold: Dataset) -> None:
    task = trained(cold, values)
    item_MId = task.members.item.weight
    assert item_MId[:, COLD_ITEMS].count_nonzero() == 0
    warm = torch.tensor([i for i in range(14) if i not in COLD_ITEMS])
    assert (item_MId[:, warm].norm(dim=2) > 1e-3).all()
    assert drawn(task) == set(warm.tolist())
    for m, (matrix_Ik, x) in enumerate(zip(task.matrices().values(), task.contents.each(), strict=True)):
        project = task.members.models[m].project
        assert project is not None
        assert x is not None
        content_Ic = project(x[:-1]).detach()
        whole = item_MId[m] + content_Ic if task.members.adds else torch.cat([item_MId[m], content_Ic], dim=1)
        if values == LOSSES[0]:
            whole = whole / whole.norm(dim=1, keepdim=True)
        torch.testing.assert_close(matrix_Ik, whole)


def test_items_never_seen_are_negatives_where_the_pool_is_all_items(cold: Dataset) -> None:
    for task in (trained(cold, [*LOSSES[0], "backbone.pool=all"]), trained(cold, LOSSES[0], ids_alone=True)):
        assert drawn(task) == set(range(14))
        assert (task.members.item.weight[:, COLD_ITEMS].norm(dim=2) > 1e-3).all()


@pytest.mark.parametrize("values", LOSSES)
def test_users_without_interactions_have_the_mean_row(values: list[str], cold: Dataset) -> None:
    members = trained(cold, values).members
    known = [u for u in range(12) if u not in COLD_USERS]
    rows = members.user.weight
    if values == LOSSES[0]:
        rows = rows / rows.norm(dim=2, keepdim=True)
    found = members.users()
    torch.testing.assert_close(found[:, known], rows[:, known])
    mean = rows[:, known].mean(1, keepdim=True)
    torch.testing.assert_close(found[:, COLD_USERS], mean.expand(-1, 2, -1))
    assert torch.equal(members.tables("{}.")["1.user"], found[1])  # as they are kept, too


def test_scores_under_the_softmax_are_cosines(cold: Dataset) -> None:
    task = trained(cold, LOSSES[0])
    rows = torch.randn(2, 5, 4)
    torch.testing.assert_close(task.members.scored(rows), F.normalize(rows, dim=2))
    other = trained(cold, LOSSES[1]).members
    assert other.scored(rows) is rows
    members = task.ranked(task.matrices())
    known = torch.tensor([u for u in range(12) if u not in COLD_USERS])
    for m, score_uI in enumerate(members.scores(known)):
        content_Ic = task.members.models[m].project(task.contents.each()[m][:-1])  # type: ignore[misc, index]
        item_Ik = task.members.item.weight[m] + content_Ic.detach()
        want = F.cosine_similarity(task.members.user.weight[m, known][:, None], item_Ik, dim=2)
        torch.testing.assert_close(score_uI, want, rtol=1e-4, atol=1e-6)
