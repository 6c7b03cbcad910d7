"""Without a seed `torch.manual_seed` decides; and a run that was stopped anywhere goes on to the same numbers."""

import signal
from contextlib import suppress

import numpy as np
import pytest
import torch

import girih
from effort import cases
from girih.flows import RAD, DGNFlow, RealNVP
from girih.gan import GAN
from girih.training import fit_gradient, seed_of_run
from girih.vae import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE

from .helpers import check_same_history, same, weights

X = girih.datasets.load("moons", n=60, seed=0).X
T = torch.as_tensor(X)

BUILT = {
    "mlp": lambda: girih.mlp([1, 4, 2]),
    "fc generator": lambda: girih.networks.fc_generator(2, 5, (8,)),
    "gauss": lambda: GaussVAE([1, 4, 2]),
    "gauss, encoder alone": lambda: GaussVAE(girih.mlp([1, 4, 2], seed=0)),
    "mixture": lambda: MixtureVAE([1, 4, 2], components=2),
    "cat": lambda: CatVAE([1, 4, 2], categories=3),
    "cgbpef": lambda: CGBPEFVAE([1, 4, 2]),
    "gan": lambda: GAN(girih.mlp([1, 4, 2]), hidden=(6,)),
    "rad": lambda: RAD(2, transforms=2, hidden_features=(4,)),
    "rad, random masks": lambda: RAD(5, transforms=2, hidden_features=(4,), randmask=True),
    "nvp": lambda: RealNVP(2, transforms=2, hidden_features=(4,)),
}


@pytest.mark.parametrize("name", BUILT)
def test_weights_without_a_seed_follow_torch(name):
    torch.manual_seed(3)
    first, second = BUILT[name](), BUILT[name]()
    torch.manual_seed(3)
    again = BUILT[name]()
    torch.manual_seed(4)
    other = BUILT[name]()
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other)) and not same(weights(first), weights(second))


FITS = {
    "vae": lambda model, **o: model.fit(X, max_epochs=6, batch_size=17, record_every=5, **o),
    "vae, held out": lambda model, **o: model.fit(X, max_epochs=6, batch_size=17, record_every=5, validation=0.2, **o),
    "gan": lambda model, **o: model.fit(X, max_epochs=6, batch_size=17, record_every=5, **o),
    "flow": lambda model, **o: model.fit(X, max_steps=24, batch_size=17, record_every=5, **o),
    "generator flow": lambda model, **o: model.fit(X, max_epochs=6, batch_size=17, record_every=5, validation=0.2, **o),
}
TRAINED = {
    "gauss": (lambda: GaussVAE([1, 4, 2]), "vae"),
    "gauss, held out": (lambda: GaussVAE([1, 4, 2]), "vae, held out"),
    "mixture": (lambda: MixtureVAE([1, 4, 2], components=2), "vae"),
    "cat": (lambda: CatVAE([1, 4, 2], categories=3), "vae"),
    "cgbpef": (lambda: CGBPEFVAE([1, 4, 2], levels=21), "vae"),
    "gan": (lambda: GAN(girih.mlp([1, 4, 2]), hidden=(6,)), "gan"),
    "rad": (lambda: RAD(2, transforms=2, hidden_features=(4,)), "flow"),
    "nvp": (lambda: RealNVP(2, transforms=2, hidden_features=(4,)), "flow"),
    "generator flow": (lambda: DGNFlow.square(2, depth=2, seed=0), "generator flow"),
}


def script(name, global_seed, **options):
    """A user's script from its first line to its last, which draws from torch once more."""
    build, fit = TRAINED[name]
    torch.manual_seed(global_seed)
    model = build()
    run = FITS[fit](model, seed=None, progress=False, accelerator="cpu", **options)
    return model, run, torch.rand(3)


BRIEF = pytest.mark.filterwarnings("ignore:the flow was best before training")  # it has no time to get better


@BRIEF
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_without_a_seed_follows_torch(name):
    model, run, after = script(name, 3)
    again, same_run, same_after = script(name, 3)
    assert same(weights(model), weights(again)) and torch.equal(after, same_after)
    check_same_history(run.history, same_run.history)
    other, _, _ = script(name, 4)
    assert not same(weights(model), weights(other))


class CrashError(Exception):
    pass


@pytest.fixture
def ctrl_c():
    """Python's own handler: a shell starts background jobs with the signal ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@BRIEF
@pytest.mark.fuzz
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", TRAINED)
def test_a_stopped_run_goes_on_to_the_same_numbers_from_any_step(name, tmp_path, monkeypatch):
    """The whole script is run again, as a user does: after Ctrl-C in any step, or a kill at any step."""
    model, run, after = script(name, 3)
    move = torch.optim.Adam.step
    stops = range(1, run.steps, cases(10, 1))
    assert len(stops) >= 2
    for stop in stops:
        for killed in (False, True):
            path, steps = tmp_path / f"{stop}-{killed}.ckpt", []

            def stopping(self, *arguments, stop=stop, killed=killed, steps=steps):
                move(self, *arguments)
                if not steps or steps[0] is self:  # a GAN has two optimizers
                    steps.append(self)
                    if len(steps) == stop and killed:
                        raise CrashError
                    if len(steps) == stop:
                        signal.raise_signal(signal.SIGINT)

            with monkeypatch.context() as patch, suppress(CrashError):
                patch.setattr(torch.optim.Adam, "step", stopping)
                _, cut, _ = script(name, 3, checkpoint=path, checkpoint_seconds=0.0)
                assert not killed and (cut.ended, cut.steps) == ("interrupted", stop)
            again, same_run, same_after = script(name, 3, checkpoint=path)
            check_same_history(same_run.history, run.history)
            assert same(weights(again), weights(model)) and torch.equal(same_after, after)


def test_the_seed_of_a_checkpoint_is_kept(tmp_path):
    """A second call in one script, whose generator has moved on, still goes on with the seed of the first."""
    path = tmp_path / "run.ckpt"
    model, options = GaussVAE([1, 4, 2], seed=0), {"batch_size": 7, "progress": False, "checkpoint": path}
    model.fit(X, max_epochs=2, seed=None, **options)
    assert model.fit(X, max_epochs=4, seed=None, **options).steps == 36
    seed = seed_of_run(None, path)
    with pytest.raises(girih.errors.ParameterError, match=f"seed={seed}, but now seed=0"):
        model.fit(X, max_epochs=4, **options)


@pytest.mark.fuzz
def test_damaged_checkpoints_are_refused_or_the_same(tmp_path):
    """Torch alone read 274 of 300 flips in silence."""
    path, rng = tmp_path / "run.ckpt", np.random.default_rng(0)
    loss = lambda net, rows: net(rows).square()  # noqa: E731
    start = {name: value.clone() for name, value in girih.mlp([2, 3, 1], seed=0).state_dict().items()}

    def fitted():
        net = girih.mlp([2, 3, 1], seed=0)
        net.load_state_dict(start)
        fit_gradient(net, X, loss=loss, max_epochs=3, checkpoint=path, progress=False)
        return weights(net)

    expected, raw, refused = fitted(), path.read_bytes(), 0
    for _ in range(cases(40, 500)):
        harmed = bytearray(raw)
        at = int(rng.integers(8 * len(raw)))
        harmed[at // 8] ^= 1 << (at % 8)
        path.write_bytes(harmed)
        try:
            assert same(fitted(), expected)
        except girih.errors.ModelFileError as error:
            assert "not a readable checkpoint" in str(error)
            refused += 1
    assert refused > 0.9 * cases(40, 500)
