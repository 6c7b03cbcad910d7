r"""A mixture of Gaussians as prior, with Gaussian noise, in closed form: a mixture of models with Gaussian priors.

    p(x) = sum_k w_k p_k(x),    p(z | x) = sum_k r_k p_k(z | x),    r_k = w_k p_k(x) / p(x)

with p_k the model whose prior is `N(m_k, C_k)`. They all have the same cells, so what `Line` and `Polytopes` do for one
Gaussian serves each of them, with latents counted from its mean. Only averages of `log p(z)`, itself the logarithm of a
sum, and the mode have no closed form: these are left to the cubature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from girih.inference.cubature_posterior import CubatureRegion
from girih.inference.model import MATTERS, AffinePieces, Model, Moments, Region, Rows, chunks, log_prob_rounding
from girih.inference.posterior import Posterior
from girih.inference.priors import MixturePrior
from girih.networks import Trace
from girih.partition import Partition


@dataclass(frozen=True)
class MixedMoments:
    """They are the moments of the parts with their shares `(n,)` of each row: sums of these, as all is linear."""

    parts: list[tuple[Tensor, Moments]]

    def features(self, cells: AffinePieces) -> Tensor:
        """`E[h | x]`, `(n, H)`."""
        return torch.stack([share[:, None] * part.features(cells) for share, part in self.parts]).sum(0)

    def moments(self, weight: Tensor) -> Tensor:
        """`sum_n g_n E[1_piece (t, 1)(t, 1)^T]`, `(P, S + 1, S + 1)`."""
        return torch.stack([part.moments(weight * share) for share, part in self.parts]).sum(0)

    def rows_on_cells(self, weight: Tensor, y: Tensor) -> Tensor:
        """`sum_n g_n y_n E[1_piece (t, 1)^T]`, `(P, K, S + 1)`, for y `(n, K)`."""
        return torch.stack([part.rows_on_cells(weight * share, y) for share, part in self.parts]).sum(0)

    def incomplete_pull(self, weight: Tensor, rows: Rows, cells: AffinePieces) -> Tensor:
        """`sum_n g_n E[1_piece T_n^T (y - T_n h)(t, 1)^T]`, `(P, H, S + 1)`, for rows with their own T_n."""
        return torch.stack([part.incomplete_pull(weight * share, rows, cells) for share, part in self.parts]).sum(0)

    def feature_covariance(self, cells: AffinePieces, mean: Tensor) -> Tensor:
        """`Cov[(h, 1) | x]` of each row, `(n, H + 1, H + 1)`: the parts give second moments about the mean of all."""
        spreads = [share[:, None, None] * part.feature_covariance(cells, mean) for share, part in self.parts]
        return torch.stack(spreads).sum(0)


class Mixture(Region):
    """The latent space under a mixture of Gaussians.

    Args:
        inner: makes the region of a partition and a Gaussian prior, of its covariance and mean.
        part: the partition.
        prior: the mixture.
    """

    def __init__(self, inner: Callable[[Partition, Tensor, Tensor], Region], part: Partition, prior: MixturePrior):
        device = part.trace.device
        self.prior = MixturePrior(*(one.to(device) for one in (prior.weights, prior.means, prior.covariances)))
        self.parts = [inner(part, C, m) for m, C in zip(self.prior.means, self.prior.covariances, strict=True)]
        self.by_cubature = CubatureRegion(part, prior)

    def models(self, model: Model) -> list[Model]:
        """The models of the parts, made at the first call."""
        return model.recall(self._models)

    def _models(self, model: Model) -> list[Model]:
        return [
            replace(model, cells=model.cells._replace(region=part), prior=covariance)
            for part, covariance in zip(self.parts, self.prior.covariances, strict=True)
        ]

    def entries(self, model: Model, complete: bool) -> int:
        """Those of all parts."""
        models = self.models(model)
        return sum(part.entries(own, complete) for part, own in zip(self.parts, models, strict=True))

    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)`, and a certified bound on the share that was left out."""
        found = [part.log_prob(own, rows) for part, own in zip(self.parts, self.models(model), strict=True)]
        log_p, left_out = map(torch.stack, zip(*found, strict=True))
        return _mixed(self.prior, log_p, left_out)[:2]

    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, MixedMoments]:
        """The same, and the moments of the posteriors."""
        found = [part.expect(own, rows) for part, own in zip(self.parts, self.models(model), strict=True)]
        log_p, left_out, moments = zip(*found, strict=True)
        total, lost, share = _mixed(self.prior, torch.stack(log_p), torch.stack(left_out))
        return total, lost, MixedMoments(list(zip(share, moments, strict=True)))

    def posterior(self, model: Model, trace: Trace, x: Tensor) -> MixturePosterior:
        """The posteriors of rows `(N, D)`."""
        return MixturePosterior(self, model, trace.frozen(), x)


