"""`RealNVP`: affine couplings of zuko, called as `RAD` is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zuko.flows.coupling import GeneralCouplingTransform

from girih._options import whole
from girih.flows.flow import Flow
from girih.flows.networks import check_widths
from girih.flows.rad import couplings
from girih.flows.scaling import Whiten

# On the last layers: the couplings begin near the identity, and with them the flow near the Gaussian of its whitening.
_SPREAD = 0.01


class RealNVP(Flow):
    r"""A flow of affine couplings, `z_1 = x_1` and `z_2 = x_2 exp(s(x_1)) + t(x_1)`, with no discrete latents.

    Args:
        features: D.
        context: C, the number of context features, for `p(x | c)`.
        transforms: the number of couplings.
        hidden_features: widths of the hidden layers of each network.
        randmask: choose the kept half of the features at random, in pairs of complements, instead of every other one.
        seed: makes weights and random masks reproducible; torch's global generator otherwise.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP* (2017); the couplings are zuko's.

    Example:
        >>> from girih.flows import RealNVP
        >>> flow = RealNVP(2, transforms=4, hidden_features=(56,), seed=0)
        >>> flow().rsample((3,), seed=1).shape, flow().encode([[0.0, 1.0]]).k.shape
        (torch.Size([3, 2]), torch.Size([1, 0]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 6,
        hidden_features: int | Sequence[int] = (64,),
        randmask: bool = False,
        seed: int | None = None,
    ) -> None:
        widths = check_widths(hidden_features)

        def build(mask: Tensor) -> Any:
            layer = GeneralCouplingTransform(features, whole(context, "context", 0), mask, hidden_features=widths)
            if isinstance(hyper := getattr(layer, "hyper", None), nn.Sequential):
                with torch.no_grad():
                    for parameter in hyper[-1].parameters():
                        parameter.mul_(_SPREAD)
            return layer

        layers = couplings(build, features, transforms, randmask, seed)
        super().__init__([Whiten(whole(features, "features")), *layers], features, context)
        self.double()
