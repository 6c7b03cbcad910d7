"""How well generators of each latent dimension can fit data: the elbow method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import real, whole
from girih._progress import Progress
from girih.errors import EmptyDataError, ParameterError
from girih.geometry.cells import Shown
from girih.networks import mlp

_RATE = 1e-2  # of Adam
_MOVES = 25  # epochs between moves of latents to others
_ROWS = 2048  # rows among which they are moved
_NOTHING = 1e-12  # an error per row, of data with variance 1, that is rounding


@dataclass(frozen=True, repr=False)
class ApproximationElbow(Shown):
    """The least approximation error that was found, against latent dimension and sample size.

    Attributes:
        dims: the latent dimensions S, ascending, `(K,)`.
        sizes: the numbers of rows N, ascending, `(M,)`; each sample begins with the smaller ones.
        error: `E_N = sum_n ||x_n - g(z_n)||`, an upper bound on its minimum over generators and latents, `(K, M)`.
        baseline: the same for a constant generator at the mean, S = 0, `(M,)`.
        suggested: the smallest dimension that leaves hardly more unexplained than the largest, at the largest N.
    """

    dims: Tensor
    sizes: Tensor
    error: Tensor
    baseline: Tensor
    suggested: int

    @property
    def per_row(self) -> Tensor:
        """The error per row, `E_N / N`, `(K, M)`."""
        return self.error / self.sizes

    @property
    def unexplained(self) -> Tensor:
        """The error as a share of that of a constant generator, `(K, M)`."""
        return torch.where(self.baseline > 0.0, self.error / self.baseline, 0.0)


def elbow(
    x: ArrayLike,
    dims: Sequence[int],
    sizes: Sequence[int] | None = None,
    hidden: Sequence[int] = (32,),
    epochs: int = 300,
    restarts: int = 3,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> ApproximationElbow:
    r"""The error `E_N = min_theta sum_n min_z ||g_theta(z) - x_n||` against the latent dimension S and N.

    A generator with fewer latents than the data have dimensions fits few rows and fails on many: `E_N` grows with N
    for `S < S*`. Each generator, leaky ReLU, is fitted with a free latent for every row, by Adam on all rows at once:
    from the principal scores on, or from random projections in the restarts. From time to time each row takes the
    latent of the row whose image is nearest, and at the end the last layer is solved for by least squares. The
    result is the best of all steps and restarts, of the S principal axes (which a generator with at least S units in
    each hidden layer can express), of the smaller dimensions and of the larger samples: an upper bound on the
    minimum, as any fit is.

    The suggested dimension is the smallest S with `E(S) - E(S_max) <= tolerance (E(0) - E(S_max))` at the largest
    N, where `E(0)` is the error of the mean. If it is the largest of `dims`, the elbow may lie further.
    `girih.select_model` chooses S by the likelihood of held-out rows instead, with noise taken into account.

    Args:
        x: the data, `(N, D)`.
        dims: latent dimensions to try.
        sizes: numbers of rows to try; by default a quarter, a half and all.
        hidden: widths of the hidden layers.
        epochs: steps of Adam.
        restarts: random starts of the weights.
        tolerance: what may be left unexplained, from 0 to 1, as a share of what the largest dimension explains.
        seed: of the order of the rows and of the weights.
        progress: show a bar.

    Raises:
        ParameterError: an option is out of its domain, or a hidden layer is narrower than a dimension.
        ShapeError, NonFiniteError, EmptyDataError: x is not a table of numbers with two rows or more.

    Source:
        MAS, section 3.3, Theorem 2 and Figure 4 (right); appendix I, where an encoder gives the latents.

    Example:
        >>> import girih, torch
        >>> latent = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> x = latent @ torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
        >>> found = girih.geometry.elbow(x, [1, 2, 3], epochs=20, restarts=1)
        >>> found.suggested, found.error.shape, bool(found.error[1, -1] < 1e-9)
        (2, torch.Size([3, 3]), True)
    """
    rows = as_rows(x, "x", None, "the data dimension D").detach()
    if len(rows) < 2:
        raise EmptyDataError("x must have two rows or more for an elbow; got 1")
    tried = sorted({whole(S, "dims") for S in _listed(dims, "dims")})
    widths = [whole(width, "hidden") for width in _listed(hidden, "hidden")]
    if min(widths) < tried[-1]:
        raise ParameterError(
            f"hidden layers must have at least as many units as the largest dimension, {tried[-1]}; got {widths}"
        )
    count = len(rows)
    if sizes is None:
        sizes = [n for n in (count // 4, count // 2, count) if n >= 2]
    numbers = sorted({whole(n, "sizes", 2) for n in _listed(sizes, "sizes")})
    if numbers[-1] > count:
        raise ParameterError(f"sizes must be numbers of rows from 2 to {count}; got {numbers[-1]}")
    epochs, restarts, seed = whole(epochs, "epochs", 0), whole(restarts, "restarts"), whole(seed, "seed", 0)
    tolerance = real(tolerance, "tolerance", positive=False)
    if tolerance >= 1.0:
        raise ParameterError(f"tolerance must be below 1; got {tolerance}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(rows.device)
    error = torch.empty(len(tried), len(numbers), dtype=torch.float64)
    baseline = torch.empty(len(numbers), dtype=torch.float64)
    bar = Progress("elbow", len(tried) * len(numbers), show=progress)
    try:
        for column, size in enumerate(numbers):
            sample = rows[order[:size]]
            sample = sample - sample.mean(0)
            baseline[column] = _error(sample)
            fitted = _errors(sample, tried, widths, epochs, restarts, seed)
            for row, value in enumerate(fitted):
                error[row, column] = value
                bar.show(column * len(tried) + row + 1, f"S={tried[row]} N={size}")
    finally:
        bar.close()
    error = error.flip(1).cummin(1).values.flip(1)  # what fits all rows of a sample fits some of them
    limit = error[-1, -1] + tolerance * (baseline[-1] - error[-1, -1])
    suggested = tried[int((error[:, -1] <= limit).nonzero()[0])]
    return ApproximationElbow(torch.tensor(tried), torch.tensor(numbers), error, baseline, suggested)


def _errors(
    sample: Tensor, dims: list[int], hidden: list[int], epochs: int, restarts: int, seed: int
) -> Iterator[float]:
    """The least error of each dimension on centred rows."""
    scale = float(sample.square().mean().sqrt()) or 1.0
    sample = sample / scale
    left, values, axes = torch.linalg.svd(sample, full_matrices=False)
    best = math.inf
    for S in dims:
        k = min(S, len(values))
        best = min(best, _error(sample - (left[:, :k] * values[:k]) @ axes[:k]))
        for restart in range(restarts):
            if best <= _NOTHING * len(sample):
                break
            start = torch.zeros(len(sample), S, dtype=torch.float64, device=sample.device)
            start[:, :k] = left[:, :k] * math.sqrt(len(sample))
            if restart:
                mixing = torch.randn(
                    len(axes.T), S, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + restart)
                )
                start = sample @ mixing.to(sample.device) / math.sqrt(len(axes.T))
            best = min(best, _fit(sample, start, hidden, epochs, seed + restart))
        yield scale * best


def _listed(values: Sequence[int] | Tensor, name: str) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence | range | Tensor) or not len(values):
        raise ParameterError(f"{name} must be a list of whole numbers; got {values!r}")
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _error(residual: Tensor) -> float:
    return float(torch.linalg.vector_norm(residual, dim=1).sum())


def _fit(x: Tensor, start: Tensor, hidden: list[int], epochs: int, seed: int) -> float:
    """The least error of a generator with free latents on all steps, with its last layer solved for at both ends."""
    net = mlp([start.shape[1], *hidden, x.shape[1]], seed=seed).to(x.device)
    z = start.clone().requires_grad_()
    _solve_head(net, z, x)
    optimizer = torch.optim.Adam([z, *net.parameters()], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
    best = math.inf
    for epoch in range(epochs):
        if epoch % _MOVES == _MOVES - 1:
            _move(net, z, x)
        residual = net(z) - x
        best = min(best, _error(residual.detach()))
        optimizer.zero_grad()
        residual.square().mean().backward()
        optimizer.step()
        schedule.step()
    _move(net, z, x)
    with torch.no_grad():
        best = min(best, _error(net(z) - x))
        _solve_head(net, z, x)
        return min(best, _error(net(z) - x))


@torch.no_grad()
def _move(net: nn.Module, z: Tensor, x: Tensor) -> None:
    """Give each row the latent, of all rows, whose image is nearest: gradients do not lead over a fold."""
    for start in range(0, len(x), _ROWS):
        images = net(z[start : start + _ROWS])
        z[start : start + _ROWS] = z[start : start + _ROWS][torch.cdist(x[start : start + _ROWS], images).argmin(1)]


@torch.no_grad()
def _solve_head(net: nn.Sequential, z: Tensor, x: Tensor) -> None:
    """Set the last layer by least squares."""
    head, features = cast("nn.Linear", net[-1]), net[:-1](z)
    design = torch.cat((features, torch.ones_like(features[:, :1])), 1)
    solution = torch.linalg.pinv(design, rtol=1e-10) @ x
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])
