r"""EM for outputs that are not Gaussian: generalised, since their M-steps have no closed form, and safeguarded.

The E-step is cubature over the cells, see `girih.inference.cubature`. Its simplices, with the posterior mass, mean and
covariance on each, give a few weighted latents z_j for each row n, and the M-step is that of a regression,

    maximise  F(theta) = sum_nj r_nj log p(x_n | g(z_j)) + c (theta - theta_0),
              c = grad log p(x) - grad sum_nj r_nj log p(x_n | g(z_j))    at theta_0,

over the parameters theta of g and of the noise, by L-BFGS. The moments make the sum exact where log p is quadratic in z
on a simplex, which is small beside the posterior; c makes the gradient of F at theta_0 that of the exact likelihood
(Fisher's identity), whatever the points leave out, so a step along any direction in which F rises raises the
likelihood if it is short enough, and EM rests nowhere else than gradients do. A step that lowers the exact likelihood
is undone and a quarter of it tried; after one that was, the next M-step has half the iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from girih._devices import room
from girih.em.iteration import Evaluation, Problem, attempt
from girih.em.options import EMOptions
from girih.errors import ParameterError
from girih.inference import DGN, Model, Output, Statistics
from girih.inference.output_model import Expectation, OutputDistribution, Points

_STEPS = 20  # of L-BFGS in an M-step
_TRIES = 4
_ENTRIES = 2**20  # of the largest temporary
_LEAST = 1e-11  # nats per row: what F must promise for an E-step to be worth it


def check_output(dgn: DGN, options: EMOptions, streamed: bool) -> None:
    """Refuse what EM has for Gaussian outputs alone, where outputs are others.

    Raises:
        ParameterError: it is asked for.
    """
    if dgn.output is None:
        return
    asked = [
        name
        for name in ("weight_prior", "noise_prior", "kink_ridge", "batch_size")
        if getattr(options, name) not in {None, 0.0}
    ]
    asked += ["m_step='layerwise'"] * (options.m_step == "layerwise") + ["rows that come in blocks"] * streamed
    if asked:
        raise ParameterError(
            f'EM with likelihood="{dgn.output.name}" has no {", ".join(asked)}: these need Gaussian noise; leave them '
            "out, or train with girih.train"
        )
    if not all(isinstance(noise, nn.Parameter) for noise in dgn.noise_tensors):
        raise ParameterError("the noise of this DGN is computed elsewhere; build it from numbers to fit it")


class OutputProblem(Problem):
    """It is the problem of a `DGN` with other outputs."""

    has_statistics: ClassVar[bool] = False
    dear: ClassVar[int] = 16

    @property
    def output(self) -> Output:
        """What x is given the outputs of the network."""
        assert self.dgn.output is not None, "outputs are not Gaussian"
        return self.dgn.output

    @property
    def suggested(self) -> Tensor:
        """The eta that the rows suggest, `(N, K)`."""
        return self.output.guess(self.x)

    @property
    def moved(self) -> list[Tensor]:
        """The parameters that an M-step looks for: of the network, and the scales of the outputs at the end."""
        head = self.trained.head
        own = [] if head is None else [head.module.weight, head.module.bias]
        every = (*self.trained.hidden.values(), *own, *self.dgn.noise_tensors)
        return [p for p in every if p is not None and p.requires_grad]

    def evaluate(self, index: Tensor | None = None) -> Evaluation:
        """The E-step: exact NLL, points and gradient at the current parameters, of all rows."""
        assert index is None, "batches are refused"
        self.evaluations += 1
        p = self.dgn()
        assert isinstance(p, OutputDistribution), "outputs are not Gaussian"
        found = p.expect(self.x, self.weight, self.moved)
        mean = float(self.weight @ found.log_p / self.weight.sum())
        # what closed-form M-steps need is not there, and nothing looks for it: see `has_statistics`
        nothing = cast("Statistics", None)
        return Evaluation(-mean, mean, cast("Model", p.output_model), p.partition, nothing, found={"expected": found})

    def step(self, now: Evaluation, damping: float, updates: Iterable[str]) -> tuple[Evaluation, float]:
        """A generalised M-step: L-BFGS on the points, and as much of the way there as does not raise the exact NLL."""
        expected = cast("Expectation", now.found["expected"])
        before, damping = self.parameters(), max(damping, 1.0)
        after = self._maximised(expected, max(1, round(_STEPS / damping)), "prior" in set(updates))
        self.restore(before)
        if after is None:
            return now, damping
        share = 1.0
        for _ in range(_TRIES):
            way = {name: torch.lerp(old, after[name], share) for name, old in before.items()}
            better = attempt(self, now.nll, before, lambda way=way: self.restore(way))  # type: ignore[misc]
            if better is not None:
                return better, max(0.5 * damping, 1.0) if share == 1.0 else damping
            share, damping = 0.25 * share, min(2.0 * damping, _STEPS)
        return now, damping

    def _maximised(self, expected: Expectation, steps: int, learn_prior: bool) -> dict[str, Tensor] | None:
        """The parameters after an M-step, at which the model is left; `None` where it promises nothing."""
        total = self.weight.sum()
        regression = Regression(self, expected.points)
        prior = expected.latent / total
        gain = _prior_gain(self.dgn.prior.detach(), prior) if learn_prior else 0.0
        gain += regression.maximise(expected.gradient, float(total), steps)
        if learn_prior:
            with torch.no_grad():
                self.dgn.prior.copy_(prior)
        return self.parameters() if gain > _LEAST else None


def _prior_gain(old: Tensor, new: Tensor) -> float:
    """By how much `E[log N(z; 0, P)]` is larger with the second moment of z itself as P, nats per row."""
    ratio = torch.linalg.solve(old, new)
    return 0.5 * float(ratio.trace() - len(old) - ratio.logdet())


class Regression:
    """It is the regression of the rows on points, in the parameters of the network and the logs of the scales.

    Args:
        problem: at the parameters of the E-step.
        points: of it.
    """

    def __init__(self, problem: OutputProblem, points: Points) -> None:
        self._problem, self._points, self._moved = problem, points, problem.moved
        noise = problem.dgn.noise_tensors
        scale = noise[0].detach().clone() if noise else None
        self._rows = problem.output.observe(problem.x, scale)
        self._of_rows = torch.zeros_like(problem.weight).index_add_(0, points.row, points.weight)
        learned = bool(noise) and noise[0].requires_grad
        self._scale, self._log_scale = scale, scale.log().requires_grad_() if learned and scale is not None else None
        net = self._moved[: len(self._moved) - learned]
        self.variables = net if self._log_scale is None else [*net, self._log_scale]

    def scale(self) -> Tensor | None:
        """The scales, above their floor."""
        if self._log_scale is None:
            return self._scale
        return torch.maximum(self._log_scale.exp(), self._problem.noise_floor)

    def parts(self) -> Iterator[tuple[float, Tensor]]:
        """`sum_nj r_nj log p(x_n | g(z_j))`, some points at a time, each with a tensor that has its gradient."""
        output, trace = self._problem.output, self._problem.trace
        size = max(1, room(_ENTRIES, self._rows.x.device) // max(step.size for step in trace.steps))
        for row, z, weight in zip(*(field.split(size) for field in self._points), strict=True):
            rows, eta, scale = self._rows.take(row), trace(z), self.scale()
            fixed, known = None if scale is None else scale.detach(), eta.detach()
            value = weight @ output.log_density(rows, known, scale)
            pulled = (eta * (weight[:, None] * output.slope(rows, known, fixed))).sum()
            yield float(value.detach()), value + pulled if value.requires_grad else pulled
        if (scale := self.scale()) is not None and scale.requires_grad:
            value = self._of_rows @ self._rows.sum(output.constants(self._rows.x, scale))
            yield float(value.detach()), value

    @torch.enable_grad()
    def value(self) -> tuple[float, list[Tensor]]:
        """Their sum and its gradient in the variables."""
        total, gradient = 0.0, [torch.zeros_like(v) for v in self.variables]
        for value, part in self.parts():
            total += value
            for sum_, new in zip(gradient, torch.autograd.grad(part, self.variables, allow_unused=True), strict=True):
                if new is not None:
                    sum_ += new
        return total, gradient

    def exact(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """A gradient in the parameters as one in the variables."""
        if self._log_scale is None:
            return list(gradient)
        return [*gradient[:-1], gradient[-1] * self._log_scale.detach().exp()]

    def maximise(self, gradient: Sequence[Tensor], total: float, steps: int) -> float:
        """Move the parameters up F by some iterations of L-BFGS; returns by how much F rises, nats per row.

        Args:
            gradient: of the exact log-likelihood at the current parameters, in these.
            total: the weight of all rows.
            steps: at most.
        """
        start = [v.detach().clone() for v in self.variables]
        before, own = self.value()
        rest = [exact - part for exact, part in zip(self.exact(gradient), own, strict=True)]

        def loss() -> float:
            value, slope = self.value()
            for v, old, c, g in zip(self.variables, start, rest, slope, strict=True):
                value += float((c * (v.detach() - old)).sum())
                v.grad = -(g + c) / total
            return (before - value) / total

        kept = [v.grad for v in self.variables]
        optimiser = torch.optim.LBFGS(
            self.variables, max_iter=steps, max_eval=2 * steps, line_search_fn="strong_wolfe", tolerance_change=0.0
        )
        optimiser.step(loss)
        gain = -loss()
        for v, grad in zip(self.variables, kept, strict=True):
            v.grad = grad
        scale = self.scale()
        if self._log_scale is not None and scale is not None:
            with torch.no_grad():
                self._problem.dgn.noise.copy_(scale)
        return gain
