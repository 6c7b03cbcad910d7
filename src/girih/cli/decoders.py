"""DECODER as `girih inspect` takes it, a file, a function or a model, and what the command leaves in its folder."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

import girih
from girih._files import write_json, write_text
from girih.cli.explorers import EXPLORER, explore_decoder
from girih.cli.folder import OutputFolder
from girih.cli.options import Chosen
from girih.cli.tables import MODEL, SavedModel, load_data, load_for, plural, read_model, write_csv
from girih.cli.terminal import CommandError, Terminal
from girih.datasets import Dataset
from girih.errors import UnsupportedLayerError
from girih.explorer import Wanted as Shown
from girih.geometry import Cells
from girih.geometry.priors import UniformPrior
from girih.networks import Trace, smooth_head, trace
from girih.report import InspectedRows, Inspection, Number, Page, Picture, inspect_rows, versions
from girih.report.inspection_facts import cell_table, facts, facts_of_rows, row_table
from girih.report.inspection_numbers import explain_inspection, explain_rows
from girih.report.inspection_pictures import PICTURES, draw_inspection
from girih.vae import VAE, Pair

Network = torch.nn.Module | torch.export.ExportedProgram | Trace

_LEAST_SIDE = 8  # of outputs that are taken for square images without being told


@dataclass(frozen=True)
class Decoder:
    """A decoder and what is known about it.

    Attributes:
        source: DECODER as it was given.
        name: for the title and the output folder.
        trace: the decoder itself.
        code: Python lines that make it again, as `trace`.
        prior: the covariance of the latent prior of a fitted model; `None` for others.
        output_shape: of one output, where the module told it.
        columns: names of the outputs, for a model that was fitted to a table.
        notes: what the user should know.
        head: the smooth function that was taken off the end, such as Sigmoid; empty where there was none.
        vae: that the decoder belongs to.
        saved: the fitted model that it is from.
    """

    source: str
    name: str
    trace: Trace
    code: str
    prior: torch.Tensor | None = None
    output_shape: tuple[int, ...] | None = None
    columns: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    head: str = ""
    vae: VAE | None = None
    saved: SavedModel | None = None


class Wanted(NamedTuple):
    """`Wanted` says what of a network is traced: see `girih.trace`."""

    until: str | None = None
    output: str | int | None = None
    latent_dim: int | None = None

    @property
    def code(self) -> str:
        """The arguments of `girih.trace`, after the network."""
        return "".join(f", {name}={value!r}" for name, value in self._asdict().items() if value is not None)


_ALL = Wanted()


def load_decoder(source: str, wanted: Wanted = _ALL) -> Decoder:
    """Read DECODER.

    Raises:
        CommandError: there is no such file, module or function, or it is of no use.
        UnsupportedLayerError: the network has a layer that is not piecewise affine.
        ModelFileError: a folder without a model.
    """
    path = Path(source)
    if path.is_dir():
        if wanted.code:
            raise CommandError(f"--until, --output and --latent-dim are for networks, and {source} is a fitted model")
        return _from_model(source, path)
    module, colon, name = source.rpartition(":")
    if path.suffix in (".pt2", ".onnx"):
        return _from_file(source, path, wanted)
    if colon and module and name.isidentifier():
        return _from_code(source, module, name, wanted)
    what = "is neither" if path.exists() else "is not there, and is not"
    raise CommandError(
        f"{source} {what} a .pt2 file (torch.export.save), an .onnx file, module:function, or a folder "
        "that girih fit wrote"
        + ("; a state dict or a pickled module is not enough: name a function that builds it" if path.is_file() else "")
    )


def load_vae(source: str) -> tuple[str, VAE | Pair, str]:
    """The VAE of a folder, or the VAE or pair that a function returns, with its name and Python lines that make it.

    Raises:
        CommandError: there is none.
    """
    path = Path(source)
    module, colon, name = source.rpartition(":")
    if path.is_dir():
        found: object = girih.load(path)
        short, code = path.name, f"model = girih.load({source!r})"
    elif colon and module and name.isidentifier():
        with _user_code():
            maker = _find(_import(module), module, name)
            found = _make(maker, source)
        made = name if _is_network(maker) else f"{name}()"
        short = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
        short, code = f"{short}-{name}", f"from {short} import {name}\n\nmodel = {made}"
    else:
        raise CommandError(f"{source} is neither module:function nor the folder of a saved girih.vae.VAE")
    if not isinstance(found, VAE | Pair):
        raise CommandError(
            f"{source} is a {type(found).__name__}; the gap is that of a girih.vae.VAE, or of a girih.vae.Pair of the "
            "decoder and the encoder of another library"
        )
    return short, found, code


def image_shape_of(decoder: Decoder, text: str | None) -> tuple[tuple[int, ...] | None, bool]:
    """The image shape that was asked for, that the decoder told, or that a square number of outputs suggests.

    Returns:
        The shape, if any, and whether it is a guess.
    """
    D = decoder.trace.output_dim
    if text is not None:
        if text.strip().lower() == "none":
            return None, False
        shape = _parse_shape(text)
        if math.prod(shape) != D:
            raise CommandError(
                f"--image-shape {text} has {math.prod(shape)} pixels, and the decoder has D = {D} outputs"
            )
        return shape, False
    shape = decoder.output_shape or ()
    if len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3))):
        return shape, False
    side = math.isqrt(D)
    return ((side, side), True) if side * side == D and side >= _LEAST_SIDE and not decoder.columns else (None, False)


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    coloured = len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3))
    if not (len(shape) == 2 or coloured) or min(shape) < 1:
        raise CommandError(f"--image-shape takes HxW, HxWx3 or 3xHxW, as in 28x28, or none; got {text!r}")
    return shape


def _from_model(source: str, path: Path) -> Decoder:
    folder = path / MODEL if (path / MODEL).is_dir() else path
    model = girih.load(folder)
    if isinstance(model, VAE):
        code = f"trace = girih.trace(girih.load({str(folder)!r}).eval().decoder)"
        return replace(_traced(source, path.name, model.eval().decoder, code, _ALL), vae=model)
    saved = read_model(path, model)
    attribute = "" if saved.estimator is None else ".dgn_"
    lines = f"model = girih.load({str(folder)!r}){attribute}\ntrace = model.trace"
    prior = saved.dgn.prior.detach().cpu()
    columns = None if saved.image_shape is not None else saved.columns
    return Decoder(source, saved.name, saved.dgn.trace, lines, prior, saved.image_shape, columns, saved=saved)


def _from_file(source: str, path: Path, wanted: Wanted) -> Decoder:
    if path.suffix == ".pt2" and not path.is_file():
        raise CommandError(f"there is no file {source}")
    return _traced(source, path.stem, path, f"trace = girih.trace({source!r}{wanted.code})", wanted)


def _from_code(source: str, module: str, name: str, wanted: Wanted) -> Decoder:
    with _user_code():
        maker = _find(_import(module), module, name)
        net = _make(maker, f"{module}:{name}")
    notes = []
    if _in_training(net):
        notes.append("the module was in training mode; it is inspected in eval mode, without dropout")
    if isinstance(net, torch.nn.Module):
        net = net.cpu().eval()
    short = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
    made = name if not callable(maker) or _is_network(maker) else f"{name}()"
    home = str(Path(module).parent) if module.endswith(".py") else "."
    path = "" if home == "." else f"import sys\n\nsys.path.insert(0, {home!r})\n"
    code = f"{path}from {short} import {name}\n\ntrace = girih.trace({made}.eval(){wanted.code})"
    if isinstance(net, VAE):
        part = code.replace(".eval()", ".eval().decoder")
        return replace(_traced(source, f"{short}-{name}", net.decoder, part, wanted, notes), vae=net)
    return _traced(source, f"{short}-{name}", net, code, wanted, notes)


@contextlib.contextmanager
def _user_code() -> Iterator[None]:
    """The current folder comes first in Python's path, and what the code prints goes to standard error."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have changed the path itself
            sys.path.remove(here)


