"""Saved models on the Hugging Face hub: the same files, the same checks."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from secateur.errors import UserError
from secateur.storage.directories.existing import mend_model
from secateur.storage.network import hub_is_out_of_reach
from secateur.storage.spec import CARD, SPEC, WEIGHTS, read_spec

UPLOADED = [SPEC, WEIGHTS, CARD, "report.html"]


def push_to_hub(directory: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a directory saved by secateur to `repo_id` ("ORG/NAME"); return its address.

    The repository is made where it does not exist. Raises UserError when `directory` holds no
    saved model or the hub refuses.
    """
    directory = Path(directory)
    mend_model(directory)
    read_spec(directory)
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"{directory / WEIGHTS} is missing; the directory is not complete.")
    if reason := hub_is_out_of_reach():
        raise UserError(f"cannot upload {directory} to {repo_id}: {reason}.")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            allow_patterns=UPLOADED,
            commit_message="Upload a model made smaller by secateur",
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot upload {directory} to {repo_id}: {_sentence(error)}.") from error
    return str(address)


def download(name: str) -> Path:
    """The local copy of a saved model on the hub, "ORG/NAME" or "ORG/NAME@REVISION".

    Only the files that are loaded are fetched. A copy in the cache is used when there is no
    network. Raises UserError when it cannot be had.
    """
    repo_id, _, revision = name.partition("@")
    offline = hub_is_out_of_reach()
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision or None,
                allow_patterns=[SPEC, WEIGHTS],
                local_files_only=offline is not None,
            )
        )
    except (OSError, ValueError) as error:
        reason = offline or _sentence(error)
        raise UserError(f"cannot download hub:{name}: {reason}.") from error


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
