"""Standing inside a module: every submodule's class swapped for one that reports entry and exit.

The swap happens when the first probe opens and is undone when the last closes, so a free run with
no probe anywhere costs nothing. While one run is stepped, another passes through at the price of one
look-up per module.
"""

from functools import cache
from typing import Any

import mlx.nn as nn

from mlx_nb.engine.attention import unwatch_attention, watch_attention
from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.layers import named_modules
from mlx_nb.engine.stubs import stub_class

_PATH = "_mlx_nb_path"
_USERS = "_mlx_nb_users"
_HOOKED = "_mlx_nb_unhooked"


class Hooks:
    """The hooks of one model; counts who needs them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._users = 0
        self._hooked: list[nn.Module] = []
        self._files: list[dict[str, Any]] = []

    def acquire(self) -> None:
        """One more probe is open."""
        self._users += 1
        if self._users > 1:
            return
        self._files = watch_attention(self._model)
        seen: set[int] = set()
        for path, module in named_modules(self._model):
            if id(module) in seen:
                continue  # a module reachable by two paths keeps its first name
            seen.add(id(module))
            self._hooked.append(module)
            users = getattr(module, _USERS, 0)
            object.__setattr__(module, _USERS, users + 1)
            if users:
                continue  # two models may share a module: mlx-lm's experts share one default activation
            object.__setattr__(module, _PATH, path)
            base = getattr(type(module), "_mlx_nb_base", None)
            # A stub stays outermost: layers of other ranks are never reported, a hop comes after the exit.
            cls: Any = type(module)
            module.__class__ = stub_class(hooked_class(base)) if base else hooked_class(cls)

    def release(self) -> None:
        """One probe has closed; the last one gives the modules their classes back."""
        self._users -= 1
        if self._users == 0:
            for module in self._hooked:
                users = getattr(module, _USERS) - 1
                object.__setattr__(module, _USERS, users)
                if users == 0:
                    # What it is now: a fault may have been put in or taken out since.
                    own: Any = own_class(module)
                    module.__class__ = stub_class(own) if is_stub(module) else own
            self._hooked.clear()
            unwatch_attention(self._files)


def is_stub(module: nn.Module) -> bool:
    """Whether a module knows its place in the pipeline."""
    return hasattr(type(module), "_mlx_nb_base")


def own_class(module: nn.Module) -> type:
    """A module's class below the stub and the hook."""
    cls: Any = getattr(type(module), "_mlx_nb_base", type(module))
    own: type = getattr(cls, _HOOKED, cls)
    return own


def set_own_class(module: nn.Module, own: Any) -> None:
    """Change a module's class below the stub and the hook, whether or not there are any."""
    hooked = hasattr(getattr(type(module), "_mlx_nb_base", type(module)), _HOOKED)
    cls: Any = hooked_class(own) if hooked else own
    module.__class__ = stub_class(cls) if is_stub(module) else cls


@cache
def hooked_class(base: Any) -> type:
    """A subclass that reports its calls to the probe of the run that makes them. One for each class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = ACTIVE.get()
        probe = run.probe if run is not None else None
        if probe is None:
            return base.__call__(self, *args, **kwargs)
        return probe.call(self, getattr(self, _PATH), base, args, kwargs)

    return type(base.__name__, (base,), {"__call__": call, "__module__": base.__module__, _HOOKED: base})
