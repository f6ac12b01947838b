"""How much of a Mac's memory Metal may use: from what the system says, or from its size alone."""

_GIB, _MIB = 2**30, 2**20


def working_set(memory_bytes: int, *, recommended_bytes: int = 0, wired_limit_mb: int = 0) -> int:
    """Bytes that a model may take on a Mac.

    By default Metal recommends two thirds of the memory, and three quarters from 36 GB on. Someone who sets
    ``iogpu.wired_limit_mb`` has decided otherwise, for more or for less.

    Args:
        memory_bytes: The Mac's memory.
        recommended_bytes: What Metal recommends (``recommendedMaxWorkingSetSize``); 0 if it cannot be asked.
        wired_limit_mb: ``sysctl iogpu.wired_limit_mb``, in MiB; 0 for the system's own limit.
    """
    if wired_limit_mb > 0:
        return min(wired_limit_mb * _MIB, memory_bytes)
    if recommended_bytes > 0:
        return min(recommended_bytes, memory_bytes)
    return memory_bytes * 3 // 4 if memory_bytes >= 36 * _GIB else memory_bytes * 2 // 3
