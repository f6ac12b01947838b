"""Interrupt Kernel, as the toolbar's square does it: a signal to the kernel's whole process group."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.cluster

Run = Callable[[str], str]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A fresh kernel and its client."""
    manager, client = start_new_kernel(cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel()


def output_of(client: Any, message_id: str, until: str = "") -> str:
    """What a cell prints, up to its end, or up to the first text with `until` in it."""
    said = ""
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") != message_id:
            continue
        content = message["content"]
        said += content.get("text", "") + content.get("data", {}).get("text/plain", "")
        said += "\n".join(content.get("traceback", []))
        if until and until in said:
            return said
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return said


def test_an_interrupted_cell_leaves_a_cluster_that_answers(kernel: tuple[Any, Any]) -> None:
    manager, client = kernel

    def run(code: str) -> str:
        return output_of(client, client.execute(code))

    run("%load_ext mlx_nb")
    assert "2 ranks" in run("%mlx_cluster start --ranks 2")
    assert "layers 15–29" in run("%mlx_load smollm2")
    endless = client.execute("%mlx_generate --max-tokens 2000 Count from one to a thousand.")
    output_of(client, endless, until="1")

    manager.interrupt_kernel()
    said = output_of(client, endless)

    assert "interrupted after" in said
    assert "Traceback" not in said
    assert "interrupted" in run("from mlx_nb import current; current.pipe.last")
    assert "The capital of France is Paris." in run("%mlx_generate What is the capital of France?")
    status = run("%mlx_cluster status")
    assert status.count("idle") == 2, status
    assert "has stopped" in run("%mlx_cluster stop")
