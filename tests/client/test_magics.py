"""The magics on a real IPython shell, over two real ranks."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets.config import Config

from mlx_nb.client.current import current
from mlx_nb.client.live_view import live_views
from mlx_nb.client.magics.completion import candidates, magic_matcher
from mlx_nb.client.pipe import Pipe
from tests.ctrl_c import ctrl_c
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]

NO_CLUSTER = "No cluster is running. Type: %mlx_cluster start --ranks 2"
FRANCE = "What is the capital of France?"


@dataclass
class Ran:
    """What a cell did: IPython's own result, and what it printed."""

    result: ExecutionResult
    out: str
    err: str


class Shell:
    """An IPython shell whose output can be read cell by cell."""

    def __init__(self, ip: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.ip = ip
        self._capsys = capsys

    def run(self, cell: str) -> Ran:
        """Run a cell, whatever comes of it."""
        self._capsys.readouterr()
        result = self.ip.run_cell(cell)
        return Ran(result, *self._capsys.readouterr())

    def good(self, cell: str) -> Ran:
        """Run a cell that must succeed."""
        ran = self.run(cell)
        assert ran.result.success, ran.err + ran.out
        return ran

    def usage_error(self, cell: str) -> str:
        """Run a cell that must give a one-line error; that line."""
        ran = self.run(cell)
        assert type(ran.result.error_in_exec).__name__ == "UsageError", ran.err + ran.out
        assert "Traceback" not in ran.out + ran.err
        *stages, line = [line for line in ran.err.split("\n") if line.strip()]
        assert all(stage.startswith("loading") for stage in stages)  # progress, into a file
        assert line.startswith("UsageError: ")
        return line.removeprefix("UsageError: ")

    @property
    def names(self) -> dict[str, Any]:
        return self.ip.user_ns


@pytest.fixture(scope="module")
def ip(_own_runtime_folder: None) -> Iterator[InteractiveShell]:
    """A shell with the extension, and a cluster that its own magic started."""
    before = current.cluster, current.pipe, current.dbg
    current.cluster = current.pipe = current.dbg = None
    config = Config()
    config.HistoryManager.enabled = False
    found = InteractiveShell.instance(config=config)
    found.run_line_magic("load_ext", "mlx_nb")
    assert found.run_cell("%mlx_cluster start").success
    yield found
    current.cluster.stop()
    found.run_line_magic("unload_ext", "mlx_nb")
    InteractiveShell.clear_instance()
    current.cluster, current.pipe, current.dbg = before


@pytest.fixture
def shell(ip: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(ip, capsys)


@pytest.fixture
def nothing_runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The shell of somebody who has only loaded the extension."""
    for name in ("cluster", "pipe", "dbg"):
        monkeypatch.setattr(current, name, None)
    return shell


@pytest.fixture
def no_model(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A cluster, and no model; the cluster must live on."""
    monkeypatch.setattr(current, "pipe", None)
    monkeypatch.setattr(current, "dbg", None)
    yield shell
    assert current.cluster.remote.call_all("ping")


@pytest.fixture
def pipe(shell: Shell) -> Pipe:
    """smollm2, loaded by the magic."""
    if current.pipe is None or current.pipe.name != "smollm2":
        shell.good("%mlx_load smollm2")
    found: Pipe = current.pipe
    return found


@pytest.mark.parametrize(
    "cell",
    [
        "%mlx_load smollm2",
        "%mlx_generate hello",
        "%%mlx_generate\nhello",
        "%mlx_cluster",
        "%mlx_cluster status",
        "%mlx_cluster logs",
        "%mlx_cluster stop",
        "%mlx_cluster restart",
        "%mlx_cluster interrupt",
        "%mlx_step into",
        "%%mlx_step\nhello",
        "%mlx_show plan",
        "%mlx_show cluster",
    ],
)
def test_without_a_cluster_every_magic_says_what_to_type(nothing_runs: Shell, cell: str) -> None:
    assert nothing_runs.usage_error(cell) == NO_CLUSTER


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "start --ranks 0",
            "A cluster has one rank or more, not 0. Type: %mlx_cluster start --ranks 2",
        ),
        ("start --ranks two", "argument --ranks: invalid int value: 'two'. Type: %mlx_cluster --help"),
        (
            "start --rank 2",
            "unrecognized arguments: --rank 2. Did you mean --ranks? Type: %mlx_cluster --help",
        ),
        ("start --profile nope", "There is no profile 'nope'."),
        ("start --keep long", "'long' is not a length of time."),
        ("strat", "%mlx_cluster has no 'strat'. Did you mean %mlx_cluster start?"),
        ("start 'one", "%mlx_cluster: a quote is not closed."),
        ("attach nobody", "No cluster nobody is running."),
    ],
)
def test_a_wrong_wish_for_a_cluster_is_one_line(nothing_runs: Shell, line: str, wanted: str) -> None:
    assert wanted in nothing_runs.usage_error(f"%mlx_cluster {line}")
    assert current.cluster is None


