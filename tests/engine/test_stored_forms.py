"""Every form in which a model can be stored, over loopback ranks: exactly what one process computes."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.engine.weights import read_tensors  # before mlx: it loads OpenBLAS
from tests.engine.loopback import generate, logits, make_stages
from tests.one_process import OneProcess
from tests.stored_forms import FORMS, HEADS, NUMBERS, SPREAD, make_stored
from tests.tiny import LAYOUTS

WEIGHTS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def check(form: str, folder: Path, splits: list[list[int]]) -> None:
    """The same logits to the last bit, and the same tokens; dequantised to float32, and as stored."""
    make_stored(form, folder)
    for dtype in (None, "native"):
        alone = OneProcess(folder, None, dtype)
        wanted, tokens = alone.logits(), alone.tokens()
        for split in splits:
            stages = make_stages(folder, split, dtype)
            assert np.abs(logits(stages) - wanted).max() == 0.0, (dtype, split)
            assert generate(stages)[0] == tokens, (dtype, split)


@pytest.mark.parametrize("form", ["mixed bits, tied, sharded, index", "float16, untied, single, index"])
def test_ranks_compute_what_one_process_computes(form: str, tmp_path: Path) -> None:
    check(form, tmp_path / "model", [[2, 2, 1]])


@pytest.mark.soak
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_cut_is_exact(form: str, tmp_path: Path) -> None:
    check(form, tmp_path / "model", [[5], [1, 4], [3, 2], [4, 1], [2, 2, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("form", SPREAD)
def test_a_form_is_what_its_name_says(form: str, tmp_path: Path) -> None:
    """The control of all of these: the files differ as they should."""
    folder = make_stored(form, tmp_path / "model")
    numbers, head, layout = form.split(", ", 2)

    tensors = read_tensors(folder)
    quantization = json.loads((folder / "config.json").read_text()).get("quantization", {})
    bits = {own["bits"] for own in quantization.values() if isinstance(own, dict)} | {
        quantization[name] for name in ("bits",) if name in quantization
    }

    packed = {name for name in tensors if name.endswith(".scales")}
    if numbers in WEIGHTS_DTYPES:
        assert not packed
        assert {tensor.dtype for tensor in tensors.values()} == {WEIGHTS_DTYPES[numbers]}
    elif numbers == "mixed bits":
        assert bits == {4, 6, 8}
        assert "model.layers.1.mlp.up_proj.scales" in packed
        assert "model.layers.2.mlp.up_proj.scales" not in packed
    else:
        assert bits == {int(numbers.split()[0])}
        assert packed
    assert ("lm_head.weight" in tensors) is (head == "untied")
    assert len(list(folder.glob("model*.safetensors"))) == (3 if layout.startswith("sharded") else 1)
    assert (folder / "model.safetensors.index.json").exists() is layout.endswith("index")


def test_the_spread_leaves_nothing_out() -> None:
    parts = [form.split(", ", 2) for form in SPREAD]

    assert {numbers for numbers, _, _ in parts} == set(NUMBERS)
    assert {head for _, head, _ in parts} == set(HEADS)
    assert {layout for _, _, layout in parts} == set(LAYOUTS)
    assert set(SPREAD) <= set(FORMS)
