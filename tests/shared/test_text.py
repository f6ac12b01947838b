"""Sizes, shapes and tables; and every example in a docstring of the shared modules."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import mlx_nb.shared
from mlx_nb.shared.text import first_words, format_number, format_size, format_table

MODULES = [f"mlx_nb.shared.{found.name}" for found in pkgutil.iter_modules(mlx_nb.shared.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "mlx_nb.client.magics.trailing"])
def test_examples_in_docstrings_are_right(name: str) -> None:
    found = doctest.testmod(import_module(name))

    assert found.failed == 0


def test_there_are_examples_and_a_wrong_one_would_fail() -> None:
    assert doctest.testmod(import_module("mlx_nb.shared.text")).attempted >= 8
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda _text: None).failed == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1024**2, "1.0 MiB"), (10 * 1024**2, "10 MiB"), (1024**3, "1.0 GiB")],
)  # fmt: skip
def test_sizes_change_their_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.5, "-0.50"), (12.34, "12.3"), (-812.4, "-812"), (1e7, "1e+07"), (0.004, "0.0040"), (float("nan"), "nan"), (float("-inf"), "-inf")],
)  # fmt: skip
def test_numbers_have_about_four_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_tables_align_and_may_be_ragged() -> None:
    assert format_table([["a", "1"], ["long", "22", "x"], ["b"]], right=(1,)) == " a      1\n long  22  x\n b"
    assert format_table([]) == ""


def test_long_prompts_are_cut_on_one_line() -> None:
    assert first_words("a\nb") == "a b"
    assert len(first_words("word " * 50, 20)) <= 21
