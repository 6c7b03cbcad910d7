"""The numbers of a fit, each with a sentence on what it says."""

from __future__ import annotations

from typing import Any, NamedTuple

# Up to this many columns are listed one by one.
_FEW = 6


class Number(NamedTuple):
    """One row of the table of numbers."""

    name: str
    value: str
    meaning: str


def explain(metrics: dict[str, Any]) -> list[Number]:
    """The metrics of `girih fit` as rows of a table, the most important first."""
    rows = [
        Number(
            "Exact NLL",
            f"{metrics['nll_per_row']:.4f} nats per row",
            "Minus the mean of log p(x) over the rows: nothing is sampled or bounded. Lower is better; one nat less "
            "means that the model makes each row e = 2.7 times as likely. Below 0, densities are above 1.",
        )
    ]
    if metrics.get("entropy") is not None:
        rows.append(
            Number(
                "Entropy of the truth",
                f"{metrics['entropy']:.4f} nats per row",
                "The NLL of the distribution that the rows were drawn from. No model does better on new rows; on the "
                "rows that it was fitted to, a model may, by fitting their chance.",
            )
        )
    k = metrics["n_parameters"]
    rows += [
        Number(
            "AIC",
            f"{metrics['aic']:,.1f}",
            f"Akaike's criterion, with {k:,} free parameters. To choose among models of the same rows: lower is "
            "better, a model with more parameters must earn them.",
        ),
        Number(
            "BIC",
            f"{metrics['bic']:,.1f}",
            "Schwarz's criterion: the same, with a stronger pull towards few parameters.",
        ),
        Number("Noise", noise_text(metrics["noise"]), _noise_meaning(metrics["noise"])),
        Number(
            "Cells",
            f"{metrics['cells']}",
            "Pieces of the latent space; on each of them the generator is one affine map.",
        ),
        Number("Iterations", f"{metrics['n_iter']}", _ending(metrics)),
    ]
    if metrics["data"]["missing"]:
        rows.append(
            Number(
                "Missing entries",
                f"{metrics['data']['missing']:,}",
                "They were integrated out exactly; no row was dropped and nothing was filled in before the fit.",
            )
        )
    seconds = metrics["seconds"]
    if seconds.get("fit") is not None:
        rows.append(Number("Time", f"{seconds['fit']:.1f} s", "Of the fit, all random starts included."))
    return rows


def noise_text(noise: dict[str, Any]) -> str:
    """The standard deviation of the noise: one, one for each of a few columns, or their root mean square."""
    columns = noise["deviation_of_columns"]
    if columns is not None and len(columns) <= _FEW:
        return ", ".join(_short(value) for value in columns)
    return _short(noise["deviation"])


def _short(value: float) -> str:
    return f"{value:.0f}" if 1e3 <= value < 1e6 else f"{value:.3g}"


def _noise_meaning(noise: dict[str, Any]) -> str:
    columns = noise["deviation_of_columns"]
    text = "Standard deviation of the rows about what the generator draws, in the units of the data"
    if noise["shape"] == "isotropic":
        return f"{text}."
    return (
        f"{text}, column by column." if columns is not None and len(columns) <= _FEW else f"{text}: root mean square."
    )


def _ending(metrics: dict[str, Any]) -> str:
    if metrics["interrupted"]:
        return "The fit was interrupted; this is the best model up to then."
    if metrics["converged"]:
        return "EM has converged: the last iterations gained next to nothing."
    return (
        f"EM was still gaining {metrics['last_gain']:.1e} nats per row in its last iteration when it reached the "
        "largest number of iterations; with more, it fits a little closer."
    )
