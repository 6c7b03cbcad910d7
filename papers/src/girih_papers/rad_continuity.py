"""RAD, Figs. 2, 4 and 13: three modes folded into one, what the gate adds, the conditions that keep log p whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from girih.flows import Fold, knots, lines, log_gate, make_fold, piece_of, tied_logits
from girih.plots import BLACK, BLUE, GREEN, GREY, VERMILLION, new_figure, styled
from girih_papers.arrays import Array
from girih_papers.figures import save

_PIECES = (VERMILLION, GREEN, BLUE)
_VARIANTS = ("no conditions", "as printed", "with the conditions")
# On both sides of a knot, relative to its size: far above rounding, far below what a slope makes of it.
_BESIDE = 1e-13


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        draws: random folds with random gates whose jumps at the knots are measured.
        points: of each curve.
    """

    draws: int = 1000
    points: int = 4001


SETTINGS = Settings()
QUICK = Settings(draws=20, points=401)


class Numbers:
    """The parameters of one fold of three pieces with a gate, in the symbols of appendix A."""

    def __init__(self, generator: torch.Generator) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.alpha = normal(3).mul(0.5).exp()
        self.beta = torch.rand(1, dtype=torch.float64, generator=generator) + 0.5
        self.a, self.b = normal(3), normal(3)
        self.free = normal(3), normal(3)

    def net(self, z: Tensor) -> Tensor:
        """The free logits, `(N, 1)` to `(N, 3)`."""
        return 2.0 * torch.sin(z * self.free[0] + self.free[1])


def _example() -> Numbers:
    """A fold whose pieces are all easy to see."""
    numbers = Numbers(torch.Generator().manual_seed(3))
    numbers.alpha, numbers.beta = torch.tensor([1.4, 0.9, 0.7]).double(), torch.tensor([1.0]).double()
    numbers.a, numbers.b = torch.tensor([0.8, -0.6, 0.2]).double(), torch.tensor([0.3, 0.5, -0.9]).double()
    return numbers


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    generator = torch.Generator().manual_seed(seed)
    draws = [Numbers(generator) for _ in range(settings.draws)]
    jumps = {name: np.array([_jumps(numbers, name) for numbers in draws]) for name in _VARIANTS}
    return {
        "jump_of_log_p": {
            name: {
                "largest": float(values.max()),
                "mean_inner_knots": float(values[:, 1:3].mean()),
                "mean_outer_knots": float(values[:, [0, 3]].mean()),
            }
            for name, values in jumps.items()
        },
        "largest_jump_of_z": {
            name: float(max(_jump(numbers, name, knot)[0] for numbers in draws for knot in _knots(numbers, name)))
            for name in _VARIANTS
        },
        "settings": {"folds": settings.draws, "pieces": 3, "points": settings.points, "seeds": [seed]},
        "figures": [
            save(_draw_modes(settings.points), out / "modes.png"),
            save(_draw_conditions(_example(), settings.points), out / "conditions.png"),
        ],
    }


