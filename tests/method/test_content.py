"""What members read of one matrix, against matrices of their own."""

import numpy as np
import pytest
import torch
from torch import nn

from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.method.content import Contents, Part
from m3dist.method.merge import joined
from m3dist.training.context import Context

I, V = 7, 9
READ = {
    "nothing": [[]],
    "all": [[Part(0, V)]],
    "all through masks": [[Part(0, V, torch.rand(V))], [Part(0, V, torch.rand(V))]],
    "each its own": [[Part(0, 4)], [Part(4, 9)]],
    "one of two reads": [[Part(0, 4)], []],
    "own and what all share": [[Part(0, 4, torch.rand(4)), Part(6, 9)], [Part(4, 6), Part(6, 9, torch.rand(3))]],
    "own and all in even rows": [[Part(0, 4), Part(0, V, torch.rand(V), True)], [Part(4, 9), Part(0, V, None, True)]],
    "one modality": [[Part(0, V), Part(0, V, torch.rand(V), True)]],
}  # fmt: skip


@pytest.mark.parametrize("parts", READ.values(), ids=READ)
def test_projections_are_those_of_what_each_reads(parts: list[list[Part]]) -> None:
    torch.manual_seed(0)
    x_IV = torch.randn(I, V).double()
    x_IV[2] = 0
    contents = Contents([] if parts == [[]] else [x_IV[:, :4], x_IV[:, 4:]], parts)
    projections = [nn.Linear(width, 3).double() if width else None for width in contents.widths]
    ids_R = torch.tensor([5, 2, 5, I, 0])
    found = contents.project(projections, contents.rows(ids_R))
    everything = contents.project(projections, contents.items)
    for project, own, matrix_Sw, y_R3, all_I3 in zip(
        projections, parts, contents.each(), found, everything, strict=True
    ):
        if project is None:
            assert matrix_Sw is None
            assert y_R3 is None
            continue
        assert matrix_Sw is not None
        assert y_R3 is not None
        assert all_I3 is not None
        columns = []
        for part in own:
            x = x_IV[:, part.first : part.last] * (1 if part.scale_w is None else part.scale_w)
            length_I1 = x_IV.norm(dim=1, keepdim=True).clamp(min=1e-12) / 2**0.5
            columns.append(x / length_I1 if part.even else x)
        torch.testing.assert_close(matrix_Sw[:-1], torch.cat(columns, dim=1))
        assert matrix_Sw[-1].count_nonzero() == 0
        torch.testing.assert_close(y_R3, project(matrix_Sw[ids_R]))
        torch.testing.assert_close(all_I3, project(matrix_Sw[:-1]))
        pull_R3 = torch.randn(5, 3).double()
        mine = torch.autograd.grad((y_R3 * pull_R3).sum(), [*project.parameters()], retain_graph=True)
        want = torch.autograd.grad((project(matrix_Sw[ids_R]) * pull_R3).sum(), [*project.parameters()])
        for a, b in zip(mine, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two modalities, of which some items lack one."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("content") / "data"
    with Writer(root) as out:
        out.features("visual", rng.standard_normal((I, 4)).astype(np.float32), present=np.arange(I) != 3)
        out.features("text", rng.standard_normal((I, 2)).astype(np.float32))
        user, item = np.divmod(rng.permutation(5 * I), I)
        out.interactions(
            5, I, {"train": (user[:20], item[:20]), "val": (user[20:25], item[20:25]), "test": (user[25:], item[25:])}
        )
        out.finish()
    return Dataset(root)


@pytest.mark.parametrize("values", [[], ["align.shared=code"], ["align.shared=both"], ["align.encoder=linear"]])
@pytest.mark.parametrize("masks", ["learned", "one"])
def test_members_read_their_modality_and_the_shared_representation(
    masks: str, values: list[str], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q_m = [mask_m v_m; mask_{M+1} z_{M+1}] with masks of mean square 1, however the columns are held."""
    context = Context(dataset, load(None, ["align.dim=3", "backbone.loss=softmax", *values]))
    x_0, x_1 = context.data.features
    shared = torch.cat([x_0, x_1], dim=1)
    shared = shared / shared.norm(dim=1, keepdim=True) * 2**0.5
    if values in (["align.shared=code"], ["align.shared=both"]):
        shared = torch.randn(I, 5)
    v = [x_0, x_1] if values != ["align.encoder=linear"] else [torch.randn(I, 3), torch.randn(I, 3)]
    representations = [*v, shared]
    trained = {f"mask.{r}": torch.rand(x.shape[1]) for r, x in enumerate(representations)}
    monkeypatch.setattr(Context, "read", lambda self, stage: {"invariance": trained}[stage])
    found = joined(context, masks, representations).each()
    through = []
    for r, x in enumerate(representations):
        mask_D = trained[f"mask.{r}"] if masks == "learned" else torch.ones(x.shape[1])
        through.append(x * mask_D / mask_D.square().mean().sqrt())
    for own_ID, matrix_Sw in zip(through[:-1], found, strict=True):
        assert matrix_Sw is not None
        torch.testing.assert_close(matrix_Sw[:-1], torch.cat([own_ID, through[-1]], dim=1))