def _import(module: str) -> ModuleType:
    if module.endswith(".py"):
        return _import_file(Path(module))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise CommandError(
                f"there is no module {module!r} in the current folder or among the installed packages"
            ) from None
        raise CommandError(f"importing {module} fails: {_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise CommandError(f"importing {module} fails: {_line(error)}") from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CommandError(f"importing {path} fails: {_line(error)}") from None
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
    return module


def _find(module: ModuleType, where: str, name: str) -> object:
    if hasattr(module, name):
        return getattr(module, name)
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, own, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(own[:8])}" if own else ""
    raise CommandError(f"{where} has no {name!r}{hint}")


def _make(maker: object, name: str) -> Network:
    """The network that a function returns; a module or an exported program is taken as it is."""
    if _is_network(maker):
        return maker
    if not callable(maker):
        raise CommandError(f"{name} is a {type(maker).__name__}; name a function that returns the torch.nn.Module")
    needed = _needed(maker)
    if needed:
        raise CommandError(
            f"{name} needs arguments ({', '.join(needed)}); name a function that takes none, e.g. one that calls it "
            "and loads the weights"
        )
    try:
        net = maker()
    except (Exception, SystemExit) as error:
        raise CommandError(f"{name}() fails: {_line(error)}") from None
    if not _is_network(net):
        raise CommandError(f"{name}() returned a {type(net).__name__}; it must return the torch.nn.Module")
    return net


