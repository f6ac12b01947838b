"""Which versions of mlx-lm are tried: a load refuses the others, and so does the doctor."""

from mlx_nb.shared.errors import VersionError

OLDEST, BELOW = (0, 31, 3), (0, 33)
"""The first version that works, and the first that is not known to; ``pyproject.toml`` says the same."""

REQUIREMENT = "mlx-lm>=0.31.3,<0.33"


def refuse_untried(found: str, fix: str) -> None:
    """Refuse a version of mlx-lm that nobody has tried.

    Args:
        found: The version; "" if mlx-lm is not installed.
        fix: How another one is installed there.

    Raises:
        VersionError: It is missing, too old or too new.
    """
    if not found:
        raise VersionError("mlx-lm is not installed here.", fix)
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdecimal())
    if numbers < OLDEST:
        raise VersionError(f"mlx-lm {found} is too old: mlx_nb works with 0.31.3 to 0.32.", fix)
    if numbers[:2] >= BELOW:
        raise VersionError(
            f"mlx-lm {found} is newer than this mlx_nb, which works with 0.31.3 to 0.32.",
            f"Look for a newer mlx_nb: pip install -U mlx-nb. Or {fix[0].lower()}{fix[1:]}",
        )
