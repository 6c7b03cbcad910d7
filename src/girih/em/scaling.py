r"""Fitting in standard units, and the model in the units of the data.

Columns on very different scales drown each other under an isotropic noise, so a fit may standardise them:
`y = (x - mean) / scale`. A generator ends in an affine map, so the scaling folds into it and into the noise, and
what is kept is a plain `DGN` over x:

    g_x(z) = scale * g_y(z) + mean,    noise_x = scale noise_y scale,
    log p_x(x) = log p_y(y) - sum over observed columns of log scale
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girih._arrays import Rows, as_tensor
from girih.covariance import Covariance
from girih.errors import NonFiniteError
from girih.inference import DGN
from girih.inference.priors import prior_from
from girih.networks import AffineStep, LinearMap, LinearStep, Live, trace

# Deviations whose squares, times or over the least noise, are normal numbers.
_SMALLEST, _LARGEST = 1e-140, 1e150

# Rows at a time: temporaries stay small beside the data.
_BATCH = 8192


def column_statistics(
    x: Tensor, weight: Tensor, origin: Tensor | float = 0.0, unit: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance of the observed entries of each column of `(x - origin) / unit`, `(D,)` each."""
    total, mean, variance = (x.new_zeros(x.shape[1]) for _ in range(3))
    for rows, w in batches(x, weight):
        total += w @ (~torch.isnan(rows)).to(w)
        mean += w @ torch.nan_to_num((rows - origin) / unit)
    mean /= total
    for rows, w in batches(x, weight):
        variance += w @ torch.nan_to_num((rows - origin) / unit - mean).square()
    return mean, variance / total


