"""Saving and loading models: a folder with safetensors and JSON, which runs no code when it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import time
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from girih._files import finite, read_digested, read_text, strict_json, write_tensors, write_text
from girih._staging import current, is_hidden_work, replacing
from girih.covariance import Covariance
from girih.em import DGNEstimator, WeightPrior, count_parameters
from girih.errors import ModelFileError, UnsupportedLayerError
from girih.gan import GAN
from girih.inference import DGN, ConditionalDGN
from girih.inference.dgn import TOL
from girih.inference.likelihoods import output_from
from girih.inference.priors import prior_from
from girih.networks import trace as trace_network
from girih.networks.saved import chain_from, network_from, network_parts
from girih.partition import Partition
from girih.partition.export import partition_from, partition_tensors
from girih.tables.model import TableModel
from girih.tables.store import table_from, table_parts
from girih.vae import VAE
from girih.vae.variants import vae_from, vae_parts

if TYPE_CHECKING:
    from girih.flows import DGNFlow, Flow

# Flows are imported where they are met: they need zuko, which takes seconds to import.
Model: TypeAlias = "DGN | ConditionalDGN | DGNEstimator | TableModel | Partition | Flow | DGNFlow | VAE | GAN"

FORMAT = "girih-model"
VERSION = 2  # 1 is that of girih 0.1.0, which knew chains of Linear layers and activations alone
_KINDS = ("dgn", "partition", "flow", "dgn-flow", "vae", "gan", "table")
FILES = _CONFIG, _TENSORS = "config.json", "model.safetensors"
# Networks that stand beside the generator, before the names of their tensors.
_ENCODER, _DISCRIMINATOR = "encoder.", "discriminator."
_PRIOR = "prior."  # the tensors of a prior that is not Gaussian
_CHECKSUMS = "sha256"  # in the config: of the rest of it, and of the tensors, whose file says so; 0.1.0 wrote none
_TYPES = {"float32": torch.float32, "float64": torch.float64}  # of the networks of a GAN
_ENDS = ("domain", "domain.h")  # of a partition: what may be infinite
_READS = 50  # attempts to read a model that other processes go on replacing


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a folder, replacing what is there only once everything is written.

    A kill at any moment, a full disk or another process that saves to the same folder leaves the model that was there
    or the new one, whole, and `girih.load` finds it. Checksums tell when a file was changed later.

    Networks are stored as the steps of their traces, convolutions, maxima and branches included, and are loaded back
    without the classes that they were written with: as the equivalent `nn.Sequential` where Linear layers and
    activations follow each other, else as a module of these steps. Either can be trained and traced again; tensors that
    layers share stay shared. What acts in training mode alone, as dropout, is not kept.

    Args:
        model: a `girih.DGN`, a fitted `girih.DGNEstimator` or `girih.TableModel`, or a `girih.Partition`, which is
            loaded back without computing it again; or a flow: `girih.flows.RAD`, `RealNVP`, a `Flow` of their layers,
            or a `DGNFlow`; or a VAE of `girih.vae` or a `girih.gan.GAN`, of networks that `girih.trace` reads.
        path: the folder.

    Raises:
        ModelFileError: a model of another type, an unfitted estimator, a flow with other layers, weights that are not
            finite, or a path that holds something else.
        UnsupportedLayerError: a network of a VAE or GAN cannot be traced; the message says which.

    Example:
        >>> import girih, tempfile
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     girih.save(dgn, folder + "/model")
        ...     girih.load(folder + "/model").latent_dim
        1
    """
    kind, tensors, extra = _parts(model)
    _check_finite(tensors, f"this {type(model).__name__}", "it was not saved; fit it again, with a smaller step")
    target = Path(path)
    check_target(target)
    config = {"format": FORMAT, "version": VERSION, "kind": kind, **json.loads(json.dumps(finite(extra)))}
    with replacing(target) as folder:
        digest = write_tensors(folder / _TENSORS, tensors, {"format": FORMAT, _CHECKSUMS: _CONFIG})
        config[_CHECKSUMS] = {"tensors": digest, "config": _digest(config)}
        write_text(folder / _CONFIG, json.dumps(config, indent=2) + "\n")


def check_target(target: Path) -> None:
    """Refuse a path that holds something else than a model.

    Raises:
        ModelFileError: it does.
    """
    if target.is_dir() and not current(target / _CONFIG).is_file():
        foreign = not all(is_hidden_work(entry.name) for entry in target.iterdir())
    else:
        foreign = not target.is_dir() and os.path.lexists(target)
    if foreign:
        raise ModelFileError(f"{target} exists and is not a girih model; choose another path")


