"""The porting loop on real ranks: a model file of one's own, broken, mended, and read again beside the same weights."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import CodeError, OptionError, RemoteCodeError, RunFinished
from tests.cluster.conftest import loaded
from tests.engine.loopback import PROMPT
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]

IDS = list(PROMPT)


def source_of(kind: str) -> str:
    """mlx-lm's own file, as somebody copies it who starts a port from it."""
    spec = importlib.util.find_spec(f"mlx_lm.models.{kind}")
    assert spec
    assert spec.origin
    return Path(spec.origin).read_text()


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3", marks=pytest.mark.soak)])
def test_code_is_read_again_and_the_weights_stay(kind: str, cluster3: Cluster, tmp_path: Path) -> None:
    file, good = tmp_path / "mymodel.py", source_of("gemma3_text" if kind == "gemma3" else kind)
    file.write_text(good)
    folder = make_tiny(kind, tmp_path / kind)
    with (
        loaded(cluster3, folder) as plain,
        loaded(cluster3, folder, code=file, trust_remote_code=True) as pipe,
    ):
        wanted = plain.generate(IDS, max_tokens=6, prefill_step_size=4).token_ids
        assert pipe.generate(IDS, max_tokens=6, prefill_step_size=4).token_ids == wanted
        assert "mymodel.py" in repr(pipe)
        before = pipe.trace(IDS, sites="layers.*,layers.*.input", prefill_step_size=16)
        weights = [len(shard.parameters) for shard in pipe.shards]

        file.write_text(good.replace("self.scale = ", "self.scale = 2 * ", 1))
        assert pipe.diff(plain, IDS).ok  # not read yet
        assert pipe.reload() is pipe

        assert [shard.taken_over for shard in pipe.shards] == weights  # no tensor was read from a file
        report = pipe.diff(mlx_nb.reference(), IDS)
        assert report.first is not None
        assert report.first.site == "layers.0.self_attn.o_proj.input"
        assert "mlx-lm's code" in report.headline
        assert not pipe.diff(before)  # what the code before has made is still there
        assert pipe.check().ok  # by the code that runs, all is as it should be

        file.write_text(re.sub(r"return self\.norm\((.+?)\)", r"return \1", good, count=1))
        pipe.reload()
        report = pipe.diff(plain, IDS)
        assert [row.site for row in report.rows if row.verdict != "same"] == ["logits"]
        assert "This model has norm, as the other has, but never calls it." in report.notes

        file.write_text(good)
        with pipe.debug(IDS) as dbg:
            dbg.until("layers.0.mlp.input")
            assert "mymodel.py" in str(dbg.position)
            pipe.reload()
            with pytest.raises(RunFinished, match="code was read again"):
                dbg.into()
            dbg.restart()
        assert pipe.diff(plain, IDS).ok
        assert pipe.generate(IDS, max_tokens=6, prefill_step_size=4).token_ids == wanted


def broken(good: str, what: str) -> tuple[str, str]:
    """A way to break a file, and what is said of it."""
    lines = good.splitlines()
    norm = next(i for i, line in enumerate(lines, 1) if "self.norm = " in line)
    up = next(i for i, line in enumerate(lines, 1) if "self.up_proj = " in line)
    first = next(i for i, line in enumerate(lines, 1) if "queries, keys, values = " in line)
    return {
        "syntax": (good.replace("class MLP(nn.Module):", "class MLP(nn.Module"), r"line \d+: SyntaxError"),
        "import": (good + "\nraise ValueError('too early')\n", rf"line {len(lines) + 2}: ValueError: too early"),
        "class": (re.sub(r"\bModelArgs\b", "Arguments", good), "defines no class ModelArgs"),
        "init": (good.replace("self.norm = ", "self.norm = nn.Nothing or ", 1), rf"line {norm}: AttributeError.*Nothing"),
        "shape": (
            good.replace("self.up_proj = nn.Linear(dim, hidden_dim", "self.up_proj = nn.Linear(dim, hidden_dim + 1"),
            rf"line {up}: tensor model.layers.\d.mlp.up_proj.weight .*does not fit: \[96, 64\] in the file, \[97, 64\]",
        ),
        "extra": (good.replace("self.up_proj", "self.up"), r"tensor .*mlp.up_proj.weight.* no place in the model"),
        "pass": (good.replace("queries, keys, values = ", "queries, keys = ", 1), rf"line {first}: ValueError: too many values"),
    }[what]  # fmt: skip


