"""The flows that every law is tested on, by name: a constructor from a seed, and a context where it takes one."""

import torch
import zuko
from zuko.lazy import UnconditionalTransform

from girih.flows import RAD, Flow, RADCoupling, RealNVP

f64 = torch.float64


def livened(flow, seed, by=0.2):
    """Other weights than at the start, with gates and slopes that differ from piece to piece, and no heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.6).add_(by * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return flow


def rad(features, seed, by=0.2, **options):
    options = {"transforms": 2, "hidden_features": (6,), **options}
    return livened(RAD(features, seed=seed, **options), seed, by)


def nvp(features, seed, **options):
    return livened(RealNVP(features, transforms=3, hidden_features=(6,), seed=seed, **options), seed)


def mixed():
    """Folds among affine, spline and linear layers and a permutation of zuko, one of them composed."""
    layers = [
        zuko.flows.GeneralCouplingTransform(2, mask=[True, False], hidden_features=(6,)),
        RADCoupling(2, hidden_features=(6,)),
        UnconditionalTransform(zuko.transforms.PermutationTransform, torch.tensor([1, 0]), buffer=True),
        zuko.lazy.LazyComposedTransform(
            RADCoupling(2, pieces=5, hidden_features=(6,)),
            UnconditionalTransform(zuko.transforms.RotationTransform, torch.tensor([[0.1, 0.7], [0.2, -0.3]])),
        ),
        zuko.flows.MaskedAutoregressiveTransform(2, hidden_features=(6,)),
    ]
    return Flow(layers, features=2)


def seeded(build, seed):
    """A flow whose layers draw their weights from torch's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return livened(build().double(), seed, 0.1)


# name: (constructor, D, C)
FLOWS = {
    "rad-1": (lambda seed: rad(1, seed, transforms=3), 1, 0),
    "rad-1-five-pieces": (lambda seed: rad(1, seed, pieces=5), 1, 0),
    "rad-1-context": (lambda seed: rad(1, seed, context=2), 1, 2),
    "rad-2": (lambda seed: rad(2, seed), 2, 0),
    "rad-2-five-pieces": (lambda seed: rad(2, seed, 0.1, pieces=5), 2, 0),
    "rad-2-context": (lambda seed: rad(2, seed, context=1, hidden_features=(6, 4)), 2, 1),
    "rad-5-random-masks": (lambda seed: rad(5, seed, randmask=True, transforms=3), 5, 0),
    "all-folded": (lambda seed: seeded(lambda: Flow([RADCoupling(2, mask=[0, 0], hidden_features=6)], 2), seed), 2, 0),
    "mixed": (lambda seed: seeded(mixed, seed), 2, 0),
    "nvp-1": (lambda seed: nvp(1, seed), 1, 0),
    "nvp-2": (lambda seed: nvp(2, seed), 2, 0),
    "nvp-3-context": (lambda seed: nvp(3, seed, context=2, randmask=True), 3, 2),
}
FOLDED = [name for name in FLOWS if not name.startswith("nvp")]


def make(name, seed):
    """The flow, its distribution at a fixed context, and D."""
    build, features, context = FLOWS[name]
    flow = build(seed)
    c = torch.linspace(-0.5, 1.0, context, dtype=f64) if context else None
    return flow, flow(c), features
