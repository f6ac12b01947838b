"""Over ranks, a model computes exactly what it computes in one process: difference 0.0, nothing less."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_nb.engine import kv as kv_module  # before mlx: it loads OpenBLAS
from mlx_nb.engine.kv import make_kv_cache
from mlx_nb.engine.run import Run
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import Loopback
from tests.engine.loopback import CHUNK, PROMPT, drive, generate, logits, make_stages, request_for
from tests.tiny import CONFIGS

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.generate import generate_step  # isort: skip
from mlx_lm.utils import dequantize_model, load_model  # isort: skip

# How a model is stored, and what it computes in (None: float32 on a CPU, dequantised).
VARIANTS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    **{kind: (kind, {}, None) for kind in CONFIGS},
    "llama 4 bits": ("llama", {"bits": 4}, None),
    "llama 8 bits, packed": ("llama", {"bits": 8}, "native"),
    "untied 4 bits, packed": ("llama_untied", {"bits": 4}, "native"),
    "llama bfloat16": ("llama", {"dtype": "bfloat16"}, "native"),
    "gemma3 bfloat16": ("gemma3", {"dtype": "bfloat16"}, "native"),
}
# A spread of how models are built and stored; the others are in the soak tier, as all architectures are.
SPREAD = ("llama", "qwen3_moe", "gemma3", "rwkv7", "llama 4 bits", "untied 4 bits, packed", "gemma3 bfloat16")
CUTS = {
    4: [[4], [3, 1], [1, 3], [1, 2, 1]],
    5: [[5], [3, 2], [1, 4], [4, 1], [2, 2, 1], [1, 3, 1]],
    7: [[7], [4, 3], [1, 6], [6, 1], [3, 3, 1]],
}

Tiny = Callable[..., Path]


class OneProcess:
    """What mlx-lm makes of the prompt without any of this package's code."""

    def __init__(self, folder: Path, dtype: str | None) -> None:
        self.model, _ = load_model(folder)
        if dtype is None:
            if "quantization" in json.loads((folder / "config.json").read_text()):
                self.model = dequantize_model(self.model)
            self.model.set_dtype(mx.float32)
        self.names = {name for name, _ in tree_flatten(self.model.parameters())}

    def logits(self, chunk: int = CHUNK) -> np.ndarray:
        kv = make_kv_cache(self.model)
        chunks = [PROMPT[start : start + chunk] for start in range(0, len(PROMPT), chunk)]
        rows = [self.model(mx.array(chunk)[None], cache=kv)[0].astype(mx.float32) for chunk in chunks]
        return np.concatenate([np.array(row) for row in rows])

    def tokens(self) -> list[int]:
        return [int(token) for token, _ in generate_step(mx.array(PROMPT), self.model, max_tokens=12)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, id=name.replace(" ", "_"), marks=[] if name in SPREAD else pytest.mark.soak)
        for name in VARIANTS
    ],
)
def case(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[Path, str | None, OneProcess]:
    kind, wishes, dtype = VARIANTS[request.param]
    folder = tiny(kind, **wishes)
    return folder, dtype, OneProcess(folder, dtype)


def test_logits_and_tokens_are_exactly_those_of_one_process(
    case: tuple[Path, str | None, OneProcess],
) -> None:
    folder, dtype, alone = case
    wanted, tokens = alone.logits(), alone.tokens()
    assert len(set(tokens)) > 3  # the control: the model does not repeat itself
    assert np.ptp(wanted) > 1
    for split in CUTS[CONFIGS[folder.name]["num_hidden_layers"]]:
        stages = make_stages(folder, split, dtype)

        assert np.abs(logits(stages) - wanted).max() == 0.0, split
        got, runs = generate(stages)
        assert got == tokens, split
        for run in runs:
            offsets = {kv.offset for kv in run.kv_offsets()}
            assert offsets <= {len(PROMPT) + len(got) - 1, -1}, (split, run.stage.rank)


def test_every_parameter_is_read_by_one_rank(case: tuple[Path, str | None, OneProcess]) -> None:
    folder, dtype, alone = case
    tied = CONFIGS[folder.name]["tie_word_embeddings"]
    for split in CUTS[CONFIGS[folder.name]["num_hidden_layers"]]:
        stages = make_stages(folder, split, dtype)

        layers = [layer for stage in stages for layer in stage.shard.layers]
        assert layers == list(range(sum(split)))
        readers = Counter(name for stage in stages for name in stage.owned)
        assert set(readers) == alone.names
        shared = {name.rpartition(".")[0] for name, count in readers.items() if count > 1}
        assert all("embed" in name or "per_layer" in name for name in shared), shared
        assert bool(shared) == (tied and len(split) > 1)
        # What gemma4 gives every layer beside its input comes from the token ids: every rank computes it.
        assert max(readers.values()) <= (len(split) if folder.name == "gemma4_text" else 2)


def poisoned(folder: Path, to: Path, names: set[str]) -> Path:
    """A copy of a model folder in which some tensors are all NaN."""
    shutil.copytree(folder, to)
    tensors = mx.load(str(to / "model.safetensors"))
    assert isinstance(tensors, dict)
    changed = {name: value * mx.nan if name in names else value for name, value in tensors.items()}
    mx.eval(changed)
    mx.save_safetensors(str(to / "new.safetensors"), changed)
    (to / "new.safetensors").replace(to / "model.safetensors")
    return to


@pytest.mark.parametrize("kind", ["llama", "gemma3", "rwkv7", "qwen3_moe"])
def test_other_ranks_weights_change_nothing(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    folder = tiny(kind)
    count = CONFIGS[kind]["num_hidden_layers"]
    split = [2, 2, count - 4]
    stages = make_stages(folder, split)
    wanted = logits(stages)
    every = OneProcess(folder, None).names
    for rank, stage in enumerate(stages):
        foreign = poisoned(folder, tmp_path / f"foreign{rank}", every - set(stage.owned))
        others = list(stages)
        others[rank] = Stage(kind, foreign, stage.transport, split=split)
        assert np.array_equal(logits(others), wanted)

        own = poisoned(folder, tmp_path / f"own{rank}", {sorted(stage.owned)[-1]})  # the control
        others[rank] = Stage(kind, own, stage.transport, split=split)
        assert np.isnan(logits(others)).any()


def test_a_ghost_that_is_one_off_breaks_a_sliding_window(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("gemma3")
    chunk = 3  # below the window of 8, so that a ring is seen before it is full
    wanted = OneProcess(folder, None).logits(chunk)
    stages = make_stages(folder, [4, 3])
    assert np.array_equal(logits(stages, chunk), wanted)
    right = kv_module.advance_ghost

    monkeypatch.setattr(
        kv_module, "advance_ghost", lambda entry, batch, length: right(entry, batch, length + 1)
    )

    try:
        same = np.array_equal(logits(stages, chunk), wanted)
    except ValueError as error:  # a mask of the wrong length does not even fit
        same = "broadcast" not in str(error).lower()
    assert not same


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("by", [0, 1])
def test_a_kv_offset_that_is_one_off_is_caught(tiny: Tiny, kind: str, by: int) -> None:
    folder = tiny(kind)
    wanted = OneProcess(folder, None).tokens()
    stages = make_stages(folder, [2, CONFIGS[kind]["num_hidden_layers"] - 2])
    shifted: list[int] = []

    def shift(runs: list[Run]) -> None:
        if not shifted and len(runs[1].tokens) == len(PROMPT) + 3:
            for layer in stages[1].shard.layers:
                runs[1].kv[layer].offset += by
                shifted.append(layer)

    request = request_for()
    runs = drive([stage.open_run(request) for stage in stages], shift)

    assert shifted
    assert (runs[1].tokens[len(PROMPT) :] == wanted) is (by == 0)
    expected = len(PROMPT) + len(wanted) - 1
    assert {kv.offset for kv in runs[1].kv_offsets()} == {expected + by}


@pytest.mark.parametrize("change", ["keep", "swap", "drop"])
def test_all_that_a_layer_returns_crosses(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    folder = tiny("rwkv7")
    wanted = OneProcess(folder, None).logits()
    send = Loopback.send

    def lose(self: Loopback, target: int, run_id: int, value: Any) -> None:
        hidden, first = value
        changed = {"keep": (hidden, first), "swap": (hidden, mx.zeros_like(first)), "drop": (hidden,)}
        send(self, target, run_id, changed[change])

    stages = make_stages(folder, [2, 3])
    monkeypatch.setattr(Loopback, "send", lose)

    if change == "drop":
        with pytest.raises(ValueError, match="unpack"):
            logits(stages)
    else:
        assert np.array_equal(logits(stages), wanted) is (change == "keep")
