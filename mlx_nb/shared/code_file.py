"""A model file under work: it is read where the notebook is, and its text travels to the ranks."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from mlx_nb.shared.errors import OptionError


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A model file.

    Attributes:
        path: Where it was read, absolute.
        text: What stands in it.
        again: Whether it takes the place of code that runs already.
    """

    path: str
    text: str
    again: bool = False

    @property
    def name(self) -> str:
        return Path(self.path).name


def read_code(path: str | Path, *, again: bool = False) -> CodeFile:
    """Read a model file.

    Raises:
        OptionError: It is none.
    """
    file = Path(path).expanduser().absolute()
    try:
        if file.suffix != ".py" and file.is_file():
            raise OptionError(
                f"{file} is no Python file.",
                "Name the file that defines Model and ModelArgs: code='mymodel.py'",
            )
        return CodeFile(str(file), file.read_text(encoding="utf-8"), again)
    except UnicodeDecodeError as error:
        raise OptionError(f"{file} is not text ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        beside = [one.name for one in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1, cutoff=0.4)
        hint = (
            f"Did you mean {near[0]}?" if near else "Name the file with the model's code: code='mymodel.py'"
        )
        raise OptionError(f"{file} cannot be read ({error.strerror}).", hint) from error
