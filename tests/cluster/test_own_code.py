"""A model with code of its own on real ranks, by Python, magic and console."""

import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.magics.model import load_parser
from mlx_nb.client.magics.parsing import parse_words
from mlx_nb.client.options import model_wishes
from mlx_nb.shared.errors import RemoteCodeError
from tests.cluster.conftest import loaded
from tests.engine.loopback import PROMPT
from tests.own_code import make_own_code
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]


def test_it_is_refused_and_works_when_it_is_trusted(cluster2: Cluster, tmp_path: Path) -> None:
    folder = make_own_code(tmp_path / "homemade")
    with pytest.raises(RemoteCodeError, match="--trust-remote-code"):
        cluster2.load(str(folder))
    assert not (folder / "ran").exists()

    with loaded(cluster2, make_tiny("llama", tmp_path / "plain")) as plain:
        wanted = plain.generate(list(PROMPT), max_tokens=8).token_ids
    with loaded(cluster2, folder, trust_remote_code=True) as pipe:
        assert pipe.generate(list(PROMPT), max_tokens=8).token_ids == wanted
        with pipe.debug(list(PROMPT)) as dbg:
            dbg.until("layers.1.mlp")
            assert "own_model.py" in str(dbg.position)  # the stepper shows the folder's own code
        with pytest.raises(RemoteCodeError, match=r"Plans and shape tables run no such code"):
            pipe.sites()
        with pytest.raises(RemoteCodeError, match=r"with --split even or layers per rank"):
            cluster2.load(str(folder), split="memory", trust_remote_code=True)


def test_plans_without_a_cluster_refuse_it_politely(tmp_path: Path) -> None:
    folder = make_own_code(tmp_path / "homemade")

    for describe in (mlx_nb.plan, mlx_nb.sites):
        with pytest.raises(RemoteCodeError, match="Plans and shape tables run no such code"):
            describe(str(folder))
    assert not (folder / "ran").exists()


def test_magic_and_console_take_the_same_words() -> None:
    for line, trusted in (("some/folder", False), ("some/folder --trust-remote-code", True)):
        found = parse_words(load_parser(), f"{line} --adapter 'my adapter'")
        wishes = model_wishes(found)
        assert wishes["trust_remote_code"] is trusted
        assert wishes["adapter_path"] == "my adapter"


def test_the_magic_says_what_to_type_and_that_works(
    cluster2: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_own_code(tmp_path / "homemade")
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "mlx_nb")
    before = current.cluster, current.pipe
    current.cluster, current.pipe = cluster2, None
    try:
        refused = shell.run_cell(f"%mlx_load {folder}")
        assert f"type: %mlx_load {folder} --trust-remote-code" in str(refused.error_in_exec)
        typed = shell.run_cell(f"%mlx_load {folder} --trust-remote-code")
        assert typed.success
        assert current.pipe is not None
        assert len(current.pipe.generate(list(PROMPT), max_tokens=2).token_ids) == 2
        current.pipe.unload()
    finally:
        shell.run_line_magic("unload_ext", "mlx_nb")
        current.cluster, current.pipe = before


@pytest.mark.parametrize("trusted", [False, True])
def test_the_console_asks_for_its_own_option(tmp_path: Path, trusted: bool) -> None:
    folder = make_own_code(tmp_path / "homemade")
    words = ["run", "--model", str(folder), "--prompt", "x", *(["--trust-remote-code"] if trusted else [])]
    bin_folder = Path(sys.executable).parent

    done = subprocess.run(
        [str(bin_folder / "mlx-nb"), *words], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    if trusted:  # the tiny model has no tokenizer: its code was taken, the prompt was not
        assert "has no tokenizer" in done.stderr
    else:
        assert f"type: mpirun -n 1 mlx-nb run --model {folder} --trust-remote-code --prompt x" in done.stderr
    assert (folder / "ran").exists() is trusted
