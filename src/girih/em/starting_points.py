"""The parameters that EM starts from: random ones on the scale of the data, a constant, or those of the last fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from girih.covariance import Covariance
from girih.em.mstep import pseudo_inverse
from girih.em.orderings import Ordered
from girih.em.parameters import Trained
from girih.em.scaling import batches, column_statistics
from girih.errors import ParameterError
from girih.inference import DGN
from girih.inference.priors import UniformPrior
from girih.networks import AffineStep, Convolution, KinkStep, LinearMap, LinearStep, Live, MaxStep

_PROBES = 512
# The ridge of the regression on ordered rows, as a share of them, and a kink that no latent meets, in deviations.
_RIDGE, _FAR = 0.01, 9.0


def randomise(
    dgn: DGN, trained: Trained, x: Tensor, weight: Tensor, noise_floor: Tensor, generator: torch.Generator
) -> None:
    """Draw new parameters, in place.

    Each unit's kink is placed at the image of a latent drawn from the prior, so no unit starts dead. The last map
    sends the features along random directions in which the data vary, about the mean of the data; the noise starts
    at the variance of the data, and EM anneals it. Layers other than Linear draw their weights as their module does;
    without a head, the last layer is scaled to the data. Of outputs that are not Gaussian the data are the eta that
    they suggest.
    """
    mean, variance = column_statistics(x, weight)
    with torch.no_grad():
        h = _randomise_hidden(dgn, trained, generator)
        if trained.head is not None:
            _aim(trained.head, h, x, weight, mean, variance, generator)
        elif not trained.is_chain:
            _scale_output(dgn, h, mean, variance)
        _set_noise(dgn, variance, noise_floor)


def _set_noise(dgn: DGN, variance: Tensor, floor: Tensor) -> None:
    """Set the noise to variances of what the network gives, `(K,)`, or to the scales of outputs to deviations."""
    if dgn.output is None:
        dgn.noise_covariance = dgn.noise_covariance.with_variances(torch.maximum(variance, floor))
    elif dgn.noise_tensors:
        deviation = dgn.output.one_each(variance).sqrt()
        dgn.noise.copy_(torch.maximum(deviation if dgn.noise.ndim else deviation.square().mean().sqrt(), floor))


def _randomise_hidden(dgn: DGN, trained: Trained, generator: torch.Generator) -> Tensor:
    """Draw everything before the head; returns the features of latents drawn from the prior."""
    if dgn.latent_prior is not None:
        z = dgn.latent_prior.sample(_PROBES, generator).to(dgn.trace.device)
    else:
        factor = torch.linalg.cholesky(dgn.prior.detach())
        z = _normal(generator, dgn.trace.device, _PROBES, dgn.latent_dim) @ factor.mT
    if trained.is_chain:
        return _randomise_chain(dgn, z, generator)
    _reset(dgn, trained, generator)
    return _place_kinks(dgn, trained, z, generator)[dgn.trace.features]


@torch.no_grad()
def be_curve(dgn: DGN, trained: Trained, rows: Ordered, noise_floor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the generator of one latent as a curve through ordered rows, in place; returns the variance that it leaves.

    With one hidden layer the kinks are at equally likely places of the prior, and one unit more makes the features a
    basis of all piecewise-linear functions with these kinks. Deeper layers are drawn as for a random start. The last
    map is the regression of the rows on the features of their latents, with a ridge on how these bend; the noise is
    what is left.
    """
    centre, unit, scores = _on_line(dgn)
    rows = replace(rows, z=scores(rows.z))
    z = (centre + rows.z * unit)[:, None]
    if (units := _single_layer(dgn, trained)) is not None:
        H = units[0].out_features
        at = torch.special.ndtri(torch.arange(1, H, dtype=unit.dtype, device=unit.device) / H)
        _place_kinks_at(*units, scores(at) + centre / unit, centre / unit - _FAR, unit)
    else:
        _randomise_hidden(dgn, trained, generator)
    h = dgn.trace.hidden_jet(dgn.trace.pattern(z), z).value
    assert trained.head is not None
    maps, left = _regress(h, rows, trained.head.has_bias)
    trained.head.module.weight.copy_(maps[:, : h.shape[1]])
    if trained.head.has_bias:
        trained.head.module.bias.copy_(maps[:, -1])
    _set_noise(dgn, left, noise_floor)
    return left


