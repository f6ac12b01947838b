"""What the page says reaches a view while a cell runs: by messages as JupyterLab sends them, in a real kernel."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.filterwarnings("ignore:Kernel is running over TCP without encryption")

VIEW = """
import threading, time
from mlx_nb.widgets.kv import KVView

heard, drawn, over = threading.Event(), threading.Event(), threading.Event()
view = KVView()
view.on_ask(lambda what, details: heard.set())

def draw():  # as a ticker does while a cell runs
    while not over.wait(0.05):
        view.show({"note": str(time.monotonic())})
        drawn.set()

threading.Thread(target=draw, daemon=True).start()
print(view.model_id)
"""
CELL = "drawn.clear(); drawn.wait(5); print('ready', flush=True); print(heard.wait({limit_s})); heard.clear()"


@pytest.fixture(scope="module")
def kernel() -> Iterator[BlockingKernelClient]:
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.execute_interactive("over.set()", timeout=20)
    client.stop_channels()
    manager.shutdown_kernel()


def heard_during_a_cell(kernel: BlockingKernelClient, comm_id: str, subshell_id: str, limit_s: float) -> bool:
    """Run a cell that waits, ask the view something meanwhile, and return whether that came in time."""
    printed: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        printed.append(message["content"].get("text", ""))
        if "ready" in printed[-1]:
            content = {"kind": "ask", "what": "pause", "id": 1, "details": {}}
            asked = kernel.session.msg(
                "comm_msg", {"comm_id": comm_id, "data": {"method": "custom", "content": content}}
            )
            asked["header"]["subshell_id"] = subshell_id
            kernel.shell_channel.send(asked)

    kernel.execute_interactive(CELL.format(limit_s=limit_s), timeout=30, output_hook=hook)
    return "True" in "".join(printed)


def test_a_view_that_is_drawn_from_a_thread_is_heard_while_a_cell_runs(kernel: BlockingKernelClient) -> None:
    printed: list[str] = []
    kernel.execute_interactive(
        VIEW, timeout=30, output_hook=lambda message: printed.append(message["content"].get("text", ""))
    )
    comm_id = "".join(printed).strip()
    kernel.control_channel.send(kernel.session.msg("create_subshell_request", {}))
    while (reply := kernel.control_channel.get_msg(timeout=10))["msg_type"] != "create_subshell_reply":
        pass
    subshell_id = reply["content"]["subshell_id"]

    began = time.monotonic()
    assert heard_during_a_cell(kernel, comm_id, subshell_id, 10)
    assert time.monotonic() - began < 5

    # The control: as ipykernel routes it by itself, the view hears it when the cell is over.
    kernel.execute_interactive("del view.comm._reply_subshell_for", timeout=20)
    assert not heard_during_a_cell(kernel, comm_id, subshell_id, 1)
