"""What stands below the pictures that differ with the dimension of the latent space."""

from __future__ import annotations


def captions(latent_dim: int, columns: int) -> dict[str, str]:
    """Captions by the name of the picture.

    Args:
        latent_dim: S.
        columns: D.

    Example:
        >>> from girih.report.captions import captions
        >>> sorted(captions(2, 5))
        ['embedding', 'manifold', 'manifold_images', 'partition', 'posterior']
    """
    plane = "Both are seen along the first two principal axes of the rows."
    if latent_dim == 1:
        plane = {1: "Rows lie at the posterior mean of their latent.", 2: "Rows as grey points."}.get(columns, plane)
        return {
            "manifold": "g(z) for z between the 0.1% and 99.9% quantiles of its prior, coloured along z; dots are the "
            f"cell limits, where the curve may bend, and the band is one standard deviation of the noise. {plane}",
            "manifold_images": "g(z) along the latent, at evenly spaced quantiles of its prior: all that the "
            "noise-free generator can draw, from one end to the other.",
            "posterior": _rows("A kink or a second peak at a cell limit is real:"),
            "partition": "Between two cell limits every coordinate of g is a straight line in z. Above: the prior "
            "mass of each cell.",
            "embedding": "The posterior mean of z of each row, with one posterior standard deviation to either side; "
            "above, all rows against the prior, which they follow when the model fits.",
        }
    plane = "Beneath: the exact density of x." if columns == 2 else plane
    solid = latent_dim > 2
    return {
        "manifold": "g(z) along lines of the latent space: along each coordinate from the 1% to the 99% quantile of "
        "its prior, the others held at a few quantiles. The lines bend where they cross a cell limit, and the grid "
        f"may fold. Rows as grey points. {plane}",
        "manifold_images": "g(z) along each latent coordinate in turn, the others at 0."
        if solid
        else "g(z) over the latent plane, at evenly spaced quantiles of its prior.",
        "posterior": _rows("Separate patches are real:")
        + (
            " Dots are exact draws, seen along two of the three coordinates."
            if solid
            else " Shades are the smallest regions that hold a share of the posterior; dots are exact draws."
        ),
        "partition": ("A plane through the cells" if solid else "The cells")
        + " on each of which the generator is one affine map, coloured by the mass that the prior gives them.",
        "embedding": "The posterior mean of z of each row, with ellipses of one posterior standard deviation for some "
        "of them; broken lines are one to three standard deviations of the prior, which the rows follow when the "
        f"model fits.{' At most 600 rows are shown.' if solid else ''}",
    }


def _rows(kink: str) -> str:
    return (
        "p(z | x) of the most probable row, two in between and the least probable one. "
        f"{kink} the posterior is a mixture of truncated Gaussians, one for each cell."
    )
