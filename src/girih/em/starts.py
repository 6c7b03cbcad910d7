"""Random parameters for generators that are no chains: convolutions, branches, maxima."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from girih.em.trained import Trained
from girih.inference import DGN
from girih.networks import AffineStep, Convolution, KinkStep, LinearMap, Live, MaxStep


@torch.no_grad()
def reset(dgn: DGN, trained: Trained, generator: torch.Generator) -> None:
    """Draw the weights of every trained layer as its module does, with a seed of their own.

    Layers that come without `reset_parameters` get normal weights of variance 2 / fan-in.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    devices = [dgn.trace.device] if dgn.trace.device.type == "cuda" else []
    left = {id(p): p for p in trained.hidden.values()}
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for module in dgn.net.modules():
            own = [p for p in module.parameters(recurse=False) if id(p) in left]
            draw = getattr(module, "reset_parameters", None)
            if own and callable(draw):
                draw()
                for parameter in own:
                    left.pop(id(parameter))
        for parameter in left.values():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_().mul_(math.sqrt(2.0 / fan_in))


@torch.no_grad()
def place_kinks(dgn: DGN, trained: Trained, z: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Set the biases before activations so that each is at its kink for one of the latents z `(n, S)`.

    A bias that a channel shares puts one of its positions at the kink. Returns the features after every step.
    """
    steps, values = dgn.trace.steps, [z]
    hidden = {id(p) for p in trained.hidden.values()}
    feeds = {i for step in steps if isinstance(step, KinkStep | MaxStep) for i in step.inputs}
    for index, step in enumerate(steps[1:], start=1):
        taken = [values[i] for i in step.inputs]
        if not isinstance(step, AffineStep):
            assert isinstance(step, KinkStep | MaxStep)
            values.append(step.apply(taken[0]))
            continue
        linear = step.linear(*taken)
        if index in feeds and isinstance(step.operator, LinearMap | Convolution):
            bias = step.operator.shift
            if isinstance(bias, Live) and id(bias.raw) in hidden:
                hidden.discard(id(bias.raw))  # a layer that is used again keeps what its first use gave it
                channel = 0 if isinstance(step.operator, Convolution) else len(step.shape) - 1
                candidates = linear.reshape(-1, *step.shape).movedim(channel + 1, 0).flatten(1)
                pick = torch.randint(candidates.shape[1], (len(candidates), 1), generator=generator)
                bias.raw.copy_(-candidates.gather(1, pick.to(candidates.device))[:, 0])
        values.append(linear + step.bias)
    return values


@torch.no_grad()
def scale_output(dgn: DGN, output: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Give the output the mean and the total variance of the data, through the parameters of the last layer.

    Args:
        dgn: the model.
        output: at latents drawn from the prior, `(n, D)`.
        mean: of the columns of the data, `(D,)`.
        variance: of the columns, `(D,)`.
    """
    step = dgn.trace.steps[dgn.trace.output]
    if not isinstance(step, AffineStep) or not isinstance(step.operator, LinearMap | Convolution):
        return  # nothing to set it with
    weight, bias = step.operator.weight, step.operator.shift
    spread = float(output.var(0).sum())
    if isinstance(weight, Live) and spread > 0:
        ratio = math.sqrt(float(variance.sum()) / spread)
        weight.raw.mul_(ratio)
        centre = (output.mean(0) - step.bias) * ratio
    else:
        centre = output.mean(0) - step.bias
    if isinstance(bias, Live):
        channel = 0 if isinstance(step.operator, Convolution) else len(step.shape) - 1
        bias.raw.copy_((mean - centre).reshape(step.shape).movedim(channel, 0).reshape(len(bias.raw), -1).mean(1))
