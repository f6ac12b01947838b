"""Malformed lines and files: a sentence for the user, never a traceback, and no rank dies of them."""

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import MlxNbError
from tests.faults.malformed import lines, spoil, spoil_text
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]

SPREAD_LINES, ALL_LINES = 150, 2000
SPREAD_FILES, ALL_FILES = 40, 500


@pytest.fixture(scope="module")
def pipe(cluster2: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    before = current.cluster, current.pipe, current.dbg
    current.cluster = cluster2
    found = cluster2.load(str(make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")))
    current.pipe = found
    yield found
    found.unload()
    current.cluster, current.pipe, current.dbg = before


@pytest.fixture
def ip(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config()
    config.HistoryManager.enabled = False
    found = InteractiveShell.instance(config=config)
    found.run_line_magic("load_ext", "mlx_nb")
    yield found
    if current.dbg is not None:
        current.dbg.close()
    pipe.breakpoints.delete()
    for one in pipe.patches:
        one.remove()
    found.run_line_magic("unload_ext", "mlx_nb")
    InteractiveShell.clear_instance()


def faults_of(
    ip: InteractiveShell, capsys: pytest.CaptureFixture[str], seed: int, count: int
) -> tuple[list[str], int]:
    """Lines that showed a traceback, or an error that says nothing; and how many lines were refused."""
    found, refused = [], 0
    for line in lines(seed, count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = ip.run_cell(line)
        out, err = capsys.readouterr()
        raised = result.error_before_exec or result.error_in_exec
        refused += raised is not None
        # The logs are the place for tracebacks.
        shown = out + err if "mlx_cluster logs" not in line else ""
        if "Traceback" in shown or not (raised is None or type(raised).__name__ == "UsageError"):
            found.append(f"{line[:200]!r}: {type(raised).__name__}: {str(raised)[:200]}")
    return found, refused


def assert_the_ranks_live(pipe: Pipe) -> None:
    pipe.breakpoints.delete()  # some lines were no mistake, and what they made would stop or change the run
    for patch in pipe.patches:
        patch.remove()
    assert current.cluster.healthy
    assert len(pipe.cluster.remote.call_all("ping")) == 2
    assert len(pipe.generate([3, 5, 7], max_tokens=3).token_ids) == 3


def test_malformed_lines_get_a_sentence(
    ip: InteractiveShell, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    found, refused = faults_of(ip, capsys, 1, SPREAD_LINES)

    assert not found, "\n".join(found)
    assert refused > SPREAD_LINES / 3
    assert_the_ranks_live(pipe)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_thousand_malformed_lines_get_a_sentence(
    ip: InteractiveShell, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    found, refused = faults_of(ip, capsys, 2, ALL_LINES)

    assert not found, "\n".join(found)
    assert refused > ALL_LINES / 3
    assert_the_ranks_live(pipe)


def refused_files(pipe: Pipe, folder: Path, seed: int, count: int) -> int:
    """Spoil saved files and open them; how many were refused. Any other exception than ours fails."""
    trace = pipe.trace([3, 5, 7, 9], sites="layers.*.resid_post", max_tokens=1).save(folder / "trace")
    with pipe.patch("layers.3.resid_post", 2.0, tokens=slice(0, 2)) as patch:
        patch_file = patch.save(folder / "patch")
    pipe.generate([3, 5, 7, 9], max_tokens=3)
    cache = pipe.save_prompt_cache(folder / "cache")
    files = {
        "trace": [trace],
        "patch": [patch_file, patch_file.with_suffix(".safetensors")],
        "cache": [cache],
    }
    chance = random.Random(seed)
    refused, wrong = 0, []
    for number in range(count):
        kind = ("trace", "patch", "cache")[number % 3]
        spoilt = chance.choice(files[kind])
        whole = spoilt.read_bytes()
        spoilt.write_bytes((spoil_text if spoilt.suffix == ".json" else spoil)(whole, chance))
        file = files[kind][0]
        try:
            if kind == "trace":
                trace = mlx_nb.open_trace(file)
                repr(trace), trace.table(), [capture.numpy() for capture in trace]
            elif kind == "patch":
                pipe.load_patch(str(file)).remove()
            else:
                pipe.generate([11], max_tokens=1, prompt_cache=file)
        except MlxNbError as error:
            refused += 1
            if not error.fix or "\n" in str(error):
                wrong.append(f"{number} {kind}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the user would see its traceback
            wrong.append(f"{number} {kind}: {type(error).__name__}: {error}")
        spoilt.write_bytes(whole)
    assert not wrong, "\n".join(wrong)
    return refused


def test_malformed_files_are_refused(pipe: Pipe, tmp_path: Path) -> None:
    assert refused_files(pipe, tmp_path, 1, SPREAD_FILES) > SPREAD_FILES / 3
    assert_the_ranks_live(pipe)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_five_hundred_malformed_files_are_refused(pipe: Pipe, tmp_path: Path) -> None:
    assert refused_files(pipe, tmp_path, 2, ALL_FILES) > ALL_FILES / 3
    assert_the_ranks_live(pipe)
