"""What members read of items' content: columns of one matrix, so that none holds a copy of what others read, too.

Shapes: I items, and S of them with a row of zeros behind; V columns of the matrix, w of those that a member reads; R
rows of a step, c projected columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spared(x_Iw: Tensor) -> Tensor:
    """Items' content with a row of zeros behind, for places of a step where there is no item, [I + 1, w]."""
    return torch.cat([x_Iw, x_Iw.new_zeros(1, x_Iw.shape[1])])


def evening(x_IV: Tensor) -> Tensor:
    """What gives every row the length sqrt(2), whatever modalities an item lacks, [I, 1]; 0 of a row of zeros."""
    length_I1 = torch.linalg.vector_norm(x_IV, dim=1, keepdim=True)
    return torch.where(length_I1 > 0, 2**0.5 / length_I1, 0.0)


@dataclass(frozen=True)
class Part:
    """Columns `first` to `last` - 1 of the matrix, each times its scale [w]; with `even`, of rows of length sqrt(2)."""

    first: int
    last: int
    scale_w: Tensor | None = None
    even: bool = False


@dataclass(frozen=True)
class Picked:
    """Rows of the matrix [R, V], and what makes them even [R, 1], where a member reads them so."""

    x_RV: Tensor
    even_R1: Tensor | None


class Contents:
    """What each member reads: some parts of a matrix [I, V] side by side, the first of them not even; or nothing.

    A member's projection is a linear layer of as many inputs as its parts have columns. Scales multiply its weights and
    not the matrix, so that the weights of members that read the same columns meet them in one product.
    blocks: the matrix's columns, float32 on the device; none where no member reads content.
    """

    def __init__(self, blocks: Sequence[Tensor], parts: Sequence[Sequence[Part]]):
        assert all(not own[0].even for own in parts if own)
        self.parts = [list(own) for own in parts]
        self._x_SV = self._even_S1 = None
        if blocks:
            self._x_SV = blocks[0].new_zeros(len(blocks[0]) + 1, sum(x.shape[1] for x in blocks))
            torch.cat(list(blocks), dim=1, out=self._x_SV[:-1])
            if any(part.even for own in parts for part in own):
                self._even_S1 = evening(self._x_SV)

    @staticmethod
    def beside(given: Sequence[Tensor | None]) -> Contents:
        """Of members that each read a matrix [I, w] of their own, or None: nothing."""
        held = [x for x in given if x is not None]
        parts, at = [], 0
        for x in given:
            parts.append([] if x is None else [Part(at, at := at + x.shape[1])])
        return Contents(held, parts)

    @property
    def widths(self) -> list[int]:
        """Columns that each member reads."""
        return [sum(part.last - part.first for part in own) for own in self.parts]

    @property
    def columns(self) -> int:
        """Columns of the matrix that all read from."""
        return 0 if self._x_SV is None else self._x_SV.shape[1]

    @property
    def items(self) -> Picked | None:
        """All items' rows."""
        if self._x_SV is None:
            return None
        return Picked(self._x_SV[:-1], None if self._even_S1 is None else self._even_S1[:-1])

    def rows(self, ids_R: Tensor) -> Picked | None:
        """Those of some items, of which I is none; None where no member reads content."""
        if self._x_SV is None:
            return None
        even_R1 = None if self._even_S1 is None else self._even_S1.index_select(0, ids_R)
        return Picked(self._x_SV.index_select(0, ids_R), even_R1)

    def each(self) -> list[Tensor | None]:
        """What every member reads, as a matrix of its own with a row of zeros behind, [I + 1, w]."""
        return [self._whole(own) if own else None for own in self.parts]

    def _whole(self, own: list[Part]) -> Tensor:
        assert self._x_SV is not None
        columns = []
        for part in own:
            x = self._x_SV[:, part.first : part.last]
            x = x if part.scale_w is None else x * part.scale_w
            columns.append(x if self._even_S1 is None or not part.even else x * self._even_S1)
        return torch.cat(columns, dim=1)

    def project(self, projections: Iterable[nn.Linear | None], picked: Picked | None) -> list[Tensor | None]:
        """Every member's projection of what it reads of some rows, [R, c] each."""
        out: list[Tensor | None] = [None] * len(self.parts)
        if picked is None:
            return out
        for (part, leads), members in self._groups(projections).items():
            x_Rw = picked.x_RV
            if part.last - part.first < x_Rw.shape[1]:
                x_Rw = x_Rw[:, part.first : part.last]
            weights, biases = zip(*members.values(), strict=True)
            found = F.linear(x_Rw, _stacked(weights), _stacked(biases) if leads else None)
            if part.even:
                assert picked.even_R1 is not None
                found = found * picked.even_R1
            each = (found,) if len(members) == 1 else found.chunk(len(members), dim=1)
            for m, y_Rc in zip(members, each, strict=True):
                before = out[m]
                out[m] = y_Rc if before is None else before + y_Rc
        return out

    def _groups(self, projections: Iterable[nn.Linear | None]) -> _Groups:
        """The weights of members that read the same columns, each times its scale, and their biases."""
        out: _Groups = {}
        for m, (own, project) in enumerate(zip(self.parts, projections, strict=True)):
            if project is None:
                continue
            weights = (project.weight,)  # a split has launches of its own on a GPU
            if len(own) > 1:
                weights = project.weight.split([part.last - part.first for part in own], dim=1)
            for part, weight in zip(own, weights, strict=True):
                columns = Part(part.first, part.last, even=part.even)
                scaled = weight if part.scale_w is None else weight * part.scale_w
                out.setdefault((columns, part is own[0]), {})[m] = scaled, project.bias
        return out


_Groups = dict[tuple[Part, bool], dict[int, tuple[Tensor, Tensor]]]  # by columns, and whether they are members' first


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
