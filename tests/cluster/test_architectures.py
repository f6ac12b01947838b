"""Architectures over real MPI ranks, from files: shared memory and TCP, uneven cuts, a prompt in three chunks."""

import json
from pathlib import Path
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlx_nb.client.cluster import Cluster
from tests.cluster.conftest import loaded
from tests.engine.architectures import CONFIGS, build

pytestmark = [pytest.mark.cluster]

# Sliding windows, experts, SSM and conv states, latent attention, tuples, shared keys and values.
NAMES = [
    "llama", "qwen3", "qwen3_moe", "gemma3", "gemma3n", "gemma4_text", "gpt_oss", "qwen3_next", "mamba2",
    "deepseek_v3", "llama4", "rwkv7", "hunyuan", "nemotron_h", "falcon_h1",
]  # fmt: skip
SPREAD = ("gemma3n", "qwen3_next", "rwkv7")
CHUNK, DECODED = 8, 5
PROMPT = [(7 * place + 3) % 97 for place in range(21)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Writes a tiny model of an architecture to a folder, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (folder / "config.json").write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
            weights = dict(tree_flatten(build(name).parameters()))
            mx.save_safetensors(str(folder / "model.safetensors"), weights)
            made[name] = folder
        return made[name]

    return make


def one_process(folder: Path) -> tuple[np.ndarray, list[int]]:
    """The logits of the prompt in the same chunks, and the tokens that follow, by mlx-lm alone."""
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    kv = make_prompt_cache(model)
    rows, tokens = [], []
    for start in range(0, len(PROMPT), CHUNK):
        rows.append(
            np.array(model(mx.array(PROMPT[start : start + CHUNK])[None], cache=kv)[0].astype(mx.float32))
        )
    tokens.append(int(rows[-1][-1].argmax()))
    for _ in range(DECODED - 1):
        logits = model(mx.array([[tokens[-1]]]), cache=kv)
        tokens.append(int(mx.argmax(logits[0, -1]).item()))
    return np.concatenate(rows), tokens


def check(cluster: Cluster, folder: Path, **wishes: Any) -> None:
    """Over the ranks: the same logits to the last bit, and the same tokens."""
    logits, tokens = one_process(folder)
    with loaded(cluster, folder, **wishes) as pipe:
        assert np.abs(pipe.logits(PROMPT, chunk=CHUNK) - logits).max() == 0.0
        gen = pipe.generate(PROMPT, max_tokens=DECODED, prefill_step_size=CHUNK)
    shown = tokens[: len(gen.token_ids)]  # a stop token of the configuration ends it early
    assert gen.token_ids == shown
    assert len(shown) == DECODED or gen.finish_reason == "stop"


@pytest.mark.parametrize("name", SPREAD)
def test_three_ranks_over_tcp_are_exact(tcp3: Cluster, folder_of: Any, name: str) -> None:
    check(tcp3, folder_of(name))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("link", ["shared memory, 2 ranks", "shared memory, 3 ranks", "tcp, 3 ranks"])
def test_every_listed_architecture_is_exact_over_mpi(
    link: str, name: str, folder_of: Any, request: pytest.FixtureRequest
) -> None:
    cluster = request.getfixturevalue("tcp3" if "tcp" in link else "cluster3")

    check(cluster, folder_of(name), ranks=2 if "2" in link else None)
