"""Stage 2's steps: scores that no representation changes, fits of environments, masks; and what a round does beside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
import torch.nn.functional as F

from m3dist.config import Config, load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.shards import Part
from m3dist.distributed.engine import Engine
from m3dist.method.environments import EnvironmentModels, Frozen, Masks, Step, Trained, gamma_of
from m3dist.method.invariance import State, refill
from m3dist.method.trainer import Trainer
from m3dist.models.gate import Gate
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder

SMALL = [
    "synthetic.users=40", "synthetic.items=30", "synthetic.interactions=15", "backbone.dim=4", "backbone.content_dim=8",
    "invariance.environments=3", "invariance.batch_size=200", "invariance.negatives=16", "invariance.rounds=3",
    "backbone.kappa=0.7", "backbone.w4=1.3", "backbone.w2=0.6", "invariance.gamma=0.7", "invariance.rho=0.3",
    "backbone.loss=ultragcn",
]  # fmt: skip
WIDTHS = (16, 8)  # of representations
LOSSES = ["backbone.loss=ultragcn", "backbone.loss=softmax", "backbone.content=add"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("environments") / "data"
    synthetic.write(root, load(None, SMALL).synthetic, 0)
    return Dataset(root)


def tensors(dataset: Dataset, content: str = "concat") -> dict[str, torch.Tensor]:
    """What an earlier stage may leave."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"user": (40, 12 if content == "concat" else 4), "item": (30, 4)}
    made = {f"member.{name}": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    for r, D in enumerate(WIDTHS):
        made[f"representation.{r}"] = torch.randn(30, D, generator=generator)
    return Frozen.tensors(dataset, made)


def frozen_of(dataset: Dataset, *extra: str) -> tuple[Frozen, Config]:
    config = load(None, [*SMALL, *extra])
    return Frozen(tensors(dataset, config.backbone.resolved.content), "cpu", config), config


def step_at(frozen: Frozen, number: int) -> Step:
    draws = frozen.draws("t")
    draws.seek(0, number % draws.steps)
    return frozen.step(draws)


def split(frozen: Frozen) -> torch.Tensor:
    """Every interaction's environment under each representation, int16 [R, n]."""
    return torch.randint(3, (2, len(frozen.user)), generator=torch.Generator().manual_seed(2)).to(torch.int16)


def given(frozen: Frozen, dataset: Dataset) -> plain.Given:
    """The tables, with a row of zeros behind, where a step has no user or item."""
    made = tensors(dataset, frozen.backbone.content)
    tables = (F.pad(made[f"member.{name}"].double(), (0, 0, 0, 1)) for name in ("user", "item"))
    return plain.Given(frozen.backbone, frozen.weights, *tables)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("number", [0, -1])
def test_a_step_draws_what_it_says(number: int, loss: str, dataset: Dataset) -> None:
    """The last step of an epoch is short: what is not there weighs nothing."""
    frozen, _ = frozen_of(dataset, loss)
    step = step_at(frozen, number)
    there = step.batch.valid_Pb[0]
    assert there.all() == (number == 0)
    index = step.batch.index_Pb[0][there].long()
    assert torch.equal(step.batch.user_Pb[0][there], frozen.user[index].long())
    assert torch.equal(step.batch.item_Pb[0][there], frozen.item[index].long())
    torch.testing.assert_close(step.share_b, there / there.sum())
    samples = step.samples
    for weight_b in (samples.positive_b, samples.base_b, samples.scale_b):
        assert (weight_b[~there] == 0).all()
        assert (weight_b[there] > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("names", [{0: [0, 1, 2], 1: [0, 1, 2]}, {1: [2, 0]}, {0: [1], 1: [0, 2]}])
def test_environment_models_against_autograd(
    number: int, names: dict[int, list[int]], loss: str, dataset: Dataset
) -> None:
    """Of some environments of some representations: their loss is a sum over their interactions, each by its share,
    and the square of W, of which every environment has as much."""
    frozen, _ = frozen_of(dataset, loss, "invariance.projection_l2=0.3")
    step, environment = step_at(frozen, number), split(frozen)
    psi = {r: torch.rand(D, generator=torch.Generator().manual_seed(r)) for r, D in enumerate(WIDTHS)}
    models = EnvironmentModels(frozen, names, psi, 1)
    here_Rn = torch.stack([environment[r] for r in names])
    value = models(step, here_Rn)
    parameters = dict(models.named_parameters())
    mine = dict(zip(parameters, torch.autograd.grad(value, [*parameters.values()]), strict=True))
    want = torch.zeros((), dtype=torch.float64)
    leaves: dict[str, torch.Tensor] = {}
    for r, group in names.items():
        W, b = (parameters[f"{name}_{r}"].detach().double().requires_grad_() for name in "Wb")
        leaves |= {f"W_{r}": W, f"b_{r}": b}
        at_b = environment[r][step.batch.index_Pb[0].long()]
        place_b = torch.stack([at_b == e for e in group]).int().argmax(0)
        each_b = given(frozen, dataset).losses(step.batch, frozen.x[r] * psi[r], W[place_b], b[place_b])
        known_b = torch.isin(at_b, torch.tensor(group))
        want = want + (each_b * step.share_b * known_b).sum() + 0.3 / 3 * W.square().sum()
    assert float(value.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    for name, theirs in zip(leaves, torch.autograd.grad(want, [*leaves.values()]), strict=True):
        torch.testing.assert_close(mine[name].double(), theirs, rtol=1e-4, atol=1e-6)


def test_environment_models_of_a_round_start_afresh_and_by_name(dataset: Dataset) -> None:
    frozen, _ = frozen_of(dataset)
    psi = {r: torch.ones(D) for r, D in enumerate(WIDTHS)}
    both = EnvironmentModels(frozen, {0: [0, 1, 2], 1: [2]}, psi, 0)
    alone = EnvironmentModels(frozen, {0: [2]}, psi, 0)
    trained = both.trained(both.state_dict())
    assert {r: len(x.W) for r, x in trained.items()} == {0: 3, 1: 1}
    assert torch.equal(trained[0].W[2:], alone.trained(alone.state_dict())[0].W)
    later = EnvironmentModels(frozen, {0: [2]}, psi, 1)
    assert (later.W_0[0] != alone.W_0[0]).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_masks_without_variance_against_autograd(number: int, gate: str, loss: str, dataset: Dataset) -> None:
    """The mean over environments of their mean losses, W's square, and rho times the mask's distance from 1/2."""
    frozen, _ = frozen_of(
        dataset, f"invariance.gate={gate}", "invariance.gamma=0", "invariance.projection_l2=0.2", loss
    )
    step, environment = step_at(frozen, number), split(frozen)
    logits = {r: torch.randn(D, generator=torch.Generator().manual_seed(r)) for r, D in enumerate(WIDTHS)}
    masks = Masks(frozen, logits, 1)
    found, terms = masks(step, environment)
    parameters = dict(masks.named_parameters())
    mine = dict(zip(parameters, torch.autograd.grad(found, [*parameters.values()]), strict=True))
    want, leaves = torch.zeros((), dtype=torch.float64), {}
    there = step.batch.valid_Pb[0]
    for r, logit_D in logits.items():
        W, b = (parameters[f"{name}_{r}"].detach().double().requires_grad_() for name in "Wb")
        module = Gate(len(logit_D), gate, frozen.settings.init).double()
        module.logit.data = logit_D.double()
        leaves |= {f"W_{r}": W, f"b_{r}": b, f"gates.{r}.logit": module.logit}
        mask, n = module(), len(there)
        each_b = given(frozen, dataset).losses(step.batch, frozen.x[r] * mask, W.expand(n, -1, -1), b.expand(n, -1))
        at_b = environment[r][step.batch.index_Pb[0].long()]
        fit = torch.stack([each_b[there & (at_b == e)].mean() for e in range(3)]).mean() + 0.2 * W.square().sum()
        size = 0.3 * (mask - 0.5).square().mean()
        for name, value in {"fit": fit, "size": size, "variance": 0 * fit, "loss": fit + size}.items():
            assert float(terms[f"{r}/{name}"]) == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-7)
        want = want + fit + size
    for name, theirs in zip(leaves, torch.autograd.grad(want, [*leaves.values()]), strict=True):
        torch.testing.assert_close(mine[name].double(), theirs, rtol=1e-4, atol=1e-6)


def test_the_variance_is_priced_by_a_weight_that_grows_over_the_rounds(dataset: Dataset) -> None:
    """And not before a window of steps has said how far environments differ."""
    frozen, config = frozen_of(dataset)
    assert [gamma_of(config.invariance, round_) for round_ in range(3)] == pytest.approx([0, 0.35, 0.7])
    constant = load(None, [*SMALL, "invariance.gamma_warmup=false"]).invariance
    assert [gamma_of(constant, round_) for round_ in range(3)] == [0.7] * 3
    one = load(None, [*SMALL, "invariance.rounds=1"]).invariance
    assert gamma_of(one, 0) == 0
    # environments that users' content tells apart
    by_content = torch.bucketize(frozen.content_Uc[frozen.user, 0].contiguous(), torch.tensor([-0.4, 0.4]))
    environment = by_content.expand(2, -1).to(torch.int16)
    found: list[list[dict[str, float]]] = []
    for round_ in range(3):
        masks = Masks(frozen, {r: torch.zeros(D) for r, D in enumerate(WIDTHS)}, round_)
        for r, D in enumerate(WIDTHS):  # whose projections differ by the round
            getattr(masks, f"W_{r}").data = torch.ones(8, D)
        terms = [masks(step_at(frozen, number), environment)[1] for number in range(masks.moments.window + 1)]
        found.append([{name: float(x) for name, x in each.items()} for each in terms])
    priced = [each[-1]["0/variance"] for each in found]
    assert priced[0] == 0
    assert priced[2] == pytest.approx(2 * priced[1], rel=1e-6)
    assert priced[1] > 1e-3
    window = len(found[2]) - 1
    assert window == 3  # steps of an epoch
    effects = [each["0/effect"] for each in found[2]]
    assert effects[: window - 1] == [0] * (window - 1)
    assert 0.05 < effects[window - 1] < 1
    assert [each["0/variance"] > 0 for each in found[2]] == [effect > 0 for effect in effects]


def test_environments_that_do_not_differ_cost_nothing(dataset: Dataset) -> None:
    """Random environments: no more than chance lies between them."""
    frozen, _ = frozen_of(dataset, "invariance.gamma_warmup=false")
    masks = Masks(frozen, {r: torch.zeros(D) for r, D in enumerate(WIDTHS)}, 0)
    for number in range(6):
        _, terms = masks(step_at(frozen, number), split(frozen))
    assert [float(terms[f"{r}/effect"]) for r in range(2)] == pytest.approx([0, 0], abs=0.02)


def test_gates_have_noise_of_their_step_alone(dataset: Dataset) -> None:
    frozen, _ = frozen_of(dataset, "invariance.gate=hard_sigmoid")
    one, again, other = (frozen.noise(step_at(frozen, number).batch) for number in (0, 0, 1))
    for r, D in enumerate(WIDTHS):
        a, b, c = one[r], again[r], other[r]
        assert a is not None
        assert b is not None
        assert a.shape == (D,)
        assert torch.equal(a, b)
        assert (a != c).all()
    assert frozen_of(dataset)[0].noise(step_at(frozen_of(dataset)[0], 0).batch) == [None, None]


@pytest.mark.parametrize("loss", LOSSES[:2])
def test_bits_do_not_depend_on_what_is_trained_together(loss: str, dataset: Dataset) -> None:
    """Of representations, and of environments of one: whoever trains them finds the same."""
    steps = ["invariance.environment_steps=20", "invariance.mask_steps=30"]
    config = load(None, [*SMALL, *steps, loss])
    trainer = Trainer(tensors(dataset, config.backbone.resolved.content), "cpu", config)
    environment = {r: x.long() for r, x in enumerate(split(trainer.frozen))}
    psi = {r: torch.full((D,), 0.5) for r, D in enumerate(WIDTHS)}

    def trained(names: dict[int, list[int]]) -> dict[int, Trained]:
        return trainer.environments(names, psi, {r: environment[r] for r in names}, 0)

    whole = trained({0: [0, 1, 2], 1: [0, 1, 2]})
    for r in range(2):
        for names in ([0, 1, 2], [2], [0, 2]):
            part = trained({r: names})[r]
            assert torch.equal(part.W, whole[r].W[names])
            assert torch.equal(part.b, whole[r].b[names])
    logits = {r: torch.zeros(D) for r, D in enumerate(WIDTHS)}
    both = trainer.masks(logits, environment, 1)
    for r in range(2):
        logit_D, terms = trainer.masks({r: logits[r]}, {r: environment[r]}, 1)[r]
        assert torch.equal(both[r][0], logit_D)
        assert both[r][1] == pytest.approx(terms, rel=1e-6)
        assert (logit_D != 0).all()


def test_an_interrupt_is_heard_between_steps(dataset: Dataset) -> None:
    trainer, asked = Trainer(tensors(dataset), "cpu", load(None, SMALL)), []

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) == 2

    trainer.interrupted = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.masks({0: torch.zeros(16)}, {0: split(trainer.frozen)[0]}, 0)
    assert len(asked) == 2


@pytest.mark.parametrize("empty", ["reseed", "drop"])
def test_empty_environments(empty: str) -> None:
    """Each gets a quarter of the interactions, those that were drawn for it, or stays empty."""
    settings = load(None, ["invariance.environments=4", f"invariance.empty={empty}"]).invariance
    environment_n, drawn_n = torch.tensor([0, 2] * 6), torch.arange(4).repeat(3)
    before = environment_n.clone()
    got = refill(environment_n, [1, 3], settings, drawn_n)
    assert torch.equal(environment_n, before)  # is not overwritten
    assert torch.bincount(got, minlength=4).tolist() == ([3, 3, 3, 3] if empty == "reseed" else [6, 0, 6, 0])
    assert refill(before, [], settings, drawn_n) is before


HUNDRED = Part((0, 10), (0, 100), 100)  # interactions, all of one worker


class Movers:
    """An executor under which a share of the interactions moves, and logits grow."""

    def __init__(self, moves: list[int]):
        self.moves = moves
        self.given: list[list[float]] = []
        self.psi: list[float] = []

    def environments(self, psi: list[torch.Tensor], environment: list[torch.Tensor], round_: int) -> list[torch.Tensor]:
        out = []
        self.psi.append(float(psi[0][0]))
        for x in environment:
            new = x.clone()
            new[: self.moves[round_]] = (new[: self.moves[round_]] + 1) % 3
            out.append(new)
        return out

    def masks(self, logits: list[torch.Tensor], environment: list[torch.Tensor], round_: int) -> list[Any]:
        self.given.append(logits[0].tolist())
        return [(x + 1, {"loss": 2.0}) for x in logits]


def test_rounds_end_when_hardly_anything_moves(tmp_path: Path) -> None:
    config = load(None, [*SMALL, "invariance.rounds=9", "invariance.moved=0.05"])
    state, executor = State(config, [5, 4], HUNDRED, Engine()), Movers([50, 10, 4, 50])
    reports = []
    while not state.done:
        reports.append(state.round(executor))
    assert [report["0/moved"] for report in reports] == pytest.approx([0.5, 0.1, 0.04])
    assert reports[0]["1/loss"] == 2
    assert sum(reports[2][f"1/environment {e}"] for e in range(3)) == 100
    torch.testing.assert_close(state.masks()[0], torch.full((5,), 1.0).sigmoid())  # renewed in each round
    assert executor.given == [[0.0] * 5] * 3
    assert executor.psi == pytest.approx([0.5, *[1 - 1 / (1 + math.exp(-1))] * 2])  # 1 - m of the round before
    saves = Checkpoints(Folder(tmp_path), "key", config.checkpoint, Engine())
    state.save(saves)
    logits = {f"logit.{r}": x for r, x in enumerate(state.logits)}
    whole = Checkpoints(Folder(tmp_path / "earlier"), "key", config.checkpoint, Engine())  # as it once was written
    whole.save("00003-0000000", {"history": state.history}, logits | state.environments)
    for saved in (saves.latest(), whole.latest()):
        assert saved is not None
        for part in (HUNDRED, Part((20, 60), (20, 40, 60), 100), Part((60, 100), (60, 100), 100)):
            later = State(config, [5, 4], part, Engine())
            later.load(saved)
            assert later.done
            for r in range(2):
                assert torch.equal(later.environment[r], state.environment[r][part.pairs])
                assert torch.equal(later.logits[r], state.logits[r])


@pytest.mark.parametrize("empty", ["reseed", "drop"])
def test_a_round_reports_which_environments_nothing_moved_to(empty: str) -> None:
    """Of 3 environments, into the first of which all interactions of both representations move."""
    config = load(None, [*SMALL, f"invariance.empty={empty}"])
    state, executor = State(config, [5, 4], HUNDRED, Engine()), Movers([0])
    executor.environments = lambda psi, environment, round_: [torch.zeros_like(x) for x in environment]  # type: ignore
    report = state.round(executor)
    assert state.history[0]["empty"] == {"0": [1, 2], "1": [1, 2]}
    sizes = [[report[f"{r}/environment {e}"] for e in range(3)] for r in range(2)]
    assert [sum(x) for x in sizes] == [100, 100]
    if empty == "drop":
        assert sizes == [[100, 0, 0]] * 2
    else:
        assert all(20 <= size <= 47 for x in sizes for size in x)  # about a third each
        assert not torch.equal(*state.environment)


def test_without_rounds_masks_keep_everything() -> None:
    state = State(load(None, [*SMALL, "invariance.rounds=0"]), [5, 4], HUNDRED, Engine())
    assert state.done
    assert [mask.tolist() for mask in state.masks()] == [[1.0] * 5, [1.0] * 4]
