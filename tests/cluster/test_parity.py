"""The same answers as one process: on 1, 2 and 3 ranks, over shared memory and TCP, in several chunks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import PromptError
from tests.cluster.conftest import loaded
from tests.cluster.reference import IDS, MAX_TOKENS, PENALTY, PROMPTS, SAMPLING, SEED, TINY, TINY_TOKENS

pytestmark = [pytest.mark.cluster]

SPLITS: dict[int, Any] = {1: [30], 2: [13, 17], 3: [7, 12, 11]}
LONG = len(PROMPTS) - 1

# Other chunk boundaries alone move SmolLM2's logits by up to 6e-5 under OpenBLAS; they reach about 30.
LOGITS_TOLERANCE = 5e-4


@pytest.fixture(
    scope="module",
    params=[pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak), 3],
    ids=lambda ranks: f"{ranks} ranks",
)
def pipe(request: pytest.FixtureRequest, cluster3: Cluster) -> Iterator[Pipe]:
    """smollm2 over some of the ranks of one cluster."""
    with loaded(cluster3, "smollm2", ranks=request.param, split=SPLITS[request.param]) as found:
        yield found


def differences(pipe: Pipe, reference: dict[str, Any], places: list[int], **options: Any) -> list[str]:
    """Where a pipe's answers are not those of one process; empty if they all are."""
    found = []
    for place in places:
        wanted = reference["answers"][place]
        gen = pipe.generate(PROMPTS[place], max_tokens=MAX_TOKENS[place], **options)
        got = [gen.prompt_ids, gen.token_ids, gen.text, gen.finish_reason]
        if got != [wanted[name] for name in ("prompt_ids", "token_ids", "text", "finish")]:
            found.append(f"{PROMPTS[place][:40]!r}: {gen.token_ids} is not {wanted['token_ids']}")
    return found


def test_ten_prompts_give_the_tokens_of_one_process(pipe: Pipe, reference: dict[str, Any]) -> None:
    # The control: the answers differ from each other, end in both ways, and one prompt takes three chunks.
    assert len({tuple(answer["token_ids"]) for answer in reference["answers"]}) == len(PROMPTS)
    assert {answer["finish"] for answer in reference["answers"]} == {"stop", "length"}
    assert len(reference["answers"][LONG]["prompt_ids"]) > 2 * pipe.shards[0].prefill_step_size

    assert differences(pipe, reference, list(range(len(PROMPTS)))) == []


def test_small_chunks_give_the_same_tokens(pipe3: Pipe, reference: dict[str, Any]) -> None:
    assert len(reference["answers"][8]["prompt_ids"]) > 2 * 24

    assert differences(pipe3, reference, [8], prefill_step_size=24) == []
    assert differences(pipe3, reference, [0], prefill_step_size=1) == []
    assert differences(pipe3, reference, [LONG], prefill_step_size=32) == []


def test_over_tcp_the_tokens_are_the_same(tcp_pipe3: Pipe, reference: dict[str, Any]) -> None:
    assert differences(tcp_pipe3, reference, [0, 8, LONG]) == []


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("chunk", [None, 8], ids=["one chunk", "three chunks"])
def test_other_architectures_give_the_same_tokens(
    cluster3: Cluster, tiny_folders: Path, reference: dict[str, Any], kind: str, chunk: int | None
) -> None:
    with loaded(cluster3, tiny_folders / kind) as tiny:
        gen = tiny.generate(IDS, max_tokens=TINY_TOKENS, prefill_step_size=chunk)

        assert gen.token_ids == reference["tiny"][kind]
        assert len(set(gen.token_ids)) > 5  # the control: the model does not say the same for ever
        with pytest.raises(PromptError, match="takes token ids only"):
            tiny.generate("text")


def test_sampling_with_a_seed_draws_what_mlx_lm_draws(pipe3: Pipe, reference: dict[str, Any]) -> None:
    options = {"max_tokens": MAX_TOKENS[2], **SAMPLING}
    wanted = reference["sampled"]["token_ids"]
    assert wanted != reference["answers"][2]["token_ids"]  # the control: sampling is not greedy here

    assert pipe3.generate(PROMPTS[2], seed=SEED, **options).token_ids == wanted
    assert pipe3.generate(PROMPTS[2], seed=SEED, **options).token_ids == wanted
    assert pipe3.generate(PROMPTS[2], seed=SEED + 1, **options).token_ids != wanted