def weight(numbers: Numbers, variant: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z, k and `log p(k | z) + log|dz/dx|` at x, `(N,)` each: all that a fold adds to `log p`."""
    a1, a2, a3 = numbers.alpha.tolist()
    beta = numbers.beta.item()
    if variant == "with the conditions":
        return _ours(numbers, x)
    k = (x > -beta).long() + (x > beta).long()
    log_alpha = numbers.alpha.log()
    slope, height = log_alpha[k], a2 * beta
    inner = torch.where(k == 0, a1 * (x + beta) + height, torch.where(k == 1, -a2 * x, a3 * (x - beta) - height))
    if variant == "no conditions":
        # Fig. 13a: beyond the folded interval one piece is left, so the gate jumps to 1
        gate = torch.log_softmax(_line(numbers, inner), 1).gather(1, k[:, None])[:, 0]
        return inner, k, slope + torch.where(inner.abs() < height, gate, torch.zeros_like(gate))
    left, right = -(1.0 + a2 / a1) * beta, (1.0 + a2 / a3) * beta
    ends = torch.log_softmax(_printed(numbers, torch.tensor([-height, height], dtype=torch.float64)), 1)
    tail_left, tail_right = ends[0, 0], ends[1, 2]
    z = torch.where(x < left, a1 * tail_left.exp() * (x - left) - height, inner)
    z = torch.where(x > right, a3 * tail_right.exp() * (x - right) + height, z)
    gate = torch.log_softmax(_printed(numbers, z), 1).gather(1, k[:, None])[:, 0]
    total = torch.where(x < left, slope + tail_left, slope + gate)
    return z, k, torch.where(x > right, slope + tail_right, total)


def _line(numbers: Numbers, z: Tensor) -> Tensor:
    return numbers.beta * (z[:, None] * numbers.a + numbers.b + numbers.net(z[:, None]))


def _printed(numbers: Numbers, z: Tensor) -> Tensor:
    """The logits as appendix A prints them."""
    z, beta, a2 = z[:, None], numbers.beta, numbers.alpha[1]
    line = z * numbers.a + numbers.b
    omega = 0.5 * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    upper, lower = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    upper[:2, :2], lower[1:, 1:] = omega, omega

    def window(shifted: Tensor) -> Tensor:
        return 0.5 * beta * (1.0 + torch.cos(shifted))

    tied = window((z / a2 - beta) * math.pi / (2.0 * beta)) * (line @ lower)
    tied = tied + window((z / a2 + beta) * math.pi / (2.0 * beta)) * (line @ upper)
    return beta * line + tied - numbers.alpha.log() + window(z * math.pi / (a2 * beta)) * numbers.net(z)


def _ours(numbers: Numbers, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the couplings of `girih.flows.RAD` do it."""
    fold = make_fold(numbers.alpha.log(), numbers.beta)
    fold = Fold(*(part.expand(len(x), -1) for part in fold))
    x = x[:, None]
    k = piece_of(x, fold)
    centre, half = lines(fold, k)
    v = (x - centre) / half
    u = v.clamp(-1.0, 1.0)
    ends = torch.stack((numbers.a[0], numbers.b[0]))
    gate = log_gate(tied_logits(u, ends, numbers.net(fold.height * u), fold.half_width), fold.log_slopes).gather(1, k)
    z = fold.height * (u + (v - u) * gate.exp())
    return z[:, 0], k[:, 0], (gate + fold.log_slopes.gather(1, k))[:, 0]


def _knots(numbers: Numbers, variant: str) -> list[float]:
    """Inner and outer knots: where the pieces of a variant meet."""
    a1, a2, a3 = numbers.alpha.tolist()
    beta, turns = numbers.beta.item(), 1.0 if variant == "as printed" else 2.0
    return [-(1.0 + turns * a2 / a1) * beta, -beta, beta, (1.0 + turns * a2 / a3) * beta]


def _jump(numbers: Numbers, variant: str, knot: float) -> tuple[float, float]:
    """How far z and `log p` jump at a knot; that of `log p` leaves out what z itself does to `log p(z)`."""
    step = _BESIDE * max(1.0, abs(knot))
    z, _, total = weight(numbers, variant, torch.tensor([knot - step, knot + step], dtype=torch.float64))
    return abs((z[1] - z[0]).item()), abs((total[1] - total[0]).item())


def _jumps(numbers: Numbers, variant: str) -> list[float]:
    return [_jump(numbers, variant, knot)[1] for knot in _knots(numbers, variant)]


def _coloured(ax: Axes, x: Array, y: Array, k: NDArray[Any], breaks: Sequence[float] = (), **style: Any) -> None:
    """A curve in the colours of the pieces, broken where it may jump."""
    side = np.searchsorted(np.sort(breaks), x)
    for piece, colour in enumerate(_PIECES):
        for part in np.unique(side[k == piece]):
            chosen = (k == piece) & (side == part)
            label = f"piece {piece + 1}" if part == side[k == piece].max() else None
            ax.plot(x[chosen], y[chosen], color=colour, label=label, **style)


@styled
def _draw_modes(points: int) -> Figure:
    """Figs. 2 and 4: three modes folded into one; a uniform z and a gate that make a wave."""
    figure = new_figure(7.2, 3.9)
    (density, latent, fold), (wave, uniform, gate) = figure.subplots(2, 3)
    x = torch.linspace(-1.0, 1.0, points, dtype=torch.float64)
    three = make_fold(torch.full((3,), math.log(3.0), dtype=torch.float64), torch.tensor([1.0 / 3.0]).double())
    k = piece_of(x[:, None], Fold(*(part.expand(points, -1) for part in three)))
    centre, half = lines(Fold(*(part.expand(points, -1) for part in three)), k)
    z, pieces = ((x[:, None] - centre) / half)[:, 0].numpy(), k[:, 0].numpy()
    _coloured(density, x.numpy(), 0.5 * (1.0 + np.cos(np.pi * z)), pieces)
    for edge in knots(three).tolist():
        density.axvline(edge, color=GREY, lw=0.5, ls=":")
    density.set(title="three modes", xlabel="x", ylabel="density of x")
    line = np.linspace(-1.0, 1.0, points)
    latent.plot(line, 0.5 * (1.0 + np.cos(np.pi * line)), color=BLACK)
    latent.set(title="folded into one", xlabel="z", ylabel="density of z")
    _coloured(fold, x.numpy(), z, pieces)
    fold.set(title="the fold", xlabel="x", ylabel="z")
    _coloured(wave, line, 0.5 + 0.5 * np.sin(3.0 * np.pi * line), (line > 0) * 2)
    wave.set(title="a wave", xlabel="x", ylabel="density of x")
    half_line = np.linspace(0.0, 1.0, points)
    uniform.plot(half_line, np.ones(points), color=BLACK)
    uniform.set(title="z = |x| is uniform", xlabel="z", ylabel="density of z", ylim=(0.0, 1.4))
    right = 0.5 + 0.5 * np.sin(3.0 * np.pi * half_line)
    gate.plot(half_line, right, color=BLUE, label="x > 0")
    gate.plot(half_line, 1.0 - right, color=VERMILLION, ls=(0, (5, 1.5)), label="x < 0")
    gate.set(title="the gate makes the wave", xlabel="z", ylabel="p(k | z)", ylim=(-0.05, 1.3))
    gate.legend(loc="upper center", ncols=2)
    return figure


@styled
def _draw_conditions(numbers: Numbers, points: int) -> Figure:
    """Fig. 13, and what each variant adds to `log p`."""
    figure = new_figure(7.2, 4.0)
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    outer = _knots(numbers, "with the conditions")
    x = torch.linspace(outer[0] - 1.5, outer[-1] + 1.5, points, dtype=torch.float64)
    height = (numbers.alpha[1] * numbers.beta).item()
    for (above, below), variant in zip(axes.T, _VARIANTS, strict=True):
        z, k, total = (part.numpy() for part in weight(numbers, variant, x))
        at = _knots(numbers, variant)
        _coloured(above, x.numpy(), z, k, at)
        _coloured(below, x.numpy(), total, k, at)
        for level in (-height, height):
            above.axhline(level, color=GREY, lw=0.5, ls="--")
        for knot in at:
            for ax in (above, below):
                ax.axvline(knot, color=GREY, lw=0.5, ls=":")
        above.set(title=variant)
        below.set(xlabel="x")
    axes[0, 0].set(ylabel="z", ylim=(-2.2 * height, 2.2 * height))
    axes[1, 0].set_ylabel("log p(k | z) + log |dz/dx|\n(nats)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure
