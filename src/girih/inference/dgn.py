"""`DGN`: a generator with Gaussian noise and prior, as an exact density model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from girih._arrays import as_rows, as_tensor
from girih._options import real
from girih.errors import NonFiniteError, ParameterError
from girih.inference import noise as gaussian_noise
from girih.inference.estep import Evidence, chunks, expect
from girih.inference.fisher import MarginalLogProb
from girih.inference.limits import check_latent_dim
from girih.inference.line_posterior import LinePosterior
from girih.inference.model import Cells, Intervals, Model
from girih.inference.pieces import Pieces
from girih.inference.polytope_posterior import PolytopePosterior
from girih.inference.posterior import GaussianQ, Posterior, Shape, gaussian_entropy, make_generator
from girih.networks import trace
from girih.partition import Partition
from girih.partition.line_cells import LineCells

# The share of each p(x) that may be left out, unless told otherwise.
TOL = 1e-10


class DGN(nn.Module):
    r"""The joint model `z ~ N(0, prior)`, `x = g(z) + e`, `e ~ N(0, noise)`, solved exactly.

        p(x) = sum_cells N(x; b, noise + A prior A^T) P(z in cell | x, map of the cell)

    Calling it returns the distribution of x for the current parameters. Exact for S = 1, 2 and 3.

    Args:
        net: the generator g, any module that `girih.trace` supports; kept by reference, so training the
            module changes the model.
        noise: the noise *variance*: a scalar, `(D,)` variances, or a `(D, D)` covariance.
        prior: the `(S, S)` covariance of z, a scalar variance, or `None` for the identity.
        tol: for S = 2, 3, the share of each p(x) that may be left out because bounds prove it to be smaller than
            that; 0 leaves out nothing. What was left out at most is `Posterior.left_out`, or
            `dgn().evidence(x).left_out`.

    `noise` and `prior` are parameters of the module. A tensor that already asks for gradients is used as it is.

    Raises:
        UnsupportedLayerError, LatentDimensionError, ShapeError, NoiseError, NonFiniteError.

    Source:
        EM-DGN, eq. 4 and Theorem 1.

    Example:
        >>> import girih, torch
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.0025)
        >>> x = dgn().sample((4,))
        >>> dgn().log_prob(x).shape, dgn.posterior(x).mean.shape
        (torch.Size([4]), torch.Size([4, 1]))
    """

    def __init__(self, net: nn.Module, noise: Any = 1.0, prior: Any = None, tol: float = TOL) -> None:
        super().__init__()
        self.tol = _check_tol(tol)
        self.trace = trace(net)
        check_latent_dim(self.trace.latent_dim)
        self.net = net
        device = self.trace.device
        noise = as_tensor(noise, "noise", device)
        if noise.ndim == 1 and len(noise) == 1 and self.trace.output_dim != 1:
            noise = noise[0]
        gaussian_noise.check_noise(noise, self.trace.output_dim)
        prior = as_tensor(1.0 if prior is None else prior, "prior", device)
        if prior.ndim < 2 and prior.numel() == 1:
            prior = prior.reshape(()) * torch.eye(self.trace.latent_dim, dtype=torch.float64, device=device)
        gaussian_noise.check_prior(prior, self.trace.latent_dim)
        self.noise: Tensor = _own(noise)
        self.prior: Tensor = _own(prior)
        # what rounding took from the last bias of a fit to data far from 0: `(D,)`, or `None`
        self.bias_rest: Tensor | None
        self.register_buffer("bias_rest", None, persistent=False)

    @property
    def latent_dim(self) -> int:
        """The latent dimension S."""
        return self.trace.latent_dim

    @property
    def output_dim(self) -> int:
        """The data dimension D."""
        return self.trace.output_dim

    @property
    def partition(self) -> Partition:
        """The latent partition for the current parameters."""
        return Partition(self.trace, prior=self.prior.detach())

    def forward(self) -> DGNDistribution:
        """The distribution of x for the current parameters."""
        return DGNDistribution(self)

    def model(self, partition: Partition | None = None) -> Model:
        """The current parameters as detached tensors, in the form that the exact computations take."""
        if self.latent_dim > 1 and self.trace.device.type != "cpu":
            raise ParameterError(
                f"exact inference with S = {self.latent_dim} runs on the CPU, and the network is on "
                f"{self.trace.device}; call net.cpu() first"
            )
        with torch.no_grad():
            partition = self.partition if partition is None else partition
            value, slope = partition.hidden_jet()
            weight, bias = (part.detach() for part in self.trace.head_parameters())
            prior = self.prior.detach().clone()
            cells = Cells(partition.piece_origins, value, slope, _region(partition, prior))
            rest = self.bias_rest
            if rest is not None:  # a bias that was changed since then has no such rest
                rest = rest.where(rest.abs() <= torch.finfo(rest.dtype).eps * bias.abs(), 0.0)
            return Model(cells, weight.clone(), bias.clone(), self.noise.detach().clone(), prior, self.tol, rest)

    def rows(self, x: Any, allow_missing: bool = True) -> Tensor:
        """Checked observations `(N, D)`; NaN means missing."""
        return as_rows(
            x, "x", self.output_dim, "the data dimension D", allow_missing=allow_missing, device=self.trace.device
        )

    def posterior(self, x: Any) -> Posterior:
        """The exact posteriors `p(z | x_n)` of a batch `(N, D)`; NaN entries of x are missing."""
        model, rows = self.model(), self.rows(x).detach()
        if self.latent_dim == 1:
            return LinePosterior(model, rows)
        return PolytopePosterior(model, self.trace, rows)

    def elbo(self, x: Any, q: GaussianQ) -> Tensor:
        r"""The evidence lower bound `E_q[log p(x, z)] + H(q)` in nats, `(N,)`, exact for a Gaussian q.

        `log p(x) = elbo(x, q) + KL(q || p(z | x))`; see `Posterior.kl` for what q may be.

        Source:
            EM-DGN, eq. 3.
        """
        posterior = self.posterior(x)
        mean, factor = posterior.gaussian_parameters(q)
        return posterior.expected_log_prob(mean, factor) + posterior.log_evidence + gaussian_entropy(factor)

    def impute(self, x: Any) -> Tensor:
        """`E[x_missing | x_observed]` in place of the NaN entries of x, `(N, D)`; observed entries stay as they are.

        Example:
            >>> import girih
            >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
            >>> filled = dgn.impute([[0.5, float("nan")], [0.1, 0.2]])
            >>> filled.isnan().any().item(), filled[1].tolist()
            (False, [0.1, 0.2])
        """
        rows, model = self.rows(x).detach(), self.model()
        filled = rows.clone()
        for index, part in chunks(model, rows):
            if part.observed is None:
                continue
            _, e = expect(model, part)
            mean = e.features(model.cells) @ model.weight.mT + model.bias
            residual = part.observed.complete((torch.nan_to_num(part.x) - mean)[:, :, None])[:, :, 0]
            filled[index] = torch.where(torch.isnan(part.x), mean + residual, part.x)
        return filled

    def extra_repr(self) -> str:
        """Shown by `print(dgn)`."""
        kind = ("scalar", "diagonal", "full")[self.noise.ndim]
        return f"S={self.latent_dim}, D={self.output_dim}, noise={kind}"


class DGNDistribution(Distribution):
    """The distribution of x under a `DGN`. The partition is made once, and again if the parameters change."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dgn: DGN) -> None:
        self._dgn = dgn
        self._state: Any = None
        super().__init__(torch.Size([]), torch.Size([dgn.output_dim]), validate_args=False)
        self._refresh()

    def _refresh(self) -> tuple[Partition, Model]:
        state = tuple((id(p), p._version, p.data_ptr()) for p in (*self._dgn.parameters(), *self._dgn.buffers()))
        if state != self._state:
            self._partition = self._dgn.partition
            self._model = self._dgn.model(self._partition)
            self._state = state
        return self._partition, self._model

    @property
    def partition(self) -> Partition:
        """The latent partition."""
        return self._refresh()[0]

    def log_prob(self, value: Any) -> Tensor:
        """`log p(x)` in nats, `(N,)`: exact, with NaN entries of x marginalised.

        Differentiable once in x, the parameters of the network, the noise and the prior. Leading batch axes
        are kept: `(..., N, D)` gives `(..., N)`.
        """
        return self.evidence(value).log_prob

    def evidence(self, value: Any) -> Evidence:
        """`log_prob(x)` together with `left_out`, a certified bound on the relative error of each p(x), and `rounding`.

        `left_out` covers what was left out of the sum over cells: at most the `tol` of the `DGN` (S = 2, 3), or what
        the rounding of `log p` alone amounts to where that is more, as for rows a million units away. `rounding`
        bounds, in nats, what the rounding of rows and maps changes in `log p(x)`: more than a nat where the signal is
        1e9 times the noise. The error of the integrals, `1e-8 max(1, |log p|)` nats at most, comes on top of both.

        Example:
            >>> import girih
            >>> dgn = girih.DGN(girih.mlp([2, 8, 2], seed=0), noise=0.01, tol=1e-6)
            >>> bool(dgn().evidence([[0.5, 0.2]]).left_out <= 1e-6)
            True
        """
        dgn = self._dgn
        value = as_tensor(value, "x", dgn.trace.device)
        if value.ndim > 2 and value.shape[-1] == dgn.output_dim:
            flat = self.evidence(value.reshape(-1, value.shape[-1]))
            return Evidence(*(part.reshape(value.shape[:-1]) for part in flat))
        single = value.ndim == 1 and len(value) == dgn.output_dim and dgn.output_dim > 1
        x = dgn.rows(value)
        partition, model = self._refresh()
        differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in dgn.parameters())
        jet = partition.hidden_jet() if differentiable else model.cells
        head = dgn.trace.head_parameters()
        found = Evidence(*MarginalLogProb.apply(model, x, jet.value, jet.slope, *head, dgn.noise, dgn.prior))
        log_p = found.log_prob
        if not torch.isfinite(log_p).all():
            row = int((~torch.isfinite(log_p)).nonzero()[0])
            raise NonFiniteError(
                f"log p(x) of row {row} is {log_p[row].item()}: the row or the network's output is out of range, or "
                "the noise is no longer positive definite; rescale x, take smaller training steps, or train log(noise)"
            )
        return Evidence(*(part[0] for part in found)) if single else found

    def rsample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`, differentiable in the parameters: `g(z) + e`."""
        dgn, shape = self._dgn, torch.Size(sample_shape)
        generator = make_generator(seed, dgn.trace.device)
        options: dict[str, Any] = {"dtype": torch.float64, "device": dgn.trace.device, "generator": generator}
        z = gaussian_noise.scale_samples(dgn.prior, torch.randn(shape.numel(), dgn.latent_dim, **options))
        e = gaussian_noise.scale_samples(dgn.noise, torch.randn(shape.numel(), dgn.output_dim, **options))
        return (dgn.trace(z) + e).reshape(*shape, dgn.output_dim)

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        with torch.no_grad():
            return self.rsample(sample_shape, seed)

    @property
    def mean(self) -> Tensor:
        """E[x], `(D,)`: the cells' maps weighted by the exact prior masses and means."""
        # a row with every entry missing has the prior as its posterior
        nothing = torch.full((1, self._dgn.output_dim), torch.nan, dtype=torch.float64, device=self._dgn.trace.device)
        return self._dgn.impute(nothing)[0]


def _own(value: Tensor) -> Tensor:
    """A parameter, unless the user's tensor already asks for gradients."""
    return value if value.requires_grad else nn.Parameter(value.clone())


def _check_tol(tol: Any) -> float:
    value = real(tol, "tol", positive=False)
    if value >= 1.0:
        raise ParameterError(f"tol is the share of p(x) that may be left out, and must be below 1; got {value:g}")
    return value


def _region(partition: Partition, prior: Tensor) -> Intervals | Pieces:
    if isinstance(partition.cells, LineCells):
        lower, upper = partition.bounds
        origin = partition.piece_origins[:, 0]
        return Intervals(lower - origin, upper - origin)
    return Pieces(partition.cells, torch.linalg.cholesky(prior))
