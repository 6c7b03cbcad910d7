"""`RAD` and `RealNVP`: flows of couplings, that fold or that are affine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.lazy import LazyTransform

from girih._options import whole
from girih.errors import ParameterError
from girih.flows.coupling import RADCoupling, check_widths
from girih.flows.flow import Flow
from girih.flows.scaling import Whiten
from girih.training import own_random_state

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

# On the last layers: the couplings begin near the identity, and with them the flow near the Gaussian of its whitening.
_SPREAD = 0.01


class RAD(Flow):
    r"""A flow with real and discrete latents: couplings that fold the line, with gates that say which piece x is on.

        log p(x) = log N(z; 0, I) + sum_l [log|det dz_l/dx_l| + log p(k_l | z_l)]

    A deep mixture of `K^M` components with disjoint supports, M the folded features of all layers: density, latents
    and samples are exact, and cost one pass. Called, it gives a `girih.flows.FlowDistribution` with `log_prob`,
    `sample`, `encode`, `decode` and more. Computes in float64 unless it is converted (`.float()`).

    Args:
        features: D.
        context: C, the number of context features, for `p(x | c)`.
        transforms: the number of couplings.
        hidden_features: widths of the hidden layers of each network.
        pieces: K of each fold, odd, 3 or more.
        randmask: choose the kept half of the features at random, in pairs of complements, instead of every other one.
        half_width: of the middle piece of each fold at the start, in standardised units.
        seed: makes weights and random masks reproducible; torch's global generator otherwise.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        Dinh, Sohl-Dickstein, Larochelle, Pascanu, *A RAD approach to deep mixture models* (2019).

    Example:
        >>> import torch
        >>> from girih.flows import RAD
        >>> flow = RAD(2, transforms=4, hidden_features=(8,), seed=0)
        >>> x = flow().sample((100,), seed=1)
        >>> z, k = flow().encode(x)
        >>> k.shape, bool((flow().decode(z, k) - x).abs().max() < 1e-9)
        (torch.Size([100, 4]), True)
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 6,
        hidden_features: int | Sequence[int] = (64,),
        pieces: int = 3,
        randmask: bool = False,
        half_width: float = 0.5,
        seed: int | None = None,
    ) -> None:
        def build(mask: Tensor) -> RADCoupling:
            return RADCoupling(features, context, mask, pieces, hidden_features, half_width)

        layers = couplings(build, features, transforms, randmask, seed)
        super().__init__([Whiten(whole(features, "features")), *layers], features, context)
        self.double()


class RealNVP(Flow):
    r"""A flow of affine couplings, `z_1 = x_1` and `z_2 = x_2 exp(s(x_1)) + t(x_1)`, with no discrete latents.

    Args:
        features: D.
        context: C, the number of context features, for `p(x | c)`.
        transforms: the number of couplings.
        hidden_features: widths of the hidden layers of each network.
        randmask: choose the kept half of the features at random, in pairs of complements, instead of every other one.
        seed: makes weights and random masks reproducible; torch's global generator otherwise.
        activation: of the hidden layers of s and t. "tanh" keeps both bounded; with "relu", as in the papers, they grow
            without end beyond the training rows, and one outlier among fresh rows can cost hundreds of nats.

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
        activation: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ParameterError(f'activation must be "tanh" or "relu"; got {activation!r}')
        widths = check_widths(hidden_features)

        def build(mask: Tensor) -> LazyTransform:
            layer = GeneralCouplingTransform(
                features, whole(context, "context", 0), mask, hidden_features=widths, activation=ACTIVATIONS[activation]
            )
            if isinstance(hyper := getattr(layer, "hyper", None), nn.Sequential):
                with torch.no_grad():
                    for parameter in hyper[-1].parameters():
                        parameter.mul_(_SPREAD)
            return layer

        layers = couplings(build, features, transforms, randmask, seed)
        super().__init__([Whiten(whole(features, "features")), *layers], features, context)
        self.double()


def couplings(
    build: Callable[[Tensor], T], features: int, transforms: int, randmask: bool, seed: int | None
) -> list[T]:
    """Layers for alternating masks, built within a random state of their own if a seed is given.

    Args:
        build: takes the features that a layer keeps, `(D,)` booleans, and gives the layer: a `RADCoupling`, or a
            coupling of zuko.
        features: D.
        transforms: how many layers.
        randmask: draw which features are kept, instead of every other one.
        seed: of the masks and of the weights of the layers.

    Example:
        >>> from girih.flows import couplings
        >>> couplings(lambda mask: mask.int().tolist(), 3, 2, randmask=False, seed=0)
        [[0, 1, 0], [1, 0, 1]]
    """
    if seed is not None:
        with own_random_state(whole(seed, "seed", None), torch.device("cpu")):
            return couplings(build, features, transforms, randmask, None)
    return [build(mask) for mask in masks(features, whole(transforms, "transforms"), randmask)]


def masks(features: int, transforms: int, randmask: bool) -> list[Tensor]:
    """`(D,)` booleans for each layer, true for the features it keeps: a mask and its complement in turn.

    Example:
        >>> from girih.flows import masks
        >>> [mask.int().tolist() for mask in masks(3, 2, randmask=False)]
        [[0, 1, 0], [1, 0, 1]]
    """
    features = whole(features, "features")
    if features == 1:
        return [torch.zeros(1, dtype=torch.bool)] * transforms
    out: list[Tensor] = []
    for layer in range(transforms):
        if layer % 2 == 0:
            place = torch.randperm(features) if randmask else torch.arange(features)
        out.append(place % 2 == (layer + 1) % 2)
    return out
