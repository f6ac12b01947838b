"""Traces on real ranks, against mlx-lm in one process: a prompt in three chunks, then generated tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.client.pipe import Pipe
from mlx_nb.client.trace import Trace
from tests.cluster import layers_alone

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"
TOKENS, CHUNK = 4, 16


def traced(pipe: Pipe) -> Trace:
    return pipe.trace(
        PROMPT, sites="layers.*.resid_post,recv,send", max_tokens=TOKENS, prefill_step_size=CHUNK
    )


@pytest.fixture(scope="module")
def alone(pipe2: Pipe, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What each layer returns in one process: ``[layers, 1, L, D]``."""
    gen = pipe2.generate(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK)
    prompt = gen.prompt_ids
    chunks = [prompt[at : at + CHUNK] for at in range(0, len(prompt), CHUNK)]
    assert len(chunks) == 3
    chunks += [[token] for token in gen.token_ids[:-1]]
    out = tmp_path_factory.mktemp("alone") / "layers.npy"
    program = [sys.executable, str(layers_alone.__file__), pipe2.path, str(out), json.dumps(chunks)]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(program, check=True, timeout=120, env={**os.environ, **one_thread})
    found: np.ndarray = np.load(out)
    return found


def test_every_layer_is_what_one_process_computes(pipe: Pipe, alone: np.ndarray) -> None:
    plain = pipe.generate(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK)

    trace = traced(pipe)

    assert trace.gen.token_ids == plain.token_ids
    assert trace.gen.timeline is not None  # chunks still overlap: it was a free run
    stack = trace["layers.*.resid_post"]
    assert stack.rank == tuple(range(pipe.num_ranks))
    np.testing.assert_array_equal(stack.numpy(), alone)
    np.testing.assert_array_equal(stack[5:, 0, ::7, -3:], alone[5:, 0, ::7, -3:])
    assert not np.array_equal(trace["layers.14.output"].numpy(), alone[15])  # the control: another layer
    # What one rank sends is what the next one gets: the last layer before each cut.
    cuts = [shard.layers[1] - 1 for shard in pipe.shards[:-1]]
    for site in ("send", "recv"):
        crossing = trace[site].numpy().reshape(len(cuts), *alone.shape[1:])
        np.testing.assert_array_equal(crossing, alone[cuts])


def test_a_file_opens_without_a_cluster_and_without_mlx(
    pipe2: Pipe, alone: np.ndarray, tmp_path: Path
) -> None:
    path = traced(pipe2).save(tmp_path / "trace")
    program = f"""
import sys
for name in ("mlx", "mlx.core", "mlx_lm", "mpi4py", "ipyparallel"):
    sys.modules[name] = None
import numpy as np
import mlx_nb
trace = mlx_nb.open_trace({str(path)!r})
np.save({str(tmp_path / "back.npy")!r}, trace["layers.*.resid_post"])
print(trace["layers.3.resid_post"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )

    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), alone)
    assert ran.stdout.startswith("Capture model.layers.3.output (resid_post) · rank 0 · tokens 0:40")
    assert "in a file" in ran.stdout


def test_attention_on_its_rank_is_that_of_its_queries_and_keys(pipe: Pipe) -> None:
    sites = [f"layers.20.{name}" for name in ("pattern", "rot_q", "rot_k", "sdpa.v", "sdpa.z")]
    trace = pipe.trace(PROMPT, sites=sites, max_tokens=TOKENS, prefill_step_size=CHUNK)
    for token in (16, 38):  # in the second chunk, and in a decoded token
        q, k, v, z = (trace[site, token].numpy()[0] for site in sites[1:])
        start, stop = trace[sites[0], token].tokens
        scores = np.stack([q[head] @ k[head // 3].T / np.sqrt(64) for head in range(9)])
        scores[:, np.arange(k.shape[1])[None] > np.arange(start, stop)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        seen = trace[sites[0], token]

        np.testing.assert_allclose(seen.numpy()[0], weights, atol=1e-6)
        np.testing.assert_allclose(z, [weights[head] @ v[head // 3] for head in range(9)], atol=1e-5)
        assert seen.rank == next(shard.rank for shard in pipe.plan.shards if 20 in shard.layers)
        assert seen.reconstruction_error is not None
        assert seen.reconstruction_error < 1e-6
    with pipe.debug(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK) as dbg:
        dbg.until("layers.20.pattern", token=38)
        np.testing.assert_array_equal(dbg.value[0], seen.numpy()[0])
    assert trace.gen.token_ids == pipe.generate(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK).token_ids


def test_a_background_run_and_one_that_steps_are_recorded(pipe: Pipe, alone: np.ndarray) -> None:
    with pipe.trace(sites="layers.20.resid_post") as trace:
        pipe.start(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK).wait()
        with pipe.debug(PROMPT, max_tokens=TOKENS, prefill_step_size=CHUNK) as dbg:
            dbg.until("layers.20.output")
            dbg.run()

    assert trace.runs == [0, 1]
    for run in trace.runs:
        np.testing.assert_array_equal(trace.at("layers.20.resid_post", run=run).numpy(), alone[20])
