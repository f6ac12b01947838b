"""The model's own lines, read from frames."""

import inspect
import sys
from pathlib import Path

from mlx_nb.engine.source import AROUND, calling_frame, source_of_call, source_of_frame


class Module:
    def __call__(self, x: int) -> int:
        return x


def test_the_line_of_a_call_is_found() -> None:
    here = sys._getframe()
    line = here.f_lineno
    source = source_of_frame(here)

    assert source is not None
    assert source.line == line + 1
    assert source.current == "source = source_of_frame(here)"
    assert source.path == __file__
    assert source.function == "test_the_line_of_a_call_is_found"
    assert len(source.lines) == 2 * AROUND + 1
    assert source.lines == tuple(Path(__file__).read_text().splitlines()[line - AROUND : line + AROUND + 1])


def test_a_call_over_several_lines_is_marked_whole() -> None:
    source = source_of_frame(
        sys._getframe(),
    )

    assert source is not None
    assert source.last_line > source.line
    assert source.current == "source = source_of_frame("


def test_a_calls_first_line_stands_for_a_module_that_nobody_calls() -> None:
    source = source_of_call(Module)

    assert source is not None
    assert source.current == "def __call__(self, x: int) -> int:"
    assert source.line == inspect.getsourcelines(Module.__call__)[1]


def test_code_without_a_file_has_no_source() -> None:
    scope: dict[str, object] = {}
    exec("import sys\ndef f():\n    return sys._getframe()", scope)

    assert source_of_frame(scope["f"]()) is None  # type: ignore[operator]
    assert source_of_call(type("Built", (), {"__call__": len})) is None


def test_frames_of_the_engine_are_passed_over() -> None:
    frame = calling_frame()

    assert frame is not None
    assert frame.f_code.co_filename == __file__
