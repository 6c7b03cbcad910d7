"""Coarse-grained bounded polynomial exponential families, with a prior of the same family that is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

from girih._arrays import check_finite
from girih._options import whole
from girih.errors import ParameterError
from girih.vae.bpef import BPEF, CoarseBPEF, levels, polynomials
from girih.vae.bpef.concrete import as_temperature, relaxed
from girih.vae.bpef.exponential_polynomials import check_basis, check_order, evaluate
from girih.vae.families.base import Draws, Family
from girih.vae.information import CoarseFamily, Product, compactness
from girih.vae.latent_model import LatentModel, every_code, exact_model, log_joint
from girih.vae.nearest.cubature import Box, LogDensity, box_of, integrate
from girih.vae.nearest.product_families import Grid, nearest_coefficients, nearest_on_codes
from girih.vae.nearest.search import Nearest, Search, Searcher

# Panels and nodes on each axis of the grid that descents use, by S; values come from cubature instead. A posterior that
# is narrower than the nodes lie apart, 0.002, 0.008 and 0.06, misleads the descents: its best q may then not be found.
_PANELS = {1: (256, 4), 2: (64, 4), 3: (12, 3)}
_MOST_SIMPLICES = 400_000


_LARGEST_GRID = 1_000_000  # levels of a family that is loaded; 101 are usual


class Polynomial(Family):
    r"""`q(z_s = zeta_r | x) ∝ exp(sum_m b_sm t_m(zeta_r))` on R levels of [-1, 1], the prior alike with `a` for `b`.

        KL = sum_s (b_s - a_s) . E_q[t(z_s)] - F(b_s) + F(a_s)        (eq. 4, F the log-partition)

    Draws are `z_s = y_s . zeta` with y_s from the Concrete distribution at a temperature.

    Args:
        order: M, the degree of the polynomials.
        levels: R, how many.
        basis: of the polynomials, "monomial" or "legendre".
        temperature: T of the draws.
        learn_prior: whether `a` is a parameter; it starts at 0, the uniform distribution, and stays there otherwise.

    Raises:
        ParameterError: an option is out of its domain; M >= R - 1.

    Source:
        CG-BPEF, sections 3.2 to 3.4.

    Example:
        >>> import torch
        >>> from girih.vae import Polynomial
        >>> draws = Polynomial(order=3, levels=21).over(2, torch.empty(0)).draw(torch.ones(4, 6), samples=5)
        >>> draws.latents.shape, bool((draws.divergence > 0).all())
        (torch.Size([5, 4, 2]), True)
    """

    name, posteriors = "bpef", "polynomial"
    options, counts = ("order", "levels", "basis", "temperature", "learn_prior"), ("order",)
    searches = frozenset({"continuous"})
    temperature: float
    zeta: Tensor
    table: Tensor
    prior_coefficients: Tensor

    def __init__(
        self,
        order: int = 5,
        levels: int = 101,
        basis: str = "monomial",
        temperature: float = 0.5,
        learn_prior: bool = True,
    ) -> None:
        super().__init__()
        self.order, self.levels, self.basis = whole(order, "order"), whole(levels, "levels", 3), check_basis(basis)
        check_order(self.order, self.levels)
        self.temperature, self.learn_prior = as_temperature(temperature), learn_prior

    def start(self, like: Tensor) -> None:
        """The levels, the polynomials there, and the uniform prior."""
        self.codes = self.levels**self.latent_dim
        self.__dict__.pop("_exponential", None)  # of a family that had other latents before
        points = levels(self.levels)
        table = polynomials(points, self.order, self.basis).mT.contiguous()
        self.register_buffer("zeta", points.to(like), persistent=False)
        self.register_buffer("table", table.to(like), persistent=False)
        zeros = torch.zeros(self.latent_dim, self.order, dtype=torch.float64).to(like)
        if self.learn_prior:
            self.prior_coefficients = nn.Parameter(zeros)
        else:
            self.register_buffer("prior_coefficients", zeros)

    def outputs(self, latent_dim: int) -> int:
        """M coefficients for each latent."""
        return latent_dim * self.order

    def meaning(self, latent_dim: int) -> str:
        """Name the coefficients, for errors."""
        return f"the M = {self.order} coefficients of each of the S = {latent_dim} latents"

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """`y . zeta`, and eq. 4."""
        natural = encoded.reshape(-1, self.latent_dim, self.order)
        log_q = (natural @ self.table).log_softmax(-1)  # (N, S, R)
        log_p = (self.prior_coefficients @ self.table).log_softmax(-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum((1, 2))
        y = relaxed(log_q, self.temperature if temperature is None else temperature, samples, generator)
        return Draws(y @ self.zeta, divergence)

    def posterior(self, encoded: Tensor) -> Independent[CoarseBPEF]:
        """The posterior has the event shape `(S,)`."""
        natural = self._natural(encoded)
        check_finite(natural.detach(), "the encoder's coefficients")
        return self._on_levels(natural)

    def prior(self, device: torch.device) -> Independent[CoarseBPEF]:
        """The same family with the prior's coefficients."""
        return self._on_levels(self.prior_coefficients.double())

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """`y . zeta` with y relaxed."""
        return relaxed(self.prior_coefficients @ self.table, self.temperature, n) @ self.zeta

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"M={self.order}, R={self.levels}, basis={self.basis!r}"

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """The axis goes over [-1, 1] in equal steps."""
        return torch.linspace(-1.0, 1.0, count, dtype=torch.float64, device=device)

    @property
    def learns_prior(self) -> bool:
        """True where the coefficients of the prior are a parameter."""
        return isinstance(self.prior_coefficients, nn.Parameter)

    def free_prior_bound(self, encoded: Tensor) -> Tensor:
        """Compute eq. 5 for a batch."""
        natural = self._natural(encoded).cpu()  # where the tables of the exponential family are
        return compactness(self._exponential, natural, natural.detach().mean(0)).to(encoded.device)

    def centre_prior(self, parts: Sequence[Tensor]) -> None:
        """Take the prior that has the mean of the moments of all posteriors."""
        family = self._exponential
        with torch.no_grad():
            moments = torch.stack([family.moments(self._natural(part).cpu()).sum(0) for part in parts]).sum(0)
            mean = moments / sum(len(part) for part in parts)
            self.prior_coefficients.copy_(family.natural(mean, self.prior_coefficients.double().cpu()))

    def searcher(self, model: LatentModel, search: Search) -> Searcher:
        """All levels are gone through; or, `continuous`, the cells of the decoder by cubature."""
        if search.continuous:
            box = box_of(exact_model(model))
            return lambda x: _nearest_density(model, box, x, search)

        def find(x: Tensor) -> Nearest:
            q, prior = model.encode(x), model.prior()
            assert isinstance(q, Independent) and isinstance(prior, Independent)
            own, first = q.base_dist, prior.base_dist
            return nearest_on_codes(
                model, x, first.levels, first.statistics, own.coefficients, first.coefficients, search
            )

        return find

    def member(self, parameters: tuple[Tensor, ...], search: Search) -> Distribution:
        """The members with coefficients `(N, S, M)`, on the levels or on all of [-1, 1]."""
        if search.continuous:
            return Independent(BPEF(parameters[0], self.basis), 1, validate_args=False)
        return self._on_levels(parameters[0])

    def learned(self) -> Mapping[str, Tensor]:
        """The coefficients of the prior, under the name that files have for them."""
        return {"prior": self.prior_coefficients}

    @classmethod
    def restored(cls, options: Mapping[str, object], stored: int) -> Self:
        """Refuses a grid that is larger than any of use, too."""
        grid = options.get("levels", 0)
        if isinstance(grid, int) and grid > _LARGEST_GRID:
            raise ParameterError(f"levels={grid} is more than {_LARGEST_GRID:,}")
        return super().restored(options, stored)

    def _natural(self, encoded: Tensor) -> Tensor:
        return encoded.double().reshape(-1, self.latent_dim, self.order)

    def _on_levels(self, natural: Tensor) -> Independent[CoarseBPEF]:
        return Independent(CoarseBPEF(natural, self.levels, self.basis), 1, validate_args=False)

    @cached_property
    def _exponential(self) -> Product:
        return Product(CoarseFamily(self.order, self.levels, self.basis), self.latent_dim)