def column_spread(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An entry in the midst of each column, and the mean from there and the deviation of its entries, `(D,)` each.

    Differences from an entry of the column are exact where an offset is much larger than the spread, so mean and
    deviation are bit for bit those of the column without the offset; nothing overflows. A column whose entries differ
    by rounding alone has the deviation 0; one without entries has the entry NaN. Rows of weight 0 do not count.
    """
    entry = x.new_full((x.shape[1],), torch.nan)
    low, high = torch.full_like(entry, torch.inf), torch.full_like(entry, -torch.inf)
    for rows, w in batches(x, weight):
        seen = rows.masked_fill((w <= 0)[:, None], torch.nan)
        if bool(torch.isnan(entry).any()):
            entry = torch.where(torch.isnan(entry), seen.nanmedian(0).values, entry)
        low = torch.minimum(low, seen.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0))
        high = torch.maximum(high, seen.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0))
    reach = 0.5 * high - 0.5 * low
    varies = reach > 4.0 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())  # false without entries
    unit = torch.ldexp(torch.ones_like(reach), torch.frexp(torch.where(varies, reach, 1.0)).exponent - 1)
    mean, variance = column_statistics(x, weight, entry, unit)
    return entry, torch.where(varies, unit * mean, 0.0), torch.where(varies, unit * variance.sqrt(), 0.0)


def root_mean_square(values: Tensor) -> float:
    """The root of the mean square of the entries, without overflow on the way."""
    largest = values.abs().max()
    return float(largest * (values / largest).square().mean().sqrt()) if largest > 0 else 0.0


def noise_floor(dgn: DGN, x: Tensor, weight: Tensor, share: float = 1e-6) -> Tensor:
    """The lower bound on the noise variances: a share of the variance of the data, column by column.

    Columns without variance are measured by the mean variance, and data without any by their size. The noise of outputs
    that are not Gaussian is a scale, and so is the bound; it is 0 where there is none.
    """
    if dgn.output is not None and not dgn.noise_tensors:
        return x.new_zeros(())
    entry, mean, deviation = column_spread(x, weight)
    size = root_mean_square(entry + mean)
    common = root_mean_square(deviation) or (size if 1e-140 < size < 1e150 else 1.0)  # its square is a number
    scalar = dgn.noise.ndim == 0 if dgn.output is not None else dgn.noise_covariance.kind == "scalar"
    if scalar:
        floor = share * deviation.new_tensor(common).square()
    else:
        floor = share * torch.where(deviation > 0, deviation, common).square()
    return floor if dgn.output is None else floor.sqrt()


@dataclass(frozen=True, eq=False)
class Scaling:
    """You fit in standard units with it: it maps each column affinely, `of` to mean 0 and variance 1.

    Attributes:
        mean: what is subtracted from each column, `(D,)`.
        scale: what each column is then divided by, `(D,)`, positive.
        offset: what is subtracted before the mean, so that a mean that is small beside it keeps its digits.

    Example:
        >>> import numpy as np
        >>> from girih.em.scaling import Scaling
        >>> scaling = Scaling.of(np.array([[1.0, 100.0], [3.0, np.nan], [5.0, 300.0]]))
        >>> scaling.mean.tolist(), scaling.apply(np.array([[3.0, 300.0]])).tolist()
        ([3.0, 200.0], [[0.0, 1.0]])
    """

    mean: Tensor
    scale: Tensor
    offset: Tensor | float = 0.0

    @classmethod
    def of(cls, X: Rows) -> Scaling:
        """To mean 0 and variance 1 of the observed entries of each column of `(N, D)`; a constant one is only moved."""
        x = as_tensor(X, "X")
        entry, mean, deviation = column_spread(x, torch.ones(len(x), dtype=torch.float64))
        # a column without entries has no mean; the fit refuses it by name. A constant one keeps its unit
        return cls(torch.nan_to_num(entry + mean), torch.where(deviation > 0, deviation, 1.0))

    @classmethod
    def of_range(cls, X: Rows) -> Scaling:
        """One scaling for all columns, from the range of the observed entries to [0, 1]; for images."""
        x = as_tensor(X, "X")
        values = x[~torch.isnan(x)]
        low, high = values.min(), values.max()
        scale = high - low if high > low else torch.ones_like(high)
        return cls(low.expand(x.shape[1]), scale.expand(x.shape[1]))

    @classmethod
    def for_fit(cls, dgn: DGN, x: Tensor, weight: Tensor, rescale: bool) -> Scaling:
        """The units that EM works in, such that a fit is the same in whatever units x `(N, D)` comes.

        Every column is centred, if the last layer has a bias that can take the centre back, and divided by its
        deviation; under an isotropic noise, which ties the columns together, all by the same number.

        Args:
            dgn: the model.
            x: the rows.
            weight: of the rows, `(N,)`.
            rescale: whether units may change; the scale of a weight prior is in those of the data. Those of outputs
                that are not Gaussian do not.

        Raises:
            NonFiniteError: columns whose variance is out of the range of double precision.
        """
        if dgn.output is not None:  # counts and categories have no units
            return cls(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        offset, mean, deviation = column_spread(x, weight)
        scale, head = torch.ones_like(deviation), dgn.trace.head
        centred = head is not None and head.has_bias
        if not centred:
            offset, mean = torch.zeros_like(offset), torch.zeros_like(mean)
        if head is not None and rescale and bool((deviation > 0).any()):
            common = root_mean_square(deviation)
            alike = torch.full_like(scale, common)
            scale = alike if dgn.noise_covariance.kind == "scalar" else torch.where(deviation > 0, deviation, alike)
        bad = ((deviation > _LARGEST) | (scale < _SMALLEST)).nonzero()[:, 0].tolist()
        if bad:
            raise NonFiniteError(
                f"columns {bad[:10]} of X have a standard deviation of {float(deviation[bad[0]]):.1e}, whose square is "
                "out of the range of double precision; express them in another unit"
            )
        return cls(mean, scale, offset)

    @contextmanager
    def inside(self, dgn: DGN) -> Iterator[None]:
        """A block in which the model is over y, and after which it is over x again."""
        self.enter(dgn)
        try:
            yield
        finally:
            self.leave(dgn)

    @contextmanager
    def outside(self, dgn: DGN) -> Iterator[None]:
        """A block inside of `inside` in which the model is over x; its parameters are not changed by it."""
        before = [p.detach().clone() for p in dgn.parameters()]
        self.leave(dgn)
        try:
            yield
        finally:
            dgn.bias_rest = None
            with torch.no_grad():
                for parameter, value in zip(dgn.parameters(), before, strict=True):
                    parameter.copy_(value)

    @torch.no_grad()
    def enter(self, dgn: DGN) -> None:
        """Turn a model over x into the same model over standardised y, in place."""
        head = dgn.trace.head
        if head is not None and dgn.output is None:
            head.module.weight.div_(self.scale[:, None])
            if head.has_bias:
                rest = 0.0 if dgn.bias_rest is None else dgn.bias_rest
                head.module.bias.sub_(self.offset).add_(rest).sub_(self.mean).div_(self.scale)
                dgn.bias_rest = None
            for part, unit in zip(dgn.noise_tensors, dgn.noise_covariance.units(self.scale), strict=True):
                part.div_(unit)

    @torch.no_grad()
    def leave(self, dgn: DGN) -> None:
        """Undo `enter`, in place."""
        head = dgn.trace.head
        if head is not None and dgn.output is None:
            head.module.weight.mul_(self.scale[:, None])
            for part, unit in zip(dgn.noise_tensors, dgn.noise_covariance.units(self.scale), strict=True):
                part.mul_(unit)
            if head.has_bias:
                bias = head.module.bias
                rest = _add(bias.mul_(self.scale).add_(self.mean), self.offset)
                dgn.bias_rest = _if_it_matters(rest, dgn.noise_covariance)

    def variance(self, value: Tensor) -> Tensor:
        """A variance `()`, the same for all columns, or variances `(D,)` over x as those over y."""
        return value / (self.scale[0] if value.ndim == 0 else self.scale).square()

    def apply(self, X: Rows) -> Tensor:
        """The rows in standard units, `(N, D)`; missing entries stay missing."""
        return (as_tensor(X, "X") - self.offset - self.mean) / self.scale

    def log_jacobian(self, X: Rows) -> Tensor:
        """`log p` of each row is larger by this in standard units, `(N,)`: the observed columns' log scales."""
        return torch.where(torch.isnan(as_tensor(X, "X")), 0.0, self.scale.log()).sum(1)

    def fold(self, dgn: DGN) -> DGN:
        """The same model over x, from a model over the standardised y; the argument is left as it is.

        An isotropic noise becomes a diagonal one where columns have different scales.
        """
        net = copy.deepcopy(dgn.net).double()
        steps = trace(net)
        last = steps.steps[steps.output]
        head = last.module if isinstance(last, LinearStep) else None
        uses = [
            s.operator.weight for s in steps.steps if isinstance(s, AffineStep) and isinstance(s.operator, LinearMap)
        ]
        shared = head is not None and sum(isinstance(use, Live) and use.module is head for use in uses) > 1
        scale, mean = self.scale.to(dgn.trace.device), self.mean.to(dgn.trace.device)
        with torch.no_grad():
            if head is None or head.bias is None or shared:
                head = nn.utils.skip_init(nn.Linear, len(scale), len(scale), dtype=torch.float64)
                head.weight.copy_(torch.eye(len(scale)))
                head.bias.zero_()
                net = nn.Sequential(net, nn.Flatten(), head)
            head.weight.mul_(scale[:, None])
            rest = _add(head.bias.mul_(scale), mean) + _add(head.bias, self.offset)
            if dgn.bias_rest is not None:
                rest += scale * dgn.bias_rest
            noise = dgn.noise_covariance.detached().rescaled(scale)
        latent = dgn.latent_prior
        prior = dgn.prior.detach() if latent is None else prior_from(latent.tensors())
        folded = DGN(net, noise=noise, prior=prior, tol=dgn.tol)
        folded.bias_rest = _if_it_matters(rest, noise)
        return folded


def _add(target: Tensor, more: Tensor | float) -> Tensor:
    """Add in place; returns what rounding takes from the sum (Knuth's exact addition)."""
    before = target.clone()
    target.add_(more)
    added = target - before
    return (before - (target - added)) + (more - added)


# A bias that is wrong by this share of the noise's deviation changes log p by 1e-9 nats at most, or in its last digits.
_NEGLIGIBLE = 1e-11


def _if_it_matters(rest: Tensor, noise: Covariance) -> Tensor | None:
    return rest if bool((rest.abs() > _NEGLIGIBLE * noise.variances.detach().sqrt()).any()) else None


def batches(x: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and weights, some at a time."""
    return zip(x.split(_BATCH), weight.split(_BATCH), strict=True)
