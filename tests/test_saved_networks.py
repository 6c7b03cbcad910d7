"""Any network that can be traced is saved and loaded: as steps, with its parameters, what they share, and its shape."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import girih
from girih.errors import ModelFileError, UnsupportedLayerError
from girih.flows import DGNFlow
from girih.gan import GAN
from girih.networks import Maxout, svhn_decoder, svhn_encoder
from girih.vae import CatVAE, GaussVAE
from networks import zoo

Z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def saved(model, path):
    girih.save(model, path)
    return girih.load(path)


def steps_of(folder):
    return json.loads((folder / "config.json").read_text())["network"]


@pytest.mark.parametrize("name", zoo.NETS)
def test_a_network_comes_back(name, tmp_path):
    net = zoo.build(name)
    dgn = girih.DGN(net, noise=0.1)
    back = saved(dgn, tmp_path / "model")
    assert [(s.kind, s.inputs, s.size) for s in back.trace.steps] == [
        (s.kind, s.inputs, s.size) for s in dgn.trace.steps
    ]
    assert torch.allclose(back.trace(Z), dgn.trace(Z), rtol=1e-13, atol=1e-13)
    assert torch.equal(back.trace.pattern(Z), dgn.trace.pattern(Z))
    assert torch.allclose(back.net(Z), net(Z), rtol=1e-12, atol=1e-12) and back.net(Z).shape == net(Z).shape
    for twin in (copy.deepcopy(back.net), pickle.loads(pickle.dumps(back.net))):
        assert torch.equal(twin(Z), back.net(Z))
    saved(back, tmp_path / "again")
    assert steps_of(tmp_path / "again") == steps_of(tmp_path / "model")


@pytest.mark.parametrize("name", ["residual", "decoder", "conv1d", "prelu by channel", "augmented", "maxout", "stack"])
def test_a_loaded_network_trains_like_the_first(name, tmp_path):
    net = zoo.build(name)
    back = saved(girih.DGN(net, noise=0.1), tmp_path / "model").net
    gradients = []
    for each in (net, back):
        each(Z).square().sum().backward()
        gradients.append(sorted(float(p.grad.square().sum()) for p in each.parameters() if p.grad is not None))
    assert torch.allclose(torch.tensor(gradients[1]), torch.tensor(gradients[0]), rtol=1e-6)  # of torch's Hardsigmoid
    before = girih.trace(back)(Z)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.mul_(1.3)
    assert torch.allclose(girih.trace(back)(Z), back(Z).flatten(1), rtol=1e-12, atol=1e-12)
    assert not torch.equal(girih.trace(back)(Z), before)


class Tied(nn.Module):
    """One layer that is used twice, one weight that is used as it is and transposed, one kernel used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.layer = nn.Linear(2, 4), nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, z):
        h = torch.relu(self.layer(torch.relu(self.layer(self.start(z)))))
        h = F.linear(torch.relu(h @ self.weight), self.weight)
        return self.conv(torch.relu(self.conv(h.unsqueeze(1)))).flatten(1)


def test_what_is_shared_stays_shared(tmp_path):
    net = Tied().double()
    back = saved(girih.DGN(net, noise=0.1), tmp_path / "model").net
    assert sorted(p.numel() for p in back.parameters()) == sorted(p.numel() for p in net.parameters())
    z = Z[:, :2]
    for each in (net, back):
        torch.optim.SGD(each.parameters(), lr=0.01).zero_grad()
        each(z).square().sum().backward()
    found = sorted(float(p.grad.square().sum()) for p in back.parameters())
    assert found == pytest.approx(sorted(float(p.grad.square().sum()) for p in net.parameters()), rel=1e-9)


def convolutional(S, D=4):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(S, 4), nn.ReLU(), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 2, 1), nn.Hardtanh(), nn.Flatten(),
            nn.Linear(4, D),
        ).double()  # fmt: skip


