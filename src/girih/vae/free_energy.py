"""`FreeEnergyModel`: a decoder, an encoder and the two terms of their free energy, whatever the family of q(z | x)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from girih._arrays import ArrayLike, Rows, as_rows, as_tensor
from girih._options import whole
from girih.errors import NoiseError, ShapeError
from girih.training import Recorder, type_of
from girih.vae.families.base import Family
from girih.vae.latent_model import likelihood_named, log_variance
from girih.vae.networks import Networks, check_encoded


class FreeEnergy(NamedTuple):
    """The two terms of a free energy, nats per row; their sum bounds `-log p(x)` from above on average."""

    divergence: Tensor  # (N,) KL(q(z | x) || p(z)), term 1
    reconstruction: Tensor  # (N,) estimate of -E_q[log p(x | z)], term 2

    @property
    def total(self) -> Tensor:
        """Their sum, `(N,)`: the negative ELBO, to be minimised."""
        return self.divergence + self.reconstruction


class ExactBound(NamedTuple):
    """`ExactBound` says how far a VAE is from its likelihood, nats per row, without sampling: `-nll = elbo + kl`."""

    nll: Tensor  # (N,) -log p(x)
    elbo: Tensor  # (N,)
    kl: Tensor  # (N,) KL(q(z | x) || p(z | x))


class FreeEnergyModel(nn.Module):
    r"""A decoder, an encoder, a family of q(z | x) with its prior p(z), and a likelihood p(x | z).

        free energy = KL(q(z | x) || p(z)) - E_q[log p(x | z)]  >=  -log p(x)        (eq. 1)

    Args:
        networks: of `make_networks`.
        family: of q(z | x), with its prior, over the latents of the networks.
        likelihood: "gaussian" or "bernoulli".
        noise: the initial noise variance of a Gaussian likelihood.
        learn_noise: whether it is trained.

    Attributes:
        decoder: `(N, S)` to `(N, D)`; `(N, S * C)` for categories.
        encoder: `(N, D)` to the numbers that q needs.
        latent_dim: S.
        output_dim: D.
        likelihood: its name.
        log_noise: log of the noise variance, `()`, for a Gaussian likelihood; `None` for another.
        family: the posterior family.

    Source:
        CG-BPEF, eq. 1; Kingma & Welling, Auto-encoding variational Bayes (2014).
    """

    def __init__(
        self,
        networks: Networks,
        family: Family,
        likelihood: str,
        noise: float,
        learn_noise: bool,
    ) -> None:
        super().__init__()
        self.decoder, self.encoder = networks.decoder, networks.encoder
        self.latent_dim, self.output_dim = networks.latent_dim, networks.output_dim
        self.family = family
        self._likelihood = likelihood_named(likelihood)
        self._outputs, self._meaning = family.outputs(self.latent_dim), family.meaning(self.latent_dim)
        self.log_noise: Tensor | None
        if not self._likelihood.noisy:
            self.log_noise = None
            return
        log_noise = torch.tensor(log_variance(noise), dtype=torch.float64, device=networks.like.device)
        if learn_noise:
            self.log_noise = nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)

    @property
    def likelihood(self) -> str:
        """The name of p(x | z): "gaussian" or "bernoulli"."""
        return self._likelihood.name

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters of the networks."""
        return type_of(self.decoder, self.encoder)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def noise(self) -> Tensor:
        """The noise variance of a Gaussian likelihood, `()`.

        Raises:
            NoiseError: the likelihood has none.
        """
        if self.log_noise is None:
            raise NoiseError(f"a VAE with likelihood={self.likelihood!r} has no noise variance")
        return self.log_noise.exp()

    @property
    def temperature(self) -> float | None:
        """The final temperature of the Concrete relaxation, `None` for a family that needs none."""
        return self.family.temperature

    def encode(self, x: ArrayLike) -> Distribution:
        """The approximate posteriors `q(z | x_n)`, in float64, batch shape `(N,)`.

        Args:
            x: `(N, D)`, complete: an encoder cannot read missing entries.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, ParameterError: x is not a table that the model is for.
        """
        return self.family.posterior(self.encoded(self.rows(x).to(self.dtype)))

    def prior(self) -> Distribution:
        """p(z) in float64, a distribution of the same kind as `encode` gives."""
        return self.family.prior(self.device)

    def decode(self, z: ArrayLike) -> Tensor:
        """`E[x | z]`, `(N, D)`, in the type of the parameters: probabilities for a Bernoulli likelihood.

        Args:
            z: `(N, S)`; for categories `(N, S, C)`, or flat, `(N, S * C)`.
        """
        return self.observe(z, mean=True)

    def log_likelihood(self, x: ArrayLike, z: ArrayLike) -> Tensor:
        """`log p(x | z)` in nats, `(..., N)` in float64.

        Args:
            x: `(N, D)`.
            z: `(..., N, *event)` as `encode(x).sample((...))` gives, or `(..., 1, *event)` for latents that all rows
                share.

        Raises:
            ShapeError: they do not fit.
        """
        rows = self.rows(x)
        flat, lead = stacked_latents(z, len(rows), self.family.event_shape, self.device)
        output = self._decoded(flat.to(self.dtype))
        log_noise = None if self.log_noise is None else self.log_noise.double()
        return -self._likelihood.nll(rows, output.double().reshape(*lead, self.output_dim), log_noise)

    def free_energy(self, x: ArrayLike, samples: int = 1, seed: int | None = None) -> FreeEnergy:
        r"""An unbiased estimate of the two terms of the free energy of each row, in nats, to be minimised.

            KL(q(z | x) || p(z)),   -(1 / L) sum_l log p(x | z_l),   z_l ~ q(z | x)

        The draws are differentiable, so gradients reach every parameter. Discrete latents are drawn by the Concrete
        relaxation at the final temperature, while their divergence is that of the categories.

        Args:
            x: `(N, D)`, complete.
            samples: L, draws of z for each row.
            seed: makes the draws reproducible; torch's global generator otherwise.

        Returns:
            A named tuple `(divergence, reconstruction)`, `(N,)` each, with their sum as `total`.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.
            ParameterError: `samples` is not a positive whole number, or x is out of the range of the likelihood.

        Source:
            CG-BPEF, eq. 1 and sections 2 to 3.4; EM-DGN, eq. 3; Kingma & Welling (2014), eq. 10.
        """
        samples, rows = whole(samples, "samples"), self.rows(x).to(self.dtype)
        generator = None if seed is None else torch.Generator(rows.device).manual_seed(whole(seed, "seed", None))
        return self.terms(rows, samples, generator)

    def terms(
        self,
        rows: Tensor,
        samples: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        encoded: Tensor | None = None,
    ) -> FreeEnergy:
        """`free_energy` of checked rows in the type of the networks: what one step of training costs.

        Args:
            rows: `(N, D)`.
            samples: L.
            generator: torch's global one by default.
            temperature: instead of the final one.
            encoded: what the encoder gives for the rows, where that is known.
        """
        encoded = self.encoded(rows) if encoded is None else encoded
        draws = self.family.draw(encoded, samples, generator, temperature)
        output = self._decoded(draws.latents.flatten(0, 1)).reshape(len(draws.latents), *rows.shape)
        nll = self._likelihood.nll(rows, output, self.log_noise)
        reconstruction = nll.mean(0) if draws.weights is None else (draws.weights * nll).sum(0)
        return FreeEnergy(draws.divergence, reconstruction)

    def observe(self, z: ArrayLike, mean: bool = False) -> Tensor:
        """A draw of x for each z, or `E[x | z]`: `(N, D)` in the type of the parameters."""
        output = self._decoded(flat_latents(z, self.family.event_shape, self.device).to(self.dtype))
        return self._likelihood.mean(output) if mean else self._likelihood.draw(output, self.log_noise, None)

    def rows(self, x: ArrayLike | Rows) -> Tensor:
        """Rows of x as checked float64 on the device of the networks."""
        rows = as_rows(x, "x", self.output_dim, "the data dimension D", device=self.device)
        self._likelihood.check(rows)
        return rows

    def _decoded(self, latents: Tensor) -> Tensor:
        result: Tensor = self.decoder(latents).flatten(1)
        return result

    def encoded(self, rows: Tensor) -> Tensor:
        """Encode checked rows: the numbers that the family reads."""
        encoded: Tensor = self.encoder(rows)
        check_encoded(encoded, len(rows), self._outputs, self._meaning)
        return encoded

    def default_recorder(self, rows: Tensor, every: int) -> Recorder | None:
        """The recorder of a run whose user asks for none: here the training loss alone is recorded."""
        return None

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        noise = "" if self.log_noise is None else f", noise={self.noise.item():.3g}"
        temperature = "" if self.temperature is None else f", temperature={self.temperature:g}"
        return f"S={self.latent_dim}, D={self.output_dim}, likelihood={self.likelihood!r}{noise}{temperature}"


