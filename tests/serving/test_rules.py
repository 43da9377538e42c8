"""What lists may hold, and why an item is on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from cli_helpers import call
from test_histories import lists

import m3dist
from m3dist.evaluation.ranking import Block, Users
from m3dist.method.fusions.base import Fusion
from m3dist.serving.rules import diversified

USERS = [3, 7, 11]


class Certain(Fusion):
    """Weights that differ between members and users, and that depend on what users have seen."""

    def weights(self, scores: list[torch.Tensor]) -> torch.Tensor:
        return torch.softmax(torch.stack([9 * score_uI.amax(1) for score_uI in scores], dim=1), dim=1)


@pytest.fixture(scope="module")
def run(finished_run: Path) -> m3dist.Run:
    opened = m3dist.load(str(finished_run), "cpu")
    opened.score.fusion = Certain(3, {})
    return opened


def found(run: m3dist.Run, k: int = 90, **rules: Any) -> dict[Any, list[Any]]:
    return lists(run.recommend(USERS, k, rules=m3dist.Rules(**rules)))


def seen(run: m3dist.Run, user: int) -> set[int]:
    parts = [run.dataset.interactions(split) for split in ("train", "val", "test")]
    return {int(i) for u, items in parts for i in items[u == user]}


def test_candidates_and_exclusions(run: m3dist.Run) -> None:
    every = found(run)
    few = list(range(20, 60))
    assert found(run, candidates=few) == {u: [i for i in items if i in few] for u, items in every.items()}
    assert found(run, exclude=few) == {u: [i for i in items if i not in few] for u, items in every.items()}
    by_user = found(run, candidates={"3": few, 7: [], 99: few})
    assert by_user == {3: [i for i in every[3] if i in few]}
    by_user = found(run, exclude={3: few})
    assert by_user == {**every, 3: [i for i in every[3] if i not in few]}
    with pytest.raises(ValueError, match="candidates: 1 of 2 item ids are unknown: 1000"):
        found(run, candidates=[1, 1000])
    assert found(run, candidates=[1000, *few], skip_unknown=True) == found(run, candidates=few)


def test_seen_items_where_they_are_wanted(run: m3dist.Run) -> None:
    """They join the ranking, which is the same without them, and with the same weights of modalities."""
    plain, whole = run.recommend(USERS, 90), run.recommend(USERS, 90, rules=m3dist.Rules(include_seen=True))
    assert all(sorted(items) == list(range(90)) for items in lists(whole).values())
    users, items, scores = (torch.tensor(whole[name].to_pylist()) for name in ("user", "item", "score"))
    members = run.score.members
    weight_nM = torch.tensor([whole[f"weight_modality{m}"].to_pylist() for m in range(3)]).T
    each = [(u[users] * v[items]).sum(1) for u, v in zip(members.user, members.item, strict=True)]
    assert torch.allclose(scores, (weight_nM * torch.stack(each, dim=1)).sum(1), atol=1e-5)
    kept = [row for row in whole.to_pylist() if row["item"] not in seen(run, row["user"])]
    same = [{name: value for name, value in row.items() if name != "rank"} for row in kept]
    assert same == [{name: value for name, value in row.items() if name != "rank"} for row in plain.to_pylist()]


def test_boosts_and_a_hook(run: m3dist.Run) -> None:
    every = found(run)
    last = {items[-1] for items in every.values()}
    boosted = found(run, boosts=dict.fromkeys(last, 100.0))
    assert all(set(items[: len(last)]) >= {every[user][-1]} for user, items in boosted.items())
    names: list[Any] = []

    def hook(users: list[Any], score_uI: torch.Tensor) -> torch.Tensor:
        names.extend(users)
        return -score_uI.masked_fill(score_uI == float("-inf"), float("inf"))

    assert found(run, hook=hook) == {user: items[::-1] for user, items in every.items()}
    assert names == USERS
    with pytest.raises(ValueError, match="hook: expected it to return scores of shape"):
        found(run, hook=lambda users, score_uI: score_uI[0])
    with pytest.raises(ValueError, match="boosts: expected numbers, got nan"):
        found(run, boosts={1: float("nan")})


def test_only_new_items(run: m3dist.Run) -> None:
    trained = set(np.flatnonzero(run.dataset.degrees[1]).tolist())
    every = found(run)
    assert found(run, only_new=True) == {
        u: rest for u, items in every.items() if (rest := [i for i in items if i not in trained])
    }


def test_a_diverse_list_is_the_greedy_one() -> None:
    rng = np.random.default_rng(0)
    content_Iw = F.normalize(torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32)), dim=1)
    item_up = torch.from_numpy(np.stack([rng.permutation(30)[:12] for _ in range(3)]))
    score_up = torch.from_numpy(-np.sort(-rng.random((3, 12)), axis=1).astype(np.float32))
    score_up[2, 9:] = float("-inf")
    block = Block(Users.of(np.arange(3), "cpu"), item_up, score_up, None, score_up)
    got = diversified(block, content_Iw, 0.4, 5)
    for u in range(3):
        taken = greedy(content_Iw[item_up[u]], score_up[u], 0.4)
        assert got.item_uk[u].tolist() == item_up[u][taken].tolist()
        assert got.score_uk[u].tolist() == score_up[u][taken].tolist()


def greedy(content_pw: torch.Tensor, score_p: torch.Tensor, weight: float) -> list[int]:
    """Places of a list of 5, one item after another."""
    low = score_p[score_p > float("-inf")].min()
    taken: list[int] = []

    def value(p: int) -> float:
        like = max((float(content_pw[p] @ content_pw[q]) for q in taken), default=0.0)
        return (1 - weight) * float((score_p[p] - low) / (score_p.max() - low)) - weight * like

    while len(taken) < 5:
        taken.append(max((p for p in range(len(score_p)) if score_p[p] >= low and p not in taken), key=value))
    return taken


def test_lists_get_more_diverse(run: m3dist.Run) -> None:
    assert found(run, 10, diverse=0.0) == found(run, 10)
    content_Iw = run.catalogue.content_Iw
    assert content_Iw is not None

    def likeness(table: dict[Any, list[Any]]) -> float:
        cosines = [content_Iw[items] @ content_Iw[items].T for items in table.values()]
        return float(torch.stack(cosines).mean())

    plain, half, whole = (likeness(found(run, 10, diverse=weight)) for weight in (0.0, 0.5, 1.0))
    assert plain > half > whole
    with pytest.raises(ValueError, match="diverse: expected a number from 0 to 1, got 2"):
        m3dist.Rules(diverse=2)


def test_reasons(run: m3dist.Run) -> None:
    users = np.array(USERS)
    table = run.recommend(USERS, 5, reasons=True)
    members = run.score.members
    for row in table.to_pylist():
        weight = [row[f"weight_modality{m}"] for m in range(3)]
        part = [
            w * float(u[row["user"]] @ v[row["item"]])
            for w, u, v in zip(weight, members.user, members.item, strict=True)
        ]
        assert row["reason"] == f"modality{int(np.argmax(part))}"
        assert sum(part) == pytest.approx(row["score"], abs=1e-4)
        history = sorted(seen(run, row["user"]))
        like = sum(
            w * F.cosine_similarity(v[row["item"]], v[history]) for w, v in zip(weight, members.item, strict=True)
        )
        nearest = [history[at] for at in torch.topk(like, 3).indices.tolist()]
        assert [row[f"because_{n}"] for n in (1, 2, 3)] == nearest
    few = run.recommend(k=4, histories={"a": [5], "b": []}, reasons=True).to_pylist()
    assert [(row["because_1"], row["because_2"]) for row in few] == [(5, None)] * 4 + [(None, None)] * 4
    assert len(users) * 5 == table.num_rows


def test_rules_on_the_command_line(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.txt").write_text("\n".join(map(str, range(40))))
    (tmp_path / "not.csv").write_text("user,item\n3,1\n3,2\n7,4\n")
    (tmp_path / "boosts.csv").write_text("item,boost\n5,2.5\n6,-1\n")
    out = tmp_path / "top.parquet"
    given = ["recommend", finished_run, "--out", out, "--k", 8, *(x for user in USERS for x in ("--user", user))]
    rules = [
        "--candidates",
        tmp_path / "some.txt",
        "--exclude",
        tmp_path / "not.csv",
        "--boosts",
        tmp_path / "boosts.csv",
    ]
    assert call(*given, *rules, "--include-seen", "--diverse", 0.3, "--reasons") == 0
    said = m3dist.Rules(range(40), {3: [1, 2], 7: [4]}, True, False, {5: 2.5, 6: -1.0}, 0.3)
    assert pq.read_table(out).equals(m3dist.load(str(finished_run)).recommend(USERS, 8, rules=said, reasons=True))
    (tmp_path / "boosts.csv").write_text("item,boost\n5,much\n")
    assert call(*given, *rules) == 2
    assert "boosts.csv: item '5': expected a number, got 'much'" in capsys.readouterr().err
    assert call(*given, "--candidates", tmp_path / "none.txt") == 2
    assert "none.txt: no such file; expected item ids" in capsys.readouterr().err
