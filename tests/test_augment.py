"""Augmentation: geometry by hand, invariants by random images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_algo.data import augment
from ssd_algo.data.boxes import Boxes


def sample(generator: np.random.Generator, objects: int) -> tuple[augment.Pixels, Boxes, np.ndarray]:
    height, width = int(generator.integers(20, 200)), int(generator.integers(20, 200))
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    low = generator.uniform(0, 0.8, (objects, 2))
    fractions = np.concatenate([low, low + generator.uniform(0.05, 0.2, (objects, 2))], axis=1)
    boxes = (fractions * [width, height, width, height]).astype(np.float32)
    return image, boxes, generator.integers(0, 5, objects)


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), objects=st.integers(0, 5))
def test_invariants(seed: int, objects: int) -> None:
    generator = np.random.default_rng(seed)
    image, boxes, classes = sample(generator, objects)
    before = image.copy(), boxes.copy(), classes.copy()
    square, moved, kept = augment.augment(image, boxes, classes, 64, generator)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert moved.dtype == np.float32
    assert len(moved) == len(kept) <= objects
    assert ((moved >= 0) & (moved <= 64)).all()
    assert (moved[:, 2:] > moved[:, :2]).all()
    # A crop holds the centre of at least one object.
    assert objects == 0 or len(moved) > 0
    assert set(kept.tolist()) <= set(classes.tolist())
    assert all((now == then).all() for now, then in zip((image, boxes, classes), before, strict=True))


def test_same_generator_same_sample() -> None:
    image, boxes, classes = sample(np.random.default_rng(0), 3)
    first = augment.augment(image, boxes, classes, 64, np.random.default_rng(5))
    second = augment.augment(image, boxes, classes, 64, np.random.default_rng(5))
    assert all((one == two).all() for one, two in zip(first, second, strict=True))


def test_boxes_go_where_their_pixels_go() -> None:
    # One white rectangle on black: after any geometry its bounding box in the square is the moved box.
    for seed in range(50):
        generator = np.random.default_rng(seed)
        image = np.zeros((120, 160, 3), dtype=np.uint8)
        image[30:70, 40:100] = 255
        boxes = np.asarray([[40, 30, 100, 70]], dtype=np.float32)
        window = augment.draw_window(160, 120, boxes, generator)
        square = augment.cut(image, window, 200, 0)
        moved, _ = augment.into_window(boxes, np.asarray([0]), window, 200)
        square, moved = augment.mirror(square, moved) if seed % 2 else (square, moved)
        rows, columns = np.where((square == 255).all(axis=2))
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A source pixel covers up to 200 / (0.3 * 120) = 6 pixels of the square.
        assert moved[0] == pytest.approx(np.asarray(seen), abs=6)


def test_into_window_by_hand() -> None:
    # Window 50 wide and 20 high from (10, 10) to a square of 100: scales 2 and 5. The first box is clipped on the left,
    # the second has its centre outside, the third lies inside.
    boxes = np.asarray([[0, 15, 30, 20], [0, 0, 18, 30], [20, 12, 30, 14]], dtype=np.float32)
    moved, classes = augment.into_window(boxes, np.asarray([7, 8, 9]), (10, 10, 60, 30), 100)
    assert classes.tolist() == [7, 9]
    assert moved.tolist() == [[0, 25, 40, 50], [20, 10, 40, 20]]


def test_mirror_by_hand_and_twice() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    boxes = np.asarray([[0, 0, 1, 2]], dtype=np.float32)
    mirrored, moved = augment.mirror(image, boxes)
    assert moved.tolist() == [[3, 0, 4, 2]]
    assert mirrored[0, 3].tolist() == [0, 1, 2]
    again, back = augment.mirror(mirrored, moved)
    assert (again == image).all()
    assert (back == boxes).all()


def test_zoom_out_shows_the_fill() -> None:
    image = np.full((10, 10, 3), 200, dtype=np.uint8)
    square = augment.cut(image, (-10, -10, 30, 30), 80, 1)
    assert square[0, 0].tolist() == list(augment.FILL)
    assert square[30, 30].tolist() == [200, 200, 200]
    # The image is a quarter of the window: 20 of 80 pixels, from 20 on.
    assert np.flatnonzero((square[30] == 200).all(axis=1)).tolist() == list(range(20, 40))


def test_distribution_of_the_geometry() -> None:
    """Over 4,000 draws; a proportion p has a standard error of sqrt(p (1 - p) / 4000), at most 0.008."""
    generator = np.random.default_rng(0)
    boxes = np.zeros((0, 4), dtype=np.float32)
    windows = np.asarray([augment.draw_window(100, 100, boxes, generator) for _ in range(4000)])
    whole = (windows == [0, 0, 100, 100]).all(axis=1)
    # No zoom-out (1/2) and the sampler that takes the whole (1/7).
    assert whole.mean() == pytest.approx(1 / 14, abs=0.02)
    zooms = np.asarray([augment.draw_zoom_out(100, 50, generator) for _ in range(4000)])
    ratio = (zooms[:, 2] - zooms[:, 0]) / 100
    assert ratio.mean() == pytest.approx(2.5, abs=0.05)  # uniform from 1 to 4: standard deviation 0.87
    assert (zooms[:, :2] <= 0).all()
    assert (zooms[:, 2:] >= [100, 50]).all()
    assert (zooms[:, 3] - zooms[:, 1]) / 50 == pytest.approx(ratio)


def test_distortion_changes_pixels_and_nothing_else() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    outcomes = [augment.distort(image, np.random.default_rng(seed)) for seed in range(64)]
    unchanged = sum(bool((each == image).all()) for each in outcomes)
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in outcomes)
    assert 0 < unchanged < 16  # each of four has an even chance: 1/16 of 64 expected
