"""What a generator is: builders, and tracing torch modules to affine and piecewise-linear steps."""

from girih.networks.activations import Abs, Maxout
from girih.networks.architectures import conv_generator, fc_discriminator, fc_encoder, fc_generator
from girih.networks.builders import activation_layer, mlp
from girih.networks.glorot import svhn_decoder, svhn_encoder
from girih.networks.stages import Affine, PiecewiseLinear
from girih.networks.steps import AffineStep, KinkStep, LatentStep, MaxStep, Step
from girih.networks.trace import Jet, Trace
from girih.networks.tracing import trace

__all__ = [
    "Abs",
    "Affine",
    "AffineStep",
    "Jet",
    "KinkStep",
    "LatentStep",
    "MaxStep",
    "Maxout",
    "PiecewiseLinear",
    "Step",
    "Trace",
    "activation_layer",
    "conv_generator",
    "fc_discriminator",
    "fc_encoder",
    "fc_generator",
    "mlp",
    "svhn_decoder",
    "svhn_encoder",
    "trace",
]
