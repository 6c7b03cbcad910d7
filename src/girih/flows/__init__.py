"""Flows: density models that are stacks of invertible maps, and of maps that fold (RAD).

`RAD` has real and discrete latents, `RealNVP` is its rival; both are `Flow`s, which mix folds with zuko's transforms.
Called, optionally with a context, each gives a `FlowDistribution`.

`make_fold`, `knots`, `lines`, `piece_of`, `tied_logits` and `log_gate` are the parts of a fold, for maps of one's own.

`DGNFlow` is a piecewise-affine generator with S = D as a flow (MAS, appendix C); called, it gives a `PushForward`.
"""

from torch.distributions import Distribution

from girih._deprecated import moved
from girih._extras import needs

with needs("flows"):
    # zuko switches off the checks of arguments of all of torch.distributions, everybody's, when it is imported
    _validates = Distribution._validate_args
    import zuko  # noqa: F401

    Distribution.set_default_validate_args(_validates)

    # isort: split
    from girih.flows.chains import invert_chain
    from girih.flows.coupling import Folded, FoldTransform, RADCoupling
    from girih.flows.dgn import DGNFlow, square_net
    from girih.flows.distribution import Components, Encoded, FlowDistribution, Preimages, Step
    from girih.flows.flow import Flow, fit_flow
    from girih.flows.fold import Fold, knots, lines, log_gate, make_fold, piece_of, tied_logits
    from girih.flows.push_forward import Latents, PushForward
    from girih.flows.rad import RAD, RealNVP, couplings, masks
    from girih.flows.scaling import Standardise, Whiten

__all__ = [
    "RAD",
    "Components",
    "DGNFlow",
    "Encoded",
    "Flow",
    "FlowDistribution",
    "Fold",
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
    "couplings",
    "fit_flow",
    "invert_chain",
    "knots",
    "lines",
    "log_gate",
    "make_fold",
    "masks",
    "piece_of",
    "square_net",
    "tied_logits",
]

__getattr__ = moved(__name__, {"FlowRun": ("girih", "FitResult")})
