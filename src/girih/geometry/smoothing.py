"""Generators with smooth activations in place of piecewise-linear ones, from affine to the network itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real
from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks import AffineStep, KinkStep, MaxStep, trace


class SmoothGenerator(nn.Module):
    """A generator whose activations choose between their linear pieces softly; made by `smooth`.

    It holds the network itself as `net`, so that both have the same parameters, and training one trains the other.

    Attributes:
        net: the network.
    """

    net: nn.Module

    def __init__(self, net: nn.Module, beta: float, latent_dim: int | None = None) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise UnsupportedLayerError(f"expected a torch.nn.Module to smooth, got {type(net).__name__}")
        self.beta = beta
        self._trace = trace(net, latent_dim=latent_dim)
        self.net = net
        example = next((p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point()), None)
        dtype = torch.float64 if example is None else example.dtype
        with torch.no_grad():
            self._shape = tuple(
                net(torch.zeros(2, self._trace.latent_dim, dtype=dtype, device=self._trace.device)).shape
            )

    @property
    def beta(self) -> float:
        """The sharpness of the choice, from 0 (all pieces alike) to 1 (the network itself); it may be set."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta = as_beta(value)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"beta={self.beta}"

    def forward(self, z: Tensor) -> Tensor:
        """The smooth generator at latents `(N, S)`, in the type of z and the shape of the output of the network."""
        if self.beta == 1.0:
            result: Tensor = self.net(z)
            return result
        traced, sharpness = self._trace, self.beta / (1.0 - self.beta)
        name = "the latent dimension S"
        values = [as_rows(z, "z", traced.latent_dim, name, device=traced.device, allow_empty=True)]
        for step in traced.steps[1:]:
            h = values[step.inputs[0]]
            if isinstance(step, AffineStep):
                values.append(step.linear(*(values[i] for i in step.inputs)) + step.bias)
            elif isinstance(step, KinkStep):
                values.append(_soft_kink(step, h, sharpness))
            else:
                assert isinstance(step, MaxStep)
                values.append(_soft_maximum(step, h, sharpness))
        return values[traced.output].reshape(-1, *self._shape[1:]).to(z.dtype)


def smooth(net: nn.Module, beta: float, latent_dim: int | None = None) -> SmoothGenerator:
    r"""The network with every activation smoothed: affine for beta = 0, the network itself for beta = 1.

    The linear pieces `v_k(u) = s_k u + o_k` of an activation are weighed by a probability of being in the region of
    each, `sum_k q_k(u) v_k(u)` with

    `q = softmax(beta / (1 - beta) c)`, `c_0 = 0`, `c_k = c_{k-1} + |s_k - s_{k-1}| (u - t_k)`,

    where t_k are the kinks. For ReLU this is the `u sigmoid(beta u / (1 - beta))` of the paper. Where an
    activation is a maximum of its pieces, q is the softmax of `beta / (1 - beta) v`, the smoothed max-affine spline;
    where it is a minimum, that of `-v`. Hardtanh, Softshrink and others that are neither are covered by scores c
    that have the same regions. Maxima over windows (MaxPool, Maxout) become `sum_i softmax(beta / (1 - beta) h)_i h_i`.
    At beta = 0 each activation is the mean of its pieces: `u / 2` for ReLU, `u / 3` for Hardtanh, and 0 for absolute
    values, whose pieces cancel.

    Args:
        net: any module that `girih.trace` supports; it is shared, not copied.
        beta: from 0 to 1; it can be changed later, `smooth(net, 0.5).beta = 0.9`.
        latent_dim: S, where the first layer does not tell it.

    Returns:
        A trainable module from `(N, S)` to the shape of the network's output. For beta < 1 it computes in float64, and
        batch normalisation and dropout act as in eval mode whatever the mode of the module.

    Raises:
        ParameterError: beta is not a number from 0 to 1.
        UnsupportedLayerError: a layer that is neither affine nor piecewise linear; the message names it.

    Source:
        MAS, section 4.3 and Figure 6.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 3], activation="relu", seed=0)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> soft = girih.geometry.smooth(net, 0.5)
        >>> h = net[0](z)
        >>> torch.allclose(soft(z), net[2](h * torch.sigmoid(h)))
        True
        >>> soft.beta = 1.0
        >>> torch.equal(soft(z), net(z))
        True
    """
    return SmoothGenerator(net, beta, latent_dim)


def as_beta(value: float) -> float:
    """A number from 0 to 1.

    Raises:
        ParameterError: it is not one.
    """
    beta = real(value, "beta", positive=False)
    if beta > 1.0:
        raise ParameterError(f"beta must be from 0 (affine) to 1 (the network itself); got {value!r}")
    return beta


def _soft_kink(step: KinkStep, h: Tensor, sharpness: float) -> Tensor:
    """An activation, its pieces weighed by a softmax, `(N, size)`."""
    kinks = len(step.thresholds)
    first = {1: -1, 2: -1}.get(kinks, 0)  # the codes of the pieces
    codes = [first + k * (2 if kinks == 1 else 1) for k in range(kinks + 1)]
    rows = [torch.full((1, step.size), code, dtype=torch.int8, device=h.device) for code in codes]
    slopes = [step.slopes(row) for row in rows]
    values = [slope * h + step.offsets(row) for slope, row in zip(slopes, rows, strict=True)]
    scores = [torch.zeros_like(h)]
    for k, threshold in enumerate(step.thresholds):
        scores.append(scores[-1] + (slopes[k + 1] - slopes[k]).abs() * (h - threshold))
    return ((sharpness * torch.stack(scores)).softmax(0) * torch.stack(values)).sum(0)


def _soft_maximum(step: MaxStep, h: Tensor, sharpness: float) -> Tensor:
    """Maxima over windows, their features weighed by a softmax, `(N, size)`."""
    windows = step.windows.to(h.device).sort(1).values
    again = torch.zeros_like(windows, dtype=torch.bool)  # windows cut at a border may name a feature twice
    again[:, 1:] = windows[:, 1:] == windows[:, :-1]
    taken = h[:, windows]
    return ((sharpness * taken).masked_fill(again, -torch.inf).softmax(2) * taken).sum(2)
