"""Conditional generators: `x = g(z, c) + noise`, exact for each value of the context c."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from girih._arrays import Rows, as_rows, as_tensor
from girih._options import whole
from girih._shown import Shown
from girih.covariance import Covariance
from girih.errors import ParameterError, ShapeError
from girih.inference.dgn import DGN, TOL
from girih.inference.distribution import DGNDistribution
from girih.inference.model import Evidence
from girih.inference.outputs import Output
from girih.inference.posterior import Posterior, Shape
from girih.inference.priors import GaussianMixturePrior, Uniform
from girih.networks import Followed


class ConditionalDGN(nn.Module):
    """It is a density of x for each value of a context c: of classes as one-hot rows, or of covariates.

    `x = g(z, c) + noise` with z of the prior, whatever c is. For each value of c this is a `girih.DGN`, with a
    partition of its own, and everything about it is as exact: densities, posteriors, gradients, imputations. They
    share the network, the noise and the prior. What was made for a value is kept until the parameters change, so it
    pays where values recur.

    Args:
        net: g, a module of `torch.cat((z, c), 1)`, or of two arguments, `net(z, c)`.
        latent_dim: S.
        context_dim: K, the length of a context.
        noise: as all that follow, of `girih.DGN`.
        prior: of z.
        tol: for S = 2, 3.
        likelihood: of x.
        joined: whether the network takes z and c as one row; else as two arguments.
        kept: values of the context whose partitions are kept.

    Raises:
        ShapeError, ParameterError, UnsupportedLayerError, LatentDimensionError, NoiseError, NonFiniteError.

    Example:
        >>> import girih, torch
        >>> model = girih.ConditionalDGN(girih.mlp([1 + 3, 8, 2], seed=0), latent_dim=1, context_dim=3, noise=0.1)
        >>> c = torch.eye(3, dtype=torch.float64)[[0, 2, 2]]   # classes of three rows
        >>> x = model(c).sample(seed=0)
        >>> model(c).log_prob(x).shape, model.given([0.0, 0.0, 1.0]).posterior(x[1:]).mean.shape
        (torch.Size([3]), torch.Size([2, 1]))
    """

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        context_dim: int,
        noise: Covariance | Rows | float | None = None,
        prior: Rows | float | Uniform | GaussianMixturePrior | None = None,
        tol: float = TOL,
        likelihood: str | Output | Sequence[tuple[str | Output, int]] = "gaussian",
        joined: bool = True,
        kept: int = 64,
    ) -> None:
        super().__init__()
        self.latent_dim, self.context_dim = whole(latent_dim, "latent_dim"), whole(context_dim, "context_dim")
        self.joined, self._kept = bool(joined), whole(kept, "kept")
        self._models: OrderedDict[bytes, tuple[DGN, DGNDistribution]] = OrderedDict()
        first = _Given(net, torch.zeros(self.context_dim, dtype=torch.float64), self.joined)
        self.dgn = DGN(first, noise, prior, tol, likelihood)  # the one of the context 0
        if self.dgn.latent_dim != self.latent_dim:
            raise ShapeError(
                f"the network takes {self.dgn.latent_dim + self.context_dim} inputs, and latent_dim = "
                f"{self.latent_dim} with context_dim = {self.context_dim} are {self.latent_dim + self.context_dim}"
            )

    @property
    def net(self) -> nn.Module:
        """The network of z and c."""
        given = self.dgn.net
        assert isinstance(given, _Given)
        return given.net

    @property
    def output_dim(self) -> int:
        """The data dimension D."""
        return self.dgn.output_dim

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConditionalDGN:
        self._models.clear()  # their contexts stay where they are
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_models": OrderedDict()}

    def contexts(self, c: object) -> Tensor:
        """Checked contexts `(N, K)`, or one for all rows, `(1, K)`."""
        tensor = as_tensor(c, "c", self.dgn.trace.device)
        if tensor.ndim == 0 and self.context_dim == 1:
            tensor = tensor.reshape(1)
        if tensor.ndim == 1 and len(tensor) == self.context_dim:
            tensor = tensor[None]
        return as_rows(tensor, "c", self.context_dim, "the length of a context")

    def given(self, c: ArrayLike | Tensor) -> DGN:
        """The model of x for one value of the context, which shares its parameters with this one.

        Raises:
            ShapeError: c is not a single context.
        """
        rows = self.contexts(c)
        if len(rows) != 1:
            raise ShapeError(f"given takes one context of length {self.context_dim}, got {len(rows)}; use model(c)")
        return self._at(rows[0])[0]

    def _at(self, value: Tensor) -> tuple[DGN, DGNDistribution]:
        """The model of a context and its distribution, kept from before or new."""
        key = value.detach().cpu().numpy().tobytes()
        found = self._models.pop(key, None)
        if found is None:
            dgn = copy.copy(self.dgn)  # with the same parameters, whatever becomes of them
            dgn._modules = {**self.dgn._modules, "net": _Given(self.net, value, self.joined)}
            dgn._followed = Followed(dgn.net)
            found = dgn, dgn()
        if not found[1]._away:  # not those of torch.func.functional_call, which are gone afterwards
            self._models[key] = found
        while len(self._models) > self._kept:
            self._models.popitem(last=False)
        return found

    def groups(self, c: object, count: int | None = None) -> Iterator[tuple[Tensor, DGN, DGNDistribution]]:
        """The rows of each value of c, `(n,)`, with its model and its distribution.

        Args:
            c: contexts `(N, K)`, or one.
            count: N, where one context stands for all rows.

        Raises:
            ShapeError: there are not as many contexts as rows.
        """
        rows = self.contexts(c)
        if count is not None and len(rows) != count:
            if len(rows) != 1:
                raise ShapeError(
                    f"c has {len(rows)} rows for {count} rows of x; pass one context a row, or one for all"
                )
            rows = rows.expand(count, -1)
        values, which = torch.unique(rows, dim=0, return_inverse=True)
        for k, value in enumerate(values):
            yield (which == k).nonzero()[:, 0], *self._at(value)

    def forward(self, c: ArrayLike | Tensor) -> ConditionalDistribution:
        """The distribution of x given contexts `(N, K)`: one row each, `batch_shape` (N,)."""
        return ConditionalDistribution(self, self.contexts(c))

    def rows(self, x: Rows | ArrayLike) -> Tensor:
        """Checked observations `(N, D)`; NaN means missing."""
        return self.dgn.rows(x)

    def posteriors(self, x: ArrayLike | Tensor, c: ArrayLike | Tensor) -> Iterator[tuple[Tensor, Posterior]]:
        """The exact posteriors of rows `(N, D)` with contexts `(N, K)`: value by value, with the rows of each."""
        x = self.rows(x)
        for index, dgn, _ in self.groups(c, len(x)):
            yield index, dgn.posterior(x[index])

    def impute(self, x: ArrayLike | Tensor, c: ArrayLike | Tensor) -> Tensor:
        """`E[x_missing | x_observed, c]` in place of the NaN entries of x, `(N, D)`."""
        filled = self.rows(x).detach().clone()
        for index, dgn, _ in self.groups(c, len(filled)):
            filled[index] = dgn.impute(filled[index])
        return filled

    def log_prob_of_context(
        self, x: ArrayLike | Tensor, values: ArrayLike | Tensor, weights: ArrayLike | Tensor | None = None
    ) -> Tensor:
        r"""`log p(c_m | x)` `(N, M)` for contexts of which one is true: Bayes' rule, a classifier from the densities.

            log p(c_m | x) = log w_m + log p(x | c_m) - log sum_k w_k p(x | c_k)

        Args:
            x: rows `(N, D)`; NaN is missing, and marginalised.
            values: the contexts that may be, `(M, K)`.
            weights: their probabilities before x is seen, `(M,)`, up to a factor; equal by default.

        Raises:
            ParameterError: weights that are not positive, one for each value.

        Example:
            >>> import girih, torch
            >>> model = girih.ConditionalDGN(girih.mlp([1 + 2, 8, 2], seed=0), latent_dim=1, context_dim=2, noise=0.1)
            >>> classes = torch.eye(2)
            >>> model.log_prob_of_context([[0.2, 0.1]], classes).exp().sum(1).round(decimals=9).tolist()
            [1.0]
        """
        x, values = self.rows(x), self.contexts(values)
        share = torch.ones(len(values), dtype=torch.float64) if weights is None else as_tensor(weights, "weights")
        if share.shape != (len(values),) or not ((share > 0.0) & torch.isfinite(share)).all():
            raise ParameterError(f"weights must be {len(values)} positive numbers, one for each value of the context")
        joint = torch.stack([self._at(value)[1].log_prob(x) for value in values], 1) + share.log().to(x.device)
        return joint.log_softmax(1)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"S={self.latent_dim}, D={self.output_dim}, K={self.context_dim}"


class ConditionalDistribution(Shown, Distribution):
    """It is the distribution of x given a context a row, which a `ConditionalDGN` returns when it is called."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, model: ConditionalDGN, contexts: Tensor) -> None:
        self._model, self._contexts = model, contexts
        super().__init__(torch.Size([len(contexts)]), torch.Size([model.output_dim]), validate_args=False)

    def _facts(self) -> dict[str, str]:
        model = self._model
        return {"rows": str(len(self._contexts)), "S": str(model.latent_dim), "D": str(model.output_dim)}

    def _by_value(self, x: Tensor, function: Callable[[DGNDistribution, Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """What a function gives for the rows of each value, in the order of the rows."""
        every, found = [], []
        for index, _, distribution in self._model.groups(self._contexts, len(x)):
            every.append(index)
            found.append(function(distribution, x[index]))
        back = torch.cat(every).argsort()
        return [torch.cat(parts)[back] for parts in zip(*found, strict=True)]

    def log_prob(self, value: ArrayLike | Tensor) -> Tensor:
        """`log p(x_n | c_n)` in nats, `(N,)`, for x `(N, D)`; NaN is marginalised. With one context, for any rows."""
        return self._by_value(self._model.rows(value), lambda p, x: (p.log_prob(x),))[0]

    def evidence(self, value: ArrayLike | Tensor) -> Evidence:
        """`log_prob(x)` with what was left out of it and what rounding changes, as of a `DGN`."""

        def evidence(p: DGNDistribution, x: Tensor) -> tuple[Tensor, ...]:
            found = p.evidence(x)
            return found.log_prob, found.left_out, found.rounding

        return Evidence(*self._by_value(self._model.rows(value), evidence))

    def score(self, value: ArrayLike | Tensor) -> Tensor:
        """The gradient of `log p(x_n | c_n)` in x, `(N, D)`."""
        return self._by_value(self._model.rows(value), lambda p, x: (p.score(x),))[0]

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, N, D)`, a row for each context."""
        shape = torch.Size(sample_shape)
        out = torch.empty(*shape, *self.batch_shape, *self.event_shape, dtype=torch.float64)
        for k, (index, _, p) in enumerate(self._model.groups(self._contexts)):
            own = None if seed is None else _seed(whole(seed, "seed", None), k)
            drawn = p.sample(torch.Size([*shape, len(index)]), own)
            out = out.to(drawn.device)
            out[..., index, :] = drawn
        return out

    @property
    def mean(self) -> Tensor:
        """`E[x | c_n]`, `(N, D)`."""
        nothing = torch.zeros(*self.batch_shape, *self.event_shape, dtype=torch.float64)
        return self._by_value(nothing, lambda p, x: (p.mean.expand(len(x), -1),))[0]

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate given `c_n`, `(N, D)`."""
        nothing = torch.zeros(*self.batch_shape, *self.event_shape, dtype=torch.float64)
        return self._by_value(nothing, lambda p, x: (p.variance.expand(len(x), -1),))[0]


def _seed(seed: int, k: int) -> int:
    """One for each value of the context, which no other seed has for another value."""
    return int(np.random.SeedSequence([seed % 2**63, k]).generate_state(1)[0])


class _Given(nn.Module):
    """A network of z and c with c fixed."""

    def __init__(self, net: nn.Module, value: Tensor, joined: bool) -> None:
        super().__init__()
        self.net, self.joined = net, joined
        dtype = next((part.dtype for part in net.parameters() if part.is_floating_point()), torch.float64)
        self.value: Tensor
        self.register_buffer("value", value.to(dtype), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """`g(z, c)`."""
        context = self.value.expand(z.shape[0], -1)
        result: Tensor = self.net(torch.cat((z, context), 1)) if self.joined else self.net(z, context)
        return result
