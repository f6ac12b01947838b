"""Tiny models for the engine's tests, made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny model's folder, or gives the one made before: ``tiny("llama", bits=4)``."""

    @cache
    def make(kind: str, **wishes: Any) -> Path:
        return make_tiny(kind, tmp_path_factory.mktemp(kind) / kind, **wishes)

    return make
