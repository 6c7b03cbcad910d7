"""Which output a user means by `likelihood=`, and several outputs side by side for columns of several kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from girih._options import whole
from girih.errors import ParameterError, ShapeError
from girih.inference.outputs import Bernoulli, Categorical, NegativeBinomial, Observations, Output, Poisson
from girih.inference.real_outputs import Laplace, Normal, StudentT

_OUTPUTS: dict[str, type[Output]] = {
    kind.name: kind for kind in (Bernoulli, Categorical, Poisson, NegativeBinomial, Normal, Laplace, StudentT)
}


class Mixed(Output):
    """It is outputs of several kinds side by side, for tables with columns of several kinds.

    Use it where some columns are numbers, others counts, yes or no, or categories: columns are independent of each
    other given z, `log p(x | z) = sum_k log p_k(x_k | eta_k)`, so the latent alone connects them.

    Args:
        parts: pairs of a likelihood, by name or as an output, and how many columns of x it has, in the order of the
            columns. The network gives their eta in the same order: one a column, but for categories, one for each of
            them. "gaussian" columns have normal noise.

    The `noise` of the `DGN` is a *scale*, one for all columns that have one or `(D,)`: the standard deviation of
    Gaussian columns. Those of columns without noise are not used.

    Raises:
        ParameterError: a likelihood that is not known, or one that does not have so many columns.

    Example:
        >>> import girih
        >>> from girih.inference import Categorical, Mixed
        >>> kinds = Mixed([("gaussian", 2), ("bernoulli", 1), (Categorical([3]), 1)])
        >>> dgn = girih.DGN(girih.mlp([1, 8, 6], seed=0), noise=0.3, likelihood=kinds)
        >>> dgn.output_dim, tuple(dgn().log_prob([[0.1, 0.2, 1.0, 2.0]]).shape)
        (4, (1,))
    """

    name = "mixed"

    def __init__(self, parts: Sequence[tuple[str | Output, int]]) -> None:
        self.parts: list[tuple[Output, int]] = []
        for part in parts:
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise ParameterError(
                    'the parts of mixed outputs are pairs such as ("bernoulli", 3), a likelihood and its columns; '
                    f"got {part!r}"
                )
            self.parts.append((_part(part[0]), whole(part[1], "the number of columns")))
        if not self.parts:
            raise ParameterError('mixed outputs need parts, such as [("gaussian", 2), ("bernoulli", 3)]')
        for output, columns in self.parts:
            if isinstance(output, Categorical) and output.categories is None:
                raise ParameterError(
                    "among other columns categories need their numbers: girih.inference.Categorical([3]), not "
                    '"categorical"'
                )
            if isinstance(output, Categorical) and len(output.categories or ()) != columns:
                raise ParameterError(f"{output} has {len(output.categories or ())} columns; got {columns}")
        self.scaled = any(output.scaled for output, _ in self.parts)
        self.bent = any(output.bent for output, _ in self.parts)
        self.continuous = all(output.continuous for output, _ in self.parts)

    def __repr__(self) -> str:
        return f"Mixed({self.parts!r})"

    def options(self) -> dict[str, Any]:
        """The parts by their names, with what they were made with, and their columns."""
        return {"parts": [[output.name, output.options(), columns] for output, columns in self.parts]}

    def columns(self, size: int) -> int:
        """Those of all parts.

        Raises:
            ShapeError: the network has not as many outputs as they need.
        """
        needed = sum(self._sizes)
        if needed != size:
            raise ShapeError(f"{self} needs {needed} outputs of the network, and it has {size}")
        return sum(columns for _, columns in self.parts)

    @property
    def _sizes(self) -> list[int]:
        """How many eta each part has."""
        return [sum(part.categories or ()) if isinstance(part, Categorical) else n for part, n in self.parts]

    @property
    def _places(self) -> list[tuple[Output, slice, slice]]:
        """Each part with its columns of x, and its eta."""
        columns = _slices([n for _, n in self.parts])
        return list(zip((output for output, _ in self.parts), columns, _slices(self._sizes), strict=True))

    def _each(
        self, rows: Observations, eta: Tensor, scale: Tensor | None
    ) -> Iterator[tuple[Output, tuple[Observations, Tensor, Tensor | None]]]:
        """Each part with its rows, its eta and its scale."""
        for output, own, its in self._places:
            yield output, (_of(rows, own), eta[..., its], _scale(scale, own))

    def supported(self, x: Tensor) -> Tensor:
        """As each part says."""
        return torch.cat([part.supported(x[..., own]) for part, own, _ in self._places], -1)

    def check(self, x: Tensor, missing: Tensor, first: int) -> None:
        """As each part says."""
        for part, own, _ in self._places:
            part.check(x[..., own], missing[..., own], first + own.start)

    def spread(self, seen: Tensor) -> Tensor:
        """As each part says."""
        return torch.cat([part.spread(seen[..., own]) for part, own, _ in self._places], -1)

    def guess(self, x: Tensor) -> Tensor:
        """As each part says."""
        return torch.cat([part.guess(x[..., own]) for part, own, _ in self._places], -1)

    def one_each(self, parts: Tensor) -> Tensor:
        """As each part says."""
        return torch.cat([part.one_each(parts[its]) for part, _, its in self._places])

    def kinks(self, x: Tensor) -> Tensor:
        """Those of each part."""
        return torch.cat([part.kinks(x[..., own]) for part, own, _ in self._places], -1)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """As each part says."""
        return torch.cat([part.constants(x[..., own], _scale(scale, own)) for part, own, _ in self._places], -1)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """The sum of those of the parts."""
        return torch.stack([part.log_density(*own) for part, own in self._each(rows, eta, scale)]).sum(0)

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """As each part says."""
        return torch.cat([part.slope(*own) for part, own in self._each(rows, eta, scale)], -1)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """As each part says."""
        return torch.cat([part.curvature(*own) for part, own in self._each(rows, eta, scale)], -1)

    def gram(self, rows: Observations, eta: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
        """The sum of those of the parts."""
        grams = [
            part.gram(_of(rows, own), eta[..., its], step[..., its], _scale(scale, own))
            for part, own, its in self._places
        ]
        return torch.stack(grams).sum(0)

    def excess(self, scale: Tensor | None) -> Tensor | float:
        """As each part says."""
        found = [part.excess(_scale(scale, own)) for part, own, _ in self._places]
        like = next((part for part in found if isinstance(part, Tensor)), None)
        if like is None:
            return 0.0
        return torch.cat([torch.as_tensor(part).to(like).expand(n) for part, n in zip(found, self._sizes, strict=True)])

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """The sum of those of the parts."""
        parts = [part.highest(_of(rows, own), _scale(scale, own)) for part, own, _ in self._places]
        return torch.stack(parts).sum(0)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """As each part says.

        Raises:
            ParameterError: there are categories, which have no mean, among them.
        """
        return torch.cat([part.mean(eta[..., its], _scale(scale, own)) for part, own, its in self._places], -1)

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """As each part says."""
        drawn = [part.sample(eta[..., its], _scale(scale, own), generator) for part, own, its in self._places]
        return torch.cat(drawn, -1)


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Places one after the other, of these sizes."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _of(rows: Observations, own: slice) -> Observations:
    """Some columns of rows; their constants are those of all, which nothing reads."""
    return Observations(rows.x[..., own], None if rows.seen is None else rows.seen[..., own], rows.constant)


def _scale(scale: Tensor | None, own: slice) -> Tensor | None:
    return scale if scale is None or scale.ndim == 0 else scale[own]


def _part(likelihood: str | Output) -> Output:
    output = Normal() if isinstance(likelihood, str) and likelihood == "gaussian" else as_output(likelihood)
    if output is None or isinstance(output, Mixed):
        raise ParameterError(f"a part of mixed outputs is one likelihood; got {likelihood!r}")
    return output


def as_output(likelihood: str | Output | Sequence[tuple[str | Output, int]]) -> Output | None:
    """The output that a user named, `None` for a Gaussian one.

    Raises:
        ParameterError: there is none of that name, or it needs a number of its own.
    """
    if isinstance(likelihood, Output):
        return likelihood
    if isinstance(likelihood, list | tuple):
        return Mixed(likelihood)
    if likelihood == "gaussian":
        return None
    if likelihood == NegativeBinomial.name:
        raise ParameterError(
            "negative binomial outputs need their total count: likelihood=girih.inference.NegativeBinomial(total_count)"
        )
    if not isinstance(likelihood, str) or likelihood not in _OUTPUTS:
        names = ", ".join(repr(name) for name in ("gaussian", *_OUTPUTS))
        raise ParameterError(
            f"likelihood must be one of {names}, an output of girih.inference, or a list of pairs of such and their "
            f"columns; got {likelihood!r}"
        )
    return _OUTPUTS[likelihood]()


def output_from(name: str, options: dict[str, Any]) -> Output:
    """The output that `Output.options` described."""
    if name == Mixed.name:
        return Mixed([(output_from(kind, own), columns) for kind, own, columns in options["parts"]])
    return _OUTPUTS[name](**options)
