"""VAEs come back from a folder as they were, and train on."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import girih
from girih.errors import ModelFileError, UnsupportedLayerError
from girih.networks import fc_encoder, svhn_decoder, svhn_encoder
from girih.vae import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE

KINDS = {
    "gauss": lambda **o: GaussVAE([2, 8, 5], seed=0, noise=0.2, **o),
    "mixture": lambda **o: MixtureVAE([2, 8, 5], components=2, seed=0, **o),
    "cat": lambda **o: CatVAE([2, 8, 5], categories=3, temperature=0.8, seed=0, **o),
    "bpef": lambda **o: CGBPEFVAE([2, 8, 5], order=4, levels=21, basis="legendre", temperature=0.7, seed=0, **o),
}


def rows(n=30):
    return torch.rand(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_vae_comes_back_and_trains_on(kind, likelihood, dtype, tmp_path):
    vae = KINDS[kind](likelihood=likelihood, dtype=dtype)
    options = {"max_steps": 5, "record": lambda model: {}, "progress": False, "accelerator": "cpu"}
    vae.fit(rows(), **options)
    girih.save(vae, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert type(back) is type(vae) and (back.dtype, back.likelihood) == (dtype, likelihood)
    assert (back.latent_dim, back.output_dim, back.temperature) == (2, 5, vae.temperature)
    assert repr(back) == repr(vae)
    for each in (vae, back):
        each.fit(rows(), **options)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), back.parameters(), strict=True))
    for first, second in zip(vae.free_energy(rows(), seed=0), back.free_energy(rows(), seed=0), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts_hold_everything(kind):
    vae = KINDS[kind]()
    vae.fit(rows(), max_steps=3, record=lambda model: {}, progress=False, accelerator="cpu")
    other = KINDS[kind]()
    other.load_state_dict(vae.state_dict())
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae)), other):
        assert torch.equal(twin.free_energy(rows(), seed=0).total, vae.free_energy(rows(), seed=0).total)


@pytest.mark.parametrize("learned", [True, False])
def test_what_is_not_trained_stays_so(learned, tmp_path):
    vae = CGBPEFVAE([1, 4, 5], order=2, levels=11, learn_noise=learned, learn_prior=not learned, noise=0.3)
    girih.save(vae, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert isinstance(back.log_noise, nn.Parameter) == learned
    assert isinstance(back.prior_coefficients, nn.Parameter) != learned
    assert back.noise.item() == pytest.approx(0.3)


def test_own_networks_come_back_where_they_are_chains(tmp_path):
    vae = GaussVAE(girih.mlp([1, 6, 5], activation="abs", seed=0), fc_encoder(5, 2, (8, 4), seed=0), noise=0.1)
    girih.save(vae, tmp_path / "model")
    assert any(isinstance(module, nn.Dropout) and module.training for module in vae.modules())
    back = girih.load(tmp_path / "model")
    torch.testing.assert_close(back.embed(rows())[0], vae.embed(rows())[0])
    torch.testing.assert_close(back().log_prob(rows()), vae().log_prob(rows()))


def test_convolutions_come_back(tmp_path):
    vae = GaussVAE(svhn_decoder(2, seed=0), svhn_encoder(4, seed=0))
    girih.save(vae, tmp_path / "model")
    x = torch.rand(3, vae.output_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    back = girih.load(tmp_path / "model")
    torch.testing.assert_close(back.free_energy(x, seed=0).total, vae.free_energy(x, seed=0).total)


def test_other_networks_and_classes_are_refused(tmp_path):
    smooth = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    with pytest.raises(UnsupportedLayerError, match="Tanh"):
        girih.save(GaussVAE(smooth, latent_dim=2), tmp_path / "model")

    class Own(GaussVAE):
        pass

    with pytest.raises(ModelFileError, match="cannot save a Own: of VAEs, GaussVAE, MixtureVAE, CatVAE, CGBPEFVAE are"):
        girih.save(Own([1, 4, 5]), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"vae": "OtherVAE"},
        {"type": "float16"},
        {"options": {"order": 9}},
        {"encoder_stages": ["affine"]},
        {"learned": {}},
    ],
)
def test_damaged_folders_are_refused(change, tmp_path):
    girih.save(KINDS["bpef"](), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileError, match="damaged"):
        girih.load(tmp_path / "model")