def test_a_missing_mpirun_is_one_line(nothing_runs: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_NB_MPIEXEC", "/nonexistent")

    assert "MLX_NB_MPIEXEC is /nonexistent" in nothing_runs.usage_error("%mlx_cluster start")
    assert current.cluster is None


def test_another_cluster_while_one_runs_is_one_line(shell: Shell) -> None:
    name = current.cluster.name

    assert f"Cluster {name} runs already" in shell.usage_error("%mlx_cluster start --ranks 3")
    assert shell.good("%mlx_cluster start").result.result is current.cluster
    assert current.cluster.name == name


@pytest.mark.parametrize(
    "cell",
    ["%mlx_generate hello", "%%mlx_generate\nhello", "%%mlx_step\nhello", "%mlx_step s", "%mlx_show plan"],
)
def test_without_a_model_every_magic_says_what_to_type(no_model: Shell, cell: str) -> None:
    assert no_model.usage_error(cell) == "No model is loaded. Type: %mlx_load smollm2"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "%mlx_load needs a model. Type: %mlx_load smollm2"),
        ("smolm2", "No model 'smolm2'. Did you mean smollm2"),
        ("/no/such/folder", "There is no folder /no/such/folder."),
        ("smollm2 --split 14,14", "--split 14,14 covers 28 layers; smollm2 has 30. Type: %mlx_load smollm2 --split 14,16"),
        ("smollm2 --split 10,10,10", "names 3 ranks; 2 take part. Type: %mlx_load smollm2 --split 15,15"),
        ("smollm2 --split 0,30", "leaves a rank without layers."),
        ("smollm2 --split foo", "There is no split 'foo'."),
        ("smollm2 --ranks 3", "cannot be loaded over 3 ranks; this cluster has 2."),
        ("smollm2 --ranks 0", "cannot be loaded over 0 ranks; this cluster has 2."),
        ("smollm2 --dtype int3", "invalid choice: 'int3' (choose from 'float32'"),
        ("smollm2 --splt 1", "unrecognized arguments: --splt 1. Did you mean --split? Type: %mlx_load --help"),
        ("smollm2 mistral", "unrecognized arguments: mistral."),
    ],
)  # fmt: skip
def test_a_wrong_load_is_one_line(no_model: Shell, line: str, wanted: str) -> None:
    assert wanted in no_model.usage_error(f"%mlx_load {line}")
    assert current.pipe is None


def test_more_ranks_than_layers_is_one_line(no_model: Shell, tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "one_layer", num_hidden_layers=1)

    error = no_model.usage_error(f"%mlx_load {folder}")

    assert error == f"2 ranks are more than the model's 1 layer. Type: %mlx_load {folder} --ranks 1"
    no_model.good(f"%mlx_load {folder} --ranks 1")  # what it says works
    current.pipe.unload()


