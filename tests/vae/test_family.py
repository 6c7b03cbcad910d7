"""One VAE for every family: names, objects, and a family that a user adds in one class."""

import pytest
import torch
from torch.distributions import Independent, Laplace, kl_divergence

import girih
from girih.errors import ModelFileError, ParameterError
from girih.vae import (
    CGBPEFVAE,
    VAE,
    Category,
    CatVAE,
    Draws,
    Family,
    Gaussian,
    GaussVAE,
    Mixture,
    MixtureVAE,
    Polynomial,
    gap,
    register_family,
)

FIT = {"max_steps": 20, "batch_size": 20, "progress": False, "accelerator": "cpu"}


def rows(n=40):
    return torch.rand(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Laplacian(Family):
    """Independent Laplace posteriors with a standard Laplace prior."""

    name, posteriors = "test-laplacian", "Laplacian"
    options = ("scale",)

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def outputs(self, latent_dim):
        return 2 * latent_dim

    def meaning(self, latent_dim):
        return f"the centre and the log width of each of {latent_dim} latents"

    def draw(self, encoded, samples, generator=None, temperature=None):
        q = self.posterior(encoded)
        p = self.prior(encoded.device)
        return Draws(q.rsample((samples,)).to(encoded.dtype), kl_divergence(q, p).to(encoded.dtype))

    def posterior(self, encoded):
        centre, width = encoded.double().chunk(2, 1)
        return Independent(Laplace(centre, width.exp(), validate_args=False), 1)

    def prior(self, device):
        one = torch.ones(self.latent_dim, dtype=torch.float64, device=device)
        return Independent(Laplace(0 * one, self.scale * one), 1)

    def axis(self, dimension, count, device):
        return self.scale * torch.linspace(-3, 3, count, dtype=torch.float64, device=device)


register_family(Laplacian)


def test_a_family_of_ones_own_trains_samples_and_is_saved(tmp_path):
    vae = VAE([2, 8, 5], Laplacian(scale=2.0), noise=0.2, seed=0)
    before = vae.free_energy(rows(), samples=50, seed=0).total.mean()
    run = vae.fit(rows(), validation=0.2, **FIT)
    assert len(run.history["held_out"]) >= 2
    assert vae.free_energy(rows(), samples=50, seed=0).total.mean() < before
    assert vae.sample(7, seed=0).shape == (7, 5)
    assert vae.traverse(rows(2), 1, count=4).shape == (2, 4, 5)
    assert vae.reconstruct(rows(3)).shape == (3, 5) and vae.embed(rows(3))[1].shape == (3, 2)
    girih.save(vae, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert type(back) is VAE and type(back.family) is Laplacian and back.family.scale == 2.0
    assert torch.equal(back.reconstruct(rows()), vae.reconstruct(rows()))
    assert back.noise == vae.noise


def test_its_likelihood_is_estimated():
    vae = VAE([1, 8, 5], Laplacian(), noise=0.5, seed=0)
    assert not vae().exact
    value, error = vae().log_prob_with_error(rows(3), samples=20_000)
    z = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        joint = vae.log_likelihood(rows(3), z[:, None]) + vae.prior().log_prob(z)[:, None]
    truth = torch.logsumexp(joint, 0) + torch.log(torch.tensor(60 / 200_000))
    assert ((value - truth).abs() < 5 * error + 1e-4).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda vae: gap(vae, rows(2)), "has no searcher"),
        (lambda vae: gap(vae, rows(2), covariance="full"), "those of this VAE are Laplacian"),
        (lambda vae: gap(vae, rows(2), continuous=True), "the posteriors of this VAE are Laplacian"),
        (lambda vae: vae.exact(rows(2)), "has no closed form"),
        (lambda vae: vae.dgn(), "needs the prior N"),
        (lambda vae: vae.fit(rows(), divergence="bound", **FIT), "needs a prior that is learned"),
        (lambda vae: girih.vae.evidence.enumerate_exact(vae, rows(2)), "continuous"),
        (lambda vae: girih.vae.evidence.importance(vae, rows(2), relaxed=True), "for discrete latents"),
    ],
)
def test_what_it_does_not_offer_is_said(ask, message):
    with pytest.raises(ParameterError, match=message):
        ask(VAE([2, 8, 5], Laplacian(), seed=0))


def test_a_family_that_is_not_registered_is_not_saved(tmp_path):
    class Other(Laplacian):
        name = "test-other"

    with pytest.raises(ModelFileError, match="register_family"):
        girih.save(VAE([2, 8, 5], Other(), seed=0), tmp_path / "model")
    with pytest.raises(ParameterError, match="'gaussian', 'mixture', 'category', 'bpef'"):
        VAE([2, 8, 5], "test-other")


def test_names_are_taken_once():
    class Second(Laplacian):
        pass

    assert register_family(Laplacian) is Laplacian
    with pytest.raises(ParameterError, match="registered already"):
        register_family(Second)
    with pytest.raises(ParameterError, match="subclass"):
        register_family(Laplacian())


PAIRS = {
    "gaussian": (lambda **o: GaussVAE([2, 8, 5], **o), Gaussian()),
    "mixture": (lambda **o: MixtureVAE([2, 8, 5], components=2, **o), Mixture(components=2)),
    "category": (lambda **o: CatVAE([2, 8, 5], categories=3, **o), Category(categories=3)),
    "bpef": (lambda **o: CGBPEFVAE([2, 8, 5], order=3, levels=11, **o), Polynomial(order=3, levels=11)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_four_names_are_constructors(name, tmp_path):
    make, family = PAIRS[name]
    first, second = make(seed=0, noise=0.3), VAE([2, 8, 5], family, seed=0, noise=0.3)
    assert isinstance(first, VAE) and type(first.family) is type(VAE([2, 8, 5], name).family)
    runs = [vae.fit(rows(), **FIT) for vae in (first, second)]
    assert runs[0].history["loss"][1:].tolist() == runs[1].history["loss"][1:].tolist()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    found = [gap(vae, rows(2), starts=1) for vae in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(found[0][:6], found[1][:6], strict=True))
    girih.save(second, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert type(back) is VAE and repr(back) == repr(second)
    assert torch.equal(back.free_energy(rows(), seed=1).total, second.free_energy(rows(), seed=1).total)


def test_a_family_may_serve_several_vaes():
    family = Polynomial(order=2, levels=9)
    one, two = VAE([1, 4, 5], family, seed=0), VAE([3, 4, 5], family, seed=0)
    assert (one.latent_dim, two.latent_dim) == (1, 3)
    assert one.family.prior_coefficients.shape == (1, 2) and two.family.prior_coefficients.shape == (3, 2)
    one.fit(rows(), divergence="bound", **FIT)
    three = VAE([2, 4, 5], one.family, seed=0)  # one that has been in use: its options are taken, not its prior
    assert three.family.prior_coefficients.tolist() == [[0.0, 0.0]] * 2
    three.fit(rows(), divergence="bound", **FIT)
    assert three.family.prior_coefficients.abs().max() > 0


def test_exact_bounds_need_gaussian_posteriors():
    for make, _ in list(PAIRS.values())[1:]:
        with pytest.raises(ParameterError, match=r"girih\.vae\.gap"):
            make(seed=0).exact(rows(2))


def test_a_misspelt_option_of_fit_is_an_error_of_fit():
    with pytest.raises(TypeError, match=r"VAE\.fit\(\) got an unexpected keyword argument 'step'"):
        GaussVAE([2, 8, 5], seed=0).fit(rows(), step=3)
