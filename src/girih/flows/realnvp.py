"""`RealNVP`: affine couplings of zuko, called as `RAD` is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from zuko.flows.coupling import GeneralCouplingTransform

from girih._options import whole
from girih.flows.flow import Flow
from girih.flows.networks import check_widths
from girih.flows.rad import couplings
from girih.flows.scaling import Standardise


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
            return GeneralCouplingTransform(features, whole(context, "context", 0), mask, hidden_features=widths)

        layers = couplings(build, features, transforms, randmask, seed)
        super().__init__([Standardise(whole(features, "features")), *layers], features, context)
        self.double()
