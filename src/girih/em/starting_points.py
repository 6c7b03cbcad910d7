"""The parameters that EM starts from: random ones on the scale of the data, a constant, or those of the last fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from girih.em.parameters import Trained
from girih.em.scaling import batches, column_statistics
from girih.errors import ParameterError
from girih.inference import DGN
from girih.networks import AffineStep, Convolution, KinkStep, LinearMap, LinearStep, Live, MaxStep

_PROBES = 512


def randomise(
    dgn: DGN, trained: Trained, x: Tensor, weight: Tensor, noise_floor: Tensor, generator: torch.Generator
) -> None:
    """Draw new parameters, in place.

    Each unit's kink is placed at the image of a latent drawn from the prior, so no unit starts dead. The last map
    sends the features along random directions in which the data vary, about the mean of the data; the noise starts
    at the variance of the data, and EM anneals it. Layers other than Linear draw their weights as their module does;
    without a head, the last layer is scaled to the data.
    """
    mean, variance = column_statistics(x, weight)
    factor = torch.linalg.cholesky(dgn.prior.detach())
    with torch.no_grad():
        z = _normal(generator, dgn.trace.device, _PROBES, dgn.latent_dim) @ factor.mT
        if trained.is_chain:
            h = _randomise_chain(dgn, z, generator)
        else:
            _reset(dgn, trained, generator)
            values = _place_kinks(dgn, trained, z, generator)
            h = values[dgn.trace.features]
        if trained.head is not None:
            _aim(trained.head, h, x, weight, mean, variance, generator)
        elif not trained.is_chain:
            _scale_output(dgn, h, mean, variance)
        dgn.noise_covariance = dgn.noise_covariance.with_variances(torch.maximum(variance, noise_floor))


@torch.no_grad()
def be_constant(dgn: DGN, trained: Trained, x: Tensor, weight: Tensor, noise_floor: Tensor) -> None:
    """Make the generator a constant, the mean of the data, in place; the noise is their variance."""
    mean, variance = column_statistics(x, weight)
    for parameter in trained.weights:
        parameter.zero_()
    assert trained.head is not None
    trained.head.module.bias.copy_(mean)
    dgn.noise_covariance = dgn.noise_covariance.with_variances(torch.maximum(variance, noise_floor))


def _normal(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)


def _randomise_chain(dgn: DGN, h: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the stages before the head; returns the features after them."""
    device = dgn.trace.device
    for stage in (dgn.trace.chain or ())[: dgn.trace.features]:
        if not isinstance(stage, LinearStep):
            h = h * stage.slopes(h)
            continue
        shape = stage.module.weight.shape
        stage.module.weight.copy_(_normal(generator, device, *shape) * math.sqrt(2.0 / shape[1]))
        if stage.module.bias is not None:
            at = h[torch.randint(_PROBES, (shape[0],), generator=generator).to(device)]
            stage.module.bias.copy_(-(stage.module.weight * at).sum(1))
        h = torch.nn.functional.linear(h, stage.weight, stage.bias)
    return h


def _aim(
    head: LinearStep, h: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, generator: torch.Generator
) -> None:
    """Draw the last map: random directions times the covariance of the data, about its mean.

    One pass over the data, the same for repeated and for weighted rows.
    """
    scale = torch.where(variance > 0, variance, 1.0).sqrt()
    directions = _normal(generator, h.device, len(mean), head.in_features) / scale[:, None]
    weights = torch.zeros_like(directions)
    for rows, w in batches(x, weight):
        centred = torch.nan_to_num(rows - mean)
        weights += centred.mT @ (w[:, None] * (centred @ directions))
    length = weights.norm(dim=0)
    spread = h.std(0)
    size = (variance.sum() / head.in_features).sqrt() / torch.where(spread > 0, spread, 1.0)
    weights = weights * size / torch.where(length > 0, length, 1.0)
    head.module.weight.copy_(weights)
    if head.module.bias is not None:
        head.module.bias.copy_(mean - weights @ h.mean(0))


@torch.no_grad()
def _reset(dgn: DGN, trained: Trained, generator: torch.Generator) -> None:
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
def _place_kinks(dgn: DGN, trained: Trained, z: Tensor, generator: torch.Generator) -> list[Tensor]:
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
def _scale_output(dgn: DGN, output: Tensor, mean: Tensor, variance: Tensor) -> None:
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


def warm_model(fitted: DGN, asked: DGN) -> DGN:
    """The fitted model where its generator is what is asked for; its noise takes the kind that is asked for.

    Of a full covariance the variances are kept, of several variances their mean.

    Raises:
        ParameterError: the generator that is asked for has other sizes or activations.
    """
    before, now = _describe(fitted), _describe(asked)
    changed = {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}
    if changed:
        some = ", ".join(f"{key} = {new} (it has {old})" for key, (old, new) in changed.items())
        raise ParameterError(
            f"warm_start goes on from the fitted generator, which cannot become one of {some}; set warm_start=False "
            "to start anew, or the old values to go on"
        )
    old, new = fitted.noise_covariance, asked.noise_covariance
    if old.kind == new.kind:
        return fitted
    noise = old.detached().to(new.kind)
    return DGN(fitted.net, noise=noise, prior=fitted.prior.detach(), tol=fitted.tol)


def _describe(dgn: DGN) -> dict[str, object]:
    """Name what must not change; of networks that are no chain of layers only the ends."""
    ends: dict[str, object] = {"D": dgn.output_dim, "latent_dim": dgn.latent_dim}
    if not isinstance(dgn.net, nn.Sequential):
        return ends
    inner = [layer for layer in dgn.net if not isinstance(layer, nn.Linear)]
    return {
        **ends,
        "hidden": tuple(layer.out_features for layer in dgn.net if isinstance(layer, nn.Linear))[:-1],
        "activation": type(inner[0]).__name__ if inner else None,
        "negative_slope": getattr(inner[0], "negative_slope", None) if inner else None,
    }
