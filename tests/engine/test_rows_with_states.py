"""Several prompts at once on models with states: each row is as alone, or the model is refused."""

import json
from dataclasses import replace
from pathlib import Path

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import pytest
from mlx.utils import tree_flatten

from mlx_nb.engine.stage import Stage
from mlx_nb.shared.errors import OptionError
from tests.engine.architectures import CONFIGS, build
from tests.engine.loopback import drive, make_stages, request_for

PROMPTS = [tuple((7 * i + 3) % 97 for i in range(21)), (5, 9, 14, 60, 2), tuple((5 * i + 1) % 97 for i in range(13))]  # fmt: skip
MORE = [
    "falcon_h1",
    "granitemoehybrid",
    "lfm2",
    "lfm2_moe",
    "kimi_linear",
    "qwen3_5",
    "kimi_k3",
    "bailing_hybrid",
]


def stages_of(name: str, folder: Path) -> list[Stage]:
    (folder / "config.json").write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
    model = build(name)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    count = len(model.layers)
    return make_stages(folder, [count // 2, count - count // 2])


def rows(stages: list[Stage], *prompts: tuple[int, ...]) -> list[list[int]]:
    request = replace(
        request_for(max_tokens=6, prefill_step_size=8), tokens=prompts[0], others=tuple(prompts[1:])
    )
    runs = drive([stage.open_run(request) for stage in stages])
    found = [row.generated for row in runs[-1].batch.rows]
    for stage in stages:
        stage.close_run(request.run_id)
    return found


@pytest.mark.parametrize(
    "name", ["mamba2", "nemotron_h", "qwen3_next", *(pytest.param(name, marks=pytest.mark.soak) for name in MORE)]
)  # fmt: skip
def test_padding_leaves_no_trace_in_a_rows_states(name: str, tmp_path: Path) -> None:
    stages = stages_of(name, tmp_path)
    alone = [rows(stages, prompt)[0] for prompt in PROMPTS]

    assert rows(stages, *PROMPTS) == alone
    assert len({tuple(one) for one in alone}) == 3
    # The control: with the padding as text the second row would be another.
    assert rows(stages, (0,) * 16 + PROMPTS[1])[0] != alone[1]


@pytest.mark.parametrize("name", ["rwkv7", "jamba", "olmo_hybrid"])
def test_others_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="its states would take the padding for text"):
        rows(stages_of(name, tmp_path), *PROMPTS)
