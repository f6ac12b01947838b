"""Patches in the notebook: context managers that change values on the ranks, and their files."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cloudpickle
import numpy as np

from mlx_nb.client.arrays import plain_array
from mlx_nb.shared.attention import K, V, names_attention
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.from_json import build
from mlx_nb.shared.patches import FUNCTION, HOW, PatchSpec, TokenWish, parse_tokens
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.text import format_shape, format_table

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

HEAD = ["id", "site", "change", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """What ``path.json`` says; `PatchSpec` has the meaning."""

    mlx_nb: str
    site: str
    how: str
    tokens: tuple[int, ...] | None
    between: bool

    def __post_init__(self) -> None:
        if self.between and len(self.tokens or ()) != 2:
            raise ValueError(f"tokens is {self.tokens}, which is no span")

    @property
    def wish(self) -> TokenWish:
        if self.tokens is None or not self.between:
            return self.tokens
        start, stop = self.tokens
        return slice(start, None if stop < 0 else stop)


class Patch:
    """A change that holds until it is removed; use it as a context manager to be sure that it is."""

    def __init__(self, owner: "Patches", spec: PatchSpec) -> None:
        self._owner = owner
        self.spec = spec

    @property
    def id(self) -> int:
        return self.spec.number

    @property
    def active(self) -> bool:
        """Whether it changes values still."""
        return self.id in self._owner.active

    def remove(self) -> None:
        """Change nothing any more; does nothing the second time."""
        self._owner.remove(self.id)

    def save(self, path: str | Path) -> Path:
        """Write it as ``path.json``, and its array as ``path.safetensors``; `Pipe.load_patch` reads it.

        Raises:
            OptionError: It is a function, which no file can hold.
        """
        from safetensors.numpy import save_file

        spec = self.spec
        if spec.value is None:
            raise OptionError(
                f"The patch at {spec.site} is a function, which cannot be saved.",
                "Save values: pipe.patch(site, 0.5, how='scale')",
            )
        file = Path(path).with_suffix(".json")
        about = {"site": spec.site, "how": spec.how, "tokens": spec.tokens, "between": spec.between}
        save_file({"value": np.ascontiguousarray(spec.value)}, str(file.with_suffix(".safetensors")))
        file.write_text(json.dumps({"mlx_nb": "patch", **about}, indent=1) + "\n")
        return file

    def row(self) -> list[str]:
        """Its row in the table."""
        spec = self.spec
        if spec.value is None:
            change = "a function"
        else:
            what = f"{spec.value.item():g}" if spec.value.ndim == 0 else format_shape(spec.value.shape, ())
            change = f"{spec.how} {what}"
        return [str(self.id), spec.site, change, spec.tokens_text]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "" if self.active else "\n removed"
        return format_table([HEAD, self.row()], right=(0,)) + state


class Patches:
    """All patches of a pipe that are active."""

    def __init__(self, pipe: "Pipe") -> None:
        self._pipe = pipe
        self.active: dict[int, Patch] = {}
        self._last = 0

    def add(self, site: str, what: Any, tokens: TokenWish, how: str) -> Patch:
        """A new one. Arguments and errors as `Pipe.patch`."""
        if how not in HOW:
            raise OptionError(f"A patch cannot {how}.", f"Type one of: {', '.join(HOW)}.")
        first = self._pipe.shards[0]
        pattern = resolve_site(site, first.places, first.layer_paths)
        places, between = parse_tokens(tokens)
        if places is not None and names_attention(pattern) and pattern.rpartition(".")[2] in (K, V):
            raise OptionError(
                f"tokens= cannot choose among the cached keys and values of '{site}': it means the tokens of a pass.",
                "Give a function, which gets all of them: pipe.patch(site, lambda keys: …)",
            )
        function, value = b"", None
        if callable(what) and not hasattr(what, "shape"):
            function, how = _packed(what), FUNCTION
        else:
            value = plain_array(what)
        self._last += 1
        spec = PatchSpec(
            number=self._last,
            site=site,
            pattern=pattern,
            how=how,
            value=value,
            function=function,
            tokens=places,
            between=between,
        )
        self._pipe.call_all("patch", spec)
        self.active[spec.number] = Patch(self, spec)
        return self.active[spec.number]

    def load(self, path: str | Path) -> Patch:
        """One from its files.

        Raises:
            OptionError: They cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = Path(path).with_suffix(".json")
        try:
            about = build(_Saved, json.loads(file.read_text()))
            value = load_file(str(file.with_suffix(".safetensors")))["value"]
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise OptionError(
                f"{file} is no saved patch: {error}.", "Save one: pipe.patch(…).save('name')"
            ) from error
        return self.add(about.site, value, about.wish, about.how)

    def renew(self) -> None:
        """Tell ranks that have loaded the model anew."""
        for one in self.active.values():
            self._pipe.call_all("patch", one.spec)

    def remove(self, number: int) -> None:
        """Take one away; does nothing the second time."""
        if self.active.pop(number, None) is not None and not self._pipe.cluster.remote.ended:
            self._pipe.call_all("unpatch", number)

    def __iter__(self) -> Iterator[Patch]:
        return iter(list(self.active.values()))

    def __len__(self) -> int:
        return len(self.active)

    def __repr__(self) -> str:
        if not self.active:
            return "No patches. Make one: pipe.patch('layers.3.mlp_out', 0)"
        return format_table([HEAD, *(one.row() for one in self)], right=(0,))


def _packed(function: Callable[..., Any]) -> bytes:
    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise OptionError(
            f"The function {getattr(function, '__name__', function)} cannot be sent to the ranks: {error}.",
            "Let it use plain values only; files, locks and connections cannot travel.",
        ) from error
