"""Flows: density models that are stacks of invertible maps, and of maps that fold (RAD).

`RAD` has real and discrete latents, `RealNVP` is its rival; both are `Flow`s, which mix folds with zuko's transforms.
Called, optionally with a context, each gives a `FlowDistribution`.

`DGNFlow` is a piecewise-affine generator with S = D as a flow (MAS, appendix C); called, it gives a `PushForward`.
"""

from girih._deprecated import moved

# first, before the others import zuko
from girih.flows import checks as _checks  # noqa: F401

# isort: split
from girih.flows import fold, gate
from girih.flows.coupling import Folded, FoldTransform, RADCoupling
from girih.flows.dgn import DGNFlow, square_net
from girih.flows.distribution import Components, Encoded, FlowDistribution, Preimages, Step
from girih.flows.flow import Flow, fit_flow
from girih.flows.layerwise import invert_chain
from girih.flows.push_forward import Latents, PushForward
from girih.flows.rad import RAD, RealNVP, masks
from girih.flows.scaling import Standardise, Whiten

__all__ = [
    "RAD",
    "Components",
    "DGNFlow",
    "Encoded",
    "Flow",
    "FlowDistribution",
    "FoldTransform",
    "Folded",
    "Latents",
    "Preimages",
    "PushForward",
    "RADCoupling",
    "RealNVP",
    "Standardise",
    "Step",
    "Whiten",
    "fit_flow",
    "fold",
    "gate",
    "invert_chain",
    "masks",
    "square_net",
]

__getattr__ = moved(__name__, {"FlowRun": ("girih", "FitResult")})
