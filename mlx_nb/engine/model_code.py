"""A model file under work: run on this rank, and where it goes wrong, told by file and line.

It is written as mlx-lm's own files are: ``Model`` and ``ModelArgs``, and ``from .base import …`` means mlx-lm's.
"""

import ast
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.nn as nn

from mlx_nb.engine.hooks import own_class
from mlx_nb.shared.code_file import CodeFile
from mlx_nb.shared.errors import CodeError, MlxNbError, ModelError, UnfitWeightsError

_NEEDED = ("Model", "ModelArgs")


class ModelCode:
    """A file that has been run.

    Attributes:
        file: It.
        classes: Its `Model` and `ModelArgs`.
    """

    def __init__(self, file: CodeFile) -> None:
        """Run it.

        Raises:
            CodeError: It is not Python, raises, or defines no model.
        """
        self.file = file
        # The source is shown from here: on another host there is no such file, and on this one it may have changed.
        linecache.cache[file.path] = (len(file.text), None, file.text.splitlines(keepends=True), file.path)
        module = ModuleType(f"{Path(file.path).stem}_under_work")
        sys.modules[module.__name__] = module  # dataclasses look their module up there
        module.__file__ = file.path
        module.__package__ = "mlx_lm.models"  # so that a copy of one of its files runs as it is
        with pointing_at(file):
            exec(compile(file.text, file.path, "exec"), vars(module))
        if lacking := [name for name in _NEEDED if not isinstance(getattr(module, name, None), type)]:
            raise CodeError(
                f"{file.path} defines no class {' and no class '.join(lacking)}.",
                f"Name them as mlx-lm's own files do (mlx_lm/models/llama.py), then {again(file)}",
            )
        self.classes: tuple[Any, Any] = (module.Model, module.ModelArgs)

    def explain(self, error: UnfitWeightsError, model: nn.Module | None) -> CodeError:
        """An error for weights that the code has no place for, or makes places of another shape for."""
        line = _line_of(self.file, model, error.tensor) if model is not None else 0
        where = f"{self.file.path}, line {line}" if line else self.file.path
        return CodeError(
            f"{where}: {error.problem}",
            f"Make that parameter as the files have it (or change Model.sanitize), then {again(self.file)}",
        )


def again(file: CodeFile) -> str:
    """What to type once a file has been mended."""
    if file.again:
        return "type: pipe.reload() (until then the code before goes on)"
    return f"load it again: %mlx_load … --code {file.name} --trust-remote-code"


@contextmanager
def pointing_at(file: CodeFile | None) -> Iterator[None]:
    """Say of what goes wrong inside in which line of a file it did.

    Raises:
        CodeError: Something was raised by the file's own code.
    """
    try:
        yield
    except MlxNbError as error:
        cause = error.__cause__
        if (
            file is None
            or not isinstance(error, ModelError)
            or cause is None
            or not (line := _line(file, cause))
        ):
            raise
        raise _raised(file, line, cause) from cause
    except Exception as error:
        if file is None or not (line := _line(file, error)):
            raise
        raise _raised(file, line, error) from error


def _raised(file: CodeFile, line: int, error: BaseException) -> CodeError:
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    code = linecache.getline(file.path, line).strip()
    return CodeError(
        f"{file.path}, line {line}: {type(error).__name__}: {text[:300]}"
        + (f" ({code[:80]})" if code else "")
        + ".",
        f"Mend it there, then {again(file)}",
    )


def _line(file: CodeFile, error: BaseException) -> int:
    """The innermost line of a file that an error went through; 0 for none."""
    if isinstance(error, SyntaxError) and error.filename == file.path:
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == file.path), 0)


def _line_of(file: CodeFile, model: nn.Module, tensor: str) -> int:
    """The line that makes a parameter, or the module that it lies in; 0 if no code of the file does."""
    found, module = 0, model
    classes = {node.name: node for node in ast.walk(ast.parse(file.text)) if isinstance(node, ast.ClassDef)}
    for part in tensor.split("."):
        if isinstance(module, nn.Module) and (node := classes.get(own_class(module).__name__)):
            found = _assigned(node, part) or found
        try:
            module = module[int(part)] if isinstance(module, list) else module[part]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    return found


def _assigned(node: ast.ClassDef, name: str) -> int:
    """The first line in a class that sets an attribute; 0 for none."""
    for one in ast.walk(node):
        targets = (
            one.targets
            if isinstance(one, ast.Assign)
            else [one.target]
            if isinstance(one, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Attribute) and target.attr == name for target in targets):
            return one.lineno  # type: ignore[attr-defined]
    return 0
