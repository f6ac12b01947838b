"""Adapters on real ranks, by Python, magic and console: the tokens of mlx-lm in one process, and clear refusals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.engine.resolve import resolve_model  # before mlx: it loads OpenBLAS
from mlx_nb.shared.errors import AdapterError
from tests.adapters import make_adapter, rewrite
from tests.cluster.conftest import loaded
from tests.engine.loopback import CHUNK, PROMPT
from tests.one_process import OneProcess
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama, packed in 4 bits."""
    return make_tiny("llama", tmp_path_factory.mktemp("adapted") / "llama", bits=4)


@pytest.mark.parametrize(("kind", "dtype"), [("lora", None), ("dora", None), ("lora", "native")])
def test_two_ranks_say_what_mlx_lm_says(
    cluster2: Cluster, folder: Path, tmp_path: Path, kind: str, dtype: str | None
) -> None:
    adapter = make_adapter(folder, tmp_path / "pirate", kind)
    alone, without = OneProcess(folder, adapter, dtype), OneProcess(folder, None, dtype)

    with loaded(cluster2, folder, split=[2, 3], adapter_path=str(adapter), dtype=dtype) as pipe:
        logits = pipe.logits(list(PROMPT), chunk=CHUNK)
        gen = pipe.generate(list(PROMPT), max_tokens=12, prefill_step_size=CHUNK)
        assert repr(pipe).startswith("Pipe ")
        assert " + adapter pirate · 5 layers" in repr(pipe)
        assert pipe.adapter_path == str(adapter)

    assert np.abs(logits - alone.logits()).max() == 0.0
    assert gen.token_ids == alone.tokens()
    assert np.abs(logits - without.logits()).max() > 0.1  # the control


def test_full_layers_and_two_pipes_of_one_model(cluster2: Cluster, tmp_path: Path) -> None:
    plain = make_tiny("llama", tmp_path / "plain")
    adapter = make_adapter(plain, tmp_path / "adapter", "full", num_layers=2)

    with loaded(cluster2, plain) as before, loaded(cluster2, plain, adapter_path=adapter) as after:
        for _ in range(2):  # in turn
            assert (
                before.generate(list(PROMPT), max_tokens=12).token_ids
                == OneProcess(plain, None, None).tokens()
            )
            assert (
                after.generate(list(PROMPT), max_tokens=12).token_ids
                == OneProcess(plain, adapter, None).tokens()
            )
    assert OneProcess(plain, None, None).tokens() != OneProcess(plain, adapter, None).tokens()


def test_an_adapter_with_a_lost_tensor_is_refused_by_its_rank_and_the_cluster_lives_on(
    cluster2: Cluster, folder: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(folder, tmp_path / "adapter")
    lost = "model.layers.4.mlp.up_proj.lora_b"
    rewrite(adapter, lambda tensors: {k: v for k, v in tensors.items() if k != lost})
    before = list(cluster2.pipes)

    with pytest.raises(AdapterError, match=rf"^Rank 1 \(.*tensor {lost} is missing from .*adapters\.saf"):
        cluster2.load(str(folder), adapter_path=str(adapter))
    with pytest.raises(AdapterError, match=r"^Rank 0 .*There is no adapter folder /nowhere\."):
        cluster2.load(str(folder), adapter_path="/nowhere")

    assert cluster2.pipes == before
    with loaded(cluster2, folder) as pipe:
        assert len(pipe.generate(list(PROMPT), max_tokens=2).token_ids) == 2


def test_an_attached_pipe_knows_its_adapter(cluster2: Cluster, folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(folder, tmp_path / "adapter")
    with loaded(cluster2, folder, adapter_path=adapter) as pipe:
        known = list(cluster2.pipes)
        found = next(p for p in Pipe.find_all(cluster2) if p not in known and p.pipe_id == pipe.pipe_id)
        try:
            assert found.adapter_path == str(adapter)
            assert found._wishes["adapter_path"] == str(adapter)
        finally:
            cluster2.pipes[:] = known


def test_the_magic_takes_an_adapter(cluster2: Cluster, folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(folder, tmp_path / "my adapter")  # a path with a space is quoted, as anywhere
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "mlx_nb")
    before = current.cluster, current.pipe
    current.cluster, current.pipe = cluster2, None
    try:
        assert shell.run_cell(f"%mlx_load {folder} --adapter '{adapter}'").success
        assert current.pipe is not None
        tokens = current.pipe.generate(list(PROMPT), max_tokens=12).token_ids
        assert tokens == OneProcess(folder, adapter, None).tokens()
        refused = shell.run_cell(f"%mlx_load {folder} --adapter /nowhere")
        assert "There is no adapter folder /nowhere." in str(refused.error_in_exec)
        assert current.pipe.adapter_path == str(adapter)  # a load that fails leaves the loaded model
        pipe = current.pipe
        assert "next: pipe.generate" in repr(pipe)
        pipe.unload()
        assert repr(pipe).endswith(f"· unloaded\n next: %mlx_load {folder}")
    finally:
        shell.run_line_magic("unload_ext", "mlx_nb")
        current.cluster, current.pipe = before


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged on rank 1"])
def test_the_console_takes_an_adapter(tmp_path: Path, damaged: bool) -> None:
    """As plain MPI ranks; a rank that refuses alone does not leave the other one waiting."""
    adapter = make_adapter(resolve_model("smollm2"), tmp_path / "adapter", num_layers=1, keys=["mlp.up_proj"])
    if damaged:
        rewrite(adapter, lambda tensors: {k: v for k, v in tensors.items() if k.endswith("lora_a")})
    bin_folder = Path(sys.executable).parent
    ranks = [str(bin_folder / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    words = ["run", "--model", "smollm2", "--adapter", str(adapter), "--prompt", "x", "--max-tokens", "2"]

    done = subprocess.run(
        [*ranks, str(bin_folder / "mlx-nb"), *words], capture_output=True, text=True, timeout=60, check=False
    )

    if damaged:
        assert done.returncode != 0
        assert "mlx-nb: Rank 1 (" in done.stderr
        assert "tensor model.layers.29.mlp.up_proj.lora_b is missing from" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "2 tokens" in done.stdout
