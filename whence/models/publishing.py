"""Models to where others take them from: a folder, or the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from whence.errors import ModelError
from whence.models import LINEAGE


def save_finetuned(model: Path, folder: Path) -> None:
    """Put a copy of a model where ``models.finetuned.path`` wants it, in place of an older one."""
    from whence.models.adapters import CONFIG_FILE  # with torch, which pushing does without

    for pattern in ("*.safetensors", "*.safetensors.index.json", CONFIG_FILE):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.copytree(model, folder, dirs_exist_ok=True)


def push_model(folder: Path, card: Path, repository: str, *, private: bool, revision: str | None = None) -> str:
    """Push a model's files and its card to the hub in one commit; the repository is made where there is none.

    Args:
        folder: the model's; its lineage stays here.
        card: folder of the files that describe it, which win over those of ``folder``.
        repository: ``owner/name``.
        private: whether a new repository is.
        revision: a branch; None: the main one.

    Returns:
        the commit's address.

    Raises:
        ModelError: the hub cannot be reached, or refuses.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {name: file for name, file in files.items() if not name.startswith(f"{LINEAGE}/")}
    files |= {file.name: file for file in sorted(card.iterdir()) if file.is_file()}
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
        return str(api.create_commit(repository, operations, commit_message="Model and card", revision=revision))
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"{repository}: the hub did not take the model: {str(error).strip().splitlines()[0]}",
            hint="set HF_TOKEN to a token that may write there, and check the name",
        ) from error
