"""The preview's pixels: outliers, NaN and Inf are seen, on the canvas and in the static picture."""

import numpy as np
import pytest

from mlx_nb.shared.preview import colour_indices, pack_preview

PIXELS = """() => {
  const canvas = document.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, rgba: [...data] };
}"""


def pack(array: np.ndarray) -> bytes:
    height, width = array.shape
    return pack_preview(width, height, colour_indices(array).tobytes())


def drawn(view, array: np.ndarray) -> np.ndarray:
    """What the canvas has, as ``[height, width, 4]``."""
    view.widget.show({**view.widget.state, "sequence": 0}, pack(array))
    view.flush()
    view.settle()
    view.page.wait_for_timeout(50)
    found = view.page.evaluate(PIXELS)
    return np.array(found["rgba"], np.uint8).reshape(found["height"], found["width"], 4)


@pytest.mark.browser
def test_more_cells_than_pixels_still_show_the_outlier(open_view):
    view = open_view("mid_prefill")
    array = np.zeros((500, 3000), np.float32)
    array[333, 1234] = -7.0

    pixels = drawn(view, array)

    assert pixels.shape[1] < 3000
    assert (pixels[..., 3] == 255).sum() == 1
    assert pixels[pixels[..., 3] == 255][0].tolist() == [31, 95, 208, 255]


@pytest.mark.browser
def test_signs_have_their_colours_and_zero_shows_the_page(open_view):
    view = open_view("mid_prefill")

    pixels = drawn(view, np.array([[-1.0, 0.0, 1.0]]))

    third = pixels.shape[1] // 3
    assert pixels[8, 2].tolist() == [31, 95, 208, 255]
    assert pixels[8, third + 2, 3] == 0
    assert pixels[8, -2].tolist() == [217, 72, 15, 255]


@pytest.mark.browser
def test_nan_and_infinities_are_hatched_each_in_its_way_and_named(open_view):
    view = open_view("mid_prefill")
    array = np.tile(np.array([[np.nan, np.inf, -np.inf, 0.5]]), (48, 8))

    pixels = drawn(view, array)

    width = pixels.shape[1] // 32
    patterns = [pixels[8:24, i * width + 2 : i * width + 10].tobytes() for i in range(3)]
    assert len(set(patterns)) == 3
    assert {tuple(p) for p in pixels[:, 2:10].reshape(-1, 4).tolist()} == {
        (0, 0, 0, 255),
        (255, 225, 77, 255),
    }
    legend = view.root.locator(".mv-legend").inner_text()
    assert legend.split()[-3:] == ["−Inf", "+Inf", "NaN"]


@pytest.mark.browser
def test_no_preview_leaves_no_empty_frame(open_view):
    view = open_view("mid_prefill")
    assert view.root.locator("figure").is_visible()

    view.widget.show({**view.widget.state, "sequence": 0})
    view.flush()
    view.settle()

    assert view.root.locator("figure").is_hidden()
