"""The dimensions of Qwen3-1.7B-8bit on two ranks: layers, hop, memory, tokens and logits as mlx-lm's in one process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mlx_nb
from mlx_nb.client.cluster import Cluster
from tests import qwen3
from tests.cluster.conftest import loaded

pytestmark = [pytest.mark.cluster]

# The logits reach about 5; chunk boundaries alone move them by some 1e-5.
LOGITS_TOLERANCE = 2e-4
GROUPED = (
    qwen3.GROUP * qwen3.BITS // 8 + 2 * 4
)  # bytes of a group: packed weights, a scale and a bias in float32


def packed(parameters: int) -> int:
    """Bytes of so many quantised parameters."""
    return parameters // qwen3.GROUP * GROUPED


NORMS = sum(qwen3.NORMS.values())
LAYER_BYTES = packed(qwen3.LAYER_PARAMETERS - NORMS) + 4 * NORMS
HALF = 14 * LAYER_BYTES + packed(qwen3.EMBEDDING_PARAMETERS)  # the tied embedding is read on both ends


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The checkpoint, for as long as one test takes: it is two gigabytes."""
    made = qwen3.make_qwen3(tmp_path / "Qwen3-1.7B-8bit")
    yield made
    (made / "model.safetensors").unlink()


@contextmanager
def one_process(folder: Path, *options: str) -> Iterator[Callable[[], tuple[list[int], np.ndarray]]]:
    """What mlx-lm makes of it, in a process that works while the block runs."""
    file = folder / "reference.npz"
    command = [sys.executable, qwen3.__file__, str(folder), str(file), *options]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env={**os.environ, **one_thread})

    def result() -> tuple[list[int], np.ndarray]:
        assert process.wait(timeout=240) == 0
        found = np.load(file)
        return found["tokens"].tolist(), found["logits"]

    try:
        yield result
    finally:
        process.kill()
        process.wait()


def memory(cluster: Cluster) -> list[int]:
    """Bytes that MLX holds on each rank."""

    def held() -> int:
        import mlx.core as mx

        return int(mx.get_active_memory())

    return [cluster[rank].apply_sync(held) for rank in range(len(cluster))]


def check_parity(logits: np.ndarray, tokens: list[int], wanted: np.ndarray) -> None:
    """Compare the logits of every position, the prompt's and those of the tokens that were fed after it."""
    assert logits.shape == wanted.shape == (10, qwen3.VOCABULARY)
    assert np.abs(logits - wanted).max() < LOGITS_TOLERANCE
    assert np.abs(np.roll(logits, 1, axis=0) - wanted).max() > 1  # the control: one token further is far off
    assert [int(row.argmax()) for row in logits[-2:]] == tokens


def test_qwen3_1_7b_8bit_over_two_ranks(cluster2: Cluster, folder: Path) -> None:
    plan = mlx_nb.plan(str(folder), hosts=["mini1:16GB", "mini2:16GB"])
    assert [shard.layers for shard in plan.shards] == [range(14), range(14, 28)]
    assert [shard.weight_bytes for shard in plan.shards] == [HALF, HALF + 4 * qwen3.HIDDEN]

    before = memory(cluster2)
    with one_process(folder, "--packed") as reference, loaded(cluster2, folder, dtype="native") as pipe:
        assert [shard.layers for shard in pipe.shards] == [(0, 14), (14, 28)]
        assert [shard.weight_bytes for shard in pipe.shards] == [shard.weight_bytes for shard in plan.shards]
        for shard, now, then in zip(plan.shards, memory(cluster2), before, strict=True):
            assert now - then == pytest.approx(shard.weight_bytes, rel=0.02)
        with pipe.debug(qwen3.PROMPT, max_tokens=qwen3.DECODED) as dbg:
            hop = dbg.rank()
            assert hop.kind == "recv"
            assert hop.rank == 1
            assert hop.summary.shape == (1, 9, 2048)
            assert hop.hop.size_bytes == 9 * 2048 * 4
        # Two chunks and a decoded token: what was generated, and the logits of every position, in one run.
        trace = pipe.trace(
            qwen3.PROMPT, sites="logits", max_tokens=qwen3.DECODED, prefill_step_size=qwen3.CHUNK
        )
        tokens, wanted = reference()
        assert trace.gen.token_ids == tokens
        check_parity(trace["logits"].numpy()[0], tokens, wanted)


@pytest.mark.soak
def test_qwen3_1_7b_8bit_in_float32(cluster2: Cluster, folder: Path) -> None:
    with one_process(folder) as reference:
        tokens, wanted = reference()  # first, and alone: 8 GiB
    with loaded(cluster2, folder) as pipe:
        assert pipe.dtype == "float32"
        logits = pipe.logits(qwen3.PROMPT + tokens[:-1], chunk=qwen3.CHUNK)
        check_parity(logits, tokens, wanted)
        gen = pipe.generate(qwen3.PROMPT, max_tokens=qwen3.DECODED, prefill_step_size=qwen3.CHUNK)
        assert gen.token_ids == tokens
