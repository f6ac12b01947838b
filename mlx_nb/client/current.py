"""The current cluster, pipe and debugger: one set, shared by the magics and the Python API."""

from typing import Any


class Current:
    """What is current in this kernel.

    Attributes:
        cluster: The running `Cluster`, or None.
        pipe: The pipe loaded last, or None.
        dbg: The open debugger, or None.
        lost_dbg: The debugger whose run the last restart of the cluster ended, until another begins.
    """

    def __init__(self) -> None:
        self.cluster: Any = None
        self.pipe: Any = None
        self.dbg: Any = None
        self.lost_dbg: Any = None

    def __repr__(self) -> str:
        parts = [self.cluster, self.pipe, self.dbg]
        return "\n\n".join(str(part) for part in parts if part is not None) or "Nothing is running."


current = Current()
