"""The numbers of an inspection, each with a sentence on what it says and whether it is exact."""

from __future__ import annotations

import math
from typing import Any

from girih.plots.histograms import percent
from girih.report.gap_page import gap_number
from girih.report.page import Number

_STRAIGHT = 1e-6  # angles in degrees up to that are rounding


def explain_inspection(numbers: dict[str, Any]) -> list[Number]:
    """Turn what `facts` gives into rows of a table."""
    decoder, cells = numbers["decoder"], numbers["cells"]
    rows = [
        Number(
            "Dimensions",
            f"S = {decoder['latent_dim']}, D = {decoder['output_dim']}",
            f"Latent and output dimension; {decoder['hidden_units']:,} hidden units with kinks cut the latent space.",
        ),
        _cells(cells),
        *_dimension(numbers),
        *_volume(numbers),
        *_entropy(numbers),
    ]
    if decoder["latent_dim"] > 1:
        rows.append(_disentanglement(numbers))
    rows += [_angles(numbers), _injective(numbers["injectivity"])]
    return rows


def explain_rows(numbers: dict[str, Any]) -> list[Number]:
    """Turn what `facts_of_rows` gives into rows of a table, with what each number says for a decision."""
    rows = [
        Number(
            "Rows",
            f"{numbers['rows']:,}",
            f"Their latents are those of {numbers['how']}."
            + (f" {numbers['missing_entries']:,} entries are missing." if numbers["missing_entries"] else ""),
        ),
        _nll(numbers),
    ]
    if numbers["noise"] is not None:
        noise = numbers["noise"]
        rows.append(
            Number(
                "Noise",
                f"{noise['variance']:.3g}",
                f"The variance of what the decoder leaves to chance, {noise['from']}. It misses rows by "
                f"{numbers['residual']:.3g} an entry, root mean square: "
                + (
                    "of two decoders of the same rows, prefer the one where that is smaller on fresh ones."
                    if "likeliest" in noise["from"]
                    else f"much more than {math.sqrt(noise['variance']):.3g}, the root of the noise, says that the "
                    "rows are not of the kind that it was made for."
                ),
            )
        )
    else:
        rows.append(
            Number(
                "Distance",
                f"{numbers['residual']:.3g}",
                "What the decoder misses rows by, root mean square of an entry. Large beside the noise that you expect "
                "says that it cannot make such rows.",
            )
        )
    rows += [_cells_of_rows(numbers), _latents_of_rows(numbers["latents"]["mean_square"])]
    return rows + _gap(numbers)


def _nll(numbers: dict[str, Any]) -> Number:
    part = numbers["nll"]
    if part is None:
        return Number("NLL", "not known", f"There is no log p(x) of these rows: {numbers['unknown']['NLL']}.")
    error = "" if part["exact"] else f" ± {part['standard_error']:.2g}"
    text = (
        "Mean of −log p(x), nats a row: of two models that have not seen these rows, prefer the one where it is lower. "
    )
    if part["over_rows"] is not None:
        text += f"As many other rows would give another number, by ± {part['over_rows']:.2g}. "
    if part["gaussian"] is not None and numbers["noise"] is not None:
        beside = part["gaussian"]
        verdict = (
            "the decoder knows more of them than means and correlations."
            if part["mean"] < beside
            else "the decoder knows less of them than means and correlations, so do not trust its densities here."
        )
        text += f"One Gaussian fitted to these very rows has {beside:.4g}: {verdict}"
    return Number("NLL", f"{part['mean']:.4g}{error} nats{' (exact)' if part['exact'] else ' (sampled)'}", text.strip())


def _cells_of_rows(numbers: dict[str, Any]) -> Number:
    part = numbers["cells"]
    value = f"{part['held']:,}" + ("" if part["of"] is None else f" of {part['of']:,}")
    text = f"Cells that rows fall on; {part['hold_90_percent']:,} of them hold 90% of the rows. "
    if part["prior_mass"] is not None:
        text += (
            f"They hold {percent(part['prior_mass'])} of the prior: the rest of what the decoder generates looks like "
            "none of these rows, and a smaller decoder may do where few cells are used."
        )
    else:
        text += "Few cells beside the number of rows: a smaller decoder may do."
    if part["share"] is not None and part["share"] < 0.9:
        text += f" A row is on its cell with a probability of {part['share']:.2g} only, on average."
    return Number("Cells with rows", value, text)


