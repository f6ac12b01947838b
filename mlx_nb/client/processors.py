"""A user's own functions on their way to the rank that samples."""

from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.request import GenerateOptions, options_from


def read_options(keywords: dict[str, Any]) -> GenerateOptions:
    """Options out of keyword arguments; functions among them are made fit to travel.

    Raises:
        OptionError: A keyword is unknown, its value out of range, or a function cannot travel.
    """
    given = keywords.get("logits_processors")
    if given is None:
        return options_from({name: value for name, value in keywords.items() if name != "logits_processors"})
    functions: Sequence[Any] = [given] if callable(given) else given
    return options_from({**keywords, "logits_processors": tuple(_packed(one) for one in functions)})


def _packed(function: Callable[..., Any] | bytes) -> bytes:
    """A function as bytes: by its code, so that one from a notebook cell can travel; what it uses goes along."""
    if isinstance(function, bytes):
        return function
    if not callable(function):
        raise OptionError(
            f"A logits processor is a function of tokens and logits, not {function!r}.",
            "Type: logits_processors=[lambda tokens, logits: logits]",
        )
    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise OptionError(
            f"The logits processor {name} cannot be sent to the last rank: {error}.",
            "Let it use plain values only; files, locks and connections cannot travel.",
        ) from error