@pytest.fixture(scope="module")
def port(cluster2: Cluster, tmp_path_factory: pytest.TempPathFactory):
    """A pipe with code of one's own, its file, and what it says."""
    folder = tmp_path_factory.mktemp("port")
    (folder / "mymodel.py").write_text(source_of("llama"))
    with loaded(
        cluster2, make_tiny("llama", folder / "llama"), code=folder / "mymodel.py", trust_remote_code=True
    ) as pipe:
        yield pipe, folder / "mymodel.py", pipe.generate(IDS, max_tokens=5).token_ids


@pytest.mark.parametrize("what", ["syntax", "import", "class", "init", "shape", "extra", "pass"])
def test_a_broken_file_is_named_with_its_line_and_rank_and_the_code_before_goes_on(
    what: str, port: tuple[Pipe, Path, list[int]]
) -> None:
    pipe, file, wanted = port
    good = source_of("llama")
    text, said = broken(good, what)
    assert text != good
    file.write_text(text)

    with pytest.raises(
        CodeError, match=rf"(?s)Rank \d \(.*\): {re.escape(str(file))}.*{said}.*pipe.reload"
    ) as error:
        pipe.reload()
    assert "\n" not in str(error.value)
    assert pipe.generate(IDS, max_tokens=5).token_ids == wanted

    if what in ("import", "shape"):  # the same when it is loaded for the first time
        with pytest.raises(CodeError, match=rf"Rank \d.*{said}.*--code mymodel.py"):
            pipe.cluster.load(pipe.path, code=file, trust_remote_code=True)
        assert pipe.cluster.pipes == [pipe]
    file.write_text(good)
    pipe.reload()
    assert pipe.generate(IDS, max_tokens=5).token_ids == wanted


def test_what_a_user_types_wrong_is_told_in_one_line(
    port: tuple[Pipe, Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, file, wanted = port
    cluster = pipe.cluster
    with pytest.raises(RemoteCodeError, match=r"mymodel.py would run on every rank.*--trust-remote-code"):
        cluster.load(pipe.path, code=file)
    with pytest.raises(
        OptionError, match=r"mymodl.py cannot be read \(No such file.*Did you mean mymodel.py"
    ):
        cluster.load(pipe.path, code=file.with_name("mymodl.py"), trust_remote_code=True)
    with pytest.raises(OptionError, match="is no Python file"):
        cluster.load(pipe.path, code=Path(pipe.path) / "config.json", trust_remote_code=True)
    with pytest.raises(OptionError, match="--split memory goes without --code"):
        cluster.load(pipe.path, code=file, trust_remote_code=True, split="memory")
    with pytest.raises(RemoteCodeError, match="Shape tables run no code of yours"):
        pipe.sites()
    with loaded(cluster, pipe.path) as plain, pytest.raises(OptionError, match="nothing to read again"):
        plain.reload()

    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "mlx_nb")
    known = current.cluster, current.pipe
    current.cluster, current.pipe = cluster, None
    try:
        assert "would run on every rank" in str(
            shell.run_cell(f"%mlx_load {pipe.path} --code {file}").error_in_exec
        )
        assert shell.run_cell(f"%mlx_load {pipe.path} --code {file} --trust-remote-code").success
        assert current.pipe is not None
        assert shell.run_cell("%mlx_reload").success
        assert current.pipe.generate(IDS, max_tokens=5).token_ids == wanted
        assert "nothere.py" in str(shell.run_cell("%mlx_reload nothere.py").error_in_exec)
        current.pipe.unload()
    finally:
        shell.run_line_magic("unload_ext", "mlx_nb")
        current.cluster, current.pipe = known


@pytest.mark.parametrize("trusted", [False, True])
def test_mpirun_takes_a_file_too(trusted: bool, tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "llama")
    (tmp_path / "mymodel.py").write_text(source_of("llama") + "\nopen('ran', 'w').close()\n")
    words = ["run", "--model", str(folder), "--prompt", "x", "--code", "mymodel.py"]
    words += ["--trust-remote-code"] if trusted else []
    program = str(Path(sys.executable).parent / "mlx-nb")

    done = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )

    assert done.returncode == 1
    assert ("has no tokenizer" if trusted else "would run on every rank") in done.stderr
    assert (tmp_path / "ran").exists() is trusted