def _latents_of_rows(square: float) -> Number:
    text = "Mean square of the rows' latents in units of the prior, 1 for what the decoder itself generates. " + (
        "They lie further out than the prior: draws from the decoder will not look like these rows."
        if square > 1.3
        else "They keep to the middle: draws from the decoder show more than these rows do."
        if square < 0.7
        else "So draws from the prior lie where the rows do."
    )
    return Number("Latents of the rows", f"{square:.3g}", text)


def _gap(numbers: dict[str, Any]) -> list[Number]:
    part, bound = numbers["gap"], numbers["bound"]
    rows = []
    if part is not None:
        rows.append(gap_number(part))
    elif bound is not None:
        rows.append(
            Number("Negative ELBO", f"{bound:.4g} nats (sampled)", "The bound of the encoder; the encoder and its "
                   "family lose what it exceeds the NLL by.")
        )  # fmt: skip
    if "gap" in numbers["unknown"]:
        rows.append(Number("Gap of the VAE", "not known", f"{numbers['unknown']['gap']}."))
    return rows


def _how(exact: bool, error: float | None, unit: str = "") -> str:
    """Say what follows a number: its standard error, its unit, and whether it is exact."""
    if exact:
        return f"{unit} (exact)"
    return f"{unit} (sampled)" if error is None or math.isnan(error) else f" ± {error:.2g}{unit} (sampled)"


def _cells(cells: dict[str, Any]) -> Number:
    if cells["exact"]:
        return Number(
            "Cells",
            f"{cells['count']:,} (exact)",
            "Pieces of the latent space; on each of them the decoder is one affine map A z + b. "
            f"{cells['hold_90_percent']:,} of them hold 90% of the prior: where that is a handful, PCA may do as well.",
        )
    met = f"{cells['count']:,} (met by {cells['draws']:,} draws)"
    text = (
        "Pieces of the latent space; on each of them the decoder is one affine map A z + b. Cells that no draw met "
        f"hold about {percent(cells['unseen_mass'])} of the prior (Good and Turing); averages over the prior do not "
        "suffer from that, since draws are independent."
    )
    return Number("Cells", met, text)


def _dimension(numbers: dict[str, Any]) -> list[Number]:
    part, S, exact = numbers["dimension"], numbers["decoder"]["latent_dim"], numbers["cells"]["exact"]
    shares = {k: s for k, s in part["shares"].items() if s > 0.0}
    listed = ", ".join(f"{percent(s)} of the prior has {k}" for k, s in shares.items()) + "."
    bottleneck = (
        "No layer lets through fewer."
        if part["bottleneck"] is None
        else f"The layers alone allow {part['bound_mean']:.3g} on average; the bottleneck is layer "
        f"{part['bottleneck']}."
    )
    spectrum = numbers["singular_values"]
    rows = [
        Number(
            "Intrinsic dimension",
            f"{part['mean']:.4g}{_how(exact, part['standard_error'])}",
            f"The rank of A, of at most {S}, averaged over the prior: {listed} {bottleneck} Below S, latents are "
            "wasted: take fewer, or widen that layer.",
        )
    ]
    if S > 1:
        condition = spectrum["condition_median"]
        rows.append(
            Number(
                "Effective dimension",
                f"{spectrum['effective_dimension']:.3g} of {S}{_how(exact, spectrum['effective_dimension_error'])}",
                "How evenly A stretches its directions: (Σσ²)²/Σσ⁴ of its singular values, averaged over the prior; as "
                "many latents would show most of what it makes. "
                + (
                    f"In the median cell the strongest direction is stretched {condition:,.3g} times as much as the "
                    "weakest."
                    if math.isfinite(condition)
                    else "In the median cell some directions are lost altogether."
                ),
            )
        )
    return rows


