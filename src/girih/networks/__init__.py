"""What a generator is: builders, and tracing torch modules to affine and piecewise-linear stages."""

from girih.networks.activations import Abs
from girih.networks.builders import activation_layer, mlp
from girih.networks.stages import Affine, PiecewiseLinear
from girih.networks.trace import Jet, Trace
from girih.networks.tracing import trace

__all__ = ["Abs", "Affine", "Jet", "PiecewiseLinear", "Trace", "activation_layer", "mlp", "trace"]
