"""Every kind of image becomes upright RGB."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from ssd_algo.data import images

# Left half red, right half blue, 40 x 20: grayscale by Rec. 601 is 76 and 29.
PICTURE = Image.new("RGB", (40, 20), (255, 0, 0))
PICTURE.paste((0, 0, 255), (20, 0, 40, 20))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.full((20, 40), 0x8040, dtype=np.uint16))


@pytest.mark.parametrize(
    ("encoded", "left", "right"),
    [
        (encode(PICTURE, "PNG"), (255, 0, 0), (0, 0, 255)),
        (encode(PICTURE, "JPEG", quality=95), (254, 0, 0), (0, 0, 254)),
        (encode(PICTURE, "JPEG", quality=95, progressive=True), (254, 0, 0), (0, 0, 254)),
        (encode(PICTURE.convert("L"), "PNG"), (76, 76, 76), (29, 29, 29)),
        (encode(PICTURE.convert("L"), "JPEG"), (76, 76, 76), (29, 29, 29)),
        (encode(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), (255, 0, 0), (0, 0, 255)),
        (encode(PICTURE.convert("RGBA"), "PNG"), (255, 0, 0), (0, 0, 255)),
        (encode(PICTURE.convert("LA"), "PNG"), (76, 76, 76), (29, 29, 29)),
        (encode(PICTURE.convert("CMYK"), "JPEG", quality=95), (254, 0, 0), (0, 0, 254)),
        (encode(PICTURE.convert("1"), "PNG"), None, None),
        (encode(sixteen_bit(), "PNG"), (0x80, 0x80, 0x80), (0x80, 0x80, 0x80)),
    ],
    ids=["png", "jpeg", "progressive", "gray-png", "gray-jpeg", "palette", "rgba", "la", "cmyk", "1-bit", "16-bit"],
)
def test_kinds(encoded: bytes, left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> None:
    decoded = images.decode(encoded)
    assert decoded.shape == (20, 40, 3)
    assert decoded.dtype == np.uint8
    header = images.read_header(io.BytesIO(encoded), len(encoded))
    assert (header.width, header.height) == (40, 20)
    if left is not None:
        assert decoded[10, 5] == pytest.approx(left, abs=3)
        assert decoded[10, 35] == pytest.approx(right, abs=3)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
    ],
    ids=["jpeg", "progressive", "cmyk", "gray", "png", "rgba"],
)
def test_decoded_smaller(mode: str, kind: str, options: dict[str, object], reduction: int) -> None:
    """Sides are rounded up, other kinds come out whole; what is seen is the same. 401 x 203 pixels."""
    rows, columns = np.mgrid[0:203, 0:401]
    smooth = np.stack([rows, columns * 255 // 401, (rows + columns) // 3], axis=2).astype(np.uint8)
    encoded = encode(Image.fromarray(smooth).convert(mode), kind, **options)
    whole, smaller = images.decode(encoded), images.decode(encoded, reduction)
    assert smaller.shape == ((-(-203 // reduction), -(-401 // reduction), 3) if kind == "JPEG" else whole.shape)
    back = np.asarray(Image.fromarray(smaller).resize((401, 203)))
    assert np.abs(back.astype(int) - whole).mean() < 4


def test_a_turned_image_decoded_smaller() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(PICTURE, "JPEG", exif=exif)
    assert images.decode(encoded, 2).shape == (20, 10, 3)
    assert images.upright_size(encoded) == (20, 40)


# EXIF orientation -> where the red (left) half of the stored picture is seen.
@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(1, (40, 20), (10, 5)), (3, (40, 20), (10, 35)), (6, (20, 40), (5, 10)), (8, (20, 40), (35, 10))],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(
    kind: str, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(PICTURE, kind, exif=exif)
    decoded = images.decode(encoded)
    assert (decoded.shape[1], decoded.shape[0]) == size
    header = images.read_header(io.BytesIO(encoded), len(encoded))
    assert (header.width, header.height) == size
    assert decoded[red_at] == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no image",
        encode(PICTURE, "PNG")[:40],
        b"\xff\xd8\xff",
        encode(PICTURE, "JPEG2000"),
        encode(PICTURE, "PPM"),
    ],
)
def test_not_an_image(encoded: bytes) -> None:
    with pytest.raises(images.NotAnImage) as caught:
        images.decode(encoded)
    assert str(caught.value) == f"the {len(encoded)} bytes are no image that can be decoded"


def test_to_square_ignores_the_aspect_ratio() -> None:
    square = images.to_square(images.decode(encode(PICTURE, "PNG")), 10)
    assert square.shape == (10, 10, 3)
    assert square[0, 0].tolist() == [255, 0, 0]
    assert square[9, 9].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_stands_behind_an_image_does_not_matter(kind: str) -> None:
    """Telephones put films there."""
    encoded = encode(PICTURE, kind) + bytes(200_000)
    assert images.read_header(io.BytesIO(encoded), len(encoded)).width == 40
    assert images.decode(encoded).shape == (20, 40, 3)


def test_the_end_of_a_small_picture_before_the_pixels_is_not_the_images() -> None:
    whole = encode(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08" + bytes(9) + encode(PICTURE, "JPEG"))
    assert images.read_header(io.BytesIO(whole), len(whole)).width == 40
    cut = whole[:-20]
    with pytest.raises(images.NotAnImage) as caught:
        images.read_header(io.BytesIO(cut), len(cut))
    assert str(caught.value) == "the JPEG image is cut off: its end marker is missing"


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_orientation_of_other_kinds_is_as_decoded(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(PICTURE, kind, exif=exif)
    header = images.read_header(io.BytesIO(encoded), len(encoded))
    assert images.decode(encoded).shape == (header.height, header.width, 3)


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF"])
def test_other_kinds_that_can_be_decoded(kind: str) -> None:
    encoded = encode(PICTURE, kind)
    assert images.read_header(io.BytesIO(encoded), len(encoded)).width == 40
    assert images.decode(encoded).shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "the file is empty"),
        (b"no image", "the file is no image"),
        (encode(PICTURE, "JPEG")[:-20], "the JPEG image is cut off: its end marker is missing"),
        (encode(PICTURE, "PNG")[:-20], "the PNG image is cut off: its end marker is missing"),
        (encode(PICTURE, "GIF"), "a GIF image cannot be decoded here; JPEG and PNG can"),
    ],
)
def test_headers_that_are_refused(encoded: bytes, message: str) -> None:
    with pytest.raises(images.NotAnImage) as caught:
        images.read_header(io.BytesIO(encoded), len(encoded))
    assert str(caught.value) == message


def test_fingerprints_tell_images_apart() -> None:
    one, other = encode(PICTURE, "PNG"), encode(Image.new("RGB", (40, 20)), "PNG")
    prints = [images.read_header(io.BytesIO(each), len(each)).fingerprint for each in (one, one, other)]
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_the_size_of_a_jpeg_with_and_without_exif(progressive: bool, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG", progressive=progressive, comment=b"c" * 300, exif=exif)
    expected = (20, 30) if orientation == 6 else (30, 20)
    assert images.upright_size(file.getvalue()) == expected
    assert images.decode(file.getvalue()).shape[1::-1] == expected
    for end in range(0, len(file.getvalue()), 7):  # cut off anywhere, a size or an error of its own
        with contextlib.suppress(images.NotAnImage):
            assert images.upright_size(file.getvalue()[:end]) == expected
