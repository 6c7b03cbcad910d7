"""Training the VAEs: the temperature, resuming, held-out rows, the bound in place of term 1, what is learned."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from girih.errors import NonFiniteError, ParameterError
from girih.training import fit_gradient
from girih.vae import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE, annealed, information

KINDS = {
    "gauss": (GaussVAE, {}),
    "mixture": (MixtureVAE, {"components": 2}),
    "cat": (CatVAE, {"categories": 3}),
    "bpef": (CGBPEFVAE, {"order": 4, "levels": 21}),
}


def make(kind, sizes=(2, 16, 4), **options):
    build, own = KINDS[kind]
    return build(list(sizes), **{"seed": 0, "noise": 0.2, **own, **options})


def clusters(n=200, seed=0, spread=0.05):
    """Two clusters of equal mass at opposite corners of the unit cube in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([[0.2, 0.8, 0.2, 0.8], [0.8, 0.2, 0.8, 0.2]], dtype=torch.float64)
    noise = spread * torch.randn(n, 4, dtype=torch.float64, generator=generator)
    return (centre[torch.arange(n) % 2] + noise).clamp(0, 1)


def fit(vae, x, **options):
    options = {"lr": 0.01, "max_steps": 40, "record_every": 10, "progress": False, "accelerator": "cpu", **options}
    return vae.fit(x, **{"record": lambda model: {}, **options})


def equal(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_temperature_falls_over_the_first_half():
    found = [annealed(t, 100, 1.0, 0.5) for t in range(100)]
    assert found[0] == 1.0 and found[25] == pytest.approx(math.sqrt(0.5)) and found[50:] == [0.5] * 50
    ratios = [later / now for now, later in pairwise(found[:51])]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-12) and max(ratios) < 1.0


@pytest.mark.parametrize("length", [{"max_steps": 20}, {"max_epochs": 10, "max_steps": 10_000}])
@pytest.mark.parametrize("kind", ["cat", "bpef"])
def test_each_step_draws_at_its_temperature(kind, length, monkeypatch):
    vae, seen = make(kind, temperature=0.25), []
    draw = type(vae.family).draw

    def spy(family, encoded, samples, generator=None, temperature=None):
        seen.append(temperature)
        return draw(family, encoded, samples, generator, temperature)

    monkeypatch.setattr(type(vae.family), "draw", spy)
    fit(vae, clusters(60), batch_size=30, record_every=1000, **length)
    assert seen == [annealed(t, 20, 1.0, 0.25) for t in range(20)]
    seen.clear()
    fit(vae, clusters(60), max_steps=3, initial_temperature=0.25)
    vae.free_energy(clusters(3))
    assert seen == [None] * 4  # its own, 0.25
    seen.clear()
    fit(vae, clusters(60), max_steps=4, initial_temperature=4.0, validation=clusters(10), record_every=2)
    assert seen == [None, 4.0, 1.0, None, 0.25, 0.25, None]  # records at the final temperature


