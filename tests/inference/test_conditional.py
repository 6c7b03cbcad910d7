"""Conditional generators beside the generators of each context, written out."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call

import girih
from girih.errors import ParameterError, ShapeError
from twins import entry_difference

NAN = float("nan")
F64 = torch.float64


class TwoArguments(nn.Module):
    def __init__(self, S, K, D):
        super().__init__()
        torch.manual_seed(0)
        self.of_z, self.of_c, self.out = nn.Linear(S, 6).double(), nn.Linear(K, 6).double(), nn.Linear(6, D).double()

    def forward(self, z, c):
        return self.out(torch.relu(self.of_z(z) + self.of_c(c)))


def written_out(net, c, **options):
    """The model of a context, with c in the biases of the first layer."""
    S = net[0].in_features - len(c)
    first = nn.Linear(S, net[0].out_features).double()
    with torch.no_grad():
        first.weight.copy_(net[0].weight[:, :S])
        first.bias.copy_(net[0].bias + net[0].weight[:, S:] @ c)
    return girih.DGN(nn.Sequential(first, *list(net)[1:]), **options)


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("options", [{"noise": [0.1, 0.2, 0.3], "prior": 1.5}, {"likelihood": "bernoulli"}])
def test_each_context_has_its_model(S, options):
    if S == 3 and "likelihood" in options:
        pytest.skip("cubature at S = 3 has tests of its own")
    net = girih.mlp([S + 2, 5, 3], activation="relu", seed=1)
    model = girih.ConditionalDGN(net, S, 2, **options)
    values = torch.tensor([[0.3, -1.0], [1.0, 0.5]], dtype=F64)
    c = values[[0, 1, 1, 0, 1]]
    x = model(c).sample(seed=0)
    x[2, 1] = NAN
    p, log_p, filled = model(c), model(c).log_prob(x), torch.where(torch.isnan(x), 0.0, x)
    assert torch.equal(p.evidence(x).log_prob, log_p)
    posteriors = dict(zip(("first", "second"), model.posteriors(x, c), strict=True))
    for value in values:
        rows, twin = (c == value).all(1), written_out(net, value, **options)
        torch.testing.assert_close(log_p[rows], twin().log_prob(x[rows]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.given(value).posterior(x).mean, twin.posterior(x).mean)
        torch.testing.assert_close(model.impute(x, c)[rows], twin.impute(x[rows]))
        torch.testing.assert_close(p.mean[rows][0], twin().mean)
        torch.testing.assert_close(model(value).log_prob(filled), twin().log_prob(filled), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(p.score(filled)[rows], twin().score(filled[rows]), rtol=1e-7, atol=1e-7)
    for index, posterior in posteriors.values():
        torch.testing.assert_close(posterior.log_evidence, log_p[index].detach())
    assert len(model._models) == 2
    shares = model.log_prob_of_context(x, values, [1.0, 3.0]).exp()
    both = torch.stack([written_out(net, value, **options)().log_prob(x) for value in values], 1).exp()
    both = both * torch.tensor([1.0, 3.0])
    torch.testing.assert_close(shares, both / both.sum(1, keepdim=True), rtol=1e-7, atol=1e-7)


def test_draws_have_the_means_of_their_contexts():
    model = girih.ConditionalDGN(girih.mlp([1 + 1, 6, 2], seed=0), 1, 1, noise=0.1)
    c = torch.tensor([[0.0], [2.0], [0.0]])
    x = model(c).sample((4000,), seed=0)
    assert x.shape == (4000, 3, 2)
    error = (model(c).variance / 4000).sqrt()
    assert ((x.mean(0) - model(c).mean).abs() < 5.0 * error).all()
    assert torch.equal(x, model(c).sample((4000,), seed=0))
    assert not torch.equal(x[:, 0], x[:, 2])


def test_parameters_are_shared_and_followed():
    net = girih.mlp([1 + 2, 5, 3], seed=1)
    model = girih.ConditionalDGN(net, 1, 2, noise=0.1)
    c = torch.eye(2, dtype=F64)[[0, 1, 0]]
    x = model(c).sample(seed=0)
    model(c).log_prob(x).sum().backward()
    for parameter in model.parameters():
        exact = entry_difference(lambda: model(c).log_prob(x).sum(), parameter, 1e-5)
        assert parameter.grad.flatten()[0].item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
    before = model(c).log_prob(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(c).log_prob(x), before)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(c).log_prob(x)

    noise = torch.tensor(0.3, dtype=F64, requires_grad=True)
    swapped = functional_call(Outer(), {"model.dgn.noise": noise}, (x,))
    assert not torch.equal(swapped, before)
    swapped.sum().backward()
    assert noise.grad is not None
    torch.testing.assert_close(model(c).log_prob(x), before)
    with torch.no_grad():
        model.dgn.noise.fill_(0.3)
        net[0].bias.add_(0.1)
    twin = written_out(net, c[0], noise=0.3)
    torch.testing.assert_close(model(c).log_prob(x)[[0, 2]], twin().log_prob(x[[0, 2]]))


def test_few_models_are_kept():
    model = girih.ConditionalDGN(girih.mlp([1 + 1, 5, 2], seed=0), 1, 1, kept=3)
    c = torch.arange(10.0)[:, None]
    x = torch.zeros(10, 2)
    log_p = model(c).log_prob(x)
    assert len(model._models) == 3
    assert torch.equal(model(c.flip(0)).log_prob(x), log_p.flip(0))


def test_networks_of_two_arguments():
    net = TwoArguments(2, 3, 2)
    model = girih.ConditionalDGN(net, 2, 3, noise=0.1, joined=False)
    c = torch.tensor([[0.2, -0.3, 1.0]], dtype=F64)
    x = torch.tensor([[0.1, 0.2], [0.0, NAN]], dtype=F64)
    first = nn.Linear(2, 6).double()
    with torch.no_grad():
        first.weight.copy_(net.of_z.weight)
        first.bias.copy_(net.of_z.bias + net.of_c(c[0]))
    twin = girih.DGN(nn.Sequential(first, nn.ReLU(), net.out), noise=0.1)
    torch.testing.assert_close(model(c).log_prob(x), twin().log_prob(x))


def test_training_and_saving(tmp_path):
    truth = girih.ConditionalDGN(girih.mlp([1 + 2, 6, 3], seed=3), 1, 2, noise=0.05)
    c = torch.eye(2, dtype=F64)[torch.arange(120) % 2]
    x = truth(c).sample(seed=0)
    x[0, 1] = NAN
    model = girih.ConditionalDGN(girih.mlp([1 + 2, 6, 3], seed=5), 1, 2, noise=1.0)
    before = model(c).log_prob(x).mean().item()
    result = girih.train(model, x, context=c, optimizer="lbfgs", max_epochs=15, validation=0.2, progress=False)
    after = model(c).log_prob(x).mean().item()
    assert after > before + 0.5
    assert result.held_out < -before
    girih.save(model, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert isinstance(back, girih.ConditionalDGN)
    assert torch.equal(back(c).log_prob(x), model(c).log_prob(x))
    with pytest.raises(ParameterError, match="context="):
        girih.train(model, x)
    with pytest.raises(ParameterError, match="context="):
        girih.train(model.given([0.0, 1.0]), x, context=c)
    with pytest.raises(ShapeError, match="one context a row"):
        girih.train(model, x, context=c[:5])


def test_what_does_not_fit_is_refused_by_name():
    net = girih.mlp([1 + 2, 5, 3], seed=0)
    with pytest.raises(ShapeError, match="latent_dim = 2"):
        girih.ConditionalDGN(net, 2, 2)
    model = girih.ConditionalDGN(net, 1, 2)
    with pytest.raises(ShapeError, match="one context a row"):
        model(torch.zeros(3, 2)).log_prob(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="one context of length 2"):
        model.given(torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="length of a context"):
        model(torch.zeros(3, 4))
    with pytest.raises(ParameterError, match="positive numbers"):
        model.log_prob_of_context(torch.zeros(1, 3), torch.eye(2), [1.0, 0.0])
