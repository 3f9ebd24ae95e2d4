"""Augmentation: geometry by hand, invariants by random images."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_algo.data import augment
from ssd_algo.data.boxes import Boxes, iou


def augmented(
    image: augment.Pixels, boxes: Boxes, classes: np.ndarray, side: int, generator: np.random.Generator
) -> tuple[augment.Pixels, Boxes, np.ndarray]:
    height, width = image.shape[:2]
    plan = augment.draw(width, height, boxes, generator)
    return augment.apply(image, width, height, plan, side), *augment.move(boxes, classes, plan, side)


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
    square, moved, kept = augmented(image, boxes, classes, 64, generator)
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
    first = augmented(image, boxes, classes, 64, np.random.default_rng(5))
    second = augmented(image, boxes, classes, 64, np.random.default_rng(5))
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
        if seed % 2:
            square, moved = square[:, ::-1], augment.mirror_boxes(moved, 200)
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
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    boxes = np.asarray([[0, 0, 1, 2]], dtype=np.float32)
    plan = augment.Plan((0, 0, 2, 2), 0, mirrored=True, colours=None)
    mirrored, (moved, _) = augment.apply(image, 2, 2, plan, 2), augment.move(boxes, np.asarray([0]), plan, 2)
    assert moved.tolist() == [[1, 0, 2, 2]]
    assert mirrored[0, 1].tolist() == [0, 1, 2]
    again, (back, _) = augment.apply(mirrored, 2, 2, plan, 2), augment.move(moved, np.asarray([0]), plan, 2)
    assert (again == image).all()
    assert (back == boxes).all()


@pytest.mark.parametrize(("width", "height"), [(640, 427), (100, 80), (32, 32), (5, 3)])
def test_crops_show_no_fill(width: int, height: int) -> None:
    """Fill is for what lies beyond the image."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    boxes = np.asarray([[0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height]], dtype=np.float32)
    generator = np.random.default_rng(0)
    seen = 0
    for _ in range(400):
        plan = augment.draw(width, height, boxes, generator)
        if min(plan.window[:2]) < 0 or plan.window[2] > width or plan.window[3] > height:
            continue
        seen += 1
        square = augment.cut(image, plan.window, 300, plan.interpolation)
        assert square.min() == 255
    assert seen > 100


def test_zoom_out_shows_the_fill() -> None:
    image = np.full((10, 10, 3), 200, dtype=np.uint8)
    square = augment.cut(image, (-10, -10, 30, 30), 80, 1)
    assert square[0, 0].tolist() == list(augment.FILL)
    assert square[30, 30].tolist() == [200, 200, 200]
    # The image is a quarter of the window: 20 of 80 pixels, from 20 on.
    assert np.flatnonzero((square[30] == 200).all(axis=1)).tolist() == list(range(20, 40))


def test_distribution_of_the_geometry() -> None:
    """Over 10,000 draws; a proportion p has a standard error of sqrt(p (1 - p) / 10,000), at most 0.005."""
    generator = np.random.default_rng(0)
    boxes = np.zeros((0, 4), dtype=np.float32)
    windows = np.asarray([augment.draw_window(100, 100, boxes, generator) for _ in range(10_000)])
    whole = (windows == [0, 0, 100, 100]).all(axis=1)
    # No zoom-out (1/2) and the sampler that takes the whole (1/7).
    assert whole.mean() == pytest.approx(1 / 14, abs=0.012)
    zooms = np.asarray([augment.draw_zoom_out(100, 50, generator) for _ in range(10_000)])
    ratio = (zooms[:, 2] - zooms[:, 0]) / 100
    assert ratio.mean() == pytest.approx(2.5, abs=0.035)  # uniform from 1 to 4: standard deviation 0.87, / 100
    assert (zooms[:, :2] <= 0).all()
    assert (zooms[:, 2:] >= [100, 50]).all()
    assert (zooms[:, 3] - zooms[:, 1]) / 50 == pytest.approx(ratio)


def test_parts_are_those_of_the_paper() -> None:
    """Over 10,000 draws of parts of a window of 200 x 100: 0.3 to 1 of the sides, aspect ratio 0.5 to 2 beside its own."""
    parts = augment.draw_parts((-50, -10, 150, 90), 10_000, np.random.default_rng(0))
    sides = (parts[:, 2:] - parts[:, :2]) / [200, 100]
    scale, aspect = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    assert (scale.min(), scale.max()) == pytest.approx((0.3, 1), abs=0.001)
    assert scale.mean() == pytest.approx(0.65, abs=0.006)  # uniform: standard deviation 0.7 / sqrt(12) = 0.2, / 100
    assert 0.5 <= aspect.min() < 0.505
    assert 1.98 < aspect.max() <= 2
    small = scale < 0.5  # nothing bounds the ratio there but 0.5 and 2: uniform, mean 1.25, standard deviation 0.433
    assert aspect[small].mean() == pytest.approx(1.25, abs=4 * 0.433 / np.sqrt(small.sum()))
    assert (parts[:, :2] >= [-50, -10]).all()
    assert (parts[:, 2:] <= [150 + 1e-9, 90 + 1e-9]).all()
    # The place is uniform over what is left: its mean is the middle.
    free = np.asarray([200, 100]) * (1 - sides)
    where = ((parts[:, :2] - [-50, -10]) / np.maximum(free, 1e-9))[(free > 1).all(axis=1)]
    assert where.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.012)  # 0.289 / sqrt(9,000), four times


