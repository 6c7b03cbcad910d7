"""The information that one row has about its z: the observed Fisher information, and the precision that it allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girih._arrays import ArrayLike, as_rows
from girih.errors import ParameterError, ShapeError, SingularInformationError, UnsupportedLayerError
from girih.networks import Trace, trace
from girih.training import evaluating
from girih.vae.latent_model import LatentModel

# Entries of the maps of cells (rows * D * S) that are held at a time.
_CHUNK = 2**24

# Eigenvalues below this share of the largest are rounding.
_SINGULAR = 1e-12


def fisher_information(vae: LatentModel, x: ArrayLike, z: ArrayLike) -> Tensor:
    r"""The observed Fisher information of each z, `G = -d^2 log p(x | z) / dz^2`.

        Gaussian noise:  A^T A / noise        Bernoulli:  A^T diag(p (1 - p)) A        any other decoder: the Hessian

    A is the affine map of the cell of z, to the mean or to the logits: inside a cell of a piecewise-affine decoder
    these are exact, positive semi-definite and do not depend on x. On the limits of the cells the derivative jumps,
    and no second derivative sees that: see `second_order_reconstruction`. Other decoders (smooth activations) are
    differentiated twice; there G depends on x and may have negative eigenvalues.

    Args:
        vae: with a `decoder`, a `likelihood` and, if that is "gaussian", a `noise`.
        x: `(N, D)`.
        z: `(N, S)`, one latent for each row.

    Returns:
        `(N, S, S)`, float64, symmetric; differentiable in the parameters of the decoder, and in z.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: x or z is not a complete table with D or S columns, or they have
            different numbers of rows.
        ParameterError: the latents are categories.

    Source:
        CG-BPEF, section 5, the display before Fig. 4.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.information import fisher_information
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> z = torch.tensor([[0.3]], dtype=torch.float64)
        >>> A, _ = girih.trace(vae.decoder).affine(z)
        >>> torch.allclose(fisher_information(vae, vae.decode(z), z), A.mT @ A / 0.1)
        True
    """
    rows, z = rows_and_latents(vae, x, z)
    return information_of(vae)(rows, z)


def information_of(vae: LatentModel) -> Callable[[Tensor, Tensor], Tensor]:
    """`fisher_information` of checked rows as a function of x and z; the decoder is traced once."""
    with evaluating(vae.decoder):
        try:
            traced = trace(vae.decoder)
        except UnsupportedLayerError:
            return partial(_hessian, vae)
    return partial(_in_parts, vae, traced)


def rows_and_latents(vae: LatentModel, x: ArrayLike, z: ArrayLike) -> tuple[Tensor, Tensor]:
    """Checked `x (N, D)` and `z (N, S)` of a VAE.

    Raises:
        ParameterError: z are categories, which have no derivatives.
        ShapeError, EmptyDataError, NonFiniteError.
    """
    if len(vae.prior().event_shape) != 1:
        raise ParameterError(
            f"the latents of {type(vae).__name__} are categories, in which log p(x | z) has no derivative; this is for "
            "latents that are numbers"
        )
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    z = as_rows(z, "z", vae.latent_dim, "the latent dimension S")
    if len(rows) != len(z):
        raise ShapeError(f"x has {len(rows)} rows and z has {len(z)}; pass one z for each row of x")
    return rows, z


def _in_parts(vae: LatentModel, traced: Trace, x: Tensor, z: Tensor) -> Tensor:
    step = max(1, _CHUNK // (vae.output_dim * vae.latent_dim))
    return torch.cat([_on_cells(vae, traced, part) for part in z.split(step)])


def _on_cells(vae: LatentModel, traced: Trace, z: Tensor) -> Tensor:
    A, b = traced.affine(z.to(traced.device))
    if vae.likelihood == "gaussian":
        return A.mT @ A / vae.noise.double()
    logits = (A @ z[..., None])[..., 0] + b
    scaled = (0.5 * (logsigmoid(logits) + logsigmoid(-logits))).exp()[..., None] * A
    return scaled.mT @ scaled


def _hessian(vae: LatentModel, x: Tensor, z: Tensor) -> Tensor:
    """Row by row of the Hessian: the gradient of each entry of the gradient."""
    further = torch.is_grad_enabled()
    with torch.enable_grad(), evaluating(vae.decoder):
        at = z if z.requires_grad else z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(vae.log_likelihood(x, at).sum(), at, create_graph=True)
        columns = [
            torch.autograd.grad(slope[:, s].sum(), at, create_graph=further, retain_graph=True)[0]
            for s in range(at.shape[1])
        ]
    hessian = torch.stack(columns, 1)
    return -0.5 * (hessian + hessian.mT)


class Precision(NamedTuple):
    """`Precision` says how precisely a row determines its z."""

    covariance: Tensor  # (N, S, S), the inverse of the Fisher information
    deviation: Tensor  # (N, S), the root of its diagonal


def cramer_rao(vae: LatentModel, x: ArrayLike, z: ArrayLike) -> Precision:
    r"""The least covariance of an unbiased estimate of z from one row: `G^-1`.

    With the prior N(0, I), the posterior covariance on a cell is `(G + I)^-1` before the cell cuts it: smaller, as the
    prior knows something too. It comes near `G^-1` where the noise is small, and only for posteriors inside of one
    cell.

    Args:
        vae: as for `fisher_information`.
        x: `(N, D)`.
        z: `(N, S)`.

    Raises:
        SingularInformationError: for some row, G has an eigenvalue that is not positive: in that direction x does not
            change, or log p(x | z) is not concave, and there is no bound. No pseudo-inverse is taken, which would
            claim a variance of 0 there.
        ShapeError, EmptyDataError, NonFiniteError: as for `fisher_information`.

    Source:
        CG-BPEF, section 5, on the Cramer-Rao bound.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.information import cramer_rao
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> cramer_rao(vae, torch.zeros(3, 2), torch.ones(3, 1)).deviation.shape
        torch.Size([3, 1])
    """
    information = fisher_information(vae, x, z)
    values, vectors = torch.linalg.eigh(information)
    largest = values.detach().abs().amax(-1)
    bad = ~(values.detach()[:, 0] > _SINGULAR * largest)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        least = float(values.detach()[row, 0])
        raise SingularInformationError(
            f"in {int(bad.sum())} of {len(bad)} rows (first in row {row}) the Fisher information of z has the "
            f"eigenvalue {least:.3g}, beside {float(largest[row]):.3g}: x does not determine z in that direction; "
            "leave those rows out, or look at fisher_information(vae, x, z) itself"
        )
    covariance = (vectors / values[:, None, :]) @ vectors.mT
    return Precision(covariance, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
