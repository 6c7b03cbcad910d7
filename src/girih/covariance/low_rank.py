r"""Low-rank plus diagonal covariances, `C = F F^T + diag(v)`: factor analysis.

In units of the own deviations, `V = diag(v)^-1/2 F = U diag(s) Q^T`, so with `D_v = diag(v)^1/2`

    C = D_v (1 + V V^T) D_v,    (1 + V V^T)^p = 1 + U diag((1 + s^2)^p - 1) U^T,

and `L = D_v (1 + V V^T)^1/2`. A product costs `O(D r)`, and no `D x D` matrix is formed but by `matrix`, `eigen`, and
where the parameters are estimated: the scatter of the residuals is one.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from girih.covariance.base import Covariance, Observed, Pair
from girih.covariance.full import matrix_gradient, matrix_scatter

# Steps of factor analysis in one M-step, and the gain (nats per row) below which it goes no further.
_STEPS, _GAIN = 20, 1e-10


class _Spectrum(NamedTuple):
    """`V = U diag(s) Q^T` of one covariance or of a batch."""

    basis: Tensor  # U (..., D, r)
    size: Tensor  # 1 + s^2 (..., r)
    turn: Tensor  # Q^T (..., r, r)

    @classmethod
    def of(cls, whitened: Tensor) -> _Spectrum:
        basis, s, turn = torch.linalg.svd(whitened, full_matrices=False)
        return cls(basis, 1.0 + s.square(), turn)

    def power(self, exponent: float, columns: Tensor) -> Tensor:
        """`(1 + V V^T)^p M`."""
        weight = torch.expm1(exponent * self.size.log())
        return columns + self.basis @ (weight[..., None] * (self.basis.mT @ columns))

    @property
    def log_det(self) -> Tensor:
        """`log det(1 + V V^T)`."""
        return self.size.log().sum(-1)


class LowRank(Covariance):
    """A low-rank covariance is `F F^T + diag(v)`, stored as v `(D,)` and F `(D, r)`."""

    kind = "low_rank"

    @property
    def own(self) -> Tensor:
        """The vector v: the variance that each coordinate has of its own, `(D,)`."""
        return self.tensors[0]

    @property
    def factor(self) -> Tensor:
        """The matrix F: what the coordinates share, `(D, r)`."""
        return self.tensors[1]

    @property
    def rank(self) -> int:
        """The number r of columns of the factor."""
        return self.factor.shape[1]

    @cached_property
    def _deviation(self) -> Tensor:
        return self.own.sqrt()[:, None]

    @cached_property
    def _spectrum(self) -> _Spectrum:
        return _Spectrum.of(self.factor / self._deviation)

    @property
    def variances(self) -> Tensor:
        """The diagonal of C, `(D,)`."""
        return self.own + self.factor.square().sum(1)

    @property
    def matrix(self) -> Tensor:
        """C, `(D, D)`."""
        return self.factor @ self.factor.mT + torch.diag(self.own)

    @property
    def parameter_count(self) -> int:
        """Variances and factor, less the rotations of the factor, which change nothing; no more than of a full one."""
        D, r = self.dim, self.rank
        return min(D + D * r - r * (r - 1) // 2, D * (D + 1) // 2)

    @property
    def width(self) -> int:
        """A row's own factor has r numbers for each coordinate."""
        return self.rank

    @property
    def condition(self) -> float:
        """A row is so much longer in units of its own deviations than once it is white."""
        return float(self._spectrum.size.max().sqrt())

    @property
    def log_det(self) -> Tensor:
        """`log det C`, nats."""
        return self.own.log().sum() + self._spectrum.log_det

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues `(D,)`, ascending, and eigenvectors `(D, D)`."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    def times(self, columns: Tensor) -> Tensor:
        """`C M`, M `(D, M)`."""
        return self.factor @ (self.factor.mT @ columns) + self.own[:, None] * columns

    def whiten(self, columns: Tensor) -> Tensor:
        """`L^-1 M`, M `(D, M)`."""
        return self._spectrum.power(-0.5, columns / self._deviation)

    def whiten_transposed(self, columns: Tensor) -> Tensor:
        """`L^-T M`, M `(D, M)`."""
        return self._spectrum.power(-0.5, columns) / self._deviation

    def solve(self, columns: Tensor) -> Tensor:
        """`C^-1 M`, M `(D, M)` or a batch of them."""
        return self._spectrum.power(-1.0, columns / self._deviation) / self._deviation

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of `N(0, C)`, `(count, D)`: what is shared, and what each coordinate has of its own."""
        shared = self._normal(count, self.rank, generator) @ self.factor.mT
        return shared + self._normal(count, self.dim, generator) * self.own.sqrt()

    def marginal(self, columns: list[int]) -> Covariance:
        """Keep variances and rows of the factor; of fewer coordinates than r, the full covariance."""
        part = LowRank((self.own[columns], self.factor[columns]), len(columns))
        return part if self.rank <= len(columns) else part.to("full")

    def restrict(self, mask: Tensor) -> Observed:
        """Rows with their own missing entries see this of it."""
        mask = mask.to(torch.float64)
        return _LowRankObserved(self, mask, _Spectrum.of((self.factor / self._deviation) * mask[:, :, None]))

    def scatter(self, *pairs: Pair) -> Tensor:
        """The sum of `a b^T`, `(D, D)`: the maximum of the likelihood depends on all of it."""
        return matrix_scatter(self.dim, pairs)

    def m_step(self, scatter: Tensor, weight: Tensor, floor: Tensor) -> Covariance:
        """Steps of factor analysis, each of which raises the likelihood or leaves it.

        Given v, the best factor has the leading eigenvectors of the scatter in units of the own deviations; at that
        factor, an EM step of v gives what of the scatter's diagonal the factor leaves (or the floor). A factor 0 is no
        trap, as it is for EM alone. The factor is turned to lie near to this one's, which leaves C as it is.

        Source:
            Lawley (1940), Proc. R. Soc. Edinburgh 60; Rubin and Thayer (1982), EM algorithms for ML factor analysis,
            Psychometrika 47.
        """
        covariance, own = scatter / weight, torch.maximum(self.own, floor)
        factor, highest = _best_factor(covariance, own, self.rank)
        for _ in range(_STEPS):
            own = torch.maximum(covariance.diagonal() - factor.square().sum(1), floor)
            factor, log_p = _best_factor(covariance, own, self.rank)
            if not float(log_p - highest) > _GAIN:
                break
            highest = log_p
        left, _, right = torch.linalg.svd(factor.mT @ self.factor)
        return self.with_tensors((own, factor @ (left @ right)))

    def at_least(self, floor: Tensor) -> Covariance:
        """The covariance with its own variances raised to the floor."""
        return self.with_tensors((torch.maximum(self.own, floor), self.factor))

    def with_variances(self, variances: Tensor) -> Covariance:
        """The factor becomes 0."""
        return self.with_tensors((variances, torch.zeros_like(self.factor)))

    def gradient(self, scatter: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The gradients are those in the own variances `(D,)` and in the factor `(D, r)`."""
        in_matrix = matrix_gradient(self, scatter, weight)
        return in_matrix.diagonal().clone(), 2.0 * in_matrix @ self.factor

    def units(self, scale: Tensor) -> tuple[Tensor, ...]:
        """The units are the squares of the scales `(D,)`, and the scales `(D, r)`."""
        return scale.square(), scale[:, None].expand_as(self.factor)

    @property
    def coordinates(self) -> Tensor:
        """`log v` and V, the factor in units of the own deviations."""
        return torch.cat((self.own.log(), (self.factor / self._deviation).flatten()))

    def from_coordinates(self, vector: Tensor) -> Covariance:
        """The inverse of `coordinates`."""
        log_own, whitened = vector[: self.dim], vector[self.dim :].reshape(self.dim, self.rank)
        return self.with_tensors((log_own.exp(), (0.5 * log_own).exp()[:, None] * whitened))

    def information(self, weight: Tensor) -> Tensor:
        """The coordinates are `log v` and V, and this is what rows tell if the shared part of each were known."""
        return torch.cat(((0.5 * weight).expand(self.dim), weight.expand(self.dim * self.rank)))