def _nearest_density(model: LatentModel, box: Box, x: Tensor, search: Search) -> Nearest:
    """Search with latents on the whole of [-1, 1], for densities with the coefficients of the coarse ones."""
    q, prior = model.encode(x), model.prior()
    assert isinstance(q, Independent) and isinstance(prior, Independent)
    own, first, basis = q.base_dist.coefficients, prior.base_dist.coefficients, prior.base_dist.basis
    order = first.shape[1]
    p = BPEF(first, basis)
    grid = _nodes(model, x, p)
    known = torch.stack((own, first.expand_as(own)), 1)
    coefficients, _ = nearest_coefficients(grid, polynomials(grid.points[:, 0], order, basis), known, search)
    families = [BPEF(c, basis) for c in (own, coefficients)]

    def density(family: BPEF) -> LogDensity:
        def log_density(z: Tensor, row: Tensor) -> Tensor:
            values = evaluate(family.coefficients[row][:, None], z, basis)
            return (values - family.log_partition[row][:, None]).sum(2)

        return log_density

    every = BPEF(first.expand_as(own), basis)
    found = integrate(
        box, x, density(every), [density(f) for f in families], families[1].mean, search.tolerance, _MOST_SIMPLICES
    )
    kl = torch.stack([kl_divergence(f, every).sum(1) for f in families], 1)
    kl = kl - found.log_likelihood + found.log_evidence[:, None]
    error = found.evidence_error + found.likelihood_error.amax(1)
    better = kl[:, 1] < kl[:, 0]
    best = torch.where(better[:, None, None], coefficients, own)
    return Nearest(-found.log_evidence, kl[:, 0], kl.amin(1), error, (best,))


def _nodes(model: LatentModel, x: Tensor, p: BPEF) -> Grid:
    """log p(x, z) at the nodes of a quadrature on each axis."""
    S = len(p.coefficients)
    panels, nodes = _PANELS[S]
    t, w = np.polynomial.legendre.leggauss(nodes)
    half = 1.0 / panels
    centre = -1.0 + half * (2.0 * np.arange(panels) + 1.0)
    points = torch.as_tensor((centre[:, None] + half * t).ravel())
    base = torch.as_tensor(np.tile(half * w, panels)).log()
    z = every_code(points, S)
    joint = torch.cat([part for _, part in log_joint(model, x, z, Independent(p, 1, validate_args=False))]).mT
    return Grid(joint.reshape(len(x), *[len(points)] * S), base, points[:, None])
