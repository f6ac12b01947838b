"""What a rank says of its machine, for the cluster's view."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One rank's machine and memory, in bytes.

    Attributes:
        device: What it computes on, in words.
        memory_bytes: Resident memory of its process.
        kv_bytes: What the KV caches that it holds take, unused positions too.
        free_bytes, total_bytes: Of its host's memory.
    """

    device: str
    memory_bytes: int
    kv_bytes: int
    free_bytes: int
    total_bytes: int
