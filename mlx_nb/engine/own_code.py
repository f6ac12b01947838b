"""Code that a model's folder brings along: it runs on every rank if the user says so, and else not at all."""

from pathlib import Path
from typing import Any

from mlx_nb.shared.errors import ModelError, RemoteCodeError


def refusal(folder: Path, what: str, fix: str = "") -> RemoteCodeError:
    """The error for code that may not run.

    Args:
        folder: The model's folder.
        what: What the code would do.
        fix: What to type next, where it is not the usual.
    """
    usual = (
        f"If you trust it, type: %mlx_load {folder} --trust-remote-code (in Python: trust_remote_code=True)"
    )
    return RemoteCodeError(f"{what}, which would run on every rank.", fix or usual)


def check_code(folder: Path, config: dict[str, Any], *, trusted: bool, fix: str = "") -> None:
    """Refuse a model that is built by code from its own folder, unless that was allowed.

    Args:
        folder: The model's folder.
        config: Its configuration.
        trusted: Whether its code may run.
        fix: What to type next, where it is not the usual.

    Raises:
        RemoteCodeError: Its code may not run.
        ModelError: Its code is not there, or lies outside its folder.
    """
    code = config.get("model_file")
    if code is None:
        return
    if not trusted:
        raise refusal(folder, f"{folder.name} is built by code of its own ({code})", fix)
    if not isinstance(code, str) or not code or Path(code).name != code:
        raise ModelError(
            f"config.json of {folder.name} names code outside its folder: {code}.", "Fetch the model again."
        )
    if not (folder / code).is_file():
        raise ModelError(f"{folder} has no {code}, which its config.json asks for.", "Fetch the model again.")
