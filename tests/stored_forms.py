"""How a model can be stored: its numbers, its head, its files."""

from pathlib import Path
from typing import Any

from tests.tiny import LAYOUTS, make_tiny, store

NUMBERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "4 bits": {"bits": 4},
    "6 bits": {"bits": 6, "dtype": "bfloat16"},
    "8 bits": {"bits": 8, "dtype": "float16"},
    "mixed bits": {"bits": "mixed"},
}
HEADS = {"tied": "llama", "untied": "llama_untied"}
FORMS = [f"{numbers}, {head}, {layout}" for numbers in NUMBERS for head in HEADS for layout in LAYOUTS]

# Every kind of numbers, both heads and every layout at least twice.
SPREAD = [
    "float32, untied, sharded, index",
    "bfloat16, tied, sharded",
    "float16, untied, single",
    "4 bits, tied, sharded, index",
    "6 bits, untied, single, index",
    "8 bits, tied, single, index",
    "mixed bits, untied, sharded",
    "mixed bits, tied, single",
]


def make_stored(form: str, folder: Path) -> Path:
    """A tiny llama stored in one of `FORMS`."""
    numbers, head, layout = form.split(", ", 2)
    return store(make_tiny(HEADS[head], folder, **NUMBERS[numbers]), layout)