def _regress(h: Tensor, rows: Ordered, has_bias: bool) -> tuple[Tensor, Tensor]:
    """The map `(D, H + 1)` from features `(n, H)` to ordered rows, and the variance that it leaves, `(D,)`."""
    weight = rows.weight[:, None] / rows.weight.sum()
    line = torch.stack((torch.ones_like(rows.z), rows.z), 1)
    phi = torch.cat((h, line[:, :1]), 1) if has_bias else h
    bends = phi - line @ (pseudo_inverse(line.mT @ (weight * line)) @ (line.mT @ (weight * phi)))
    ridge = bends.mT @ (weight * bends) * _RIDGE
    maps = (pseudo_inverse(phi.mT @ (weight * phi) + ridge) @ (phi.mT @ (weight * rows.x))).mT
    return maps, (weight * (rows.x - phi @ maps.mT).square()).sum(0)


def _single_layer(dgn: DGN, trained: Trained) -> tuple[LinearStep, KinkStep] | None:
    """The one hidden layer and its activation, where that is all that the generator has."""
    chain = dgn.trace.chain or ()
    layer, kinks = (*chain, None, None)[:2]
    if not (trained.is_chain and isinstance(layer, LinearStep) and isinstance(kinks, KinkStep)):
        return None
    if dgn.trace.features != 2 or not kinks.bends_at_zero or not layer.has_bias:
        return None
    return layer, kinks


def _on_line(dgn: DGN) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Mean and standard deviation of the one latent, and what normal scores become, in deviations from the mean."""
    latent = dgn.latent_prior
    if latent is None:
        unit = dgn.prior.detach()[0, 0].sqrt()
        return torch.zeros_like(unit), unit, lambda score: score
    assert isinstance(latent, UniformPrior), "starts that are curves are for Gaussian and uniform priors"
    width = (latent.high - latent.low)[0].to(dgn.trace.device)
    unit = width / math.sqrt(12.0)
    return latent.low[0].to(unit) + 0.5 * width, unit, lambda score: (torch.special.ndtr(score) - 0.5) * (width / unit)


def _place_kinks_at(layer: LinearStep, kinks: KinkStep, at: Tensor, far: Tensor, unit: Tensor) -> None:
    """Place the kinks at the latents `at (H - 1,)`, in units of their standard deviation `unit`; there are none at far.

    H units have H - 1 kinks: with f a (leaky) ReLU, `f(u) - f(-u)` is linear, so the middle kink has two units, of
    opposite direction, and the features are a basis of all piecewise-linear functions with these kinks. The absolute
    value is the same in both directions; there, as for a single unit, one kink lies where the prior is not.
    """
    H = layer.out_features
    sign = torch.ones(H, dtype=unit.dtype, device=unit.device)
    if H > 1 and bool((kinks.slope > -1.0).all()):
        at = torch.cat((at, at[(H - 1) // 2][None]))
        sign[-1] = -1.0
    else:
        at = torch.cat((at, far[None]))
    layer.module.weight.copy_((sign / unit)[:, None])
    layer.module.bias.copy_(-sign * at)


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

    Of a full covariance the variances are kept, of several variances their mean; a higher rank keeps the noise.

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
    shapes = [[part.shape for part in noise.tensors] for noise in (old, new)]
    if shapes[0] == shapes[1]:
        return fitted
    noise = _as_kind_of(new, old.detached())
    return DGN(fitted.net, noise=noise, prior=fitted.prior.detach(), tol=fitted.tol)


def _as_kind_of(new: Covariance, old: Covariance) -> Covariance:
    """A covariance of the kind and rank of another."""
    if new.kind != "low_rank":
        return old.to(new.kind)
    rank = new.tensors[1].shape[1]
    if old.kind != "low_rank":
        return old.to("low_rank", rank)
    own, factor = old.tensors
    if rank < factor.shape[1]:
        return old.to("full").to("low_rank", rank)
    return old.with_tensors((own, nn.functional.pad(factor, (0, rank - factor.shape[1]))))


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
