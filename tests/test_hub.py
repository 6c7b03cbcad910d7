"""The Hugging Face Hub, without a network: folders, cards, and what is sent and asked for."""

import warnings
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

import girih
import girih.hub
from girih.errors import ModelFileError
from girih.gan import GAN
from girih.hub import HubModel

X = np.random.default_rng(0).normal(size=(60, 2)) ** [1, 2]


def dgn():
    return girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)


def estimator(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three iterations do not converge
        return girih.DGNEstimator(1, (3,), max_iter=3, n_init=1, random_state=0, **options).fit(X)


def vae():
    return girih.vae.VAE(girih.mlp([1, 4, 2], seed=0), noise=0.1, seed=0)


MODELS = {
    "dgn": (dgn, lambda m: m().log_prob(X).detach()),
    "estimator": (estimator, lambda m: m.score_samples(X)),
    "table": (lambda: girih.TableModel(n_folds=2, random_state=0).fit(X), lambda m: m.score_samples(X)),
    "partition": (lambda: girih.Partition(girih.mlp([2, 4, 2], seed=0)), lambda m: m.prior_mass),
    "flow": (lambda: girih.flows.RAD(2, transforms=2, seed=0), lambda m: m().log_prob(torch.as_tensor(X)).detach()),
    "vae": (vae, lambda m: m.embed(X)[0]),
    "gan": (
        lambda: GAN(girih.mlp([1, 4, 2], seed=0), girih.mlp([2, 4, 1], seed=1)),
        lambda m: m.generator(torch.ones(3, 1, dtype=torch.float64)).detach(),
    ),
}


class Hub:
    """Stands in for `HfApi`: one account, `me`, whose repos are lists of files."""

    repos: ClassVar[dict] = {}

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        self.repos.setdefault(name, {"private": private})
        return type("Url", (), {"repo_id": name})

    def upload_folder(self, repo_id, folder_path, **options):
        self.repos[repo_id] |= options | {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    def snapshot(repo_id, allow_patterns, **options):
        folder = tmp_path / "cache" / repo_id
        folder.mkdir(parents=True)
        for name in allow_patterns:
            if name in Hub.repos[repo_id]:
                (folder / name).write_bytes(Hub.repos[repo_id][name])
        return str(folder)

    monkeypatch.setattr(Hub, "repos", {})
    monkeypatch.setattr(girih.hub, "HfApi", Hub)
    monkeypatch.setattr(girih.hub, "snapshot_download", snapshot)
    return Hub.repos


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_comes_back_from_a_folder(name, tmp_path):
    make, ask = MODELS[name]
    model = make()
    assert HubModel(model).save_pretrained(tmp_path / "mine") is None
    for place in (tmp_path / "mine", str(tmp_path / "mine")):
        back = HubModel.from_pretrained(place).model
        assert type(back) is type(model)
        np.testing.assert_array_equal(ask(back), ask(model))
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "lines"),
    {
        "dgn": ["| a model of girih | DGN |", "| latent dimension S | 1 |", "| data dimension D | 2 |", "LeakyReLU"],
        "flow": ["| a model of girih | RAD |", "| data dimension D | 2 |"],
        "partition": ["| latent dimension S | 2 |", "| cells | "],
        "table": ["| columns | 2 |", "| mean held-out log-likelihood, nats a row | "],
    }.items(),
)
def test_the_card_says_what_the_model_is(name, lines):
    card = HubModel(MODELS[name][0]()).generate_model_card("me/moons", "Mine.", ("two-moons",), license="mit")
    assert card.data.library_name == "girih" and card.data.tags == ["girih", "two-moons"] and card.data.license == "mit"
    for line in [*lines, "# moons", "Mine.", "HubModel.from_pretrained('me/moons')"]:
        assert line in card.text


def test_the_held_out_score_is_that_of_the_parameters_kept():
    est = estimator(early_stopping=True)
    assert f"nats a row | {est.validation_scores_.max():.4g} |" in str(HubModel(est).generate_model_card())
    assert "held-out" not in str(HubModel(estimator()).generate_model_card())


def test_a_card_follows_its_model_until_it_is_the_users_own(tmp_path):
    HubModel(dgn()).save_pretrained(tmp_path / "mine")
    HubModel(vae()).save_pretrained(tmp_path / "mine")
    card = tmp_path / "mine" / "README.md"
    assert "| a model of girih | VAE |" in card.read_text()
    card.write_text("my own")
    HubModel(dgn()).save_pretrained(tmp_path / "mine")
    assert card.read_text() == "my own"


def test_a_model_goes_to_the_hub_and_comes_back(hub):
    model = HubModel(dgn())
    url = model.push_to_hub("curve", private=True, branch="main", ignore_patterns="*.tmp")
    assert isinstance(model, ModelHubMixin) and url == "https://hub/me/curve/commit/1"
    sent = hub["me/curve"]
    assert sent["private"] and sent["revision"] == "main" and sent["ignore_patterns"] == "*.tmp"
    assert "from_pretrained('me/curve')" in sent["README.md"].decode()  # the whole name, as anybody can load it
    back = HubModel.from_pretrained("me/curve").model
    assert torch.equal(back().log_prob(X), model.model().log_prob(X))


def test_save_pretrained_pushes_too(hub, tmp_path):
    url = HubModel(dgn()).save_pretrained(tmp_path / "curve", push_to_hub=True, model_card_kwargs={"license": "mit"})
    assert url == "https://hub/me/curve/commit/1"
    assert ModelCard(hub["me/curve"]["README.md"].decode()).data.license == "mit"


@pytest.mark.parametrize("model", [girih.DGNEstimator(), torch.nn.Linear(1, 2)], ids=["unfitted", "foreign"])
def test_what_cannot_be_saved_makes_no_repo(model, hub):
    with pytest.raises(ModelFileError):
        HubModel(model).push_to_hub("me/curve")
    assert not hub


def test_a_foreign_folder_stays_as_it_is(tmp_path):
    (tmp_path / "model.safetensors").write_text("of somebody else")
    with pytest.raises(ModelFileError, match="is not a girih model; choose another path"):
        HubModel(dgn()).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match=r"is not a girih model: it has no readable config\.json"):
        HubModel.from_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("config", [None, b"[]", b"{", b'{"model_type": "bert"}'])
def test_a_repo_without_a_model_of_girih_is_named(config, hub):
    hub["me/bert"] = {} if config is None else {"config.json": config}
    with pytest.raises(ModelFileError, match="the repo 'me/bert' holds no model that this girih reads"):
        HubModel.from_pretrained("me/bert")


def test_no_such_folder_or_repo(monkeypatch, tmp_path):
    def nothing(*names, **options):
        raise RepositoryNotFoundError("404: no me/none", response=Mock(headers={}))

    with pytest.raises(ModelFileError, match="neither a folder here nor a repo"):  # no name of a repo, so none is asked
        HubModel.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(ModelFileError, match="there is no model at"):
        HubModel.from_pretrained(tmp_path / "none")
    monkeypatch.setattr(girih.hub, "snapshot_download", nothing)
    with pytest.raises(ModelFileError, match=r"'me/none' is neither .* \(404: no me/none\)"):
        HubModel.from_pretrained("me/none")


def test_the_cache_alone_is_asked_when_told_so(tmp_path):
    with pytest.raises(LocalEntryNotFoundError):
        HubModel.from_pretrained("me/none", local_files_only=True, cache_dir=tmp_path)