def _volume(numbers: dict[str, Any]) -> list[Number]:
    part, exact = numbers["log_volume"], numbers["cells"]["exact"]
    lost = part["degenerate_mass"]
    if math.isnan(part["mean"]):
        return [
            Number(
                "Log-volume",
                "\N{MINUS SIGN}∞",
                "All cells have a rank below S: no piece of the image has an S-dimensional volume.",
            )
        ]
    spread = (
        "It is the same everywhere, so a uniform latent gives evenly spread points."
        if part["uniform"]
        else f"From {part['least']:.3g} to {part['most']:.3g}: generated points are denser where it is small, and a "
        "uniform latent would not be spread evenly."
    )
    rest = f" Cells of rank below S, {percent(lost)} of the prior, are left out of the mean." if lost > 0.0 else ""
    return [
        Number(
            "Log-volume",
            f"{part['mean']:.4g}{_how(exact, part['standard_error'], ' nats')}",
            f"Mean over the prior of log √det(AᵀA), how much a cell is stretched; standard deviation "
            f"{part['deviation']:.3g}. {spread}{rest}",
        )
    ]


def _entropy(numbers: dict[str, Any]) -> list[Number]:
    part, exact = numbers["entropy"], numbers["cells"]["exact"]
    if part["degenerate_mass"] > 0.0:
        return [
            Number(
                "Entropy on the manifold",
                f"\N{MINUS SIGN}∞{' (exact)' if exact else ' (sampled)'}",
                f"{percent(part['degenerate_mass'])} of the prior is in cells of rank below S, whose images have no "
                "S-dimensional volume: that part of the generated distribution is singular and has no density on the "
                "manifold.",
            )
        ]
    meaning = (
        "Of generated points, with respect to the S-dimensional volume of the manifold: that of the prior "
        f"({part['of_prior']:.4g}) plus the mean log-volume. Of two decoders of the same data, the higher one shows "
        "more variety."
    )
    if part["upper_bound"]:
        meaning += " It is an upper bound, which is reached if no latents share an image."
    most = "at most " if part["upper_bound"] else ""
    value = f"{most}{part['value']:.4f}{_how(exact, part['standard_error'], ' nats')}"
    rows = [Number("Entropy on the manifold", value, meaning)]
    folded = part["folded"]
    if folded is not None and math.isfinite(folded["value"]):
        rows.append(
            Number(
                "Entropy with folds",
                f"{folded['value']:.3f} ± {folded['standard_error']:.2g} nats (sampled)",
                "The same with p(x) summed over all latents that have the image x: below the line above by more than "
                "a few standard errors only if the decoder folds.",
            )
        )
    return rows


def _disentanglement(numbers: dict[str, Any]) -> Number:
    part, exact = numbers["disentanglement"], numbers["cells"]["exact"]
    S = numbers["decoder"]["latent_dim"]
    return Number(
        "Entanglement ‖Q − I‖",
        f"{part['mean']:.4f}{_how(exact, part['standard_error'])}",
        f"Mean over the prior, spectral norm, of the absolute cosines between columns of A: 0 if every latent changes "
        f"x in a direction of its own, {S - 1} if all do the same. Largest in any {'cell' if exact else 'cell met'}: "
        f"{part['largest']:.4f}. Near 0, latents can be turned one at a time.",
    )


def _angles(numbers: dict[str, Any]) -> Number:
    part, exact = numbers["angles"], numbers["cells"]["exact"]
    if part["mean"] is None:
        return Number("Angles", "none", "There are no neighbouring cells.")
    text = (
        f"Mean of the largest principal angle between the images of neighbouring cells, over {part['source']}"
        f", weighted by their prior mass: how sharply the manifold is bent. Half of them are "
        f"below {part['quantiles']['0.5']:.3g}°, the largest is {part['largest']:.3g}°. Straight lines between latents "
        "stand for smooth changes of x only where they are small."
        if part["largest"] > _STRAIGHT
        else f"Over {part['source']}: the manifold is not bent anywhere."
    )
    if numbers["decoder"]["output_dim"] <= numbers["decoder"]["latent_dim"]:
        text += " With D ≤ S, images of full rank fill the space and have no angle between them."
    mean = part["mean"] if part["largest"] > _STRAIGHT else 0.0
    return Number("Angles", f"{mean:.3g}{_how(exact, part['standard_error'], '°')}", text)


def _injective(part: dict[str, Any]) -> Number:
    answer = {True: "yes (exact)", False: "no (proven)", None: "not decided"}[part["injective"]]
    reason = part["reason"].removeprefix("not decided: ")
    witness = " Two latents with the same image are in inspection.json." if part["witness"] is not None else ""
    return Number(
        "Injective",
        answer,
        f"Whether different latents always have different images: {reason}.{witness} Only if so, x alone tells z.",
    )