def _needed(maker: Callable[..., Any]) -> list[str]:
    """The arguments without a default."""
    try:
        parameters = signature(maker).parameters.values()
    except (TypeError, ValueError):  # some callables in C have no signature; calling them will tell
        return []
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is Parameter.empty and p.kind not in several]


def _is_network(value: object) -> TypeGuard[Network]:
    return isinstance(value, Network)


def _in_training(net: object) -> bool:
    """Tell whether a layer of a module behaves differently in training, and is in training mode."""
    return isinstance(net, torch.nn.Module) and any(
        layer.training for layer in net.modules() if isinstance(layer, _BatchNorm | _DropoutNd)
    )


def _traced(
    source: str, name: str, net: Network | Path, code: str, wanted: Wanted, notes: list[str] | None = None
) -> Decoder:
    try:
        try:
            traced, head = trace(net, **wanted._asdict()), ""
        except UnsupportedLayerError:
            found = None if wanted.until else smooth_head(net, wanted.output, wanted.latent_dim)
            if found is None:
                raise
            until, head = found
            traced = trace(net, until, latent_dim=wanted.latent_dim)
            notes = [*(notes or []), _taken_off(until, head)]
            code = code.removesuffix(f"{wanted.code})") + wanted._replace(until=until, output=None).code + ")"
    except UnsupportedLayerError as error:
        text = str(error).replace("pass latent_dim= to girih.trace", "pass --latent-dim S")
        raise UnsupportedLayerError(text) from None
    return Decoder(source, name, traced, code, output_shape=traced.output_shape, notes=notes or [], head=head)


def _taken_off(until: str, head: str) -> str:
    return (
        f"the {head} at the end is not piecewise affine, so what goes into it is inspected (--until {until}): all "
        f"numbers and pictures are of values before the {head}"
    )


_ROWS = {1: 50_000, 2: 5_000, 3: 200}  # by S: of S = 3 a row can take a second


def most_rows(decoder: Decoder) -> int:
    """How many rows are looked at unless more are asked for."""
    return _ROWS.get(decoder.trace.latent_dim, 5_000)


