"""A draft as the hub gets it: its own files and its card; and its way there."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

from pard2.checkpoints.hub import access_token
from pard2.errors import Pard2Error, first_line
from pard2.files import CHECKPOINT, whole_directory

CARD = "README.md"


def write_hub_form(draft: Path, directory: Path, card: str) -> None:
    """Copy a checkpoint's files as they are, so that it stays the draft that was measured, and add its card.

    The directory appears whole.
    """
    names = [file.name for file in sorted(draft.iterdir()) if file.is_file() and _belongs(file.name)]
    with whole_directory(directory) as beside:
        for name in names:
            shutil.copy(draft / name, beside / name)
        (beside / CARD).write_text(card, encoding="utf-8")


def _belongs(name: str) -> bool:
    return name != CARD and any(
        fnmatch(name, pattern) for pattern in (*CHECKPOINT.files, "*.safetensors", "*.safetensors.index.json", "d2t*", "t2d*")
    )


def push(directory: Path, repository: str, private: bool) -> str:
    """Upload a directory as a model of the hub, made where there is none; returns its address.

    Raises `Pard2Error` where there is no token, the hub refuses it, or cannot be reached. The token is never
    part of a message.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    token = access_token()
    if token is None:
        raise Pard2Error(f"{constants.ENDPOINT} takes {repository!r} from nobody without a token: log in with `hf auth login`, or set HF_TOKEN")
    api = huggingface_hub.HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload by pard2 export")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise Pard2Error(f"{constants.ENDPOINT} refuses your token for {repository!r} ({status}): it needs the right to write there") from None
        raise Pard2Error(
            f"{constants.ENDPOINT} did not take {repository!r} ({status}); try again, or look at {constants.ENDPOINT}/{repository}"
        ) from None
    except (errors.HFValidationError, ValueError):
        raise Pard2Error(f"{repository!r} is no id of the hub, such as USER/NAME") from None
    except (OSError, errors.HTTPError) as error:
        raise Pard2Error(f"cannot reach {constants.ENDPOINT} ({first_line(error)}); {directory} stands, and the same command tries again") from None
    return f"{constants.ENDPOINT}/{repository}"