def break_weights(folder: Path, how: str) -> str:
    """Damage a model folder; a piece of the sentence that must be said about it."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    match how:
        case "missing":
            (folder / "model.safetensors.index.json").write_text(
                json.dumps(
                    {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
                )
            )
            return "The weight file model-00002-of-00002.safetensors is missing"
        case "none":
            weights.unlink()
            return "has no weights (model*.safetensors)"
        case "truncated":
            weights.write_bytes(whole[:-100])
            return "model.safetensors is truncated: tensor "
        case "garbage":
            weights.write_bytes(b"<html>" * 1000)
            return "model.safetensors is not a safetensors file"
        case "tensor":
            (length,) = struct.unpack("<Q", whole[:8])
            header = json.loads(whole[8 : 8 + length])
            del header["model.layers.3.mlp.up_proj.weight"]
            text = json.dumps(header).encode()
            weights.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
            return "model.layers.3.mlp.up_proj.weight"
        case "config":
            (folder / "config.json").write_text("{")
            return "config.json is not JSON"
        case _:
            (folder / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
            return "no_such_type"


@pytest.mark.parametrize("how", ["missing", "none", "truncated", "garbage", "tensor", "config", "type"])
def test_a_damaged_model_folder_is_one_line(no_model: Shell, tmp_path: Path, how: str) -> None:
    folder = make_tiny("llama", tmp_path / "model")
    wanted = break_weights(folder, how)

    assert wanted in no_model.usage_error(f"%mlx_load {folder}")
    assert current.pipe is None


def test_a_whole_model_folder_loads(no_model: Shell, tmp_path: Path) -> None:
    """The control of the test above."""
    shown = repr(no_model.good(f"%mlx_load {make_tiny('llama', tmp_path / 'model')}").result.result)

    assert "5 layers · D 64 · float32 · idle" in shown
    assert no_model.usage_error("%mlx_generate hello").startswith("This model's folder has no tokenizer")
    current.pipe.unload()


def test_a_load_that_fails_leaves_the_loaded_model(shell: Shell, pipe: Pipe) -> None:
    shell.usage_error("%mlx_load smolm2")
    shell.usage_error("%mlx_load smollm2 --split 14,14")

    assert current.pipe is pipe
    shell.good("%mlx_generate --max-tokens 2 Hi")


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("%mlx_generate", "The prompt is empty."),
        ("%mlx_generate --max-tokens 3", "The prompt is empty."),
        ("%mlx_generate --raw '  '", "The prompt is empty."),
        ('%mlx_generate ""', "The prompt "),
        ("%%mlx_generate\n\n  \n", "The prompt is empty."),
        ("%%mlx_step\n\n", "The prompt is empty."),
        ("%%mlx_generate hello\nworld", "'hello' stands beside the options of a cell."),
        ("%mlx_generate --max-tokens 0 hi", "--max-tokens is 1 or more, not 0. Type: --max-tokens 256"),
        ("%mlx_generate --max-tokens x hi", "argument --max-tokens: invalid int value: 'x'"),
        ("%mlx_generate --temp -1 hi", "temp is 0 or more, not -1.0."),
        ("%mlx_generate --top-p 2 hi", "--top-p is from 0 to 1, not 2.0."),
        ("%mlx_generate --kv-bits 7 hi", "--kv-bits is 2, 3, 4, 5, 6 or 8, not 7."),
        ("%mlx_generate --max-toke 3 hi", "--max-toke"),
        ("%mlx_generate --max-tokens", "expected one argument"),
        ('%mlx_generate -o "a', "A quote in the options is not closed."),
        ("%mlx_step into", "Nothing is being stepped."),
        ("%mlx_step bogus", "%mlx_step has no 'bogus'."),
        ("%mlx_show foo", "%mlx_show has no 'foo'."),
    ],
)
def test_a_wrong_prompt_or_option_is_one_line(shell: Shell, pipe: Pipe, cell: str, wanted: str) -> None:
    before = pipe.last
    current.dbg = None

    assert wanted in shell.usage_error(cell)
    assert pipe.last is before
    assert pipe.cluster.remote.call_all("ping")


def test_a_chat_goes_on_from_cell_to_cell(shell: Shell, pipe: Pipe) -> None:
    first = shell.good("%%mlx_chat --new --system 'You are brief.' --max-tokens 6\nMy name is Ada.")
    second = shell.good("%%mlx_chat --max-tokens 6 -o answer\nWhat is my name?")
    chat, answer = shell.names["chat"], shell.names["answer"]

    assert " reused" not in first.out
    assert f"and {answer.reused} reused" in second.out
    assert answer.text in second.out
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 2]
    shell.good("%%mlx_chat --new --max-tokens 2\nHello")
    assert len(shell.names["chat"].messages) == 2
    assert shell.usage_error("%%mlx_chat\n ").startswith("The prompt is empty.")
    assert "--system TEXT" in shell.good("%%mlx_chat --help\nx").out


def test_generate_prints_the_text_and_one_line_of_figures(shell: Shell, pipe: Pipe) -> None:
    out = shell.good(f"%mlx_generate --max-tokens 20 {FRANCE}").out

    text, figures = out.rstrip("\n").split("\n")
    assert text == "The capital of France is Paris."
    assert figures.startswith("[8 tokens · ")
    assert figures.endswith("tok/s · stop]")


@pytest.mark.parametrize(
    "prompt",
    [
        FRANCE,
        "Is {name} or $name the value of $HOME?",
        "What is {1 + 1}?",
        "a 'quoted' word, and \"another\" one",
        "Say --max-tokens 3 aloud",
        "Does 50% of it? Or {} ??",
        r"A back\slash, and \n?",
    ],
)
def test_a_prompt_in_a_line_is_taken_word_for_word(shell: Shell, pipe: Pipe, prompt: str) -> None:
    shell.names["name"] = "WRONG"

    shell.good(f"%mlx_generate --max-tokens 1 -o g {prompt}")

    assert shell.names["g"].prompt_ids == pipe.encode(prompt)
    assert shell.names["g"] is pipe.last


def test_one_pair_of_quotes_and_two_dashes_are_taken_away(shell: Shell, pipe: Pipe) -> None:
    for line in (f'"{FRANCE}"', f"'{FRANCE}'", f"-- {FRANCE}"):
        shell.good(f"%mlx_generate --max-tokens 1 -o g {line}")
        assert shell.names["g"].prompt_ids == pipe.encode(FRANCE)
    shell.good("%mlx_generate --max-tokens 1 -o g -- --raw is an option")
    assert shell.names["g"].prompt_ids == pipe.encode("--raw is an option")


def test_a_question_inside_a_block_is_rescued_too(shell: Shell, pipe: Pipe) -> None:
    shell.good("for g_count in range(2):\n    %mlx_generate --max-tokens 1 -o g Why?\n")

    assert shell.names["g_count"] == 1
    assert shell.names["g"].prompt_ids == pipe.encode("Why?")


def test_a_cell_is_the_prompt_word_for_word(shell: Shell, pipe: Pipe) -> None:
    shell.names["name"] = "WRONG"
    prompt = "First {name} line?\n  %second $name line\n\nlast"

    shell.good(f"%%mlx_generate --max-tokens 1 --out g\n{prompt}\n")

    assert shell.names["g"].prompt_ids == pipe.encode(prompt)
    assert "1 tokens" in repr(shell.names["g"])


def test_options_reach_the_run(shell: Shell, pipe: Pipe) -> None:
    options = "--max-tokens 6 --temp 0.9 --top-p 0.95 --top-k 50 --min-p 0.01 --repetition-penalty 1.1 --raw"
    lines = [f"%mlx_generate {options} --seed {seed} -o g The sea" for seed in (1, 1, 2)]

    texts = [(shell.good(line), shell.names["g"].token_ids)[1] for line in lines]

    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 6
    assert shell.names["g"].prompt_ids == pipe.encode("The sea", raw=True) != pipe.encode("The sea")


def test_help_of_every_magic_prints_and_does_nothing(nothing_runs: Shell) -> None:
    magics = nothing_runs.ip.magics_manager.magics
    names = {name for kind in ("line", "cell") for name in magics[kind] if name.startswith("mlx_")}
    assert {"mlx_break", "mlx_cluster", "mlx_step", "mlx_chat"} <= names

    for name in names:
        ran = nothing_runs.good(f"%{name} --help")

        assert f"usage: %{name}" in ran.out or (name == "mlx_step" and "mlx_step into (s)" in ran.out), name
        assert ran.err == "", name
        assert nothing_runs.good(f"%{name} -h").out == ran.out


def test_a_generation_goes_on_after_a_saved_prompt_cache(shell: Shell, pipe: Pipe, tmp_path: Path) -> None:
    ids = pipe.encode(FRANCE, raw=True) + pipe.encode("And of Spain?", raw=True)
    whole = pipe.generate(ids, max_tokens=4)
    pipe.generate(FRANCE, raw=True, max_tokens=1)
    file = pipe.save_prompt_cache(tmp_path / "talk")

    shell.good(f"%mlx_generate --raw --max-tokens 4 --prompt-cache {file} -o g And of Spain?")

    assert shell.names["g"].prompt_ids == whole.prompt_ids
    assert shell.names["g"].token_ids == whole.token_ids
    shell.good(f"%%mlx_step --raw --prompt-cache {file}\nAnd of Spain?")
    assert shell.names["dbg"].position.start == len(pipe.encode(FRANCE, raw=True))
    shell.good("%mlx_step q")
    shell.good("%mlx_freeze")
    assert "nowhere" in shell.usage_error("%mlx_generate --prompt-cache nowhere.safetensors Why?")


def test_a_question_mark_after_the_magic_stays_help(shell: Shell, pipe: Pipe) -> None:
    before = pipe.last

    assert "Generate over the pipeline" in shell.good("%mlx_generate?").out
    assert pipe.last is before


def test_the_tables_are_shown(shell: Shell, pipe: Pipe) -> None:
    status = repr(shell.good("%mlx_cluster").result.result)
    assert "layers 0–14" not in status.splitlines()[0]
    assert f"Cluster {current.cluster.name} · 2 ranks · 1 host" in status
    assert " rank 1  " in shell.good("%mlx_show plan").out
    assert "' France'" in shell.good(f"%mlx_show tokens {FRANCE}").out
    verbatim = shell.good('%mlx_show tokens What\'s "{MPI}"?').out
    assert all(piece in verbatim for piece in ("{", "MP", "}"))
    assert "local" in shell.good("%mlx_cluster profiles").out
    assert "needs to know its hosts" in shell.usage_error("%mlx_cluster profiles new lab")
    assert "mlx_cluster profiles has no 'now'" in shell.usage_error("%mlx_cluster profiles now")
    assert "one word too many" in shell.usage_error("%mlx_cluster logs 0 1")
    assert shell.good("%mlx_cluster logs 1").result.result is not None
    assert "has no rank 9; it has 0–1" in shell.usage_error("%mlx_cluster logs 9")
    assert "'one' is not a rank" in shell.usage_error("%mlx_cluster logs one")


def test_a_cell_begins_to_step_and_lines_go_on(shell: Shell, pipe: Pipe) -> None:
    shell.good(f"%%mlx_step --max-tokens 3 -o d\n{FRANCE}")
    dbg = shell.names["d"]
    assert current.dbg is dbg
    assert dbg.position.site == "model.embed_tokens.input"

    assert shell.good("%mlx_step s").result.result.site == "model.embed_tokens.output"
    assert shell.good("%mlx_step layer 2").result.result.site == "model.layers.1.output"
    assert shell.good("%mlx_step unt layers.3.self_attn.rope.input").result.result.call == 1
    assert "→ RoPE" in shell.good("%mlx_step w").out
    assert " -> " in shell.good("%mlx_step l").out
    assert shell.good("%mlx_step p x.shape").out.strip() == "x.shape=(1, 37, 576)"
    assert shell.good("%mlx_step args").out.startswith("x  [B 1, H 9, L 37, 64]")
    assert shell.good("%mlx_step until rank=1 layer=20").result.result.site == "model.layers.20.input"
    for wrong in ("p nonsense", "layer x", "layer 0", "until layers.99.output", "until", "into 3"):
        shell.usage_error(f"%mlx_step {wrong}")
    assert dbg.position.site == "model.layers.20.input"
    assert shell.good("%mlx_step t").result.result.where.startswith("decode 37:38 · rank 0")
    assert shell.good("%mlx_step b").result.result.site == "model.layers.20.input"
    assert shell.good("%mlx_step back layer 2").result.result.site == "model.layers.18.output"
    shell.good("%mlx_step t")
    assert shell.good("%mlx_step layer 16").result.result.rank == 1
    back = shell.good("%mlx_step back layer 2").result.result  # over the hop: rank 1 is not in this pass yet
    assert [kv.text for kv in back.ranks] == [
        "37 written + 1 pending in 1 of 15 layers",
        "37 written + 1 pending",
    ]
    assert shell.good("%mlx_step back restart").result.result.site == "model.embed_tokens.input"
    for wrong in ("back sideways", "back layer x", "back until", "back into 9"):
        shell.usage_error(f"%mlx_step {wrong}")
    shell.good("%mlx_step t")
    behind = shell.usage_error("%mlx_step until token=3")
    assert "Token 3 has been fed: the run stands in decode 37:38. Begin again: %mlx_step restart" in behind
    assert "This run feeds no token 39. Its tokens are 0–38." in shell.usage_error("%mlx_step until token=39")
    assert shell.good("%mlx_step c").result.result.kind == "end"
    assert "The run has finished with 3 tokens" in shell.usage_error("%mlx_step into")
    shell.good("%mlx_step restart")
    assert shell.good("%mlx_step q").out == "The stepper is closed.\n"
    shell.good("%mlx_freeze")


def test_breakpoints_are_set_listed_and_deleted_in_lines(shell: Shell, pipe: Pipe) -> None:
    assert shell.good("%mlx_break").out.startswith("No breakpoints.")
    shell.good("%mlx_break layers.20.mlp_out --token 37 --once")
    assert "absmax > 1e9" in shell.good("%mlx_break * --rank 1 --if absmax > 1e9").out

    stopped = shell.good(f"%mlx_generate --max-tokens 3 {FRANCE}").out

    assert "[stopped after 1 tokens · Breakpoint 1, hit 1. %mlx_step run goes on]" in stopped
    assert shell.names["dbg"].position.where == "decode 37:38 · rank 1 · model.layers.20.mlp.output"
    assert shell.good("%mlx_step run").result.result.kind == "end"
    assert len(shell.good("%mlx_break").out.splitlines()) == 2
    assert shell.good("%mlx_break --disable 2").out.splitlines()[1].endswith("no")
    assert "There is no breakpoint 7" in shell.usage_error("%mlx_break --delete 7")
    assert "is no condition" in shell.usage_error("%mlx_break * --if max >")
    assert "--if needs a condition" in shell.usage_error("%mlx_break * --if")
    assert "Did you mean layers.3.self_attn.output" in shell.usage_error("%mlx_break layers.3.attn.output")
    assert shell.good("%mlx_break --delete all").out.startswith("No breakpoints.")
    shell.good("%mlx_freeze")


def test_patches_are_made_listed_saved_and_deleted_in_lines(shell: Shell, pipe: Pipe, tmp_path: Path) -> None:
    plain = shell.good(f"%mlx_generate --max-tokens 4 {FRANCE}").out
    assert shell.good("%mlx_patch").out.startswith("No patches.")
    assert "scale 0.5" in shell.good("%mlx_patch layers.3.resid_post --scale 0.5 --tokens 3:7").out
    shell.names["flip"] = lambda x: -x
    assert "a function" in shell.good("%mlx_patch layers.20.mlp_out --replace flip").out

    assert shell.good(f"%mlx_generate --max-tokens 4 {FRANCE}").out.split("[")[0] != plain.split("[")[0]
    assert "half.json" in shell.good(f"%mlx_patch --save 1 {tmp_path / 'half'}").out
    assert shell.good("%mlx_patch --delete all").out.startswith("No patches.")
    assert "3:7" in shell.good(f"%mlx_patch --load {tmp_path / 'half'}").out
    shell.good("%mlx_patch --delete 3")
    assert shell.good(f"%mlx_generate --max-tokens 4 {FRANCE}").out.split("[")[0] == plain.split("[")[0]
    for wrong in ("layers.3.mlp_out", "layers.3.mlp_out --scale nothing", "--delete 9", "nowhere --ablate"):
        shell.usage_error(f"%mlx_patch {wrong}")


def test_a_line_records_a_trace(shell: Shell, pipe: Pipe) -> None:
    ran = shell.good(
        "%mlx_trace --sites layers.*.mlp_out,logits --max-tokens 2 --prefill-step-size 16 -o t What is the capital of France?"
    )
    assert "layers.29.mlp.output" in ran.out
    assert ran.out.startswith("The capital\n")
    assert shell.names["t"]["layers.*.mlp_out"].shape == (30, 1, 38, 576)
    assert [one.stop for one in shell.names["t"].records()[0].passes] == [16, 32, 37, 38]
    table = repr(shell.names["t"].table())
    assert table.splitlines()[0].split()[:4] == ["site", "rank", "tokens", "passes"]
    assert len(table.splitlines()) == 32
    shell.good("%%mlx_trace --raw\nThe sea")
    assert shell.names["trace"].gen.token_ids == []
    assert "No site" in shell.usage_error("%mlx_trace --sites layers.3.attn.output hello")
    assert "The prompt is empty" in shell.usage_error("%mlx_trace --max-tokens 2")
    assert "layers.0.mlp_out" in candidates("%mlx_trace --sites layers.0.m")
    shell.good("%mlx_check --max-tokens 1 --prefill-step-size 4")
    assert shell.names["check"].ok
    assert "10 tokens fed in 3 passes, 10 of them the prompt's" in str(shell.names["check"])
    assert "--max-kv-size" in candidates("%mlx_check --")
    shell.good("%mlx_diff --against t --free --sites layers.*.mlp_out --prefill-step-size 16 -o found")
    assert shell.names["found"].ok
    assert repr(shell.names["found"].worst).endswith("· same")
    assert "neither a variable nor a file" in shell.usage_error("%mlx_diff --against nobody Hi")
    assert "--against" in candidates("%mlx_diff --")
    assert set(candidates("%mlx_trace --")) >= {"--sites", "--max-tokens", "--out"}


def test_px_sees_the_stage_and_its_cache(shell: Shell, pipe: Pipe) -> None:
    shell.good("%mlx_generate --max-tokens 2 Hi")
    length = len(pipe.encode("Hi")) + 1
    code = (
        "kinds = type(stage).__name__, type(model).__name__, comm.Get_size()\n"
        "mine = comm.Get_rank(), stage.shard.layers.start, kv_cache[stage.shard.layers.start].offset"
    )

    shell.good(f"%%px\n{code}")

    assert [current.cluster[rank]["kinds"] for rank in range(2)] == [("Stage", "Model", 2)] * 2
    shell.good("%%px\nshown = repr(stage)")
    here = [current.cluster[rank]["shown"] for rank in range(2)]
    assert here[0].startswith("Stage smollm2 · rank 0 of 2 · embed, layers 0–14 · 311 MiB float32 · idle")
    assert here[1].startswith(
        "Stage smollm2 · rank 1 of 2 · layers 15–29, norm, head · 311 MiB float32 · idle"
    )
    assert [current.cluster[rank]["mine"] for rank in range(2)] == [(0, 0, length), (1, 15, length)]


def test_an_interrupt_says_whether_anything_ran(shell: Shell, pipe: Pipe) -> None:
    assert shell.good("%mlx_cluster interrupt").out == "Nothing was running.\n"
    run = pipe.start("Once upon a time", raw=True, max_tokens=2000)
    assert shell.good("%mlx_cluster interrupt").out == "Interrupted.\n"
    run.stop()


def test_an_interrupted_stride_says_how_far_it_came_and_what_goes_on(shell: Shell, pipe: Pipe) -> None:
    shell.good("%%mlx_step --max-tokens 2000 --raw\nOnce upon a time")
    with ctrl_c(2.0):
        said = shell.good("%mlx_step run").out

    count = len(shell.names["dbg"].gen.token_ids)
    assert said.startswith(f"[interrupted after {count} tokens · %mlx_step run goes on]\n")
    assert f"interrupted after {count} tokens; Run goes on." in live_views[-1].view.state["sentence"]
    assert "interrupted" not in shell.good("%mlx_step into").out
    shell.good("%mlx_step q")
    shell.good("%mlx_freeze")


def test_blanks_at_the_end_are_not_printed(shell: Shell, pipe: Pipe) -> None:
    story = "A list of fruits, one on each line:\napple\npear\nplum"
    text, count = "", 0
    for piece in pipe.stream(story, raw=True, max_tokens=200):
        text, count = text + piece.text, count + 1
        if text.strip() and text != text.rstrip():
            break
    assert text != text.rstrip()  # the control: a run of so many tokens does end in a blank

    printed = shell.good(f"%%mlx_generate --raw --max-tokens {count} -o g\n{story}").out

    assert shell.names["g"].text == text
    assert printed.rpartition("\n[")[0] == text.rstrip()


def test_ctrl_c_in_a_generate_prints_a_line_and_keeps_the_text(shell: Shell, pipe: Pipe) -> None:
    with ctrl_c(2.0):
        ran = shell.good("%mlx_generate --max-tokens 2000 --raw Once upon a time")

    assert "[interrupted after " in ran.out
    assert pipe.last is not None
    assert pipe.last.state == "interrupted"
    assert "capital of France is Paris" in shell.good(f"%mlx_generate --max-tokens 8 {FRANCE}").out


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%mlx_cluster sta", {"start", "status"}),
        ("%mlx_cluster start --pro", {"--profile"}),
        ("%mlx_cluster start --profile mi", {"minis"}),
        ("%mlx_load smol", {"smollm2"}),
        ("%mlx_load smollm2 --sp", {"--split"}),
        ("%mlx_load smollm2 --dtype b", {"bfloat16"}),
        ("%mlx_generate --max-t", {"--max-tokens"}),
        ("%mlx_step unt", {"until"}),
        ("%mlx_show pl", {"plan"}),
        ("%%mlx_generate --te", {"--temp"}),
        ("%mlx_break --ig", {"--ignore"}),
        ("%mlx_break * --if non", {"nonfinite"}),
    ],
)
def test_tab_offers_what_fits(shell: Shell, line: str, wanted: set[str]) -> None:
    with provisionalcompleter():
        found = {completion.text for completion in shell.ip.Completer.completions(line, len(line))}

    assert wanted <= found
    assert not found & {"abs", "max", "and"}  # a magic's line is no Python


def test_tab_completes_sites_part_by_part(shell: Shell, pipe: Pipe) -> None:
    def offered(line: str) -> set[str]:
        with provisionalcompleter():
            return {completion.text for completion in shell.ip.Completer.completions(line, len(line))}

    assert {"layers.1", "layers.10", "layers.19"} <= offered("%mlx_step until layers.1")
    assert "layers.2" not in offered("%mlx_step until layers.1")
    assert "layers.3.self_attn" in offered("%mlx_step until layers.3.s")
    assert "layers.3.resid_post" in offered("%mlx_step until layers.3.res")
    assert "model.layers.3.mlp.gate_proj" in offered("%mlx_step until model.layers.3.mlp.g")
    assert "layer=" in offered("%mlx_step until la")


def test_tab_knows_nothing_of_other_magics() -> None:
    assert candidates("%timeit ") == ()
    assert candidates("") == ()


def test_unloading_takes_everything_away_and_loading_brings_it_back(shell: Shell, pipe: Pipe) -> None:
    ip = shell.ip
    assert magic_matcher in ip.Completer.custom_matchers
    transformers = len(ip.input_transformers_cleanup)

    shell.good("%unload_ext mlx_nb")

    for kind in ("line", "cell"):
        assert not [name for name in ip.magics_manager.magics[kind] if "mlx" in name]
    assert len(ip.input_transformers_cleanup) == transformers - 1
    assert magic_matcher not in ip.Completer.custom_matchers
    assert current.pipe is pipe  # the cluster and its model live on
    shell.good("%load_ext mlx_nb")
    shell.good("%load_ext mlx_nb")
    assert len(ip.input_transformers_cleanup) == transformers
    shell.good("%mlx_generate --max-tokens 1 Why?")


def test_a_restart_loads_the_model_again(shell: Shell, pipe: Pipe) -> None:
    name = current.cluster.name
    shell.good(f"%%mlx_step --max-tokens 3\n{FRANCE}")
    view = live_views[-1].view
    assert view.state["status"] == "stopped"  # the control

    shell.good("%mlx_cluster restart")

    # A stepper that stood says what became of it, and can begin again.
    said = shell.usage_error("%mlx_step where")
    assert f"Cluster {name} was restarted at" in said
    assert said.endswith("Begin again: %mlx_step restart, or a cell with %%mlx_step and a prompt below it.")
    assert view.state["status"] == view.state["lanes"][0]["status"] == "ended"
    assert f"Cluster {name} was restarted at" in view.state["sentence"]
    assert "%mlx_step restart" in view.state["sentence"]
    assert "was restarted" in shell.names["dbg"].lost
    shell.good("%mlx_step restart")
    assert view.state["status"] == "stopped"
    assert "embed_tokens.input" in shell.good("%mlx_step where").out
    shell.good("%mlx_step q")
    assert view.state["status"] == "closed"
    assert shell.usage_error("%mlx_step where").startswith("Nothing is being stepped.")
    shell.good("%mlx_freeze")

    assert current.cluster.name == name
    assert current.pipe is pipe
    assert "capital of France is Paris" in shell.good(f"%mlx_generate --max-tokens 8 {FRANCE}").out
    shell.good("%%px\nhere = stage.rank")  # %%px talks to the cluster that lives
    assert current.cluster[1]["here"] == 1
