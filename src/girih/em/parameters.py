"""The parameters that EM changes in a generator, and whether rows can carry so many of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from girih.errors import UnsupportedLayerError
from girih.inference import DGN
from girih.networks import AffineStep, Convolution, LinearMap, LinearStep, Source, Trace, lives


@dataclass(frozen=True)
class Trained:
    """It names the parameters of a network that EM changes.

    Weights and biases of Linear and (transposed) convolution layers are trained. Batch normalisation, PReLU slopes
    and bare parameters that a network adds or multiplies with are held fixed.

    Attributes:
        head: the last affine map, where it is a Linear layer of its own; else `None`.
        hidden: all other trained parameters by their name in the network, each once.
        weights: the trained weights, those of the head included: a prior is on them, not on the biases.
        is_chain: whether the hidden layers are Linear layers in a chain, each used once.
    """

    head: LinearStep | None
    hidden: dict[str, nn.Parameter]
    weights: list[nn.Parameter]
    is_chain: bool

    @classmethod
    def of(cls, net: nn.Module, trace: Trace) -> Trained:
        """The trained parameters of a traced network.

        Raises:
            UnsupportedLayerError: a weight that is no float64 parameter, or a last layer that is used elsewhere too.
        """
        head = trace.head
        own = [] if head is None else [p for p in (head.module.weight, head.module.bias) if p is not None]
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        hidden: dict[str, nn.Parameter] = {}
        weights: dict[int, nn.Parameter] = {}
        shared, heads = False, 0
        for path, source, role in _sources(trace):
            for parameter in _parameters(source, path):
                if any(parameter is p for p in own):
                    heads += 1
                    if heads > len(own):
                        raise UnsupportedLayerError(
                            f"EM cannot train layer '{path}', which is the last layer and used more than once; "
                            "give the network a last layer of its own"
                        )
                else:
                    name = names.get(id(parameter))
                    if name is None:
                        raise UnsupportedLayerError(
                            f"EM cannot train layer '{path}', whose parameters do not belong to the network; "
                            "register its module in the network"
                        )
                    shared = shared or name in hidden
                    hidden[name] = parameter
                if role == "weight":
                    weights[id(parameter)] = parameter
        return cls(head, hidden, list(weights.values()), trace.chain is not None and not shared)


def count_affine(trace: Trace) -> int:
    """Count the numbers that the affine layers of a generator hold, each once however often it is used."""
    sizes: dict[tuple[int, str], int] = {}
    for _, source, _ in _sources(trace):
        for live in lives(source):
            shared = isinstance(live.raw, nn.Parameter)
            sizes[(id(live.raw), "") if shared else (id(live.module), live.name)] = live.raw.numel()
    return sum(sizes.values())


def count_parameters(dgn: DGN, learn_prior: bool = False) -> int:
    """Identifiable free parameters: weights, biases, noise and prior, less one for the scale of each hidden unit.

    For a generator that is no chain of Linear layers, nothing is taken off: an upper bound.
    """
    count = count_affine(dgn.trace)
    if dgn.trace.chain is not None:
        count -= dgn.trace.hidden_units
    S = dgn.latent_dim
    count += dgn.noise_covariance.parameter_count if dgn.output is None else sum(p.numel() for p in dgn.noise_tensors)
    return count + (S * (S + 1) // 2 if learn_prior else 0)


def _sources(trace: Trace) -> Iterator[tuple[str, Source, str]]:
    for step in trace.steps:
        if isinstance(step, AffineStep) and isinstance(step.operator, LinearMap | Convolution):
            yield step.path, step.operator.weight, "weight"
            if step.operator.shift is not None:
                yield step.path, step.operator.shift, "bias"


def _parameters(source: Source, path: str) -> Iterator[nn.Parameter]:
    """The parameters that a source reads; constants have none."""
    for live in lives(source):
        value: Tensor = live.raw
        if not isinstance(value, nn.Parameter) or value.dtype != torch.float64:
            raise UnsupportedLayerError(
                f"EM trains plain float64 parameters, and the {live.name} of layer '{path}' is "
                f"{type(value).__name__} {value.dtype}; call net.double() first, and make what hooks and "
                "parametrizations compute permanent, or train by gradients with girih.train"
            )
        yield value


# A fit with fewer observed numbers than this for each free parameter passes through its rows more than it averages.
_LEAST = 2.0


class OverfitWarning(ConvergenceWarning):
    """It warns of a fitted model that has more free parameters than its data can carry."""


def overfit_reason(parameters: int, x: Tensor, weight: Tensor) -> str | None:
    """Say what is wrong with a fit of so many free parameters to rows x `(N, D)`; `None` if they can carry them.

    Rows that occur several times count once: they say nothing new. A full noise, which has `D (D + 1) / 2` parameters
    of its own, thus needs more rows than columns; without them its likelihood grows without bound.

    Example:
        >>> import torch
        >>> from girih.em.parameters import overfit_reason
        >>> rows = torch.randn(10, 50, generator=torch.Generator().manual_seed(0)).double()
        >>> overfit_reason(60, rows, torch.ones(10)) is None
        True
        >>> overfit_reason(1700, rows, torch.ones(10)).split(":")[0]
        '1,700 free parameters were fitted to 500 observed numbers in 10 different rows of X'
    """
    rows, numbers = _different(x[weight > 0], _LEAST * parameters)
    if numbers >= _LEAST * parameters:
        return None
    return (
        f"{parameters:,} free parameters were fitted to {numbers:,} observed numbers in {rows:,} different rows of X: "
        "the fit is more a copy of these rows than a model of others, and its likelihood says nothing about new ones. "
        "Use a simpler noise ('diagonal' or 'isotropic'), fewer hidden units, or more rows"
    )


def _different(x: Tensor, enough: float) -> tuple[int, int]:
    """Count the different rows and the observed entries in them, until there are enough."""
    size = int(2.0 * enough / x.shape[1]) + 1
    while True:
        # a missing entry equals itself only as a number
        rows = torch.unique(torch.nan_to_num(x[:size], nan=torch.inf), dim=0)
        numbers = int(torch.isfinite(rows).sum())
        if numbers >= enough or size >= len(x):
            return len(rows), numbers
        size *= 8
