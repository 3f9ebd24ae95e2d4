import numpy as np
import pytest

from ssd_algo.data import anchors


def test_scales_of_a_small_input_are_those_of_ssd_for_coco() -> None:
    # 0.15 to 0.87 over five maps: steps of 0.18; the last map's larger square goes on to 1.05.
    assert [s for s, _ in anchors.scales(300, 6)] == pytest.approx([0.07, 0.15, 0.33, 0.51, 0.69, 0.87])
    assert anchors.scales(300, 6)[0][1] == pytest.approx((0.07 * 0.15) ** 0.5)
    assert anchors.scales(300, 6)[5][1] == pytest.approx((0.87 * 1.05) ** 0.5)


def test_scales_of_a_large_input() -> None:
    # 0.10 to 0.90 over six maps: steps of 0.16.
    assert [s for s, _ in anchors.scales(512, 7)] == pytest.approx([0.04, 0.10, 0.26, 0.42, 0.58, 0.74, 0.90])


@pytest.mark.parametrize(("image_shape", "large"), [(447, False), (448, True)])
def test_layout_for_large_inputs_starts_at_448(image_shape: int, large: bool) -> None:
    assert anchors.is_large(image_shape) == large


def test_anchors_of_a_cell_by_hand() -> None:
    # The only cell of the last of three maps of a small input: centre 0.5, scale 0.87, then sqrt(0.87 * 1.59) as the
    # step is 0.72, then ratio 2: 0.87 * sqrt(2) wide and 0.87 / sqrt(2) high, then ratio 1/2.
    cell = anchors.anchors(128, [(4, 4), (2, 2), (1, 1)])[-4:]
    shapes = [(0.87, 0.87), (1.17614, 1.17614), (1.23037, 0.61518), (0.61518, 1.23037)]
    expected = [[0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2] for w, h in shapes]
    assert cell == pytest.approx(np.asarray(expected), abs=1e-4)


def test_anchors_go_by_row_then_column() -> None:
    # Two by two cells with 4 anchors each: centres at 0.25 and 0.75, column before row.
    first = anchors.anchors(128, [(2, 2), (1, 1), (1, 1)])[:16:4]
    assert ((first[:, :2] + first[:, 2:]) / 2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_count_is_that_of_the_paper_at_300() -> None:
    maps = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    # 38^2 * 4 + 19^2 * 6 + 10^2 * 6 + 5^2 * 6 + 3^2 * 4 + 1 * 4
    assert len(anchors.anchors(300, maps)) == 8732
