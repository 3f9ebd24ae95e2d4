"""Boxes over an image."""

import numpy as np

from ssd_algo.data.draw import WHITE, Mark, colour, draw


def test_classes_next_to_each_other_differ_and_take_black_letters() -> None:
    colours = np.asarray([colour(identity) for identity in range(20)], dtype=np.float64)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1000 * np.eye(20)
    assert distances.min() > 20
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 90
    assert (colours @ [0.299, 0.587, 0.114]).min() > 110


def test_the_line_is_where_the_box_is() -> None:
    image = np.full((60, 80, 3), 90, dtype=np.uint8)
    drawn = draw(image, [Mark([10.2, 20, 50, 40], (255, 0, 0))])
    red = (drawn == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 39, 10, 49)
    assert not red[25:35, 15:45].any()
    assert (image == 90).all()


def test_labels_stay_in_the_image_and_off_each_other() -> None:
    image = np.zeros((100, 120, 3), dtype=np.uint8)
    marks = [
        Mark([0, 0, 20, 20], WHITE, "Straße"),
        Mark([2, 2, 22, 22], (255, 255, 0), "два"),
        Mark([110, 90, 300, 99], WHITE, "out"),
    ]
    drawn = draw(image, marks)
    assert drawn.shape == image.shape
    plates = [(drawn == each).all(axis=2).sum() for each in ((255, 255, 255), (255, 255, 0))]
    assert min(plates) > 100


def test_a_label_without_room_is_left_out() -> None:
    """Of many that lie on each other those of the first marks are there, each whole."""
    ground = np.zeros((100, 100, 3), dtype=np.uint8)
    colours = [(255, 255 - number, 0) for number in range(40)]
    drawn = draw(ground, [Mark([40, 40, 60, 60], each, "label") for each in colours])
    plates = [int((drawn == each).all(axis=2).sum()) for each in colours]
    (whole,) = {each for each in plates[1:] if each > 0}
    shown = [each > 0 for each in plates]
    assert 2 < sum(shown) < 10
    assert shown == sorted(shown, reverse=True)
    assert whole > 200


def test_a_broken_line_is_broken() -> None:
    drawn = draw(np.zeros((60, 80, 3), dtype=np.uint8), [Mark([10, 10, 70, 50], WHITE, dashed=True)])
    top = (drawn[10] == 255).all(axis=1)
    assert 0 < top.sum() < 50


def test_the_first_label_is_whole_and_sizes_follow_the_image() -> None:
    """Of many on one place; of a panorama they follow both sides."""
    first = Mark([40, 40, 60, 60], (255, 0, 0), "first")
    others = [Mark([40, 40, 60, 60], (0, 255, 0), "other")] * 20
    ground = np.zeros((100, 100, 3), dtype=np.uint8)
    reds = [(draw(ground, marks)[:39] == (255, 0, 0)).all(axis=2) for marks in ([first], [first, *others])]
    assert reds[0].sum() == reds[1].sum() > 200
    heights = []
    for height, width in ((150, 200), (3000, 4000), (200, 3000)):
        box = [width / 2, height / 2, width / 2 + 1, height / 2 + 1]
        drawn = draw(np.zeros((height, width, 3), dtype=np.uint8), [Mark(box, (255, 0, 0), "class 0.50")])
        heights.append(int((drawn == (255, 0, 0)).all(axis=2).any(axis=1).sum()))
    small, large, panorama = heights
    assert 12 <= small <= 20
    assert 100 <= large <= 200
    assert 25 <= panorama <= 50
