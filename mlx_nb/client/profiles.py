"""Profiles: ordinary IPython profile directories with an ``ipcluster_config.py``, used as templates.

ipyparallel writes logs, pids and keys into the directory that it runs in, so a cluster gets a directory of
its own and only takes the configuration from the profile.
"""

from pathlib import Path

from traitlets.config import Config, PyFileConfigLoader

from mlx_nb.shared.errors import ProfileError

CONFIG_FILE = "ipcluster_config.py"
_PACKAGE = Path(__file__).resolve().parent.parent


def profile_roots() -> list[Path]:
    """Where profiles are looked for, the user's own first."""
    from IPython.paths import get_ipython_dir  # imports half of IPython, which only a named profile needs

    checkout = _PACKAGE.parent
    # In an installed wheel they lie inside the package, in a source checkout next to it.
    ours = checkout if (checkout / "pyproject.toml").is_file() else _PACKAGE
    return [Path(get_ipython_dir()), ours / "profiles"]


def list_profiles() -> dict[str, Path]:
    """The profiles that have a cluster configuration: name to directory."""
    found: dict[str, Path] = {}
    for root in profile_roots():
        for config in sorted(root.glob(f"profile_*/{CONFIG_FILE}")):
            found.setdefault(config.parent.name.removeprefix("profile_"), config.parent)
    return dict(sorted(found.items()))


def find_profile(name: str) -> Path:
    """The directory of a profile, given by name or as a directory.

    Raises:
        ProfileError: There is none.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return folder.resolve()
    known = list_profiles()
    if name in known:
        return known[name]
    raise ProfileError(
        f"There is no profile '{name}'.",
        f"Type one of: {', '.join(f'--profile {known_name}' for known_name in known)}"
        if known
        else "Put an ipcluster_config.py into ~/.ipython/profile_NAME, or start without --profile.",
    )


def load_profile(name: str | None) -> Config:
    """The configuration of a profile; empty for None.

    Raises:
        ProfileError: There is none by this name, or its file does not run.
    """
    if name is None:
        return Config()
    folder = find_profile(name)
    try:
        return PyFileConfigLoader(CONFIG_FILE, path=str(folder)).load_config()
    except Exception as error:  # the file is the user's own Python
        raise ProfileError(
            f"Profile '{name}' cannot be read: {type(error).__name__}: {error}.",
            f"Mend {folder / CONFIG_FILE}, or start without --profile.",
        ) from error
