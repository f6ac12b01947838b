"""The stepper's buttons in a real kernel, by the messages that the browser sends: the kernel stays free, Stop stops."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:Kernel is running over TCP without encryption"),
]

TOKENS = 400


@pytest.fixture
def started() -> Iterator[tuple[Any, BlockingKernelClient]]:
    """A kernel's manager, and its client."""
    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    cell(client, "%mlx_cluster stop")
    client.stop_channels()
    manager.shutdown_kernel()


def cell(client: BlockingKernelClient, code: str, limit_s: float = 60) -> str:
    """Run a cell; what it printed."""
    printed: list[str] = []
    reply = client.execute_interactive(
        code, timeout=limit_s, output_hook=lambda message: printed.append(message["content"].get("text", ""))
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed).strip()


def press(client: BlockingKernelClient, comm_id: str, **content: Any) -> None:
    data = {"method": "custom", "content": content}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm_id, "data": data}))


def test_a_run_from_a_button_leaves_the_kernel_free_and_stops_also_after_a_restart(
    started: tuple[Any, BlockingKernelClient],
) -> None:
    manager, kernel = started
    cell(kernel, "%load_ext mlx_nb\n%mlx_cluster start --ranks 2\n%mlx_load smollm2")
    cell(kernel, f"%%mlx_step --max-tokens {TOKENS} --raw\nOnce upon a time there was a little robot, and")
    ask = "from mlx_nb.client.live_view import live_views\nview = live_views[-1].view\nprint(view.model_id)"
    comm_id = cell(kernel, ask).splitlines()[-1]

    for number, stop in enumerate(("button", "button", "kernel", "kernel")):
        press(kernel, comm_id, kind="stride", stride="run", id=number)
        time.sleep(1.5)
        assert cell(kernel, "print(view.busy)") == "run"  # answered while it runs
        if stop == "button":
            press(kernel, comm_id, kind="interrupt")
        else:
            manager.interrupt_kernel()  # the toolbar's square
        until(kernel, "view.busy == ''")
        assert 0 < int(cell(kernel, "print(len(dbg.gen.token_ids))")) < TOKENS
        assert cell(kernel, "print(dbg.gen.state, dbg.asked_to_stop, view.state['error'])") == "stopped True"
        press(kernel, comm_id, kind="stride", stride="restart", id=10 + number)
        until(kernel, "dbg.position.index == 0 and view.busy == ''")

    manager.interrupt_kernel()  # nothing is under way: it is ignored, as ever
    assert cell(kernel, "print(dbg.position.index, view.busy, view.state['error'])") == "0"
    slow = kernel.execute("import time; time.sleep(30)")
    time.sleep(1)
    manager.interrupt_kernel()  # and a cell hears it, as ever
    while (reply := kernel.get_shell_msg(timeout=10))["parent_header"].get("msg_id") != slow:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def until(client: BlockingKernelClient, condition: str, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while cell(client, f"print({condition})") != "True":
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)