def _best_factor(covariance: Tensor, own: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factor with the highest likelihood given v, and `-(log det C + tr(C^-1 covariance)) / 2`."""
    deviation = own.sqrt()
    values, vectors = torch.linalg.eigh(covariance / deviation / deviation[:, None])
    size = values[-rank:].clamp(min=1.0)
    rest = values[:-rank].sum() + (values[-rank:] / size + size.log()).sum()
    factor = deviation[:, None] * vectors[:, -rank:] * (size - 1.0).sqrt()
    return factor, -0.5 * (rest + own.log().sum())


class _LowRankObserved(Observed):
    """The rows of the factor that belong to missing coordinates are 0."""

    def __init__(self, covariance: LowRank, mask: Tensor, spectrum: _Spectrum) -> None:
        self._covariance, self.mask, self._spectrum = covariance, mask, spectrum

    def take(self, index: Tensor) -> Observed:
        return _LowRankObserved(
            self._covariance, self.mask[index], _Spectrum(*(part[index] for part in self._spectrum))
        )

    def _scaled(self, columns: Tensor) -> Tensor:
        return columns * self.mask[:, :, None] / self._covariance._deviation

    def whiten(self, columns: Tensor) -> Tensor:
        return self._spectrum.power(-0.5, self._scaled(columns))

    def solve(self, columns: Tensor) -> Tensor:
        return self._spectrum.power(-1.0, self._scaled(columns)) / self._covariance._deviation

    def complete(self, columns: Tensor) -> Tensor:
        factor, seen = self._covariance.factor, self.mask[:, :, None]
        return columns * seen + (factor @ (factor.mT @ self.solve(columns))) * (1.0 - seen)

    def conditional_covariance(self, weight: Tensor) -> Tensor:
        """A missing coordinate has this of its own, and this part of its factor the observed ones leave open."""
        own, factor, unseen = self._covariance.own, self._covariance.factor, 1.0 - self.mask
        # Q (1 + s^2)^-1 Q^T is the covariance of the shared part given the observed entries
        root = ((factor * unseen[:, :, None]) @ self._spectrum.turn.mT / self._spectrum.size[:, None, :].sqrt()).mT
        shared = matrix_scatter(len(own), ((weight[:, None, None] * root, root),))
        return torch.diag(own * (weight @ unseen)) + shared

    @property
    def log_det(self) -> Tensor:
        return self.mask @ self._covariance.own.log() + self._spectrum.log_det