def flat_latents(z: ArrayLike, event: torch.Size, device: torch.device) -> Tensor:
    """Latents `(N, *event)`, or flat ones, as checked rows in float64.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: they are no such table.

    Example:
        >>> import torch
        >>> from girih.vae.free_energy import flat_latents
        >>> flat_latents(torch.eye(3)[None, :2], torch.Size([2, 3]), torch.device("cpu")).shape
        torch.Size([1, 6])
    """
    tensor = as_tensor(z, "z", device)
    if len(event) > 1 and tensor.shape[-len(event) :] == event:
        tensor = tensor.reshape(-1, event.numel())
    meaning = "the latent dimension S" if len(event) == 1 else f"S * C = {' * '.join(map(str, event))}"
    return as_rows(tensor, "z", event.numel(), meaning, device=device)


def stacked_latents(z: ArrayLike, rows: int, event: torch.Size, device: torch.device) -> tuple[Tensor, torch.Size]:
    """Latents `(..., rows, *event)` or `(..., 1, *event)` as flat rows in float64, and their leading shape.

    Raises:
        ShapeError: they have another shape.
    """
    tensor = as_tensor(z, "z", device)
    lead = tensor.shape[: tensor.ndim - len(event)]
    if tensor.shape[len(lead) :] != event or not lead or lead[-1] not in (1, rows):
        wanted = ", ".join(map(str, event))
        raise ShapeError(
            f"z must have shape (..., {rows}, {wanted}) or (..., 1, {wanted}) for {rows} rows; got "
            f"{tuple(tensor.shape)}"
        )
    return tensor.reshape(lead.numel(), event.numel()), lead