def maxima(S):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(S, 6), Maxout(2), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("build", [convolutional, maxima])
@pytest.mark.parametrize("S", [1, 2])
def test_densities_and_partitions_come_back(build, S, tmp_path):
    dgn = girih.DGN(build(S), noise=0.3, prior=1.7)
    X = dgn().sample((5,), seed=0)
    back = saved(dgn, tmp_path / "dgn")
    assert torch.equal(back().log_prob(X), dgn().log_prob(X))
    part = girih.Partition(build(S))
    found = saved(part, tmp_path / "partition")
    assert repr(found) == repr(part) and torch.equal(found.patterns, part.patterns)
    assert torch.equal(found.prior_mass, part.prior_mass) and torch.equal(found.trace(X[:, :S]), part.trace(X[:, :S]))
    assert all(torch.equal(a, b) for a, b in zip(found.affine, part.affine, strict=True))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fitted_convolution_comes_back_and_is_fitted_on(tmp_path):
    dgn = girih.DGN(convolutional(1, 2), noise=0.3)
    X = girih.datasets.load("circle", n=40, seed=0).X
    girih.em.fit_em(dgn, X, max_iter=2, n_init=1)
    back = saved(dgn, tmp_path / "model")
    curves = [girih.em.fit_em(d, X, max_iter=3, n_init=0).curve for d in (dgn, back)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_em_starts_anew_with_a_loaded_convolution(tmp_path):
    """The layers of a loaded network draw their weights as those that were saved."""
    dgn = girih.DGN(convolutional(1, 2), noise=0.3)
    back = saved(dgn, tmp_path / "model")
    assert any(type(layer).__name__ == "StepLayer" for layer in back.net.modules())
    X = girih.datasets.load("circle", n=40, seed=0).X
    results = [girih.em.fit_em(d, X, max_iter=3, n_init=2, init_iter=2, seed=3) for d in (dgn, back)]
    assert results[1].starts == pytest.approx(results[0].starts, rel=1e-9)
    assert results[1].curve == pytest.approx(results[0].curve, rel=1e-9)


def test_a_flow_with_branches_comes_back(tmp_path):
    torch.manual_seed(0)
    flow = DGNFlow(nn.Sequential(nn.Linear(2, 2), nn.Hardtanh(-2.0, 2.0), nn.Linear(2, 2)).double())
    X = flow().sample((8,), seed=0)
    assert torch.equal(saved(flow, tmp_path / "model")().log_prob(X), flow().log_prob(X))


def test_convolutional_vaes_come_back(tmp_path):
    for vae in (
        GaussVAE(svhn_decoder(2, seed=0), svhn_encoder(4, seed=0)),
        CatVAE(svhn_decoder(6, torch.float32, seed=0), svhn_encoder(6, torch.float32, seed=0), categories=3),
    ):
        back = saved(vae, tmp_path / "model")
        assert type(back) is type(vae) and back.dtype == vae.dtype and back.latent_dim == vae.latent_dim
        x = vae.sample(3, seed=0)
        assert torch.allclose(back.reconstruct(x), vae.reconstruct(x), rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in vae.parameters())


def test_a_network_that_cannot_be_traced_is_named(tmp_path):
    smooth = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with pytest.raises(UnsupportedLayerError, match=r"the encoder cannot be saved, .*layer '1' is Tanh"):
        girih.save(GaussVAE(girih.mlp([1, 4, 2], seed=0), smooth), tmp_path / "model")
    with pytest.raises(UnsupportedLayerError, match=r"the discriminator cannot be saved, .*layer '1' is Tanh"):
        critic = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        girih.save(GAN(girih.mlp([1, 4, 2], seed=0), critic), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gan_comes_back(loss, dtype, tmp_path):
    gan = GAN(convolutional(2).to(dtype), hidden=(8,), loss=loss, gradient_penalty=3.0, seed=0).eval()
    back = saved(gan, tmp_path / "model")
    x = gan.sample(4, seed=0)
    assert (back.loss, back.gradient_penalty, back.dtype) == (loss, 3.0, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(back.sample(4, seed=0), x, rtol=tolerance, atol=tolerance)
    assert torch.allclose(back.discriminate(x), gan.discriminate(x), rtol=tolerance, atol=tolerance)
    back.fit(torch.randn(20, 4), batch_size=10, max_epochs=1, progress=False)


def test_loaded_networks_can_be_parts_of_others(tmp_path):
    back = saved(girih.DGN(zoo.build("decoder"), noise=0.1), tmp_path / "model").net
    torch.manual_seed(0)
    whole = nn.Sequential(back, nn.Flatten(), nn.Linear(64, 2)).double()
    assert torch.allclose(girih.trace(whole)(Z), whole(Z), rtol=1e-12, atol=1e-12)
    assert "convolution, " in repr(back) and girih.trace(back).output_shape == tuple(back(Z).shape[1:])


def test_a_trace_has_a_short_repr():
    assert repr(girih.trace(girih.mlp([2, 5, 3], seed=0))) == "Trace(S=2, D=3, U=5: 2 linear, 1 activation)"


@pytest.mark.parametrize("version", [1, 2])
def test_a_config_of_another_version_is_refused(version, tmp_path):
    girih.save(girih.DGN(convolutional(1), noise=0.1), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["version"] = version
    config["network"] = config["network"] if version == 1 else ["affine"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError):
        girih.load(tmp_path / "model")
