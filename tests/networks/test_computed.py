"""Hooks: those that compute weights are followed or refused by name, those that look on are let be."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, weight_norm

import girih
from girih.errors import UnsupportedLayerError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def with_hook(action, on_the_whole: bool = False, after: bool = False) -> nn.Sequential:
    made = net()
    layer = made[0]
    layer.raw = nn.Parameter(layer.weight.detach().clone())

    def hook(*_) -> None:
        action(layer)

    module = made if on_the_whole else layer
    (module.register_forward_hook if after else module.register_forward_pre_hook)(hook)
    return made


def plain(layer: nn.Linear) -> None:
    layer._parameters.pop("weight", None)
    layer.weight = 2.0 * layer.raw


def written(layer: nn.Linear) -> None:
    layer.weight.data.copy_(2.0 * layer.raw)


def clamped(layer: nn.Linear) -> None:
    layer.weight.data.clamp_(-5.0, 5.0)


def replaced(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(2.0 * layer.raw.detach())


@pytest.mark.parametrize("action", [plain, written, clamped, replaced])
@pytest.mark.parametrize("on_the_whole", [False, True], ids=["layer", "network"])
def test_hooks_that_compute_weights_are_refused(action, on_the_whole):
    with pytest.raises(UnsupportedLayerError, match=r"the hook .*with_hook.* computes .*weight.*parametrize"):
        girih.trace(with_hook(action, on_the_whole))


def test_hooks_after_the_layer_are_seen_too():
    with pytest.raises(UnsupportedLayerError, match=r"the hook .*with_hook.* computes .*weight"):
        girih.trace(with_hook(clamped, after=True))


def test_hooks_that_look_on_are_let_be():
    seen = []
    made = with_hook(lambda layer: seen.append(layer.weight.norm()))
    trace = girih.trace(made)
    z = torch.ones(2, 1, dtype=torch.float64)
    assert seen and torch.allclose(trace(z), made(z))


def test_weights_that_are_random_are_refused():
    class Dropped(nn.Module):
        def forward(self, weight):
            return nn.functional.dropout(weight, 0.5, self.training)

    made = net()
    parametrize.register_parametrization(made[2], "weight", Dropped())  # 32 weights: two equal draws are 1 in 2^32
    with pytest.raises(UnsupportedLayerError, match=r"layer '2' changes each time it is read.*call net.eval"):
        girih.trace(made)
    girih.trace(made.eval())


def test_one_hook_on_top_of_another_is_refused():
    made = net()
    weight_norm(made[0])
    prune.l1_unstructured(made[0], "weight_v", 1)
    with pytest.raises(UnsupportedLayerError, match=r"two hooks compute the weight .*make one of them permanent"):
        girih.trace(made)


def test_em_names_computed_weights():
    made = net()
    weight_norm(made[0])
    with pytest.raises(UnsupportedLayerError, match=r"EM trains plain float64 parameters.*girih\.train"):
        girih.em.fit_em(girih.DGN(made, noise=0.1), torch.zeros(3, 2))


def test_a_frozen_trace_keeps_its_numbers():
    made = net()
    weight_norm(made[0])
    trace, z = girih.trace(made), torch.ones(2, 1, dtype=torch.float64)
    frozen, before = trace.frozen(), trace(z)
    made[0].weight_g.data.mul_(2.0)
    assert torch.equal(frozen(z), before) and not torch.equal(trace(z), before)
    assert frozen.chain is not None and not frozen(z).requires_grad
