"""Every stride on real ranks: where it stops, what stands there, and that the tokens stay those of a free run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.debugger import Debugger
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError, RunError, RunFinished, SiteError
from mlx_nb.shared.position import Position

PROMPT = "What is the capital of France?"
PROMPT_TOKENS = 37
TOKENS = 4

pytestmark = [pytest.mark.cluster]


def short(position: Position) -> str:
    """A position on one line: phase, tokens, rank, site."""
    return f"{position.phase} {position.start}:{position.stop} r{position.rank} {position.site}"


@pytest.fixture
def dbg(pipe2: Pipe) -> Iterator[Debugger]:
    """Stands before the embedding; layers 0–14 are on rank 0, 15–29 on rank 1."""
    with pipe2.debug(PROMPT, max_tokens=TOKENS) as stepper:
        yield stepper


@pytest.fixture(scope="module")
def free_tokens(pipe2: Pipe) -> list[int]:
    """What a free run says."""
    tokens: list[int] = pipe2.generate(PROMPT, max_tokens=TOKENS).token_ids
    assert len(set(tokens)) == TOKENS
    return tokens


def test_debug_stands_before_the_embedding(dbg: Debugger) -> None:
    assert short(dbg.position) == "prefill 0:37 r0 model.embed_tokens.input"
    assert str(dbg.args[0]).startswith("x  [B 1, L 37] int32  min ")
    assert dbg.value.tolist() == [dbg.gen.prompt_ids]
    assert dbg.gen.state == "stopped"
    assert current.dbg is dbg
    assert dbg.position.ranks[0].text == dbg.position.ranks[1].text == "37 pending"


def test_into_goes_to_every_entry_and_exit(dbg: Debugger) -> None:
    seen = [short(dbg.into()).removeprefix("prefill 0:37 r0 ") for _ in range(20)]

    attention = "model.layers.0.self_attn"
    assert seen == [
        "model.embed_tokens.output",
        "model.layers.0.input",
        "model.layers.0.input_layernorm.input",
        "model.layers.0.input_layernorm.output",
        f"{attention}.input",
        f"{attention}.q_proj.input",
        f"{attention}.q_proj.output",
        f"{attention}.k_proj.input",
        f"{attention}.k_proj.output",
        f"{attention}.v_proj.input",
        f"{attention}.v_proj.output",
        f"{attention}.rope#1.input",
        f"{attention}.rope#1.output",
        f"{attention}.rope#2.input",
        f"{attention}.rope#2.output",
        f"{attention}.o_proj.input",
        f"{attention}.o_proj.output",
        f"{attention}.output",
        "model.layers.0.post_attention_layernorm.input",
        "model.layers.0.post_attention_layernorm.output",
    ]
    assert [frame.class_name for frame in dbg.position.stack] == [
        "Model",
        "LlamaModel",
        "TransformerBlock",
        "RMSNorm",
    ]


def test_over_goes_to_the_modules_exit_and_then_stays_at_its_depth(dbg: Debugger) -> None:
    seen = [short(dbg.over()).removeprefix("prefill 0:37 r0 model.") for _ in range(4)]

    assert seen == ["embed_tokens.output", "layers.0.input", "layers.0.output", "layers.1.input"]
    dbg.into()
    assert short(dbg.over()).endswith("layers.1.input_layernorm.output")
    assert short(dbg.over()).endswith("layers.1.self_attn.input")  # over an exit, to the next stop beside it


def test_out_goes_to_the_exit_around(dbg: Debugger) -> None:
    dbg.until("layers.2.self_attn.k_proj.input")

    assert short(dbg.out()).endswith("r0 model.layers.2.self_attn.output")
    assert short(dbg.out()).endswith("r0 model.layers.2.output")
    assert short(dbg.out()) == "prefill 0:37 r1 model.output"  # the model itself: over all other layers
    assert short(dbg.out()) == "prefill 0:37 r1 logits"
    assert short(dbg.out()) == "decode 37:38 r0 model.embed_tokens.input"


def test_layer_goes_to_the_next_layers_output_over_the_hop_too(dbg: Debugger) -> None:
    assert short(dbg.layer()).endswith("r0 model.layers.0.output")
    assert short(dbg.layer(3)).endswith("r0 model.layers.3.output")
    assert short(dbg.layer(11)).endswith("r0 model.layers.14.output")
    assert short(dbg.layer()) == "prefill 0:37 r1 model.layers.15.output"
    with pytest.raises(OptionError, match="A stride of 0 goes nowhere"):
        dbg.layer(0)


def test_send_and_recv_are_stops_and_carry_the_same_value(dbg: Debugger) -> None:
    dbg.until("layers.14.output")
    left = dbg.value

    assert short(dbg.into()) == "prefill 0:37 r0 send"
    sent, hop = dbg.value, dbg.position.hop
    assert hop is not None
    assert (hop.source, hop.target, hop.size_bytes) == (0, 1, 37 * 576 * 4)
    assert dbg.source() == "No code is on this stop: it lies between the ranks."
    assert short(dbg.into()) == "prefill 0:37 r1 recv"
    received = dbg.value
    assert short(dbg.into()) == "prefill 0:37 r1 model.layers.15.input"

    assert left.shape == (1, 37, 576)
    for value in (sent, received, dbg.value):
        assert np.array_equal(value, left)
    dbg.over()
    assert not np.array_equal(dbg.value, left)  # the control: a layer changes it


def test_rank_goes_to_the_recv_on_the_next_rank(dbg: Debugger) -> None:
    assert short(dbg.rank()) == "prefill 0:37 r1 recv"
    assert [kv.text for kv in dbg.position.ranks] == ["37 written", "37 pending"]
    assert "kv" in str(dbg.position)
    assert str(dbg.position).splitlines()[-1].endswith("rank 0: 37 written · rank 1: 37 pending")
    assert short(dbg.rank()) == "decode 37:38 r1 recv"


def test_token_goes_to_the_start_of_the_next_pass(dbg: Debugger, free_tokens: list[int]) -> None:
    assert short(dbg.token()) == "decode 37:38 r0 model.embed_tokens.input"
    assert dbg.value.tolist() == [[free_tokens[0]]]
    assert dbg.gen.token_ids == free_tokens[:1]
    assert [kv.text for kv in dbg.position.ranks] == ["37 written + 1 pending"] * 2
    assert short(dbg.token(2)) == "decode 39:40 r0 model.embed_tokens.input"
    assert dbg.gen.token_ids == free_tokens[:3]
    end = dbg.token()
    assert (end.kind, dbg.done, dbg.gen.token_ids) == ("end", True, free_tokens)


def test_a_prompt_in_chunks_is_several_passes(pipe2: Pipe) -> None:
    with pipe2.debug(PROMPT, max_tokens=TOKENS, prefill_step_size=15) as dbg:
        seen = [short(dbg.position)] + [short(dbg.token()) for _ in range(3)]

    assert seen == [
        "prefill 0:15 r0 model.embed_tokens.input",
        "prefill 15:30 r0 model.embed_tokens.input",
        "prefill 30:37 r0 model.embed_tokens.input",
        "decode 37:38 r0 model.embed_tokens.input",
    ]


def test_until_takes_a_site_an_alias_a_glob_or_a_number(dbg: Debugger) -> None:
    assert short(dbg.until("layers.3.self_attn.output")).endswith("r0 model.layers.3.self_attn.output")
    assert short(dbg.until("layers.4.attn_out")).endswith("r0 model.layers.4.self_attn.output")
    assert short(dbg.until("blocks.5.hook_resid_post")).endswith("r0 model.layers.5.output")
    assert short(dbg.until("layers.*.mlp.down_proj.input")).endswith("layers.6.mlp.down_proj.input")
    assert short(dbg.until(layer=16)) == "prefill 0:37 r1 model.layers.16.input"
    assert short(dbg.until(rank=0)) == "decode 37:38 r0 input"  # of the model itself
    assert short(dbg.until(token=39)) == "decode 39:40 r0 input"
    assert short(dbg.until("layers.20.mlp.output", token=39)) == "decode 39:40 r1 model.layers.20.mlp.output"


def test_until_says_what_it_cannot_find(dbg: Debugger) -> None:
    before = dbg.position
    with pytest.raises(SiteError) as error:
        dbg.until("layers.3.attn.output")
    assert str(error.value) == (
        "No site 'layers.3.attn.output'. Did you mean layers.3.self_attn.output (alias layers.3.attn_out)?"
    )
    for wrong in ({"layer": 30}, {"rank": 2}, {}):
        with pytest.raises(OptionError):
            dbg.until(**wrong)
    assert dbg.position is before
    assert short(dbg.into()).endswith("model.embed_tokens.output")


def test_run_finishes_with_the_free_runs_tokens(dbg: Debugger, free_tokens: list[int]) -> None:
    dbg.until("layers.20.mlp.output")

    end = dbg.run()

    assert (end.kind, dbg.done, dbg.gen.state, dbg.gen.finish_reason) == ("end", True, "finished", "length")
    assert dbg.gen.token_ids == free_tokens
    assert dbg.gen is dbg.pipe.last
    assert {kv.offset for _, outcome in dbg.ranks.items() for kv in outcome.kv} == {
        PROMPT_TOKENS + TOKENS - 1
    }
    for past_the_end in (dbg.into, dbg.run, lambda: dbg.value):
        with pytest.raises(RunFinished, match=r"finished with 4 tokens.*dbg\.restart"):
            past_the_end()


@pytest.mark.parametrize("stride", ["layer", "rank", "over"])
def test_stepping_to_the_end_gives_the_free_runs_tokens(
    dbg: Debugger, free_tokens: list[int], stride: str
) -> None:
    stops = 0
    while not dbg.done:
        getattr(dbg, stride)()
        stops += 1

    assert dbg.gen.token_ids == free_tokens
    assert dbg.gen.text == dbg.pipe.generate(PROMPT, max_tokens=TOKENS).text
    least = {"layer": 30 * TOKENS, "rank": TOKENS, "over": 60 * TOKENS}[stride]
    assert stops > least - 1


def test_every_entry_has_its_exit_over_both_ranks(pipe2: Pipe) -> None:
    with pipe2.debug([504], max_tokens=1) as dbg:
        seen = [dbg.position]
        while not dbg.done:
            seen.append(dbg.into())

    assert [p.site for p in seen if p.kind in ("send", "recv")] == ["send", "recv"]
    assert [p.layer for p in seen if p.site.endswith("self_attn.output")] == list(range(30))
    stack: list[tuple[str, int]] = []
    for position in seen:
        if position.kind == "input":
            stack.append((position.module, position.call))
        elif position.kind == "output" and stack:
            assert stack.pop() == (position.module, position.call)
    assert seen[-2].site == "logits"
    assert len(seen) > 800


def test_a_generate_in_between_disturbs_nothing(dbg: Debugger, free_tokens: list[int]) -> None:
    here = short(dbg.until("layers.20.mlp.output", token=38))
    before = dbg.value

    gen = dbg.pipe.generate(PROMPT, max_tokens=TOKENS)
    other = dbg.pipe.generate("Name three colours.", max_tokens=3)

    assert gen.token_ids == free_tokens
    assert other.token_ids != free_tokens[:3]
    assert short(dbg.position) == here
    assert np.array_equal(dbg.value, before)
    dbg.run()
    assert dbg.gen.token_ids == free_tokens


def test_values_have_the_shapes_of_their_sites(dbg: Debugger) -> None:
    shapes = {
        "layers.0.self_attn.q_proj.output": (1, 37, 576),
        "layers.0.self_attn.k_proj.output": (1, 37, 192),
        "layers.0.self_attn.rope.input": (1, 9, 37, 64),
        "layers.0.mlp.down_proj.input": (1, 37, 1536),
        "layers.29.output": (1, 37, 576),
        "logits": (1, 37, 49152),
    }
    for site, shape in shapes.items():
        dbg.until(site)
        assert dbg.value.shape == shape, site
        assert not dbg.value.flags.writeable
        summary = dbg.position.summary
        assert summary is not None
        assert summary.shape == shape
        assert np.isclose(summary.max, dbg.value.max())
        assert dbg.value[summary.max_at] == np.float32(summary.max)
    assert dbg.position.summary.axes == ("B", "L", "V")


def test_rope_stands_twice_and_names_what_it_rotates(dbg: Debugger) -> None:
    first = dbg.until("layers.15.self_attn.rope.input")
    assert short(first) == "prefill 0:37 r1 model.layers.15.self_attn.rope#1.input"
    assert [arg.name for arg in first.args] == ["x", "offset"]
    assert first.args[0].summary is not None
    assert first.args[0].summary.shape_text == "[B 1, H 9, L 37, 64] float32"
    assert str(first.args[1]) == "offset=0"
    second = dbg.until("layers.15.self_attn.rope.input")
    assert short(second) == "prefill 0:37 r1 model.layers.15.self_attn.rope#2.input"
    assert second.args[0].summary is not None
    assert second.args[0].summary.shape_text == "[B 1, K 3, L 37, 64] float32"


def test_the_source_is_the_models_own_file(dbg: Debugger) -> None:
    dbg.until("layers.15.self_attn.rope.input")

    source = dbg.position.source
    assert source is not None
    assert (source.file, source.function) == ("llama.py", "Attention.__call__")
    assert Path(source.path).parts[-3:] == ("mlx_lm", "models", "llama.py")
    assert Path(source.path).read_text().splitlines()[source.line - 1].strip() == source.current
    assert source.current == "queries = self.rope(queries, offset=cache.offset)"
    assert f"{source.line:>5} -> " in dbg.source()
    assert "code  llama.py" in str(dbg.position)


def test_p_evaluates_in_the_models_own_frame(dbg: Debugger) -> None:
    dbg.until("layers.15.self_attn.rope.input", token=38)

    assert str(dbg.p("cache.offset")) == "cache.offset=38"
    assert str(dbg.p("self.n_heads * 2")) == "self.n_heads * 2=18"
    keys = dbg.p("keys")
    assert keys.summary is not None
    assert keys.summary.shape == (1, 3, 1, 64)
    assert {"queries", "keys", "values", "x", "cache"} <= {arg.name for arg in dbg.locals}
    with pytest.raises(RunError, match="nonsense raises NameError"):
        dbg.p("nonsense")
    assert dbg.where().splitlines()[-1].split()[:2] == ["→", "RoPE"]
    dbg.into()


def test_kv_texts_follow_the_pass(dbg: Debugger) -> None:
    texts = [[kv.text for kv in dbg.position.ranks]]
    for site in ("layers.3.output", "send", "recv", "layers.15.output", "logits"):
        texts.append([kv.text for kv in dbg.until(site).ranks])

    assert texts == [
        ["37 pending", "37 pending"],
        ["37 pending in 11 of 15 layers", "37 pending"],
        ["37 written", "37 pending"],
        ["37 written", "37 pending"],
        ["37 written", "37 pending in 14 of 15 layers"],
        ["37 written", "37 written"],
    ]


def test_a_second_debug_closes_the_first_with_a_note(pipe2: Pipe) -> None:
    first = pipe2.debug(PROMPT, max_tokens=TOKENS)
    first.until("layers.2.output")

    with pipe2.debug(PROMPT, max_tokens=TOKENS) as second:
        note = "The stepper that stood at prefill 0:37 · rank 0 · model.layers.2.output was closed."
        assert second.note == note
        assert repr(second).startswith(note)
        assert first.closed
        with pytest.raises(RunFinished, match="was closed"):
            first.into()
        assert short(second.into()).endswith("model.embed_tokens.output")
    assert second.closed
    assert current.dbg is not second


def test_restart_begins_again(dbg: Debugger, free_tokens: list[int]) -> None:
    dbg.run()

    assert short(dbg.restart()) == "prefill 0:37 r0 model.embed_tokens.input"
    assert not dbg.done
    assert dbg.gen.token_ids == []
    dbg.run()
    assert dbg.gen.token_ids == free_tokens


def test_nothing_of_the_hooks_is_left_when_the_last_stepper_closes(pipe2: Pipe) -> None:
    look = "types = [type(m) for _, m in model.named_modules()]"
    before, after = "before = [*types]", "same = before == types"
    pipe2.generate([504], max_tokens=1)
    for rank in range(2):
        pipe2.cluster[rank].execute(f"{look}\n{before}", block=True)
    with pipe2.debug([504, 314], max_tokens=2) as dbg:
        dbg.into()
        pipe2.cluster[0].execute(f"{look}\n{after}", block=True)
        assert not pipe2.cluster[0]["same"]  # the control: they are there while it stands
        dbg.rank()
    for rank in range(2):
        pipe2.cluster[rank].execute(f"{look}\n{after}\nopen_runs = len(stage.runs)", block=True)
        assert pipe2.cluster[rank]["same"]
        assert pipe2.cluster[rank]["open_runs"] == 0


def test_a_stopped_rank_can_be_asked_and_uses_no_call(dbg: Debugger) -> None:
    dbg.until("recv")

    assert dbg.pipe.cluster.remote.call_all("ping")
    assert [info.state for info in dbg.pipe.cluster.ranks] == ["idle", "idle"]


def test_over_tcp_stepping_gives_the_same_positions_and_tokens(
    tcp3: Cluster, tcp_pipe3: Pipe, free_tokens: list[int]
) -> None:
    with tcp_pipe3.debug(PROMPT, max_tokens=TOKENS) as dbg:
        assert short(dbg.rank()) == "prefill 0:37 r1 recv"
        assert short(dbg.rank()) == "prefill 0:37 r2 recv"
        assert [kv.text for kv in dbg.position.ranks] == ["37 written", "37 written", "37 pending"]
        received = dbg.value
        assert short(dbg.into()) == "prefill 0:37 r2 model.layers.19.input"
        assert np.array_equal(dbg.value, received)
        assert tcp_pipe3.generate(PROMPT, max_tokens=TOKENS).token_ids == free_tokens
        assert short(dbg.token()) == "decode 37:38 r0 model.embed_tokens.input"
        while not dbg.done:
            dbg.layer(7)
        assert dbg.gen.token_ids == free_tokens
    tcp3.client[:].execute("import os; btl = os.environ['OMPI_MCA_btl']", block=True)
    assert tcp3.client[:]["btl"] == ["self,tcp"] * 3