def test_crops_hold_what_their_sampler_asks_for() -> None:
    """One box of a quarter of the sides in the middle; over 10,000 draws without zoom-out."""
    generator = np.random.default_rng(0)
    boxes = np.asarray([[150, 150, 250, 250]], dtype=np.float32)
    whole = (0.0, 0.0, 400.0, 400.0)
    windows = np.asarray([augment.draw_crop(whole, boxes, generator) for _ in range(10_000)], dtype=np.float32)
    overlaps = iou(windows, boxes)[:, 0]
    uncropped = (windows == whole).all(axis=1)
    # A crop of 0.3 of the sides is 120 x 120, and an IoU of 0.7 needs one of at most 1.43 times the box's 100 x 100
    # pixels: possible, 0.9 is not. So beside the sampler of the whole (1/7), that of 0.9 always ends there, and those of
    # 0.5 and 0.7 often.
    assert (overlaps[~uncropped] > 0.0).all()
    assert uncropped.mean() > 2 / 7
    # The sampler of any part and that of 0.1 ask for little: at least those two of seven give crops.
    assert (~uncropped).mean() > 2 / 7 - 0.02
    centres = ((windows[:, :2] < 200) & (windows[:, 2:] > 200)).all(axis=1)
    assert centres.all()


@pytest.mark.parametrize("least", augment._CROP_MIN_IOUS)
def test_least_overlaps(least: float) -> None:
    """Every crop of a sampler has its IoU: seen by drawing the same crops with that sampler chosen."""
    boxes = np.asarray([[20, 20, 380, 380]], dtype=np.float32)

    class Chosen:
        """A generator whose first draw, of the sampler, is given."""

        def __init__(self, seed: int) -> None:
            self._generator = np.random.default_rng(seed)

        def integers(self, _: int) -> int:
            return 1 + augment._CROP_MIN_IOUS.index(least)

        def __getattr__(self, name: str) -> object:
            return getattr(self._generator, name)

    whole = (0.0, 0.0, 400.0, 400.0)
    windows = [augment.draw_crop(whole, boxes, Chosen(seed)) for seed in range(500)]  # type: ignore[arg-type]
    crops = np.asarray([window for window in windows if window != whole], dtype=np.float32)
    overlaps = iou(crops, boxes)[:, 0]
    assert len(crops) > 20
    assert overlaps.min() >= least
    assert overlaps.min() < least + 0.1


def test_reduced_decoding_is_never_below_the_square() -> None:
    for window, factor in (
        ((0, 0, 4000, 3000), 8),  # 3000 / 300 = 10 pixels to one of the square
        ((0, 0, 2399, 3000), 4),
        ((0, 0, 640, 600), 2),
        ((0, 0, 640, 599), 1),
        ((100, 100, 200, 200), 1),
    ):
        plan = augment.Plan(window, 1, mirrored=False, colours=None)
        assert augment.reduction(plan, 4000, 3000, 300) == factor


def test_reduced_decoding_shows_the_same() -> None:
    """A window of a smooth picture, from the picture itself and from it at an eighth."""
    rows, columns = np.mgrid[0:800, 0:1200]
    image = np.stack([rows * 255 / 800, columns * 255 / 1200, (rows + columns) * 255 / 2000], axis=2).astype(np.uint8)
    eighth = cv2.resize(image, (150, 100), interpolation=cv2.INTER_AREA)
    plan = augment.Plan((-300, 100, 1100, 900), 1, mirrored=True, colours=None)
    squares = [augment.apply(each, 1200, 800, plan, 64).astype(int) for each in (image, eighth)]
    assert np.abs(squares[0] - squares[1]).mean() < 2
    assert (squares[0] == augment.FILL).all(axis=2).sum() == pytest.approx(
        (squares[1] == augment.FILL).all(axis=2).sum(), abs=64
    )


def test_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    matrices = [augment.draw_colours(np.random.default_rng(seed)) for seed in range(4000)]
    none = sum(each is None for each in matrices) / len(matrices)
    assert none == pytest.approx(1 / 16, abs=0.015)  # each of four has an even chance
    for matrix in matrices[:50]:
        if matrix is not None:
            # Gray stays gray: saturation and hue leave it alone, brightness and contrast move all channels alike.
            gray = matrix @ [100, 100, 100, 1]
            assert gray == pytest.approx(np.full(3, gray[0]), abs=1.0)
            assert 0.5 * (100 - 32) - 1 <= gray[0] <= 1.5 * (100 + 32) + 1
    plan = augment.Plan((0, 0, 30, 30), 0, mirrored=False, colours=np.eye(3, 4))
    assert (augment.apply(image, 30, 30, plan, 30) == image).all()


def test_hue_and_saturation_by_hand() -> None:
    """Saturation 0 leaves the luma, 0.299 R + 0.587 G + 0.114 B, which is 76 for pure red."""

    class Given:
        """A generator of given numbers."""

        def __init__(self, chosen: list[float], strength: list[float]) -> None:
            self._chosen, self._strength = np.asarray(chosen), np.asarray(strength)

        def random(self, _: int) -> np.ndarray:
            return self._chosen

        def uniform(self, *_: object) -> np.ndarray:
            return self._strength

    least = augment.draw_colours(Given([1, 1, 0, 1], [0, 0, -1, 0]))  # type: ignore[arg-type]
    # Half the saturation: half red, half its luma.
    assert least @ [255, 0, 0, 1] == pytest.approx([(255 + 76.2) / 2, 38.1, 38.1], abs=1)
    brighter = augment.draw_colours(Given([0, 0, 1, 1], [0.5, 0.5, 0, 0]))  # type: ignore[arg-type]
    # Brightness 16, then contrast 1.25.
    assert brighter @ [100, 100, 100, 1] == pytest.approx([145, 145, 145], abs=1)
