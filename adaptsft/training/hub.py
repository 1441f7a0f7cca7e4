"""hub.push: final/ becomes a model repository of the Hugging Face hub.

What can be known without making anything there is checked before the run computes: the token, the
name, the right to write. The upload comes last, when the ranks have parted: none waits for it.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from adaptsft.config.schema import Config
from adaptsft.distributed.ranks import print0
from adaptsft.errors import ConfigError, HubError, reason_of


def check_push(config: Config) -> None:
    """Raise ConfigError where hub.push could not succeed. It asks the hub, and changes nothing."""
    name = config.hub.push
    if not name:
        return
    start, api = f"hub.push={name}", HfApi()
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{start}: {error}") from None
    if "/" not in name:
        raise ConfigError(f"{start}: must be USER/NAME or ORGANISATION/NAME")
    if constants.is_offline_mode():
        raise ConfigError(f"{start}: HF_HUB_OFFLINE is set; unset it, or leave hub.push out")
    with _answers(start, api.endpoint):
        account = api.whoami()
    _check_account(start, name.split("/")[0], account)
    with _answers(start, api.endpoint), suppress(RepositoryNotFoundError):  # it will be made
        api.auth_check(name, write=True)


@contextmanager
def _answers(start: str, endpoint: str) -> Iterator[None]:
    """Raises ConfigError where the hub says no, or nothing."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise ConfigError(
            f"{start}: no token of the hub: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        raise ConfigError(f"{start}: the hub refuses: {_reason(error)}") from None
    except Exception as error:  # of httpx or httpx2, as huggingface_hub has it
        raise ConfigError(f"{start}: {endpoint} does not answer: {_reason(error)}") from None


def _check_account(start: str, namespace: str, account: dict[str, Any]) -> None:
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ConfigError(
            f"{start}: the token {token.get('displayName', '')!r} may only read; log in with one "
            "that may write"
        )
    roles = {account["name"]: "admin"}
    roles |= {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    if namespace not in roles:
        raise ConfigError(
            f"{start}: {account['name']} may not write there, but to {', '.join(roles)}"
        )
    if roles[namespace] == "read":
        raise ConfigError(f"{start}: {account['name']} may only read in {namespace}")


def push(config: Config) -> None:
    """Upload final/, where hub.push says so. Raises HubError, with how to do it by hand."""
    name, hub, folder = config.hub.push, config.hub, Path(config.run_dir) / "final"
    if not name:
        return
    print0(f"uploading {folder} to {name}")
    api = HfApi()
    try:
        api.create_repo(name, private=hub.private, exist_ok=True)
        if hub.revision:
            api.create_branch(name, branch=hub.revision, exist_ok=True)
        message = f"Upload {Path(config.run_dir).absolute().name} with adaptsft"
        api.upload_folder(
            repo_id=name, folder_path=folder, revision=hub.revision, commit_message=message
        )
    except Exception as error:  # of the network, the hub, the disk, or hf_xet's own
        raise HubError(
            f"hub.push={name}: not uploaded: {_reason(error)}. {folder} is whole. The same command "
            f"again uploads it, and so does: {by_hand(config)}"
        ) from error
    print0(f"{folder} is at {api.endpoint}/{name}")


def by_hand(config: Config) -> str:
    """The command that uploads final/ without adaptsft."""
    hub = config.hub
    words = ["hf", "upload", str(hub.push), str(Path(config.run_dir) / "final"), "."]
    words += ["--private"] if hub.private else []
    words += ["--revision", hub.revision] if hub.revision else []
    return shlex.join(words)


def _reason(error: Exception) -> str:
    """In one line: the hub's messages have several."""
    return " ".join(reason_of(error).split())
