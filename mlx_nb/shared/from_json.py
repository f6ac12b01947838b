"""Plain data out of a file that anybody may have written: every value is of the type that its record declares."""

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(kind: type[T], value: Any) -> T:
    """A record, from what `json.loads` has made of it.

    Args:
        kind: A dataclass whose fields are numbers, strings, booleans, tuples, lists, optional values, or such dataclasses.
        value: A dict with its fields; those with a default may be missing.

    Raises:
        ValueError: A field is missing, unknown, or of another type.
    """
    return _take(kind, value, kind.__name__)


def _take(kind: Any, value: Any, name: str) -> Any:
    if kind in (int, str, bool):
        if type(value) is kind:  # True is an int for isinstance
            return value
    elif kind is float:
        if type(value) in (int, float):
            return value
    elif kind is type(None):
        if value is None:
            return value
    elif is_dataclass(kind):
        if isinstance(value, dict):
            return _record(kind, value, name)
    elif get_origin(kind) in (Union, types.UnionType):
        return _either(get_args(kind), value, name)
    elif isinstance(value, list):
        kinds = get_args(kind)
        if get_origin(kind) is list:
            return [_take(kinds[0], one, name) for one in value]
        if kinds[1:] == (...,):
            return tuple(_take(kinds[0], one, name) for one in value)
        if len(kinds) == len(value):
            return tuple(_take(one, item, name) for one, item in zip(kinds, value, strict=True))
    raise ValueError(f"{name} is {value!r:.40}, which is no {getattr(kind, '__name__', kind)}")


def _either(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    for kind in kinds:
        try:
            return _take(kind, value, name)
        except ValueError:
            continue
    raise ValueError(f"{name} is {value!r:.40}")


def _record(kind: Any, value: dict[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{name} has no {sorted(unknown)[0]!r:.40}")
    missing = [
        one.name
        for one in fields(kind)
        if one.name not in value and one.default is MISSING and one.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{name} lacks {missing[0]}")
    return kind(**{key: _take(hints[key], item, f"{name}.{key}") for key, item in value.items()})