def rows_for(decoder: Decoder, data: str, chosen: Chosen) -> Dataset:
    """The rows of DATA, with as many columns as the decoder has outputs.

    Raises:
        CommandError: it has another number, or cannot be compared with the decoder.
    """
    if decoder.head:
        raise CommandError(
            f"rows cannot be compared with a decoder whose {decoder.head} was taken off: give DATA in the units of "
            "what goes into it and say so by --until (the note above names it), or name a function that returns a "
            'girih.vae.VAE with likelihood="bernoulli", whose decoder gives what goes into a Sigmoid'
        )
    if decoder.saved is not None:
        return load_for(decoder.saved, data, chosen)
    dataset, D = load_data(data, chosen), decoder.trace.output_dim
    if dataset.shape[1] != D:
        raise CommandError(
            f"{dataset.name} has {plural(dataset.shape[1], 'column')}, and the decoder has D = {D} outputs; choose "
            "columns with --columns or --drop"
        )
    return dataset


def inspected_rows(
    decoder: Decoder, cells: Cells, data: Dataset, noise: float | None, seed: int, progress: bool
) -> InspectedRows:
    """The rows beside the decoder, with the noise that was asked for, or that is known of it."""
    known = noise if noise is not None else None if decoder.saved is None else decoder.saved.dgn.noise_covariance
    found = inspect_rows(cells, data.X, noise=known, vae=decoder.vae, seed=seed, progress=progress)
    return (
        found if noise is not None or decoder.saved is None else replace(found, noise_from="that of the fitted model")
    )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


REPORT, NUMBERS, CELLS, ROWS = "report.html", "inspection.json", "cells.csv", "rows.csv"
FILES = (REPORT, EXPLORER, NUMBERS, CELLS, ROWS, *PICTURES)
_LISTED = 12  # layers in the table of settings


