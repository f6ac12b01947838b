"""Packed weights become plain ones a slice at a time.

MLX unpacks on a CPU through arrays of the full size: *measured*, twice the result for 4 and 8 bits, seven times
for 6. Rows do not depend on each other, so slices give the same numbers, and need little besides the result.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.layers import named_modules

SLICE_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Packed:
    """A weight as it is stored.

    Shapes:
        weight: ``[…, rows, columns * bits / 32]`` uint32.
        scales, biases: ``[…, rows, columns / group_size]``; biases None in modes without.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str

    def unpack(self, like: mx.array) -> mx.array:
        """The plain weight, evaluated, in the shape and dtype of an unevaluated one."""
        mx.eval(self.weight, self.scales, *([] if self.biases is None else [self.biases]))
        plain = mx.zeros(like.shape, dtype=like.dtype)
        rows = max(1, SLICE_BYTES * like.shape[0] // max(1, like.nbytes))
        for start in range(0, like.shape[0], rows):
            part = slice(start, start + rows)
            plain[part] = mx.dequantize(
                self.weight[part],
                self.scales[part],
                None if self.biases is None else self.biases[part],
                self.group_size,
                self.bits,
                self.mode,
            ).astype(like.dtype)
            mx.eval(plain)
        return plain


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """The packed weights of a model by parameter name; nothing is read."""
    return {
        f"{path}.weight": Packed(
            module.weight,
            module.scales,
            module.get("biases"),
            module.group_size,
            module.bits,
            getattr(module, "mode", "affine"),
        )
        for path, module in named_modules(model)
        if hasattr(module, "bits") and "scales" in module
    }
