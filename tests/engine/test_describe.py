"""What a plan says that a rank will hold, against what ranks hold that have loaded the model and run it."""

import json
from itertools import accumulate
from pathlib import Path

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import pytest
from mlx.utils import tree_flatten

from mlx_nb.engine.describe import sizes_of
from mlx_nb.engine.stage import Stage
from tests.engine.architectures import CONFIGS, build
from tests.engine.loopback import PROMPT, generate, make_stages

# The last token is not fed.
TOKENS = 12
CONTEXT = len(PROMPT) + TOKENS - 1


def write(folder: Path, name: str) -> Path:
    """A model folder of one of the tiny architectures."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(build(name).parameters())))
    return folder


def loaded(stages: list[Stage]) -> tuple[list[int], list[int]]:
    """Bytes of weights and of KV caches in use, rank by rank."""
    _, runs = generate(stages, max_tokens=TOKENS)
    kv = []
    for stage, run in zip(stages, runs, strict=True):
        stage.close_run(run.request.run_id)
        by_place = {entry.place: entry.used_bytes for entry in stage.kv_report().entries}
        kv.append(sum(by_place.values()))
    return [stage.weight_bytes for stage in stages], kv


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("gemma3n", ([3, 3, 2], [4, 4])),  # later layers read the KV caches of earlier ones
        ("gemma4_text", ([3, 3, 2], [3, 5])),  # later layers are handed the keys and values of earlier ones
        ("afm7", ([2, 3, 2], [5, 2])),
        ("deepseek_v3", ([2, 2, 2],)),  # keys and values of two widths
        ("falcon_h1", ([2, 2, 2],)),  # KV caches and states in one entry
        ("llama", ([2, 2, 2],)),
        ("mamba2", ([3, 3],)),  # states of fixed size
        ("qwen3_next", ([2, 4],)),
    ],
)
def test_a_plan_counts_what_each_rank_really_holds(
    name: str, splits: tuple[list[int], ...], tmp_path: Path
) -> None:
    folder = write(tmp_path / name, name)
    sizes = sizes_of(name, folder, context=CONTEXT, native=True)

    for split in (*splits, [len(sizes.layers)]):
        ends = list(accumulate(split))
        shares = list(zip([0, *ends[:-1]], ends, strict=True))
        planned = (
            [sizes.weight_bytes(*share) for share in shares],
            [sizes.kv_bytes(*share) for share in shares],
        )
        assert planned == loaded(make_stages(folder, split, "native")), split


def test_weights_of_a_model_that_passes_objects_along_are_those_that_are_read(tmp_path: Path) -> None:
    # Its KV cache class is its own and says nothing of how it grows, so only weights are compared.
    folder = write(tmp_path / "deepseek_v41", "deepseek_v41")
    sizes = sizes_of("deepseek_v41", folder, context=CONTEXT, native=True)

    stages = make_stages(folder, [3, 3, 2], "native")

    assert [sizes.weight_bytes(0, 3), sizes.weight_bytes(3, 6), sizes.weight_bytes(6, 8)] == [
        stage.weight_bytes for stage in stages
    ]


def test_a_model_that_evaluates_in_its_pass_is_counted_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "dbrx", "dbrx")
    sizes = sizes_of("dbrx", folder, context=CONTEXT, native=True)

    whole = sum(value.nbytes for _, value in tree_flatten(build("dbrx").parameters()))
    assert sizes.weight_bytes(0, len(sizes.layers)) == whole


def test_a_plan_says_where_a_model_may_be_cut_and_what_goes_along(tmp_path: Path) -> None:
    folder = write(tmp_path / "gemma3n", "gemma3n")
    cuts = sizes_of("gemma3n", folder, context=CONTEXT, native=True).cuts

    assert cuts == make_stages(folder, [4, 4])[0].loaded().cuts
    assert str(cuts).startswith("before any layer from 1 to 7; with K/V of 1 KV cache before ")
    assert cuts.along.keys() < set(cuts.legal)  # before the first layers that share, nothing goes along
