"""What a generator is: builders, and tracing torch modules to affine and piecewise-linear steps."""

import warnings

from girih.networks.affine_maps import AffineMap, Convolution, LinearMap
from girih.networks.convolutional import conv_generator, svhn_decoder, svhn_encoder
from girih.networks.fully_connected import (
    ACTIVATIONS,
    activation_layer,
    dense,
    drawn_seed,
    fc_discriminator,
    fc_encoder,
    fc_generator,
    make_generator,
    mlp,
)
from girih.networks.layers import Abs, Maxout
from girih.networks.live_tensors import Live, Snapshot, Source, lives
from girih.networks.trace import Trace
from girih.networks.trace_steps import AffineStep, Jet, KinkStep, LatentStep, LinearStep, MaxStep, Step
from girih.networks.tracing import Followed, smooth_head, trace

__all__ = [
    "ACTIVATIONS",
    "Abs",
    "AffineMap",
    "AffineStep",
    "Convolution",
    "Followed",
    "Jet",
    "KinkStep",
    "LatentStep",
    "LinearMap",
    "LinearStep",
    "Live",
    "MaxStep",
    "Maxout",
    "Snapshot",
    "Source",
    "Step",
    "Trace",
    "activation_layer",
    "conv_generator",
    "dense",
    "drawn_seed",
    "fc_discriminator",
    "fc_encoder",
    "fc_generator",
    "lives",
    "make_generator",
    "mlp",
    "smooth_head",
    "svhn_decoder",
    "svhn_encoder",
    "trace",
]

_RENAMED = {"Affine": LinearStep, "PiecewiseLinear": KinkStep}


def __getattr__(name: str) -> type[Step]:
    if name in _RENAMED:
        kind = _RENAMED[name]
        warnings.warn(f"girih.networks.{name} is now {kind.__name__}", DeprecationWarning, stacklevel=2)
        return kind
    raise AttributeError(f"module 'girih.networks' has no attribute {name!r}")
