"""What is explored: a generator with what is known of its noise, prior and cells, and where rows lie in its latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from girih._progress import Progress
from girih.em import DGNEstimator
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.inference import DGN
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition
from girih.vae import VAE

Array = NDArray[np.float64]

_AT_ONCE = 1024


class Subject(NamedTuple):
    """A `Subject` is a generator and what is known beside it.

    Attributes:
        trace: g.
        prior: `(S, S)`.
        part: its cells, where they are known.
        dgn: the exact model, where there is a noise and S is at most 3.
        vae: whose encoder says where rows lie, where S is larger.
    """

    trace: Trace
    prior: Tensor
    part: Partition | None = None
    dgn: DGN | None = None
    vae: VAE | None = None


class Places(NamedTuple):
    """`Places` say where rows lie in the latent space.

    Attributes:
        mean: `(N, S)`.
        covariance: `(N, S, S)`, where it is known.
        log_p: exact `log p(x)` in nats, `(N,)`, where it is known.
        what: what these are, in words.
    """

    mean: Array
    covariance: Array | None
    log_p: Array | None
    what: str


def subject_of(model: object) -> Subject:
    """The generator within what users have.

    Raises:
        ParameterError: it holds none.
        UnsupportedLayerError: it is not piecewise affine.
    """
    if isinstance(model, DGNEstimator):
        if not hasattr(model, "dgn_"):
            raise ParameterError("this DGNEstimator is not fitted yet; call fit first")
        model = model.dgn_
    if isinstance(model, DGN):
        return Subject(model.trace, model.prior.detach().cpu(), model.partition, model)
    if isinstance(model, Partition):
        return Subject(model.trace, model.prior_covariance, model)
    if isinstance(model, VAE):
        try:
            exact = None if model.log_noise is None else model.dgn()
        except (LatentDimensionError, ParameterError):  # many latents, or another prior
            exact = None
        if exact is None:
            traced = trace(model.decoder)
            return Subject(traced, torch.eye(traced.latent_dim, dtype=torch.float64), vae=model)
        return subject_of(exact)
    if isinstance(model, (nn.Module, Trace)):
        traced = trace(model)
        return Subject(traced, torch.eye(traced.latent_dim, dtype=torch.float64))
    raise ParameterError(
        "explore takes a TableModel, a DGN, a DGNEstimator, a VAE, a Partition or a decoder (torch.nn.Module); got "
        f"{type(model).__name__}"
    )


def places_of(subject: Subject, X: Array | None, latents: Array | None) -> Places | None:
    """Where rows lie: their exact posteriors, what an encoder says, or the latents that were given.

    Args:
        subject: from `subject_of`.
        X: rows, `(N, D)`, NaN where missing.
        latents: of the rows, `(N, S)`, instead.

    Raises:
        ParameterError: nothing says where the rows lie.
    """
    S = subject.trace.latent_dim
    if latents is not None:
        return Places(latents, None, None, "the latents given")
    if X is None:
        return None
    if subject.dgn is not None:
        return _exact(subject.dgn, X)
    if subject.vae is not None:
        mean, deviation = (part.detach().cpu().numpy().astype(np.float64) for part in subject.vae.embed(X))
        if mean.ndim == 2:
            spread = np.zeros((*deviation.shape, S))
            spread[:, range(S), range(S)] = deviation**2
            return Places(mean, spread, None, "what the encoder says, not the exact posterior")
    more = "" if S <= MAX_LATENT_DIM else f" (exact posteriors are for S <= {MAX_LATENT_DIM}, and S is {S} here)"
    raise ParameterError(
        "a decoder alone does not say where rows lie; pass their latents=, or explore "
        f"girih.DGN(decoder, noise=...){more}"
    )


def _exact(dgn: DGN, X: Array) -> Places:
    means: list[Tensor] = []
    spreads: list[Tensor] = []
    log_p: list[Tensor] = []
    bar = Progress("posteriors", len(X))
    try:
        for start in range(0, len(X), _AT_ONCE):
            posterior = dgn.posterior(X[start : start + _AT_ONCE])
            means.append(posterior.mean.cpu())
            spreads.append(posterior.covariance.cpu())
            log_p.append(posterior.log_evidence.detach().cpu())
            bar.show(min(start + _AT_ONCE, len(X)), "")
    finally:
        bar.close()
    each = [torch.cat(part).detach().numpy() for part in (means, spreads, log_p)]
    return Places(each[0], each[1], each[2], "the exact posterior")


def names_of(given: Sequence[object] | None, found: Sequence[object] | None, count: int) -> list[str]:
    """The names of the outputs: those given, those of a frame, or x1, x2, ...

    Raises:
        ShapeError: not one for each output.
    """
    names = given if given is not None else found
    if names is None:
        return [f"x{place + 1}" for place in range(count)]
    if len(names) != count:
        raise ShapeError(f"columns must name the {count} outputs of the generator, got {len(names)} names")
    return [str(name) for name in names]
