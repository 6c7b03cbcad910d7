"""Where a warm start starts: at the fitted generator, with the noise in the form that is asked for now."""

from __future__ import annotations

from typing import Any

from torch import nn

from girih.errors import ParameterError
from girih.inference import DGN


def warm_model(fitted: DGN, asked: DGN) -> DGN:
    """The fitted model where its generator is what is asked for; its noise takes the kind that is asked for.

    Of a full covariance the variances are kept, of several variances their mean.

    Raises:
        ParameterError: the generator that is asked for has other sizes or activations.
    """
    before, now = _describe(fitted), _describe(asked)
    changed = {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}
    if changed:
        some = ", ".join(f"{key} = {new} (it has {old})" for key, (old, new) in changed.items())
        raise ParameterError(
            f"warm_start goes on from the fitted generator, which cannot become one of {some}; set warm_start=False "
            "to start anew, or the old values to go on"
        )
    old, new = fitted.noise_covariance, asked.noise_covariance
    if old.kind == new.kind:
        return fitted
    noise = old.detached().to(new.kind)
    return DGN(fitted.net, noise=noise, prior=fitted.prior.detach(), tol=fitted.tol)


def _describe(dgn: DGN) -> dict[str, Any]:
    """What must not change; of networks that are no chain of layers only the ends."""
    ends = {"D": dgn.output_dim, "latent_dim": dgn.latent_dim}
    if not isinstance(dgn.net, nn.Sequential):
        return ends
    inner = [layer for layer in dgn.net if not isinstance(layer, nn.Linear)]
    return {
        **ends,
        "hidden": tuple(layer.out_features for layer in dgn.net if isinstance(layer, nn.Linear))[:-1],
        "activation": type(inner[0]).__name__ if inner else None,
        "negative_slope": getattr(inner[0], "negative_slope", None) if inner else None,
    }
