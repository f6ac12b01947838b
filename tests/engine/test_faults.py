"""Faults come out without a trace, in whatever order, and while a stepper stands inside the model."""

from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten

from mlx_nb.engine.faults import TABLE
from mlx_nb.engine.layers import named_modules
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.faults import faults
from tests.engine.loopback_pipe import LoopbackPipe
from tests.faults.hunt import make


def state(pipe: LoopbackPipe) -> list[Any]:
    """Classes, arrays and settings of all modules."""
    model = pipe.stages[0].model
    found: list[Any] = [(path, type(module)) for path, module in named_modules(model)]
    found += [(name, id(array)) for name, array in tree_flatten(model.parameters())]
    for path, module in named_modules(model):
        plain = {**vars(module), **dict(module)}
        found += [(path, k, v) for k, v in plain.items() if isinstance(v, bool | int | float | str)]
    return [one for one in found if not str(one[1]).startswith("_mlx_nb")]


def test_the_notebook_and_the_ranks_know_the_same_faults() -> None:
    assert sorted(kind.name for kind in faults()) == sorted(TABLE)
    assert "kv_offset" in repr(faults())


def test_every_fault_comes_out_again(tmp_path: Path) -> None:
    pipes = [
        LoopbackPipe(make(kind, tmp_path / kind), [5]) for kind in ("llama", "rwkv7", "qwen3_moe", "gemma2")
    ]
    fitted = set()
    for pipe in pipes:
        before = state(pipe)
        for name in TABLE:
            try:
                fault = pipe.fault(name)
            except OptionError:  # this model has nothing of the kind
                continue
            fitted.add(name)
            assert fault.sites
            fault.remove()
            assert state(pipe) == before, name
        pipe.unload()
    assert fitted == set(TABLE)


def test_faults_on_one_module_come_out_in_any_order(tmp_path: Path) -> None:
    pipe = LoopbackPipe(make("llama", tmp_path / "llama"), [5])
    before = state(pipe)
    first, second, third = (pipe.fault(name, layer=2) for name in ("layer_skipped", "nan", "rope_base"))

    first.remove()

    assert state(pipe) != before
    logits = pipe.logits([1, 2, 3])
    assert logits.shape == (3, 101)
    assert logits[0, 0] != logits[0, 0]  # the second is still in
    third.remove()
    second.remove()
    assert state(pipe) == before
    pipe.unload()


def test_a_fault_goes_in_and_out_while_a_stepper_stands(tmp_path: Path) -> None:
    pipe = LoopbackPipe(make("llama", tmp_path / "llama"), [5])
    before = state(pipe)
    with pipe.begin_at() as dbg:
        dbg.into()
        with pipe.fault("nan", layer=2):
            position = dbg.until("layers.2.output")
            assert position.args[0].summary.nan == 8 if position.args else True
        dbg.token()
        dbg.until("layers.2.mlp.output")
    assert state(pipe) == before
    pipe.unload()


@pytest.mark.parametrize("by", [True, "x"])
def test_a_number_is_a_number(by: Any, tmp_path: Path) -> None:
    pipe = LoopbackPipe(make("llama", tmp_path / "llama"), [5])
    with pytest.raises(OptionError, match="by is a number"):
        pipe.fault("rope_base", by=by)
    pipe.unload()
