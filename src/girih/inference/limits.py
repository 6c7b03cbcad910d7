"""Up to which latent dimension inference is exact."""

from __future__ import annotations

from girih.errors import LatentDimensionError

MAX_LATENT_DIM = 1


def check_latent_dim(latent_dim: int) -> None:
    """Refuse latent spaces over which densities cannot be integrated exactly yet."""
    if latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"exact inference covers latent dimension S = {MAX_LATENT_DIM} today, and this generator has "
            f"S = {latent_dim}; use a generator with S = {MAX_LATENT_DIM}, girih.Partition(net) for the cells of S = 2 "
            "and 3, or girih.trace(net).affine(z) for the affine map around single latents, which works for any S"
        )