def _mixed(prior: MixturePrior, log_p: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log p(x)`, what was left out, and the shares `(K, n)`, of the `(K, n)` of the parts."""
    joint = prior.weights.log()[:, None] + log_p
    share = joint.softmax(0)
    return joint.logsumexp(0), (share * left_out).sum(0), share


class MixturePosterior(Posterior):
    """Under a mixture of Gaussians a `Posterior` is a mixture of those of the parts.

    Args:
        region: the latent space.
        model: the parameters.
        trace: the generator, frozen.
        x: `(N, D)`.
    """

    def __init__(self, region: Mixture, model: Model, trace: Trace, x: Tensor) -> None:
        self._region, self._model, self._trace, self._x = region, model, trace, x
        self._means = region.prior.means
        eye = torch.eye(model.latent_dim, dtype=x.dtype, device=x.device)
        self._parts = [
            part.posterior(own, trace.restrict(mean, eye), x)
            for part, own, mean in zip(region.parts, region.models(model), self._means, strict=True)
        ]
        log_p, left_out = (
            torch.stack([getattr(p, name) for p in self._parts]) for name in ("log_evidence", "left_out")
        )
        log_evidence, lost, self._share = _mixed(region.prior, log_p, left_out)
        super().__init__(model.latent_dim, log_evidence, lost)

    @cached_property
    def _cubature(self) -> Posterior:
        return self._region.by_cubature.posterior(self._model, self._trace, self._x)

    @cached_property
    def rounding(self) -> Tensor:
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`: in the parts, and in their shares."""
        log_p, away = self.log_evidence, self._region.prior.away[:, None]
        own = torch.stack([part.rounding for part in self._parts]) * (1.0 + away)  # latents are counted from the means
        matters = self._share > MATTERS
        between = torch.empty_like(log_p)
        for index, rows in chunks(self._model, self._x):
            between[index] = log_prob_rounding(self._model, rows, log_p[index])
        return torch.where(matters, own, 0.0).amax(0) + torch.where(matters.sum(0) > 1, between, 0.0)

    def _each_mean(self) -> Tensor:
        """`(K, N, S)`."""
        return torch.stack([m + part.mean for m, part in zip(self._means, self._parts, strict=True)])

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""
        return torch.einsum("kn,kns->ns", self._share, self._each_mean())

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the parts' means plus the spread inside the parts."""
        means = self._each_mean()
        off = means - torch.einsum("kn,kns->ns", self._share, means)
        inside = torch.stack([part.covariance for part in self._parts])
        return torch.einsum("kn,knst->nst", self._share, inside + off[..., :, None] * off[..., None, :])

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density over all cells, `(N, S)`, by branch and bound, as of the cubature."""
        return self._cubature.mode

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`, by cubature."""
        return self._cubature.entropy()

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` of the pairs that matter."""
        index, value = [], []
        for share, part in zip(self._share, self._parts, strict=True):
            probs = part.cell_probs().coalesce()
            index.append(probs.indices())
            value.append(share[probs.indices()[0]] * probs.values())
        shape = probs.shape
        return torch.sparse_coo_tensor(torch.cat(index, 1), torch.cat(value), shape, check_invariants=True).coalesce()

    def _log_density(self, z: Tensor) -> Tensor:
        each = zip(self._share.log(), self._means, self._parts, strict=True)
        result: Tensor = torch.stack([log_share + part._log_density(z - m) for log_share, m, part in each]).logsumexp(0)
        return result

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        which = torch.multinomial(self._share.mT, count, replacement=True, generator=generator).mT  # (count, N)
        out = self.log_evidence.new_empty(*which.shape, len(self._means[0]))
        for k, (mean, part) in enumerate(zip(self._means, self._parts, strict=True)):
            mine = which == k
            most = int(mine.sum(0).max())
            if most:  # the j-th of the draws of a row that are this part's
                drawn = part._draw(most, generator).reshape(most, *self.batch_shape, -1)
                place, row = mine.nonzero(as_tuple=True)
                out[place, row] = mean + drawn[mine.cumsum(0)[place, row] - 1, row]
        return out

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor factor^T)`, by cubature over the cells of q."""
        return self._cubature.expected_log_prob(mean, factor)
