"""Numbers that look alike and are not.

An engine id equals the MPI rank only by luck (it changes after a restart), and a layer index is
always the one of the whole model, never the position inside a shard.
"""

from typing import NewType

Rank = NewType("Rank", int)
EngineId = NewType("EngineId", int)
LayerIndex = NewType("LayerIndex", int)
