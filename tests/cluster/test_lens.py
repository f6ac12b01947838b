"""The logit lens over real ranks, against norm and head on every layer's hidden states in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.client.live_view import live_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.lens import Lens
from tests.cluster import layers_alone
from tests.cluster.conftest import loaded
from tests.cluster.reference import IDS

pytestmark = [pytest.mark.cluster]

PROMPT, CHUNK = "What is the capital of France?", 16


def alone(folder: str, ids: list[int], positions: list[int], into: Path) -> np.ndarray:
    """``[layers, P, V]``: mlx-lm in one process, the same chunks."""
    chunks = [ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK)]
    arguments = [json.dumps(chunks), json.dumps(positions), str(into / "logits.npy")]
    program = [sys.executable, str(layers_alone.__file__), folder, str(into / "layers.npy"), *arguments]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(program, check=True, timeout=120, env={**os.environ, **one_thread})
    return np.load(into / "logits.npy").astype(np.float64)


def agree(lens: Lens, logits: np.ndarray) -> bool:
    """Whether a lens says of every layer and position what these logits say."""
    rows = slice(-len(logits), None)
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    best = np.argsort(-chances, axis=-1, kind="stable")[..., : lens.ids.shape[-1]]
    entropy = -(chances * np.log2(np.maximum(chances, 1e-300))).sum(axis=-1)
    return bool(
        (lens.ids[rows, :, 0] == best[..., 0]).all()
        and np.allclose(lens.probabilities[rows], np.take_along_axis(chances, best, -1), rtol=1e-3, atol=1e-6)
        and np.allclose(lens.entropy_bits[rows], entropy, rtol=1e-3, atol=1e-3)
    )


@pytest.fixture(scope="module")
def smollm2_alone(pipe2: Pipe, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    ids = pipe2.tokens(PROMPT).ids
    return alone(pipe2.path, list(ids), [3, 20, len(ids) - 1], tmp_path_factory.mktemp("alone"))


def test_every_layer_of_every_rank_reads_as_in_one_process(pipe: Pipe, smollm2_alone: np.ndarray) -> None:
    lens = pipe.lens(PROMPT, tokens=[3, 20, -1], top=5, prefill_step_size=CHUNK)

    assert lens.rows == ("embed", *map(str, range(30)))
    assert lens.ranks == (0, *(shard.rank for shard in pipe.plan.shards for _ in shard.layers))
    assert agree(lens, smollm2_alone)
    # Controls: a layer too late, and another position.
    assert not agree(lens, np.roll(smollm2_alone, 1, axis=0))
    assert not agree(lens, np.roll(smollm2_alone, 1, axis=1))
    answer = pipe.generate(PROMPT, max_tokens=1)
    assert lens.read[-1].answer == answer.token_ids[0]
    assert lens.top(-1)[0][0] == answer.text


@pytest.mark.parametrize("ranks", ["cluster2", "cluster3"])
def test_a_model_that_scales_its_embedding_and_has_no_tokenizer(
    ranks: str, tiny_folders: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tiny_folders / "gemma3"
    expected = alone(str(folder), IDS, [0, 9, 20], tmp_path)
    with loaded(request.getfixturevalue(ranks), folder) as pipe:
        lens = pipe.lens(IDS, tokens=[0, 9, 20], top=5, prefill_step_size=CHUNK)

        assert set(lens.ranks) == set(range(pipe.num_ranks))
        assert agree(lens, expected)
        assert not agree(lens, np.roll(expected, 1, axis=0))  # the control
        assert lens.fed == (IDS[0], IDS[9], IDS[20])
        assert repr(lens).startswith(f"Lens {pipe.name} · 8 rows × 3 positions · rank 0: embed–")


def test_what_a_run_generated_can_be_read_and_nothing_is_left_behind(pipe2: Pipe) -> None:
    before = pipe2.generate(PROMPT, max_tokens=4)
    lens = pipe2.lens(PROMPT, max_tokens=4)

    assert [one.answer for one in lens.read[-4:]] == before.token_ids
    assert list(lens.fed[-3:]) == before.token_ids[:3]
    assert pipe2.generate(PROMPT, max_tokens=4).token_ids == before.token_ids
    with pytest.raises(MlxNbError, match="No pass fed token 99"):
        pipe2.lens(PROMPT, tokens=99)
    assert pipe2.generate(PROMPT, max_tokens=4).token_ids == before.token_ids


def test_its_view_shows_a_prompt_a_lens_or_the_last_run(pipe2: Pipe) -> None:
    before = len(live_views)
    gen = pipe2.generate(PROMPT, max_tokens=5)
    pipe2.show("lens")
    pipe2.show("lens", PROMPT, tokens=[-1], top=3)
    made = pipe2.lens(PROMPT, tokens=-1)
    pipe2.show("lens", made)

    last, prompt, same = (one.view for one in live_views[before:])
    last_position = len(gen.prompt_ids) + len(gen.token_ids) - 2
    assert last.state["columns"][-1]["position"] == last_position
    assert [column["answer"] for column in last.state["columns"]][-5:][0] == "The"
    assert prompt.state["top"] == 3
    assert len(prompt.state["columns"]) == 1
    assert same.text() == repr(made)
    for one in live_views[before:]:
        one.freeze()
