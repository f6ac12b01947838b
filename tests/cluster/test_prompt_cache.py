"""A prompt cache is saved under one split and loaded under another, and mlx-lm reads and writes the same file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError, PromptCacheError
from tests.cluster import mlx_lm_caches
from tests.cluster.conftest import loaded
from tests.cluster.reference import IDS, PROMPTS

pytestmark = [pytest.mark.cluster]

THEN, COUNT = [3, 77, 12, 50, 9, 41, 8, 20, 33], 10
SPLITS = {"qwen3": [1, 2, 2], "gemma3": [1, 4, 2], "rwkv7": [2, 1, 2], "deepseek_v3": [1, 3, 1]}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.soak if kind == "deepseek_v3" else ()) for kind in SPLITS]
)
def test_any_split_and_mlx_lm_go_on_alike(
    cluster3: Cluster, tcp3: Cluster, tiny_folders: Path, tmp_path: Path, kind: str
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    with loaded(cluster3, tiny_folders / kind, ranks=2) as two:
        two.generate(IDS, max_tokens=1, prefill_step_size=8)  # the KV caches hold the prompt alone
        assert two.save_prompt_cache(tmp_path / "ours") == ours
        here = two.generate(THEN, max_tokens=COUNT, prompt_cache=ours)
        whole = two.generate([*IDS, *THEN], max_tokens=COUNT)
    assert here.token_ids == whole.token_ids
    assert (here.reused, here.prompt_ids) == (len(IDS), [*IDS, *THEN])
    with loaded(tcp3, tiny_folders / kind, split=SPLITS[kind]) as three:
        cache = three.load_prompt_cache(ours)
        assert cache.tokens == tuple(IDS)
        assert three.generate(THEN, max_tokens=COUNT, prompt_cache=cache).token_ids == whole.token_ids
        assert len(cache) == len(IDS) + len(THEN) + COUNT - 1  # it has grown, as mlx-lm's does
        assert three.generate(THEN, max_tokens=COUNT, prompt_cache=str(ours)).token_ids == whole.token_ids

        program = [sys.executable, mlx_lm_caches.__file__, str(tiny_folders / kind), str(ours), str(theirs)]
        words = [json.dumps(value) for value in (IDS, THEN, COUNT)]
        ran = subprocess.run([*program, *words], check=True, timeout=120, capture_output=True, text=True)
        assert json.loads(ran.stdout) == [whole.token_ids, whole.token_ids]

        foreign = three.load_prompt_cache(theirs)
        assert three.generate(THEN, max_tokens=COUNT, prompt_cache=foreign).token_ids == whole.token_ids
        # The control: without it the tokens are others.
        assert three.generate(THEN, max_tokens=COUNT).token_ids != whole.token_ids
    with loaded(cluster3, tiny_folders / kind, ranks=1) as one:
        assert one.generate(THEN, max_tokens=COUNT, prompt_cache=ours).token_ids == whole.token_ids


@pytest.mark.parametrize("kind", ["qwen3", "rwkv7"])
def test_every_way_to_run_goes_on_with_it(
    cluster3: Cluster, tiny_folders: Path, tmp_path: Path, kind: str
) -> None:
    with loaded(cluster3, tiny_folders / kind, split=SPLITS[kind]) as pipe:
        wanted = pipe.generate([*IDS, *THEN], max_tokens=COUNT).token_ids
        pipe.generate(IDS, max_tokens=1)
        file = pipe.save_prompt_cache(tmp_path / "cache")
        assert pipe.generate(THEN, max_tokens=COUNT).token_ids != wanted  # the control

        wishes = {"max_tokens": COUNT, "prompt_cache": file}
        assert [piece.token for piece in pipe.stream(THEN, **wishes)] == wanted
        assert pipe.start(THEN, **wishes).wait(60).token_ids == wanted
        assert pipe.trace(THEN, sites="layers.1.output", **wishes).gen.token_ids == wanted
        with pipe.debug(THEN, prefill_step_size=4, **wishes) as dbg:
            first = dbg.position
            assert (first.start, dbg.gen.reused) == (len(IDS), len(IDS))
            here = dbg.until("layers.4.output")
            dbg.token(3)
            if kind == "qwen3":
                with pytest.raises(OptionError, match="tokens have been fed after the prompt cache"):
                    dbg.trim(dbg.position.start)
            for place in (here, first):
                dbg.back(place)
                assert dbg.position.where == place.where
                dbg.run()
                assert dbg.gen.token_ids == wanted
            dbg.restart()
            dbg.run()
            assert dbg.gen.token_ids == wanted
        cache = pipe.load_prompt_cache(file)
        pipe.break_at("layers.4.output", token=len(IDS) + len(THEN), once=True)
        assert pipe.generate(THEN, max_tokens=COUNT, prompt_cache=cache).state == "stopped"
        current.dbg.run()  # type: ignore[union-attr]
        assert pipe.last.token_ids == wanted
        assert len(cache) == len(IDS) + len(THEN) + COUNT - 1
        with pipe.debug([5, 6], max_tokens=3, prompt_cache=cache) as dbg:
            dbg.run()
        assert len(cache) == len(IDS) + len(THEN) + COUNT - 1 + 2 + 2


def test_text_after_a_prompt_cache_and_trim(pipe2: Pipe, tmp_path: Path) -> None:
    ids = pipe2.encode(PROMPTS[8])
    whole = pipe2.generate(ids, max_tokens=8)
    pipe2.generate(ids[:30], max_tokens=4)
    kv = pipe2.kv_cache().trim(8)  # of 33 tokens, 25 are left
    assert {entry.offset for entry in kv} == {25}
    file = pipe2.save_prompt_cache(tmp_path / "trimmed")

    cache = pipe2.load_prompt_cache(file)
    assert cache.tokens == tuple(ids[:25])
    assert "25 tokens" in repr(cache)
    gen = pipe2.generate(ids[25:], max_tokens=8, prompt_cache=cache)
    assert gen.token_ids == whole.token_ids
    assert gen.stats is not None
    assert (gen.stats.reused_tokens, gen.stats.prompt_tokens) == (25, len(ids) - 25)
    run = pipe2.start(ids[25:], max_tokens=8, prompt_cache=file)
    assert run.wait(60).token_ids == whole.token_ids
    cache.close()
    with pytest.raises(PromptCacheError, match="There are no KV caches"):
        len(cache)


@pytest.mark.soak
def test_quantised_and_rotating_ones_too(cluster3: Cluster, pipe2: Pipe, tmp_path: Path) -> None:
    ids = pipe2.encode(PROMPTS[8])
    for name, options in {"packed": {"kv_bits": 8}, "ring": {"max_kv_size": 24}}.items():
        pipe2.generate(ids[:-9], max_tokens=1, **options)
        file = pipe2.save_prompt_cache(tmp_path / name)
        wanted = pipe2.generate(ids[-9:], max_tokens=6, prompt_cache=file, **options)
        kept = pipe2.kv_cache()[17].class_name
        with loaded(cluster3, "smollm2", split=[7, 12, 11]) as three:
            got = three.generate(ids[-9:], max_tokens=6, prompt_cache=file, **options)

            assert got.token_ids == wanted.token_ids
            assert three.kv_cache()[17].class_name == kept != "KVCache"


def test_what_is_wrong_with_a_file_is_said(cluster2: Cluster, tiny_folders: Path, tmp_path: Path) -> None:
    with loaded(cluster2, tiny_folders / "qwen3") as pipe:
        with pytest.raises(PromptCacheError, match="There are no KV caches of a run here"):
            pipe.save_prompt_cache(tmp_path / "none")
        pipe.generate(IDS, max_tokens=1)
        file = pipe.save_prompt_cache(tmp_path / "qwen3")
        with pytest.raises(PromptCacheError, match="cannot be written"):
            pipe.save_prompt_cache(tmp_path / "no" / "folder")
        assert [found.name for found in tmp_path.iterdir()] == ["qwen3.safetensors"]
        short, text = tmp_path / "short.safetensors", tmp_path / "text.safetensors"
        short.write_bytes(file.read_bytes()[:-500])
        text.write_text("no tensors at all")
        weights = tiny_folders / "qwen3" / "model.safetensors"
        for path, message in (
            (tmp_path / "missing", "There is no file .*missing.safetensors on rank 0's host"),
            (short, "short.safetensors is truncated"),
            (text, "text.safetensors is not a safetensors file"),
            (weights, "is no prompt cache of mlx-lm's"),
        ):
            with pytest.raises(PromptCacheError, match=message):
                pipe.generate(THEN, prompt_cache=path)
        with pytest.raises(PromptCacheError, match="A prompt cache cannot be a int"):
            pipe.generate(THEN, prompt_cache=3)
        with pytest.raises(OptionError):
            pipe.generate(THEN, prompt_cache=file, max_token=3)
        assert len(pipe.generate(THEN, max_tokens=2, prompt_cache=file).token_ids) == 2
    with (
        loaded(cluster2, tiny_folders / "gemma3") as other,
        pytest.raises(
            PromptCacheError, match=r"made with another model than .*: it has 5 KV caches, the model 7"
        ),
    ):
        other.load_prompt_cache(file)