def _digest(config: dict[str, Any]) -> str:
    """The digest of a config without its checksums, however its JSON is laid out."""
    rest = {name: value for name, value in config.items() if name != _CHECKSUMS}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_finite(tensors: dict[str, Tensor], what: str, advice: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in _ENDS and not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{what} holds NaN or infinite numbers in {name}; {advice}")


def _parts(model: Model) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The kind of a model, its tensors, and the rest as plain values."""
    if isinstance(model, DGNEstimator):
        if not hasattr(model, "dgn_"):
            raise ModelFileError("the estimator is not fitted; call fit before save")
        network, tensors = network_parts(model.dgn_.trace)
        extra = {"estimator": _estimator_config(model), "tol": model.dgn_.tol}
        return "dgn", tensors | _covariances(model.dgn_), {"network": network, **extra}
    if isinstance(model, DGN):
        network, tensors = network_parts(model.trace)
        output = model.output
        extra = {} if output is None else {"likelihood": {"name": output.name, "options": output.options()}}
        return "dgn", tensors | _covariances(model), {"network": network, "tol": model.tol, **extra}
    if isinstance(model, ConditionalDGN):
        if not model.joined:
            raise ModelFileError(
                "a network of two arguments cannot be saved; make the ConditionalDGN of one that takes "
                "torch.cat((z, c), 1), or save its state_dict"
            )
        _, own, rest = _parts(model.dgn)
        network, tensors = network_parts(trace_network(model.net, latent_dim=model.latent_dim + model.context_dim))
        covariances = {name: own[name] for name in _covariances(model.dgn)}
        return "dgn", tensors | covariances, rest | {"network": network, "context_dim": model.context_dim}
    if isinstance(model, TableModel):
        return "table", *table_parts(model)
    if isinstance(model, Partition):
        network, tensors = network_parts(model.trace)
        more, extra = partition_tensors(model)
        return "partition", tensors | more, {"network": network, **extra}
    if isinstance(model, VAE):
        return "vae", *_vae(model)
    if isinstance(model, GAN):
        return "gan", *_gan(model)
    from girih.flows import DGNFlow, Flow
    from girih.flows.store import flow_parts, prior_parts

    if isinstance(model, Flow):
        return "flow", *flow_parts(model)
    if isinstance(model, DGNFlow):
        network, tensors = network_parts(model.trace)
        return "dgn-flow", tensors | prior_parts(model), {"network": network}
    raise ModelFileError(
        f"cannot save a {type(model).__name__}; save takes a girih.DGN or ConditionalDGN, DGNEstimator, TableModel, "
        "girih.Partition, a flow of girih.flows, a VAE of girih.vae or a girih.gan.GAN"
    )


def _vae(vae: VAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a VAE, and the rest as plain values."""
    more, config = vae_parts(vae)
    latents = vae.latent_dim * config["options"].get("categories", 1)
    tensors, networks = _two_networks(
        vae, {"decoder": (vae.decoder, latents), "encoder": (vae.encoder, vae.output_dim)}, _ENCODER
    )
    return tensors | more, {"network": networks["decoder"], "encoder": networks["encoder"], **config}


def _gan(gan: GAN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a GAN, and the rest as plain values."""
    tensors, networks = _two_networks(
        gan,
        {"generator": (gan.generator, gan.latent_dim), "discriminator": (gan.discriminator, gan.output_dim)},
        _DISCRIMINATOR,
    )
    config = {"network": networks["generator"], "discriminator": networks["discriminator"]}
    number = str(gan.dtype).removeprefix("torch.")
    return tensors, config | {"type": number, "loss": gan.loss, "gradient_penalty": gan.gradient_penalty}


def _gan_from(config: dict[str, Any], generator: nn.Module, discriminator: nn.Module) -> GAN:
    """The GAN of two networks that were loaded."""
    number = _TYPES[config["type"]]
    options = {"loss": config["loss"], "gradient_penalty": config["gradient_penalty"]}
    return GAN(generator.to(number), discriminator.to(number), **options)


def _two_networks(
    model: nn.Module, networks: dict[str, tuple[nn.Module, int]], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of two networks, those of the second with a prefix, and their steps by name."""
    from girih.training import evaluating

    tensors: dict[str, Tensor] = {}
    steps: dict[str, Any] = {}
    with evaluating(model):
        for place, (name, (net, inputs)) in enumerate(networks.items()):
            try:
                traced = trace_network(net, latent_dim=inputs)
            except UnsupportedLayerError as error:
                raise UnsupportedLayerError(f"the {name} cannot be saved, since it cannot be traced: {error}") from None
            steps[name], found = network_parts(traced)
            tensors |= {f"{prefix * place}{key}": tensor for key, tensor in found.items()}
    return tensors, steps


def _covariances(dgn: DGN) -> dict[str, Tensor]:
    rest = {} if dgn.bias_rest is None else {"bias_rest": dgn.bias_rest}
    shared = {} if dgn.noise_factor is None else {"noise_factor": dgn.noise_factor}
    latent = dgn.latent_prior
    prior = {"prior": dgn.prior} if latent is None else {_PRIOR + name: part for name, part in latent.tensors().items()}
    noise = {"noise": dgn.noise} if dgn.noise_tensors else {}
    return noise | prior | shared | rest


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model that `girih.save` wrote; never unpickles and runs no code from the files.

    What was saved with checksums is checked against them. Models of girih 0.1.0 have none and are read as they are.

    Raises:
        ModelFileError: nothing there, a file missing, changed or truncated, numbers that are not finite, a foreign
            folder, or a newer format.
    """
    for _ in range(_READS):
        folder = current(Path(path))
        before = _seen(folder)
        try:
            return _load(folder)
        except ModelFileError:
            if _seen(folder) == before and current(Path(path)) == folder:
                raise
        time.sleep(0.01)  # another process is replacing the model
    return _load(current(Path(path)))


def _seen(folder: Path) -> list[tuple[int, int, int] | None]:
    """Stamps that tell whether the files of a model were replaced."""
    seen: list[tuple[int, int, int] | None] = []
    for name in (_TENSORS, _CONFIG):
        for file in {folder / name, current(folder / name)}:
            try:
                status = os.stat(file)
                seen.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except (OSError, ValueError):
                seen.append(None)
    return seen


def _load(folder: Path) -> Model:
    config = _read_config(folder)
    file = current(folder / _TENSORS)
    if not os.path.lexists(file):
        raise ModelFileError(f"{folder} is damaged: {_TENSORS} is missing; restore it or fit again")
    tensors, metadata, digest = read_digested(file)
    has_checksums = _CHECKSUMS in config or _CHECKSUMS in metadata
    if has_checksums and config.get(_CHECKSUMS) != {"tensors": digest, "config": _digest(config)}:
        raise _unfit(folder, "they do not match their checksums")
    _check_finite(tensors, f"{folder} is damaged: it", "restore it or fit again")
    try:
        return _assembled(tensors, config)
    except Exception as error:  # whatever parts that do not belong together lead to
        raise _unfit(folder, error) from error


def _unfit(folder: Path, reason: object) -> ModelFileError:
    text = " ".join(str(reason).split())[:300] or type(reason).__name__
    return ModelFileError(f"{folder} is damaged: its parts do not fit together ({text}); restore it or fit again")


def _assembled(tensors: dict[str, Tensor], config: dict[str, Any]) -> Model:
    """The model of its parts; any error says that they do not fit together."""
    if config["kind"] == "flow":
        from girih.flows.store import flow_from

        return flow_from(tensors, config)
    if config["kind"] == "table":
        return table_from(tensors, config)
    net = _network(config, "", tensors)
    if config["kind"] == "vae":
        return vae_from(tensors, config, net, _network(config, _ENCODER, tensors))
    if config["kind"] == "gan":
        return _gan_from(config, net, _network(config, _DISCRIMINATOR, tensors))
    if config["kind"] == "partition":
        return partition_from(tensors, config, trace_network(net))
    if config["kind"] == "dgn-flow":
        from girih.flows.store import dgn_flow_from

        return dgn_flow_from(tensors, net)
    output = config.get("likelihood")
    likelihood = "gaussian" if output is None else output_from(output["name"], output["options"])
    noise: Tensor | Covariance | None = tensors["noise"] if output is None else tensors.get("noise")
    if "noise_factor" in tensors:
        noise = Covariance.low_rank(tensors["noise_factor"], tensors["noise"])
    of_prior = {name.removeprefix(_PRIOR): part for name, part in tensors.items() if name.startswith(_PRIOR)}
    prior = prior_from(of_prior) if of_prior else tensors["prior"]
    if (context_dim := config.get("context_dim")) is not None:
        latent_dim = trace_network(net).latent_dim - context_dim
        return ConditionalDGN(net, latent_dim, context_dim, noise, prior, config["tol"], likelihood)
    dgn = DGN(net, noise=noise, prior=prior, tol=config.get("tol", TOL), likelihood=likelihood)
    dgn.bias_rest = tensors.get("bias_rest")
    if config.get("estimator") is None:
        return dgn
    return _estimator(config["estimator"], dgn)


def _network(config: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> nn.Module:
    """The generator, or the network with that prefix."""
    held = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if config["version"] == 1:
        return chain_from(config["encoder_stages" if prefix else "stages"], held)
    return network_from(config[prefix[:-1] or "network"], held)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        there = folder.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or a null byte
        raise ModelFileError(f"there is no model at {str(folder)[:200]!r} ({error})") from None
    if not there:
        raise ModelFileError(f"there is no model at {folder}{_set_aside(folder)}")
    try:
        text = read_text(current(folder / _CONFIG))
    except ModelFileError as error:
        raise ModelFileError(f"{folder} is not a girih model: it has no readable {_CONFIG} ({error})") from None
    try:
        config = strict_json(text)
    except ValueError as error:
        raise ModelFileError(f"{folder} is damaged: {_CONFIG} is not JSON ({error}); restore it or fit again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelFileError(f"{folder} is not a girih model: {_CONFIG} has another format")
    version = config.get("version")
    if type(version) is not int or version < 1:
        raise ModelFileError(f"{folder} is damaged: its version is {version!r}; restore it or fit again")
    if version > VERSION:
        raise ModelFileError(
            f"{folder} has format version {version}, and this girih reads up to {VERSION}; upgrade girih to load it"
        )
    chain = version == 1 or config.get("kind") == "flow"
    part = "table" if config.get("kind") == "table" else "network"
    parts = isinstance(config.get("stages"), list) if chain else isinstance(config.get(part), dict)
    if config.get("kind") not in _KINDS or not parts:
        raise ModelFileError(f"{folder} holds a {config.get('kind')!r}, which this girih does not know; upgrade girih")
    return config


def _set_aside(folder: Path) -> str:
    """The place where girih 0.1.0 left the model that was there before, if it was killed while it replaced it."""
    left = folder.parent.glob(f".{escape(folder.name)}-old-*/old")
    return "".join(f", but a save that was killed left the one before in {old}; move it back" for old in left)


def _estimator_config(model: DGNEstimator) -> dict[str, Any]:
    parameters = model.get_params(deep=False)
    seed = parameters["random_state"]
    parameters["random_state"] = int(seed) if isinstance(seed, int | np.integer) else None
    parameters["checkpoint"] = None if parameters["checkpoint"] is None else os.fspath(parameters["checkpoint"])
    parameters["hidden"] = np.atleast_1d(parameters["hidden"]).tolist()
    prior = parameters["weight_prior"]
    if prior is not None and not isinstance(prior, str):
        parsed = WeightPrior.parse(prior)
        parameters["weight_prior"] = None if parsed is None else [parsed.family, parsed.scale]
    names = getattr(model, "feature_names_in_", None)
    return {
        "parameters": parameters,
        "nll_curve": [float(v) for v in model.nll_curve_],
        "n_iter": int(model.n_iter_),
        "converged": bool(model.converged_),
        "interrupted": bool(model.interrupted_),
        "validation_scores": None if model.validation_scores_ is None else model.validation_scores_.tolist(),
        "feature_names": None if names is None else [str(name) for name in names],
    }


def _estimator(config: dict[str, Any], dgn: DGN) -> DGNEstimator:
    parameters = dict(config["parameters"])
    parameters["hidden"] = tuple(parameters["hidden"])
    if isinstance(parameters["weight_prior"], list):
        parameters["weight_prior"] = tuple(parameters["weight_prior"])
    est = DGNEstimator(**parameters)
    est.dgn_ = dgn
    est.nll_curve_ = np.array(config["nll_curve"], dtype=np.float64)
    est.n_iter_, est.converged_, est.interrupted_ = config["n_iter"], config["converged"], config["interrupted"]
    scores = config.get("validation_scores")
    est.validation_scores_ = None if scores is None else np.array(scores, dtype=np.float64)
    est.n_parameters_ = count_parameters(dgn, est.learn_prior)
    est._n_features_out = dgn.latent_dim
    est.n_features_in_ = dgn.output_dim
    if config["feature_names"] is not None:
        est.feature_names_in_ = np.array(config["feature_names"], dtype=object)
    return est
