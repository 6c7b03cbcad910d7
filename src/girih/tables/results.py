"""What a choice among settings says: the single one that is good enough, and all of them as a table."""

from __future__ import annotations

import math

from girih.tables.choice import Choice
from girih.tables.setting import Setting


def simplest(choice: Choice, columns: int) -> Setting:
    """The setting with the fewest parameters whose held-out likelihood is within one standard error of the best.

    The error is that of the difference, row by row.
    """
    mean = choice.held_out.mean(0)
    best = int(mean.argmax())
    apart = choice.held_out - choice.held_out[:, best, None]
    error = apart.std(0) / math.sqrt(len(apart))
    good = [m for m in range(len(mean)) if float(mean[m] - mean[best] + error[m]) >= 0.0]
    return min((choice.settings[m] for m in good), key=lambda setting: setting.parameters(columns, 0))


def results(choice: Choice) -> dict[str, list[object]]:
    """What was tried, best first, as lists by name."""
    kept = dict(zip(choice.settings, choice.weights.tolist(), strict=True))
    out: dict[str, list[object]] = {}
    for setting, score in choice.screened:
        row = {
            "latent_dim": setting.latent_dim,
            "components": setting.components,
            "noise": setting.kind,
            "tied": setting.tied,
            "shared_bends": setting.shared,
            "kinks": setting.kinks,
            "kink_ridge": setting.ridge if setting.kinks else math.nan,
            "noise_prior": setting.floor,
            "transformed": setting.bend,
            "mean_test_score": score,
            "weight": kept.get(setting, 0.0),
        }
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return out