def write(
    folder: OutputFolder,
    decoder: Decoder,
    found: Inspection,
    rows: InspectedRows | None,
    image_shape: tuple[int, ...] | None,
    settings: dict[str, Any],
    seconds: dict[str, float],
    terminal: Terminal,
) -> dict[str, Any]:
    """Write everything and return the numbers. The numbers come first: they outlive a Ctrl-C in the pictures."""
    metrics: dict[str, Any] = facts(found)
    metrics["decoder"] = {"source": decoder.source, "name": decoder.name, **metrics["decoder"]}
    metrics["decoder"]["image_shape"] = None if image_shape is None else list(image_shape)
    metrics["rows"] = None if rows is None else facts_of_rows(rows, found.cells)
    metrics["settings"] = settings
    metrics["notes"] = [*decoder.notes, *([found.note] if found.note else [])]
    metrics["versions"] = versions()
    with folder.results() as results:
        write_json(results / NUMBERS, metrics)
        write_csv(results / CELLS, cell_table(found, rows))
        if rows is not None:
            write_csv(results / ROWS, row_table(rows))
        with folder.outliving_interrupt():
            with terminal.drawing(seconds):
                pictures = draw_inspection(results, found, image_shape, decoder.columns, settings["seed"])
            metrics["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
            metrics["pictures"] = [picture.file.name for picture in pictures]
            report = _page(decoder, found, metrics, pictures)
            if settings["explorer"]:
                with terminal.busy("making the explorer"):
                    wanted = Shown(columns=decoder.columns, image_shape=image_shape, title=decoder.name)
                    told = explore_decoder(results / EXPLORER, decoder.trace, found, rows, wanted)
                report = report._replace(explorer="" if told else EXPLORER)
                metrics["notes"] += [told] if told else []
            write_text(results / REPORT, report.html())
            write_json(results / NUMBERS, metrics)
    return metrics


def tell(terminal: Terminal, out: Path, metrics: dict[str, Any]) -> None:
    """The last lines of `girih inspect`: what came out, and where it is."""
    terminal.table({number.name: number.value for number in _numbers(metrics)})
    terminal.say()
    seconds = metrics["seconds"]
    terminal.say(f"Time:     {seconds['inspect']:.1f} s, and {seconds['pictures']:.1f} s for the pictures")
    terminal.say(f"Cells:    {out / CELLS}")
    if metrics["rows"] is not None:
        terminal.say(f"Rows:     {out / ROWS}")
    terminal.say(f"Numbers:  {out / NUMBERS}")
    terminal.say(f"Report:   {out / REPORT}")
    if (out / EXPLORER).exists():
        terminal.say(f"Explorer: {out / EXPLORER}")
    terminal.result({"out": str(out), "report": str(out / REPORT), **metrics})


def _numbers(metrics: dict[str, Any]) -> list[Number]:
    return explain_inspection(metrics) + ([] if metrics["rows"] is None else explain_rows(metrics["rows"]))


def _page(decoder: Decoder, found: Inspection, metrics: dict[str, Any], pictures: list[Picture]) -> Page:
    settings = metrics["settings"]
    layers = metrics["decoder"]["layers"]
    shown = layers if len(layers) <= _LISTED else [*layers[:_LISTED], f"and {len(layers) - _LISTED} more"]
    shape = metrics["decoder"]["image_shape"]
    options = {
        "decoder": decoder.source,
        "layers": "; ".join(shown),
        "latent prior": _prior_text(metrics["prior"]),
        "image shape": "none" if shape is None else " x ".join(map(str, shape)),
        "cells": "all, enumerated" if found.cells.exact else f"sampled by {settings['cells']:,} prior draws",
        "seed": str(settings["seed"]),
        "time": f"{metrics['seconds']['inspect']:.1f} s, and {metrics['seconds']['pictures']:.1f} s for the pictures",
    }
    how = (
        "All its cells were enumerated: numbers are exact where they do not say otherwise."
        if found.cells.exact
        else f"Its cells were sampled by {found.cells.draws:,} prior draws: numbers come with one standard error, "
        "marked ±."
    )
    notes = [*([found.note] if found.note else []), *(note for note in decoder.notes if decoder.head)]
    note = "".join(f" {text[0].upper()}{text[1:]}." for text in notes)
    lead = (
        f"A decoder from {found.latent_dim} latent variable{'s' if found.latent_dim > 1 else ''} to "
        f"{found.trace.output_dim:,} output{'s' if found.trace.output_dim > 1 else ''}, piece by piece. {how}{note}"
    )
    return Page(decoder.name, lead, _numbers(metrics), pictures, options, _code(decoder, found, settings))


def _prior_text(prior: dict[str, Any]) -> str:
    if prior["kind"] == "uniform":
        return f"uniform from {prior['low'][0]:g} to {prior['high'][0]:g} in every latent"
    covariance = np.array(prior["covariance"])
    same = np.array_equal(covariance, covariance[0, 0] * np.eye(len(covariance)))
    return f"normal with variance {covariance[0, 0]:g}" if same else "normal with the covariance of the fitted model"


def _code(decoder: Decoder, found: Inspection, settings: dict[str, Any]) -> str:
    """A few lines of Python that ask the same and more."""
    prior, S = found.cells.prior, found.latent_dim
    given = "1.0"
    if isinstance(prior, UniformPrior):
        given = f"girih.geometry.Uniform({float(prior.low[0])!r}, {float(prior.high[0])!r})"
    elif prior is not None:
        variance = float(prior.covariance[0, 0])
        plain = bool((prior.covariance == variance * torch.eye(S, dtype=torch.float64)).all())
        given = repr(variance) if plain else "model.prior.detach()"
    make = (
        f"girih.geometry.enumerate_cells(trace, prior={given})"
        if found.cells.exact
        else f"girih.geometry.sample_cells(trace, {settings['cells']}, prior={given}, seed={settings['seed']})"
    )
    lines = [
        decoder.code,
        f"cells = {make}",
        "",
        "girih.geometry.log_volume(cells).values          # log sqrt det(A^T A) of each cell",
        "girih.geometry.entropy(cells)                    # of generated points, on the manifold",
        "girih.geometry.basis(cells, index=[0])           # columns of A",
        f"trace.affine([{[0.0] * S}])  # A and b around a latent",
    ]
    if found.cells.exact:
        lines.append("cells.partition.halfspaces(0)                    # a cell: H z <= h")
    else:
        lines.append("girih.partition.walk(trace, cells.points[0])     # a cell and its neighbours, exact")
    return "import girih\n" + "\n".join(lines) + "\n"