@pytest.mark.parametrize("divergence", ["prior", "bound"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(kind, divergence, tmp_path):
    if divergence == "bound" and kind != "bpef":
        return
    x, path = clusters(), tmp_path / "run.ckpt"
    options = {"batch_size": 30, "samples": 2, "divergence": divergence, "validation": 0.2}
    whole = make(kind)
    run = fit(whole, x, **options)

    class StopError(Exception):
        pass

    halted, count = make(kind), []

    def stop(vae):
        count.append(len(count))
        if len(count) == 4:  # at step 30
            raise StopError
        return {}

    with pytest.raises(StopError):
        fit(halted, x, checkpoint=path, checkpoint_seconds=0.0, record=stop, **options)
    count.extend(range(10))
    later = make(kind)
    resumed = fit(later, x, checkpoint=path, checkpoint_seconds=0.0, record=stop, **options)
    assert resumed.steps == run.steps == 40 and run.ended == "max_steps"
    np.testing.assert_array_equal(resumed.history["held_out"], run.history["held_out"])
    np.testing.assert_array_equal(resumed.history["loss"], run.history["loss"])
    equal(whole, later)


def test_a_run_of_another_length_or_temperature_is_another_run(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(make("cat"), clusters(), checkpoint=path)
    with pytest.raises(ParameterError, match="annealing"):
        fit(make("cat"), clusters(), checkpoint=path, max_steps=80)
    with pytest.raises(ParameterError, match=r"temperature=0\.5, but now temperature=0\.6"):
        fit(make("cat", temperature=0.6), clusters(), checkpoint=path)
    with pytest.raises(ParameterError, match="divergence"):
        path = tmp_path / "other.ckpt"
        fit(make("bpef"), clusters(), checkpoint=path, initial_temperature=0.5)
        fit(make("bpef"), clusters(), checkpoint=path, initial_temperature=0.5, divergence="bound")


def test_a_run_at_one_temperature_can_be_made_longer(tmp_path):
    path, x = tmp_path / "run.ckpt", clusters()
    fit(make("cat"), x, checkpoint=path, initial_temperature=0.5)
    longer, once = make("cat"), make("cat")
    assert fit(longer, x, checkpoint=path, initial_temperature=0.5, max_steps=80).steps == 80
    fit(once, x, initial_temperature=0.5, max_steps=80)
    equal(longer, once)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_clusters_are_learned(kind, likelihood):
    x = clusters() if likelihood == "gaussian" else clusters(spread=0.0).round()
    vae = make(kind, likelihood=likelihood, sizes=(1, 16, 4))
    before = vae.free_energy(x, 20, seed=0).total.mean()
    run = fit(vae, x, max_steps=500, record_every=250, validation=0.2)
    after = vae.free_energy(x, 20, seed=0).total.mean()
    assert run.history["held_out"][-1] < run.history["held_out"][0] - 1.0 and after < before - 1.0
    again = vae.reconstruct(x)
    assert (again - x).square().mean().sqrt() < 0.1
    drawn = vae.sample(400, seed=0, mean=True)  # both clusters, and little between them
    share = (drawn[:, 0] > 0.5).double().mean()
    assert 0.3 < share < 0.7
    log_p, error = vae().log_prob_with_error(x[:20], samples=500, seed=0)
    assert error.max() < 0.5 and log_p.mean() > -vae.free_energy(x[:20], 200, seed=0).total.mean() - 0.05
    if likelihood == "bernoulli":  # two rows of equal mass
        assert -math.log(2.0) > log_p.mean() > -math.log(2.0) - 0.3


def test_the_bound_is_the_divergence_from_the_best_prior(monkeypatch):
    vae, x = make("bpef"), clusters()
    run = fit(vae, x, max_steps=60, divergence="bound", batch_size=None, initial_temperature=0.5)
    with torch.no_grad():
        family, natural = information.family_of(vae.encode(x))
        least = information.compactness(family, natural)
        assert vae.free_energy(x).divergence.mean() == pytest.approx(least.item(), abs=1e-9)  # the prior was set
        vae.prior_coefficients.add_(0.1)
        assert vae.free_energy(x).divergence.mean() > least + 1e-5
    assert run.history["loss"][-1] < run.history["loss"][1]
    assert vae.prior_coefficients.grad is None


def test_the_loss_of_the_bound_is_term_2_and_the_bound():
    x = clusters(50)
    vae = make("bpef", sizes=(2, 16, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        terms = vae.terms(x, 1)
        expected = terms.reconstruction.mean() + information.compactness(*information.family_of(vae.encode(x)))
    run = fit(vae, x, max_steps=1, divergence="bound", record_every=1, batch_size=None, initial_temperature=0.5, seed=0)
    assert run.history["loss"][1] == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "own", "options", "says"),
    [
        ("gauss", {}, {"divergence": "bound"}, "needs a prior that is learned"),
        ("bpef", {"learn_prior": False}, {"divergence": "bound"}, "needs a prior that is learned"),
        ("bpef", {}, {"divergence": "kl"}, "'prior' or 'bound'; got 'kl'"),
        ("gauss", {}, {"initial_temperature": 1.0}, "GaussVAE has no temperature"),
        ("cat", {}, {"initial_temperature": 0.0}, "temperature must be a positive number"),
        ("cat", {}, {"initial_temperature": 0.4}, "at least the final temperature 0.5"),
        ("gauss", {}, {"max_steps": 0}, "max_steps must be a whole number"),
        ("cat", {}, {"max_steps": 2.5}, "max_steps must be a whole number"),
        ("cat", {}, {"max_epochs": 0}, "max_epochs must be a whole number"),
        ("gauss", {}, {"batch_size": 0}, "batch_size must be a whole number"),
        ("gauss", {}, {"lr": -1.0}, "lr must be a positive number"),
        ("gauss", {}, {"validation": 1.5}, "fraction"),
    ],
)
def test_bad_options_are_refused(kind, own, options, says):
    with pytest.raises(ParameterError, match=says):
        fit(make(kind, **own), clusters(), **options)


def test_a_diverging_run_is_named():
    with pytest.raises(NonFiniteError, match="train with a smaller lr"):
        fit(make("bpef"), clusters(), lr=1e5, max_steps=200)


def test_a_prior_that_is_not_learned_stays_uniform():
    vae = make("bpef", learn_prior=False)
    fit(vae, clusters())
    assert not vae.prior_coefficients.any() and "family.prior_coefficients" in vae.state_dict()
    learned = make("bpef")
    fit(learned, clusters())
    assert learned.prior_coefficients.abs().max() > 0.01


def test_steps_end_in_the_middle_of_a_pass():
    run = fit(make("gauss"), clusters(), max_steps=17, batch_size=30, record_every=5)
    assert run.steps == 17 and run.history["step"].tolist() == [0, 5, 10, 15, 17] and run.ended == "max_steps"


def test_any_model_can_be_trained_with_a_schedule():
    line, steps = torch.nn.Linear(1, 1), []
    fit_gradient(
        line,
        torch.ones(10, 1),
        loss=lambda net, rows: net(rows).square(),
        before_step=steps.append,
        max_steps=7,
        batch_size=4,
        dtype=torch.float32,
        progress=False,
        accelerator="cpu",
    )
    assert steps == list(range(7))


def test_the_result_says_how_the_held_out_rows_fared():
    x = clusters(100)
    vae = make("gauss")
    result = fit(vae, x, max_steps=60, record_every=5, validation=clusters(30, seed=1))
    curve = result.history["held_out"]
    assert result.held_out == curve.min() and result.best_step == 5 * curve.argmin()
    last = fit(make("gauss"), x, max_steps=60, record_every=5, validation=clusters(30, seed=1), keep_best=False)
    assert last.held_out == curve[-1] and last.best_step == 60


def test_the_lower_of_two_lengths_counts():
    both = fit(make("gauss"), clusters(), max_epochs=10, max_steps=7)
    assert (both.steps, both.ended) == (7, "max_steps")
    passes = fit(make("gauss"), clusters(), max_epochs=2, max_steps=None)
    assert (passes.steps, passes.ended) == (4, "max_epochs")


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_multiplies_term_1_of_the_loss_alone(kind):
    x, losses = clusters(50), {}
    for weight in (0.0, 0.5, 1.0, 4.0):
        options = {"initial_temperature": 0.5} if kind in ("cat", "bpef") else {}
        run = fit(
            make(kind), x, max_steps=1, record_every=1, batch_size=None, kl_weight=weight, validation=x, **options
        )
        losses[weight] = run.history["loss"][1]
        first = run.history["held_out"][0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        terms = make(kind).terms(x, 1)
    for weight, loss in losses.items():
        expected = weight * terms.divergence.mean() + terms.reconstruction.mean()
        assert loss == pytest.approx(expected.item(), abs=1e-9)
    # what is watched is the free energy, whatever the weight
    assert fit(make(kind), x, max_steps=1, validation=x, **options).history["held_out"][0] == first


def test_the_weight_multiplies_the_bound():
    x, options = clusters(50), {"max_steps": 1, "record_every": 1, "batch_size": None, "initial_temperature": 0.5}
    losses = [
        fit(make("bpef"), x, divergence="bound", kl_weight=w, **options).history["loss"][1] for w in (0.0, 1.0, 3.0)
    ]
    bound = information.compactness(*information.family_of(make("bpef").encode(x))).item()
    np.testing.assert_allclose(np.diff(losses), [bound, 2.0 * bound], atol=1e-9)


@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_a_weight_is_another_fixed_noise(weight):
    """`w KL + |x - g|^2 / 2 v = w (KL + |x - g|^2 / 2 w v)`, and Adam's steps do not depend on the scale of a loss."""
    x, options = clusters(), {"max_steps": 2, "batch_size": 40}  # few: gradients near Adam's epsilon add up
    weighted = make("gauss", noise=0.2, learn_noise=False)
    other = make("gauss", noise=0.2 * weight, learn_noise=False)
    fit(weighted, x, kl_weight=weight, **options)
    fit(other, x, **options)
    for a, b in zip(weighted.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)  # of 0.02 that they move


def test_a_larger_weight_leaves_less_in_the_latents():
    left = []
    for weight in (0.0, 1.0, 30.0):
        vae = make("gauss", learn_noise=False)
        fit(vae, clusters(), max_steps=300, kl_weight=weight)
        left.append(vae.free_energy(clusters(), 50, seed=0).divergence.mean().item())
    assert left[0] > left[1] + 0.5 > left[2] + 0.5 and left[2] < 0.05


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "1", True])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ParameterError, match="kl_weight must be a number of 0 or more"):
        fit(make("gauss"), clusters(), kl_weight=weight)


def test_a_run_with_another_weight_is_another_run(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(make("gauss"), clusters(), checkpoint=path)
    with pytest.raises(ParameterError, match="kl_weight"):
        fit(make("gauss"), clusters(), checkpoint=path, kl_weight=2.0)