def test_the_repetition_penalty_reaches_the_sampler(pipe3: Pipe, reference: dict[str, Any]) -> None:
    wanted = reference["penalised"]["token_ids"]
    assert wanted != reference["answers"][2]["token_ids"]

    gen = pipe3.generate(PROMPTS[2], max_tokens=MAX_TOKENS[2], repetition_penalty=PENALTY)

    assert gen.token_ids == wanted


@pytest.mark.parametrize("chunk", [None, 16, 5], ids=["one chunk", "three chunks", "eight chunks"])
def test_logits_are_those_of_one_process(pipe3: Pipe, reference: dict[str, Any], chunk: int | None) -> None:
    wanted = reference["logits"]

    logits = pipe3.logits(PROMPTS[0], chunk=chunk)

    assert logits.dtype == np.float32
    assert logits.shape == wanted.shape
    assert np.abs(logits - wanted).max() < LOGITS_TOLERANCE
    assert np.abs(np.roll(logits, 1, axis=0) - wanted).max() > 1  # the control: one token further is far off


def test_a_list_of_prompts_gives_a_list_of_answers(pipe3: Pipe, reference: dict[str, Any]) -> None:
    both = pipe3.generate([PROMPTS[0], PROMPTS[3]], max_tokens=4)

    assert [gen.token_ids for gen in both] == [reference["answers"][i]["token_ids"][:4] for i in (0, 3)]


def test_pieces_come_one_by_one_with_mlx_lms_fields(pipe3: Pipe, reference: dict[str, Any]) -> None:
    wanted = reference["answers"][0]

    pieces = list(pipe3.stream(PROMPTS[0], max_tokens=MAX_TOKENS[0]))

    assert [piece.token for piece in pieces] == wanted["token_ids"]
    assert "".join(piece.text for piece in pieces) == wanted["text"]
    assert [piece.generation_tokens for piece in pieces] == list(range(1, len(pieces) + 1))
    assert {piece.finish_reason for piece in pieces[:-1]} == {None}
    assert pieces[-1].finish_reason == wanted["finish"]
    assert pipe3.last is not None
    assert pipe3.last.text == wanted["text"]
    assert pipe3.last.stats is not None
    assert len(pipe3.last.stats.peak_memory_bytes) == 3


def test_two_pipes_stand_side_by_side(
    cluster3: Cluster, pipe3: Pipe, reference: dict[str, Any], tiny_folders: Path
) -> None:
    with loaded(cluster3, tiny_folders / "gemma3") as tiny:
        assert differences(pipe3, reference, [0]) == []
        assert tiny.generate(IDS, max_tokens=4).token_ids == reference["tiny"]["gemma3"][:4]
    assert differences(pipe3, reference, [0]) == []


# One position off in the KV cache of one rank: what the parity check is there to catch.
SHIFT = """
(run,) = stage.runs.values()
for entry, layer in zip(run.kv, range(len(run.kv))):
    if layer in stage.shard.layers:
        entry.offset += {by}
"""


@pytest.mark.parametrize("by", [0, 1], ids=["untouched", "one off on rank 1"])
def test_a_kv_cache_that_is_one_off_is_caught(pipe3: Pipe, reference: dict[str, Any], by: int) -> None:
    with pipe3.debug(PROMPTS[4], max_tokens=MAX_TOKENS[4]) as dbg:
        dbg.token(3)
        assert dbg.position.start == len(dbg.gen.prompt_ids) + 2
        pipe3.cluster[1].execute(SHIFT.format(by=by), block=True)
        dbg.run()

        same = dbg.gen.token_ids == reference["answers"][4]["token_ids"]
        offsets = [{kv.offset for kv in outcome.kv} for _, outcome in sorted(dbg.ranks.items())]
    expected = len(dbg.gen.prompt_ids) + len(dbg.gen.token_ids) - 1
    assert offsets == [{expected}, {expected + by}, {expected}]
    assert same is (by == 0)
