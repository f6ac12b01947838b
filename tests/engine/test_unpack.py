"""Weights that are unpacked slice by slice are those that MLX unpacks at once, and need little memory besides."""

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS
from mlx_nb.engine.loading import set_compute_dtype
from mlx_nb.engine.unpack import SLICE_BYTES, Packed
from tests.engine import architectures

import mlx.core as mx  # isort: skip
import pytest
from mlx.utils import tree_flatten


def pack(shape: tuple[int, ...], bits: int, mode: str = "affine") -> Packed:
    group = 32
    weight, scales, *rest = mx.quantize(mx.random.normal(shape), group, bits, mode=mode)
    biases = rest[0] if rest else None
    mx.eval([array for array in (weight, scales, biases) if array is not None])
    return Packed(weight, scales, biases, group, bits, mode)


def at_once(packed: Packed, dtype: mx.Dtype) -> mx.array:
    return mx.dequantize(
        packed.weight, packed.scales, packed.biases, packed.group_size, packed.bits, packed.mode
    ).astype(dtype)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_slices_give_the_same_numbers(bits: int, dtype: mx.Dtype) -> None:
    packed = pack((9001, 512), bits)  # five slices in float32, the last one short
    wanted = at_once(packed, dtype)

    plain = packed.unpack(at_once(packed, dtype))

    assert wanted.nbytes > 2 * SLICE_BYTES
    assert plain.dtype == dtype
    assert mx.array_equal(plain, wanted)


def test_experts_are_sliced_by_expert() -> None:
    packed = pack((5, 700, 512), 4)

    assert mx.array_equal(packed.unpack(at_once(packed, mx.float32)), at_once(packed, mx.float32))


def test_modes_without_biases_are_unpacked() -> None:
    packed = pack((9001, 512), 4, "mxfp4")

    assert packed.biases is None
    assert mx.array_equal(packed.unpack(at_once(packed, mx.float32)), at_once(packed, mx.float32))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_it_takes_little_more_than_the_result(bits: int) -> None:
    packed = pack((24576, 512), bits)  # 48 MiB
    mx.clear_cache()

    def peak(unpack: object) -> int:
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        kept = unpack()  # type: ignore[operator]
        mx.eval(kept)
        return mx.get_peak_memory() - before

    size = 48 * 2**20
    assert peak(lambda: packed.unpack(at_once(packed, mx.float32))) < size + 32 * 2**20
    assert peak(lambda: at_once(packed, mx.float32)) > 1.9 * size  # the control: at once it is not so


def test_what_mlx_lm_leaves_packed_does_not_lose_the_dtype() -> None:
    model, dtype, packed = set_compute_dtype(architectures.build("prism_hadamard_qwen35"), "float32")

    kinds = {path: value.dtype for path, value in tree_flatten(model.parameters())}
    assert dtype == "float32"
    assert any(path.endswith("up_proj.scales") for path in kinds)  # the control: it has such modules
    assert not any(path.endswith("up_proj.weight") for path in packed)
    assert kinds["language_model.model.norm.weight"] == mx.float32
