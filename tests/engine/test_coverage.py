"""Every architecture of the installed mlx-lm over ranks: exactly what one process gives, or refused.

The spread runs always; all cuts of all architectures with ``python -m pytest -m soak tests/engine/test_coverage.py``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.engine import kv as kv_module
from mlx_nb.engine.cuts import legal_cuts
from mlx_nb.engine.loading import build_model
from mlx_nb.engine.transport import Loopback, LoopbackWorld
from mlx_nb.shared.errors import ModelError, OptionError, PlanError
from mlx_nb.shared.legal import choose_counts
from mlx_nb.shared.plan import split_evenly
from mlx_nb.shared.request import GenerateOptions, RunRequest
from tests.engine.architectures import CONFIGS, METAL, NOT_RUN, REFUSED, WINDOW, build_blank, installed
from tests.engine.in_memory import (
    CHUNK,
    PROMPT,
    Greedy,
    MemoryStage,
    Ranks,
    difference,
    drive,
    one_process,
    splits_of,
)

# Below the window, so that a ring is seen before it is full.
SMALL = 3

RUN = sorted(CONFIGS.keys() - REFUSED.keys())

# One of each kind: windows, experts, latent attention, states, tuples, shared keys and values, shared objects.
SPREAD = (
    "afm7",
    "deepseek_v3",
    "deepseek_v41",
    "falcon_h1",
    "gemma3n",
    "gemma4_text",
    "gpt_oss",
    "hunyuan",
    "llama",
    "llama4",
    "nemotron_h",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv7",
)


def test_every_installed_architecture_is_covered_or_named() -> None:
    assert set(installed()) == CONFIGS.keys() | NOT_RUN.keys()
    assert not CONFIGS.keys() & NOT_RUN.keys()


def test_the_prompt_is_longer_than_the_window_and_comes_in_chunks() -> None:
    assert len(PROMPT) > 2 * CHUNK
    assert len(PROMPT) > WINDOW


@pytest.mark.parametrize("name", SPREAD)
def test_a_spread_of_architectures_is_exact_in_the_middle_and_with_one_layer_a_rank(name: str) -> None:
    ranks = Ranks.of(name)
    wanted = one_process(ranks.models[0])
    count = ranks.cuts.num_layers

    assert not ranks.cuts.refused
    for counts in ([count - count // 2, count // 2], [1] * count):
        assert difference(wanted, ranks.passes(counts)) == 0.0, counts


@pytest.mark.soak
@pytest.mark.parametrize("name", RUN)
def test_every_cut_of_every_architecture_is_exact(name: str) -> None:
    ranks = Ranks.of(name)
    wanted = one_process(ranks.models[0])
    count = ranks.cuts.num_layers

    assert not ranks.cuts.refused
    assert np.abs(wanted[-1]).max() > 0
    for counts in splits_of(count):
        assert difference(wanted, ranks.passes(counts)) == 0.0, counts
    small = one_process(ranks.models[0], SMALL)
    assert difference(small, ranks.passes([count - count // 2, count // 2], SMALL)) == 0.0


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_cannot_be_cut_is_refused_with_the_reason_before_any_weight_is_read(name: str, why: str) -> None:
    cuts = legal_cuts(build_blank(name))
    counts = split_evenly(cuts.num_layers, 2)

    assert cuts.legal == ()
    with pytest.raises(PlanError, match=why) as caught:
        choose_counts(cuts.plain, counts, even=True, model=name)
    assert caught.value.fix == f"Load it on 1 rank: %mlx_load {name} --ranks 1"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_runs_on_one_rank(name: str) -> None:
    ranks = Ranks.of(name, 1)

    assert difference(one_process(ranks.models[0]), ranks.passes([ranks.cuts.num_layers])) == 0.0


@pytest.mark.skipif(mx.metal.is_available(), reason="there is Metal here")
@pytest.mark.parametrize("name", METAL)
def test_what_needs_metal_says_so_before_any_weight_is_read(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} uses Metal kernels, which this machine does not have"):
        legal_cuts(build_blank(name))


def test_a_model_file_that_ends_the_process_does_not_end_the_rank(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "olmo"}')
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros(1)})

    with pytest.raises(ModelError, match="needs a package that is not installed"):
        build_model(tmp_path, trust_remote_code=False)


def test_layers_without_attention_leave_their_kv_caches_alone_and_that_is_said() -> None:
    ranks = Ranks.of("nemotron-nas", 2)
    half = ranks.cuts.num_layers // 2
    world = LoopbackWorld(2)
    stages = [
        MemoryStage(model, transport, [half, ranks.cuts.num_layers - half], ranks.cuts)
        for model, transport in zip(ranks.models, world.transports(), strict=False)
    ]
    request = RunRequest(run_id=1, tokens=PROMPT, options=GenerateOptions(max_tokens=2))
    runs = [stage.open_run(request) for stage in stages]
    runs[-1]._sampler = Greedy()
    drive(runs)
    for stage in stages:
        stage.close()
    parts = [stage.kv_report() for stage in stages]

    whole = replace(parts[1], entries=tuple(entry for part in parts for entry in part.entries))
    assert {entry.unused for entry in whole.entries} == {False, True}
    assert whole.headline == ""


def test_quantised_kv_caches_that_layers_share_are_refused_with_the_reason() -> None:
    ranks = Ranks.of("afm7", 2)
    stage = MemoryStage(ranks.models[0], LoopbackWorld(2).transports()[0], [5, 2], ranks.cuts)

    with pytest.raises(OptionError, match="read the keys and values of earlier ones"):
        stage.open_run(RunRequest(run_id=1, tokens=PROMPT, options=GenerateOptions(kv_bits=8)))
    stage.open_run(RunRequest(run_id=2, tokens=PROMPT, options=GenerateOptions()))  # the control


# Controls: what the suite must notice -----------------------------------------------------------------


def outcome(ranks: Ranks, counts: list[int], wanted: list[np.ndarray], chunk: int = CHUNK) -> float:
    """The difference of a run that may fail: a wrong shape is as good a sign as a wrong number."""
    try:
        return difference(wanted, ranks.passes(counts, chunk))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        return float("inf")


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "llama", "deepseek_v41"])
def test_a_wrong_ghost_offset_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks.of(name, 2)
    wanted = one_process(ranks.models[0], SMALL)
    count = ranks.cuts.num_layers
    counts = [count - 2, 2]
    assert outcome(ranks, counts, wanted, SMALL) == 0.0
    right = kv_module.advance_ghost

    monkeypatch.setattr(kv_module, "advance_ghost", lambda entry, b, length: right(entry, b, length + 1))

    assert outcome(ranks, counts, wanted, SMALL) > 0


@pytest.mark.parametrize(
    ("name", "cut", "part"),
    [
        ("rwkv7", 3, None),
        ("hunyuan", 3, None),
        ("gemma4_text", 6, "returns"),
        ("gemma3n", 6, "writes"),
        ("deepseek_v41", 6, "shared"),
    ],
)
def test_a_hop_that_loses_a_part_is_caught(
    name: str, cut: int, part: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks.of(name, 2)
    wanted = one_process(ranks.models[0])
    counts = [cut, ranks.cuts.num_layers - cut]
    assert difference(wanted, ranks.passes(counts)) == 0.0
    send = Loopback.send

    def lose(self: Loopback, target: int, run_id: int, value: Any) -> None:
        if isinstance(value, dict):
            value = {**value, part: [{} if isinstance(item, dict) else None for item in value[part]]}
        elif isinstance(value, tuple) and isinstance(value[0], mx.array):  # and no token
            value = value[:-1]
        send(self, target, run_id, value)

    monkeypatch.setattr(Loopback, "send", lose)

    assert outcome(ranks, counts, wanted) > 0
