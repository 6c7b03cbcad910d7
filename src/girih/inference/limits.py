"""Up to which latent dimension inference is exact."""

from __future__ import annotations

from girih.errors import LatentDimensionError

MAX_LATENT_DIM = 3


def check_latent_dim(latent_dim: int) -> None:
    """Refuse latent spaces over which densities cannot be integrated exactly."""
    if latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"exact inference covers latent dimensions S = 1 to {MAX_LATENT_DIM}, and this generator has "
            f"S = {latent_dim}, where the number of cells and the integrals over them explode; use a generator with "
            f"S <= {MAX_LATENT_DIM}, or, for this one, girih.vae.GaussVAE for a bound on the likelihood, "
            "girih.Partition.slice for a plane through its latent space, or girih.trace(net).affine(z) for the map "
            "around single latents, which work for any S"
        )
