"""Models on the Hugging Face Hub: what `girih.save` writes, with a model card, and back without running code."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from girih._extras import needs
from girih._files import read_text, write_text
from girih.em import DGNEstimator
from girih.errors import ModelFileError
from girih.io import FILES, Model, load, save
from girih.partition import Partition

with needs("hub"):
    from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

_CARD = "README.md"
_OURS = "<!-- girih writes this card anew with the model, unless this line is removed -->"


# The mixin's own methods delete config.json before they save, believe the one that they read, and make a repo before
# they know that the model can be saved; these take the same arguments.
class HubModel(ModelHubMixin):
    """A `HubModel` holds a model that `girih.save` takes, and brings it to the Hugging Face Hub and back.

    A repo holds the files of `girih.save` and a model card. They say what the model knows of its data: of a
    `girih.TableModel` the names, ranges and categories of the columns, and digests by which a row of the fit can be
    recognised. A new repo is public unless `private=True`.

    Args:
        model: see `girih.save`.

    Attributes:
        model: the same; after `from_pretrained` what `girih.load` returned.

    Example:
        >>> import girih, tempfile
        >>> from girih.hub import HubModel
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     HubModel(dgn).save_pretrained(folder + "/curve")
        ...     HubModel.from_pretrained(folder + "/curve").model.latent_dim
        1
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """A `save_pretrained` writes the model and its card to a folder, as `girih.save` does; it returns None.

        A card without the comment that girih puts there is yours, and stays as it is.

        Args:
            save_directory: the folder.
            repo_id: the repo that the card names and that is pushed to; by default the name of the folder.
            push_to_hub: push it too, and return what `push_to_hub` returns.
            model_card_kwargs: arguments of `generate_model_card`.
            **push_to_hub_kwargs: other arguments of `push_to_hub`.

        Raises:
            ModelFileError, UnsupportedLayerError: the model cannot be saved, or not there; see `girih.save`.
        """
        folder = Path(save_directory)
        save(self.model, folder)
        name, options = repo_id or folder.resolve().name, model_card_kwargs or {}
        self._write_card(folder, {"repo_id": name, **options})
        if not push_to_hub:
            return None
        return self.push_to_hub(name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push a model of girih.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **upload: Any,
    ) -> str:
        """A `push_to_hub` commits the model and its card to a repo, which is made if need be, and returns the URL.

        Args:
            repo_id: such as `"me/moons"`; without a name before the slash it is one of yours.
            commit_message: of the commit.
            private: for a repo that is made; by default as the account has it, which is public for most.
            token: by default that of `hf auth login`.
            branch: by default the main one.
            create_pr: propose the commit as a pull request.
            model_card_kwargs: arguments of `generate_model_card`.
            **upload: other arguments of `HfApi.upload_folder`; `ignore_patterns="README.md"` leaves a card that is
                there as it is.

        Raises:
            ModelFileError, UnsupportedLayerError: the model cannot be saved; then no repo is made.
            huggingface_hub.errors.HfHubHTTPError: what the Hub refuses.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            save(self.model, Path(folder, "model"))
            repo = str(api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id)
            self._write_card(Path(folder, "model"), {"repo_id": repo, **(model_card_kwargs or {})})
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=Path(folder, "model"),
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                **upload,
            )
        return str(commit)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> HubModel:
        """A `from_pretrained` reads a model from a folder, or from a repo of the Hub, by `girih.load`: no code runs.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a repo; a `Path` is always a folder.
            **download: of a repo, arguments of `huggingface_hub.snapshot_download`, such as `revision`, `token`,
                `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ModelFileError: there is no such folder or repo, it holds no model of girih, or one that is damaged.
            huggingface_hub.errors.LocalEntryNotFoundError: the Hub cannot be reached, and the repo is not in the cache.
        """
        place = pretrained_model_name_or_path
        if isinstance(place, Path) or os.path.isdir(place):
            return cls(load(place))
        try:
            folder = snapshot_download(place, **{"allow_patterns": list(FILES), **download})
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelFileError(
                f"{place!r} is neither a folder here nor a repo of the Hub that can be read ({reason}); pass the path "
                "of a folder that girih.save wrote, or a name such as 'me/moons', with a token if it is private"
            ) from error
        try:
            return cls(load(folder))
        except ModelFileError as error:
            raise ModelFileError(f"the repo {place!r} holds no model that this girih reads: {error}") from error

    def generate_model_card(
        self, repo_id: str = "me/model", description: str = "", tags: tuple[str, ...] = (), **data: Any
    ) -> ModelCard:
        """A `generate_model_card` says what the model is, how large, its held-out score where known, how to load it.

        Args:
            repo_id: the name in the lines that load it.
            description: a text of yours, in Markdown.
            tags: for the Hub's search, beside `girih`.
            **data: other arguments of `huggingface_hub.ModelCardData`, such as `license` and `datasets`.
        """
        data = {"library_name": "girih", "tags": ["girih", *tags], **data}
        facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(self.model).items())
        layers = f"~~~text\n{self.model}\n~~~\n\n" if isinstance(self.model, nn.Module) else ""
        return ModelCard(
            f"---\n{ModelCardData(**data).to_yaml()}\n---\n{_OURS}\n\n"
            f"# {repo_id.rpartition('/')[2]}\n\n{description}\n\n"
            f"| a model of girih | {type(self.model).__name__} |\n| --- | --- |\n{facts}\n\n{layers}"
            'Loading it (`pip install "girih[hub]"`) runs no code of these files:\n\n'
            f"```python\nfrom girih.hub import HubModel\n\nmodel = HubModel.from_pretrained({repo_id!r}).model\n```\n"
        )

    def _write_card(self, folder: Path, options: dict[str, Any]) -> None:
        """Write the card, unless there is one of the user's own."""
        card = folder / _CARD
        if not os.path.lexists(card) or _OURS in read_text(card):
            write_text(card, str(self.generate_model_card(**options)))


def _facts(model: Any) -> dict[str, str]:
    """Sizes of a model, and the held-out score of one that has it."""
    inner = model.dgn_ if isinstance(model, DGNEstimator) else model
    sizes = {
        "latent dimension S": ("latent_dim",),
        "data dimension D": ("output_dim", "features"),
        "columns": ("n_features_in_",),
    }
    found = {
        name: str(getattr(inner, attribute))
        for name, attributes in sizes.items()
        for attribute in attributes
        if hasattr(inner, attribute)
    }
    if isinstance(inner, nn.Module):
        found["parameters"] = f"{sum(parameter.numel() for parameter in inner.parameters()):,}"
    if isinstance(inner, Partition):
        found["cells"] = f"{len(inner):,}"
    score = _held_out(model)
    return found if score is None else found | {"mean held-out log-likelihood, nats a row": f"{score:.4g}"}


def _held_out(model: Any) -> float | None:
    """The score of rows that the fit did not see; of an estimator the best, which is that of the parameters kept."""
    if isinstance(model, DGNEstimator):
        return None if model.validation_scores_ is None else float(model.validation_scores_.max())
    score = getattr(model, "held_out_score_", None)
    return None if score is None else float(score)
