"""Model folders: what is saved comes back, and anything else is refused in one line without running code."""

import json
import pickle

import numpy as np
import pytest
import torch
import zuko
from torch import nn

import girih
from flows.rad_cases import livened, mixed
from girih.cli import tables
from girih.errors import ModelFileError
from girih.flows import RAD, DGNFlow, Flow, RADCoupling, RealNVP
from twins import prior_of_dim


def prelu_net():
    net = nn.Sequential(
        nn.Linear(1, 3), nn.PReLU(3), nn.Linear(3, 4, bias=False), girih.networks.Abs(), nn.Linear(4, 2)
    )
    return net.double()


NETS = {
    "leaky_relu": lambda: girih.mlp([1, 4, 2], seed=0),
    "relu": lambda: girih.mlp([1, 4, 3, 2], activation="relu", seed=0),
    "abs": lambda: girih.mlp([1, 4, 2], activation="abs", seed=0),
    "prelu": prelu_net,
    "linear": lambda: girih.mlp([1, 2], seed=0),
    "kink last": lambda: nn.Sequential(nn.Linear(1, 2), nn.ReLU()).double(),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("noise", [0.1, [0.1, 0.2], [[0.3, 0.1], [0.1, 0.2]]], ids=["scalar", "diagonal", "full"])
def test_dgn_comes_back(name, noise, tmp_path):
    dgn = girih.DGN(NETS[name](), noise=noise, prior=1.7)
    girih.save(dgn, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    X = dgn().sample((20,), seed=0)
    assert torch.equal(back().log_prob(X), dgn().log_prob(X))
    assert torch.equal(back.prior, dgn.prior)


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("noise", [0.1, [0.1, 0.2], [[0.3, 0.1], [0.1, 0.2]]], ids=["scalar", "diagonal", "full"])
def test_planes_and_spaces_come_back(S, noise, tmp_path):
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=0), noise=noise, prior=prior_of_dim(S, 0))
    girih.save(dgn, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    X = dgn().sample((4,), seed=0)
    assert torch.equal(back().log_prob(X), dgn().log_prob(X))
    assert torch.equal(back.prior, dgn.prior)
    assert torch.equal(back.posterior(X).sample((2,), seed=1), dgn.posterior(X).sample((2,), seed=1))
    copy = pickle.loads(pickle.dumps(dgn))
    assert torch.equal(copy().log_prob(X), dgn().log_prob(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimator_of_planes_comes_back(tmp_path):
    X = girih.datasets.load("circle", n=40, seed=0).X
    est = girih.DGNEstimator(2, (3,), max_iter=3, n_init=1, learn_prior=True, batch_size=20, random_state=0).fit(X)
    girih.save(est, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert back.get_params() == est.get_params()
    assert back.n_parameters_ == est.n_parameters_
    np.testing.assert_array_equal(back.transform(X), est.transform(X))


def test_custom_module_comes_back_as_a_chain(tmp_path):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 2)

        def forward(self, z):
            return self.second(torch.relu(self.first(z)))

    dgn = girih.DGN(Decoder(), noise=0.1)  # float32 comes back as float64, with the same values
    girih.save(dgn, tmp_path / "model")
    X = dgn().sample((5,), seed=0)
    assert torch.equal(girih.load(tmp_path / "model")().log_prob(X), dgn().log_prob(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("weight_prior", [None, ("gaussian", 2.0), "laplace:1.0"])
def test_estimator_comes_back(weight_prior, tmp_path):
    X = girih.datasets.load("circle", n=40, seed=0).X
    est = girih.DGNEstimator(max_iter=3, n_init=1, random_state=3, weight_prior=weight_prior).fit(X)
    girih.save(est, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert np.array_equal(back.score_samples(X), est.score_samples(X))
    assert np.array_equal(back.transform(X), est.transform(X))
    assert (back.aic(X), back.n_iter_, back.converged_) == (est.aic(X), est.n_iter_, est.converged_)
    assert np.array_equal(back.nll_curve_, est.nll_curve_)
    assert back.get_params()["random_state"] == 3


def test_names_come_back(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(girih.datasets.load("circle", n=40, seed=0).X, columns=["a", "b"])
    est = girih.DGNEstimator(max_iter=3, n_init=1, tol=10.0).fit(frame)
    girih.save(est, tmp_path / "model")
    assert girih.load(tmp_path / "model").feature_names_in_.tolist() == ["a", "b"]


@pytest.fixture
def folder(tmp_path):
    girih.save(girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_steps(folder, change):
    network = json.loads((folder / "config.json").read_text())["network"]
    edit_config(folder, network=network | {"steps": change(network["steps"])})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "nothing there": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "there is no model at"),
    "foreign folder": (lambda f: (f / "config.json").unlink(), "is not a girih model"),
    "foreign config": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "is not a girih model"),
    "truncated config": (lambda f: truncate(f / "config.json"), "damaged: config.json is not JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "is not a girih model"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "truncated tensors": (lambda f: truncate(f / "model.safetensors"), "damaged or foreign"),
    "newer format": (lambda f: edit_config(f, version=99), "upgrade girih"),
    "no version": (lambda f: edit_config(f, version=None), "its version is None"),
    "unknown kind": (lambda f: edit_config(f, kind="teapot"), "does not know; upgrade girih"),
    "other steps": (lambda f: edit_steps(f, lambda steps: steps * 2), "do not fit together"),
    "unknown step": (lambda f: edit_steps(f, lambda steps: [steps[0] | {"kind": "spline"}]), "do not fit together"),
    "no steps": (lambda f: edit_config(f, network={}), "do not fit together"),
    "stages of 0.1.0": (lambda f: edit_config(f, version=1, stages=["affine"] * 9), "do not fit together"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_or_foreign_folders_are_refused(case, folder):
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(ModelFileError, match=message) as caught:
        girih.load(folder)
    assert "\n" not in str(caught.value)


def test_never_unpickles(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ModelFileError):
            girih.load(folder)
    torch.save(Trap(), folder / "model.safetensors")
    with pytest.raises(ModelFileError):
        girih.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_save_replaces_a_model_but_nothing_else(folder, tmp_path):
    other = girih.DGN(girih.mlp([1, 3, 2], seed=1), noise=0.2)
    girih.save(other, folder)
    assert girih.load(folder).noise.item() == 0.2
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(ModelFileError, match="not a girih model; choose another path"):
        girih.save(other, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "..."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "thesis"]


def test_a_save_that_dies_leaves_the_old_model(folder, tmp_path, monkeypatch):
    def die(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("girih.io.write_text", die)
    with pytest.raises(OSError, match="disk full"):
        girih.save(girih.DGN(girih.mlp([1, 3, 2], seed=1), noise=0.2), folder)
    assert girih.load(folder).noise.item() == 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_only_models_are_saved(tmp_path):
    with pytest.raises(ModelFileError, match="cannot save a Linear"):
        girih.save(nn.Linear(1, 1), tmp_path / "model")
    with pytest.raises(ModelFileError, match="not fitted"):
        girih.save(girih.DGNEstimator(), tmp_path / "model")


def test_models_can_be_copied_and_pickled():
    """Copies own their parameters: a trace follows the copied network, not the original."""
    import copy

    dgn = girih.DGN(prelu_net(), noise=0.1)
    X = dgn().sample((5,), seed=0)
    for twin in (copy.deepcopy(dgn), pickle.loads(pickle.dumps(dgn))):
        assert torch.equal(twin().log_prob(X), dgn().log_prob(X))
        with torch.no_grad():
            twin.net[0].weight.mul_(2.0)
            twin.net[1].weight.mul_(2.0)
        assert not torch.equal(twin().log_prob(X), dgn().log_prob(X))


PARTITIONS = {
    "line": lambda: girih.Partition(girih.mlp([1, 8, 6, 2], seed=0)),
    "interval": lambda: girih.Partition(girih.mlp([1, 8, 2], activation="relu", seed=0), domain=(-1.0, float("inf"))),
    "plane": lambda: girih.Partition(girih.mlp([2, 8, 6, 2], activation="relu", seed=0), prior=2.0),
    "box": lambda: girih.Partition(girih.mlp([2, 8, 2], seed=0), domain=(-1.0, 1.5)),
    "space": lambda: girih.Partition(girih.mlp([3, 6, 4, 2], seed=0)),
    "few planes": lambda: girih.Partition(girih.mlp([3, 2, 2], seed=0)),
    "slice": lambda: girih.Partition.slice(
        girih.mlp([6, 8, 2], seed=0), torch.ones(6), torch.eye(6)[0], torch.eye(6)[3]
    ),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_partition_comes_back(name, tmp_path):
    part = PARTITIONS[name]()
    girih.save(part, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert isinstance(back, girih.Partition) and repr(back) == repr(part)
    for what in ("patterns", "volume", "prior_mass", "neighbors", "separating_units", "interior", "prior_covariance"):
        assert torch.equal(getattr(back, what), getattr(part, what)), what
    assert torch.equal(back.centroid.nan_to_num(), part.centroid.nan_to_num())
    assert all(torch.equal(a, b) for a, b in zip(back.affine, part.affine, strict=True))
    z = torch.randn(200, part.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back.locate(z), part.locate(z)) and torch.equal(back.trace(z), part.trace(z))
    for i in range(len(part)):
        pairs = [*zip(back.halfspaces(i), part.halfspaces(i), strict=True), (back.vertices(i), part.vertices(i))]
        assert all(torch.equal(a, b) for a, b in [*pairs, (back.rays(i), part.rays(i))])


def _change(name, function):
    from girih._files import read_tensors, write_tensors

    def damage(folder):
        tensors, metadata = read_tensors(folder / "model.safetensors")
        if function is None:
            del tensors[name]
        else:
            tensors[name] = function(tensors[name])
        write_tensors(folder / "model.safetensors", tensors, metadata)

    return damage


PARTITION_DAMAGE = {
    "truncated": lambda f: truncate(f / "model.safetensors"),
    "no points": _change("points", None),
    "other points": _change("points", lambda value: value[:-1]),
    "points of float32": _change("points", lambda value: value.float()),
    "other faces": _change("faces.2", lambda value: value + 1),
    "negative ends": _change("ends", lambda value: -value),
    "other sizes": _change("sizes.2", lambda value: value + 1),
    "fewer codes": _change("codes", lambda value: value[1:]),
    "narrower codes": _change("codes", lambda value: value[:, 1:]),
    "other labels": _change("label", lambda value: value + 1000),
    "fewer cuts": _change("cuts", lambda value: value[:2]),
    "narrow cuts": _change("cuts", lambda value: value[:, :2]),
    "other prior": _change("prior", lambda value: value[:1]),
    "no prior": _change("prior", None),
    "indefinite prior": _change("prior", lambda value: -value),
    "other dimension": lambda f: edit_config(f, latent_dim=3),
    "other network": lambda f: edit_steps(f, lambda steps: steps[:1]),
    "a network of no steps": lambda f: edit_steps(f, lambda steps: []),
    "a model": lambda f: edit_config(f, kind="dgn"),
}


@pytest.mark.parametrize("case", PARTITION_DAMAGE)
def test_damaged_partitions_are_refused(case, tmp_path):
    girih.save(girih.Partition(girih.mlp([2, 5, 2], seed=0)), tmp_path / "model")
    PARTITION_DAMAGE[case](tmp_path / "model")
    with pytest.raises(ModelFileError) as caught:
        girih.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [("knots", lambda v: v.flip(0)), ("patterns", lambda v: v[1:]), ("domain", None)])
def test_damaged_line_partitions_are_refused(change, tmp_path):
    girih.save(girih.Partition(girih.mlp([1, 5, 2], seed=0)), tmp_path / "model")
    _change(*change)(tmp_path / "model")
    with pytest.raises(ModelFileError, match="do not fit together"):
        girih.load(tmp_path / "model")


COUPLINGS = {
    "rad": lambda: RAD(3, transforms=3, hidden_features=(6,), seed=0),
    "rad, random masks": lambda: RAD(12, transforms=2, hidden_features=(6, 4), pieces=5, randmask=True, seed=1),
    "rad, one feature": lambda: RAD(1, transforms=2, hidden_features=(4,), seed=0),
    "rad, no hidden layers": lambda: RAD(2, transforms=2, hidden_features=(), seed=0),
    "rad, context": lambda: RAD(2, context=2, transforms=2, hidden_features=(6,), seed=0),
    "rad, one feature and context": lambda: RAD(1, context=1, transforms=2, hidden_features=(6,), seed=0),
    "rad, float32": lambda: RAD(3, transforms=2, hidden_features=(6,), seed=0).float(),
    "nvp": lambda: RealNVP(3, transforms=3, hidden_features=(6,), seed=0),
    "nvp, random masks and context": lambda: RealNVP(5, context=1, hidden_features=(6, 4), randmask=True, seed=0),
    "nvp, relu": lambda: RealNVP(3, transforms=2, hidden_features=(6,), seed=0, activation="relu"),
    "nvp, one feature": lambda: RealNVP(1, transforms=2, hidden_features=(4,), seed=0),
    "nvp, one feature and context": lambda: RealNVP(1, context=2, transforms=2, hidden_features=(4,), seed=0),
    "both": lambda: Flow(
        [RADCoupling(2), zuko.flows.GeneralCouplingTransform(2, mask=[True, False])], features=2
    ).double(),
}


@pytest.mark.parametrize("name", COUPLINGS)
def test_flow_comes_back(name, tmp_path):
    flow = livened(COUPLINGS[name](), seed=0)
    generator = torch.Generator().manual_seed(0)
    if hasattr(flow.transforms[0], "set_from"):
        flow.transforms[0].set_from(2.0 + 3.0 * torch.randn(50, flow.features, generator=generator))
    state = torch.get_rng_state()
    girih.save(flow, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(back) is type(flow) and (back.features, back.context) == (flow.features, flow.context)
    X, c = torch.randn(20, flow.features, generator=generator), None
    if flow.context:
        c = torch.randn(20, flow.context, generator=generator)
    p, q = flow(c), back(c)
    assert torch.equal(q.log_prob(X), p.log_prob(X)) and q.log_prob(X).dtype == p.log_prob(X).dtype
    assert torch.equal(q.encode(X).k, p.encode(X).k) and torch.equal(q.encode(X).z, p.encode(X).z)
    assert torch.equal(q.sample((3,), seed=1), p.sample((3,), seed=1))
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_a_trained_flow_comes_back_and_trains_on(tmp_path):
    X = girih.datasets.load("moons", n=60, seed=0).X
    flow = RAD(2, transforms=2, hidden_features=(4,), seed=0)
    flow.fit(X, max_steps=10, progress=False, validation=None)
    girih.save(flow, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    for each in (flow, back):
        each.fit(X, max_steps=10, progress=False, validation=None)
    assert torch.equal(back().log_prob(X), flow().log_prob(X))


def other_base():
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2))
    return Flow([RADCoupling(2)], features=2, base=base)


def other_activation():
    layer = zuko.flows.GeneralCouplingTransform(2, mask=[True, False], activation=torch.nn.ELU)
    return Flow([layer], features=2)


def other_widths():
    flow = RAD(2, transforms=1, hidden_features=(4,), seed=0)
    flow.transforms[1].shape_network = RADCoupling(2, mask=[False, True], hidden_features=(5,)).shape_network.double()
    return flow


def other_spline():
    univariate, shapes = zuko.transforms.MonotonicRQSTransform, ((3,), (3,), (2,))
    return Flow([zuko.flows.GeneralCouplingTransform(2, univariate=univariate, shapes=shapes)], features=2)


class OwnFlow(RAD):
    pass


CUSTOM_FLOWS = {
    "a stack of many kinds": (mixed, "a layer of type UnconditionalTransform"),
    "a spline": (other_spline, "a layer of type GeneralCouplingTransform"),
    "another base": (other_base, "with base UnconditionalDistribution"),
    "another activation": (other_activation, "networks that were changed"),
    "another network": (other_widths, "networks that were changed"),
    "a class of one's own": (lambda: OwnFlow(2, seed=0), "this OwnFlow"),
    "half precision": (lambda: RAD(2, seed=0).half(), "float16 parameters"),
}


@pytest.mark.parametrize("name", CUSTOM_FLOWS)
def test_custom_flows_are_not_saved(name, tmp_path):
    build, message = CUSTOM_FLOWS[name]
    with pytest.raises(ModelFileError, match=message):
        girih.save(build(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def fold_1d():
    return DGNFlow(nn.Sequential(girih.networks.Abs(), nn.Linear(1, 1)).double(), girih.geometry.Uniform(-1.0, 2.0))


DGN_FLOWS = {
    "bijection": lambda: DGNFlow.square(4, depth=2, seed=0),
    "covariance": lambda: DGNFlow.square(2, depth=2, seed=0, prior=[[2.0, 0.3], [0.3, 1.0]]),
    "a fold of a box": fold_1d,
}


@pytest.mark.parametrize("name", DGN_FLOWS)
def test_generator_flow_comes_back(name, tmp_path):
    flow = DGN_FLOWS[name]()
    girih.save(flow, tmp_path / "model")
    back = girih.load(tmp_path / "model")
    assert type(back) is DGNFlow and type(back.prior) is type(flow.prior)
    X = flow().sample((20,), seed=0)
    assert torch.equal(back().log_prob(X), flow().log_prob(X))
    assert torch.equal(back().sample((3,), seed=1), flow().sample((3,), seed=1))


def edit_stage(folder, **changes):
    stages = json.loads((folder / "config.json").read_text())["stages"]
    edit_config(folder, stages=[stages[0], stages[1] | changes, *stages[2:]])


_WEIGHT = "transforms.1.shape_network.0.weight"
FLOW_DAMAGE = {
    "truncated": lambda f: truncate(f / "model.safetensors"),
    "no weight": _change(_WEIGHT, None),
    "another weight": _change(_WEIGHT, lambda value: value[1:]),
    "other features": lambda f: edit_config(f, features=4),
    "no features": lambda f: edit_config(f, features="many"),
    "another class": lambda f: edit_config(f, flow="os.system"),
    "another type": lambda f: edit_config(f, type="object"),
    "fewer layers": lambda f: edit_config(f, stages=[{"layer": "standardise"}]),
    "no layers": lambda f: edit_config(f, stages=[]),
    "layers of a chain": lambda f: edit_config(f, stages=["affine", "kink"]),
    "another layer": lambda f: edit_stage(f, layer="spline"),
    "an affine layer": lambda f: edit_stage(f, layer="affine"),
    "an affine layer that keeps nothing": lambda f: edit_stage(f, layer="affine", mask=[False] * 3),
    "a mask that keeps all": lambda f: edit_stage(f, mask=[True] * 3),
    "even pieces": lambda f: edit_stage(f, pieces=4),
    "other widths": lambda f: edit_stage(f, hidden=[5]),
    "no widths": lambda f: edit_stage(f, hidden=None),
    "a model": lambda f: edit_config(f, kind="dgn"),
    "a generator flow": lambda f: edit_config(f, kind="dgn-flow"),
}


@pytest.mark.parametrize("case", FLOW_DAMAGE)
def test_damaged_flows_are_refused(case, tmp_path):
    girih.save(RAD(3, transforms=2, hidden_features=(6,), seed=0), tmp_path / "model")
    FLOW_DAMAGE[case](tmp_path / "model")
    with pytest.raises(ModelFileError, match="damaged") as caught:
        girih.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [("prior", None), ("network.0", lambda v: v[1:]), ("prior", lambda v: -v)])
def test_damaged_generator_flows_are_refused(change, tmp_path):
    girih.save(DGNFlow.square(2, depth=1, seed=0), tmp_path / "model")
    _change(*change)(tmp_path / "model")
    with pytest.raises(ModelFileError, match="do not fit together"):
        girih.load(tmp_path / "model")


@pytest.mark.parametrize("build", [lambda: RAD(2, seed=0), lambda: girih.Partition(girih.mlp([1, 4, 2], seed=0))])
def test_the_command_line_refuses_what_has_no_noise(build, tmp_path):
    girih.save(build(), tmp_path / "model")
    with pytest.raises(ModelFileError, match=r"holds a (RAD|partition), not a model with noise"):
        tables.read_model(tmp_path / "model")
