"""`ssd-algo pack`: image folders of three formats to RecordIO."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import read_images
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_algo.data import pack as packing
from ssd_algo.data.files import Folder, list_file, list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.records import read_record_channel
from ssd_algo.data.samples import Sample


def pack(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ssd_algo.cli", "pack", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def read(path: Path) -> Dataset:
    findings = Findings()
    folder = list_folder("packed", path.parent)
    alone = Folder(
        "packed", folder.location, [file for file in folder.files if file.name.startswith(path.stem)], folder.file
    )
    dataset = read_record_channel(alone, Rules(None), findings)
    assert findings == Findings()
    return dataset


def same(packed: list[Sample], samples: list[Sample]) -> None:
    for one, two in zip(packed, samples, strict=True):
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-6)
        assert one.classes.tolist() == two.classes.tolist()
        assert one.difficult.tolist() == two.difficult.tolist()
        assert one.encoded() == two.encoded()


def test_sagemaker_json(tmp_path: Path, shapes: Path) -> None:
    """Twice, with the same bytes; an image without objects is kept."""
    for channel in ("train", "train_annotation"):
        (tmp_path / channel).mkdir()
        for path in (shapes / channel).iterdir():
            (tmp_path / channel / path.name).write_bytes(path.read_bytes())
    empty = tmp_path / "train_annotation" / "train-0003.json"
    empty.write_text(json.dumps(json.loads(empty.read_text()) | {"annotations": []}))
    outputs = [tmp_path / name / "train.rec" for name in ("one", "two")]
    for output in outputs:
        output.parent.mkdir()
        done = pack(tmp_path / "train", tmp_path / "train_annotation", output)
        samples = read_images(tmp_path, "train").samples
        objects = sum(len(sample.classes) for sample in samples)
        each = [sum((sample.classes == identity).sum() for sample in samples) for identity in range(3)]
        assert done.stdout == (
            f"{output}: 40 images, {objects} objects.\n"
            f"  class 0: {each[0]} objects  circle\n"
            f"  class 1: {each[1]} objects  square\n"
            f"  class 2: {each[2]} objects  triangle\n"
        )
        assert done.stderr == ""
        assert done.returncode == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert sorted(path.name for path in outputs[0].parent.iterdir()) == ["train.classes.txt", "train.idx", "train.rec"]
    assert outputs[0].with_suffix(".classes.txt").read_text() == "circle\nsquare\ntriangle\n"
    packed = read(outputs[0]).samples
    assert len(packed[3].classes) == 0
    same(packed, samples)
    indexed = mx.recordio.MXIndexedRecordIO(str(outputs[0].with_suffix(".idx")), str(outputs[0]), "r")
    header, image = mx.recordio.unpack(indexed.read_idx(17))
    assert header.id == 17
    assert image == samples[17].encoded()
    indexed.close()


def test_mxnets_own_iterator_reads_what_is_packed(tmp_path: Path, shapes: Path) -> None:
    assert pack(shapes / "train", shapes / "train_annotation", tmp_path / "train.rec").returncode == 0
    samples = read_images(shapes, "train").samples
    iterator = mx.io.ImageDetRecordIter(
        path_imgrec=str(tmp_path / "train.rec"),
        batch_size=40,
        data_shape=(3, 160, 200),
        label_pad_width=350,
        shuffle=False,
    )
    batch = iterator.next()
    images, labels = batch.data[0].asnumpy(), batch.label[0].asnumpy()
    for sample, image, row in zip(samples, images, labels, strict=True):
        # Channels, rows, columns, length, then the label: header 2 wide, objects 5 wide.
        assert row[:6].tolist() == [3, 160, 200, 2 + 5 * len(sample.classes), 2, 5]
        objects = row[6 : 6 + 5 * len(sample.classes)].reshape(-1, 5)
        assert objects[:, 0].tolist() == sample.classes.tolist()
        np.testing.assert_allclose(objects[:, 1:], sample.boxes, atol=1e-6)
        decoded = cv2.imdecode(np.frombuffer(sample.encoded(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert np.abs(image.transpose(1, 2, 0) - decoded).mean() < 2  # another JPEG decoder


BOXES = st.lists(
    st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.01, 0.1), st.floats(0.01, 0.1)),
    max_size=4,
)


@settings(max_examples=30)
@given(st.lists(st.tuples(BOXES, st.integers(0, 1000), st.booleans()), min_size=1, max_size=4))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[list[tuple[float, ...]], int, bool]]
) -> None:
    """Any boxes and classes come back within 1e-6, images to the byte."""
    folder = tmp_path_factory.mktemp("round")
    (folder / "images").mkdir()
    generator = np.random.default_rng(len(drawn))
    samples = []
    for number, (boxes, identity, difficult) in enumerate(drawn):
        path = folder / "images" / f"{number}.png"
        cv2.imwrite(str(path), generator.integers(0, 255, (8, 9, 3), dtype=np.uint8))
        table = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        table[:, 2:] += table[:, :2]
        (file,) = [each for each in list_folder("images", folder / "images").files if each.name == path.name]
        samples.append(
            Sample(path.name, file, -1, table, np.full(len(table), identity), np.full(len(table), difficult))
        )
    packing.write(samples, folder / "a.rec")
    same(read_record_channel(list_folder("packed", folder), Rules(None), Findings()).samples, samples)


VOC = """<annotation><folder>x</folder><filename>{file}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}</annotation>"""
VOC_OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def voc(file: str, *objects: tuple[str, int, tuple[float, ...]], width: int = 40, height: int = 20) -> str:
    text = "".join(VOC_OBJECT.format(name=name, difficult=difficult, box=box) for name, difficult, box in objects)
    return VOC.format(file=file, width=width, height=height, objects=text)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a.jpg and b.jpg, 40 x 20."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(folder / name), np.random.default_rng(len(name)).integers(0, 255, (20, 40, 3), dtype=np.uint8))
    return folder


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_pascal_voc(tmp_path: Path, photos: Path) -> None:
    annotations = write(
        tmp_path / "xml",
        {
            "a.xml": voc("a.jpg", ("dog", 0, (1, 1, 40, 20)), ("cat", 1, (11, 6, 20, 15))),
            "b.xml": voc("somewhere/else.jpg", width=0, height=0),  # careless, as tools are: found by its own name
        },
    )
    done = pack(photos, annotations, tmp_path / "voc.rec")
    assert done.returncode == 0, done.stderr
    first, second = read(tmp_path / "voc.rec").samples
    # Alphabetical: cat 0, dog 1. Pixels 1 to 40 are the whole width; 11 to 20 is 10 / 40 to 20 / 40.
    assert first.classes.tolist() == [1, 0]
    assert first.boxes.tolist() == [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.75]]
    assert first.difficult.tolist() == [False, True]
    assert len(second.classes) == 0
    assert (tmp_path / "voc.classes.txt").read_text() == "cat\ndog\n"


def test_class_ids_of_an_earlier_pack(tmp_path: Path, photos: Path) -> None:
    annotations = write(tmp_path / "xml", {"a.xml": voc("a.jpg", ("dog", 0, (1, 1, 40, 20)))})
    (tmp_path / "names.txt").write_text("cat\nbird\ndog\n")
    done = pack(photos, annotations, tmp_path / "voc.rec", "--classes", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: photos/b.jpg: no annotation names this image; it is left out.\n"
    assert [sample.classes.tolist() for sample in read(tmp_path / "voc.rec").samples] == [[2]]


def coco(**changes: Any) -> str:
    document = {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 40, "height": 20},
            {"id": 3, "file_name": "a.jpg", "width": 40, "height": 20},
        ],
        "annotations": [
            {"image_id": 3, "category_id": 90, "bbox": [10, 5, 10, 10], "iscrowd": 0},
            {"image_id": 3, "category_id": 18, "bbox": [0.0, 0.0, 40.0, 20.0], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
    }
    return json.dumps(document | changes)


def test_coco(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "instances.json").write_text(coco())
    done = pack(photos, tmp_path / "instances.json", tmp_path / "coco.rec")
    assert done.returncode == 0, done.stderr
    first, second = read(tmp_path / "coco.rec").samples
    # Categories by their ids: dog (18) 0, toothbrush (90) 1.
    assert first.classes.tolist() == [1, 0]
    assert first.boxes.tolist() == [[0.25, 0.25, 0.5, 0.75], [0, 0, 1, 1]]
    assert first.difficult.tolist() == [False, True]
    assert len(second.classes) == 0
    assert (tmp_path / "coco.classes.txt").read_text() == "dog\ntoothbrush\n"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"a.xml": "<annotation>"},
            "xml/a.xml: the file is not XML (no element found: line 1, column 12); correct or remove it.",
        ),
        (
            {"a.xml": "<html></html>"},
            "xml/a.xml: its outermost element is <html>, not VOC's <annotation>; give a folder of PASCAL VOC files.",
        ),
        (
            {"z.xml": voc("z.jpg")},
            'xml/z.xml: its <filename> is "z.jpg", but {photos} holds no such image; add it, or remove the annotation.',
        ),
        (
            {"a.xml": voc("a.jpg"), "z.xml": voc("a.jpg")},
            "xml/z.xml: annotates a.jpg, as another annotation does; keep one of them.",
        ),
        (
            {"a.xml": voc("a.jpg", width=20, height=40)},
            "xml/a.xml: it says 20 x 40 pixels, but photos/a.jpg is 40 x 20 upright (EXIF orientation applied); correct "
            "one of them.",
        ),
        ({"a.xml": voc("a.jpg", ("", 0, (1, 1, 9, 9)))}, "xml/a.xml, object 0: it has no <name>; give its class."),
        (
            {"a.xml": voc("a.jpg", ("dog", 0, (1, 1, "wide", 9)))},  # type: ignore[arg-type]
            "xml/a.xml, object 0: its <bndbox> must have the numbers xmin, ymin, xmax, ymax.",
        ),
        (
            {"a.xml": voc("a.jpg", ("dog", 0, (1, 1, 9, 9)), ("dog", 0, (20, 1, 9, 9)))},
            "xml/a.xml, object 1: has a negative size (19, 0, 9, 9); its right and bottom must be larger than its left "
            "and top.",
        ),
    ],
)
def test_voc_refusals(tmp_path: Path, photos: Path, files: dict[str, str], sentence: str) -> None:
    done = pack(photos, write(tmp_path / "xml", files), tmp_path / "voc.rec")
    assert done.stderr.splitlines()[-1] == f"ClientError: {sentence.replace('{photos}', str(photos))}"
    assert done.returncode == 2
    assert not list(tmp_path.glob("voc.*"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{",
            "c.json: the file is not JSON in UTF-8 (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)).",
        ),
        (coco(images=3), 'c.json: a COCO file must have "images", a list of objects.'),
        (
            coco(categories=[{"name": "dog"}]),
            'c.json: each entry of "categories" must have an integer id of its own; one has null.',
        ),
        (
            coco(images=[{"id": 3}, {"id": 3}]),
            'c.json: each entry of "images" must have an integer id of its own; one has 3.',
        ),
        (
            coco(categories=[{"id": 90, "name": "dog"}, {"id": 18, "name": "dog"}]),
            'c.json: two entries of "categories" are named "dog"; keep one.',
        ),
        (
            coco(annotations=[{"image_id": [3], "category_id": 18, "bbox": [0, 0, 9, 9]}]),
            "c.json, annotation 0: its image_id is [3], which no entry of images has.",
        ),
        (
            coco(images=[{"id": 3, "file_name": "z.jpg"}]),
            'c.json, image 0: its file_name is "z.jpg", but {photos} holds no such image; add it, or remove the annotation.',
        ),
        (
            coco(images=[{"id": 3, "file_name": "a.jpg"}, {"id": 7, "file_name": "x/a.jpg"}]),
            'c.json: two entries of "images" have the file_name a.jpg; keep one.',
        ),
        (
            coco(annotations=[{"image_id": 5, "category_id": 18, "bbox": [0, 0, 9, 9]}]),
            "c.json, annotation 0: its image_id is 5, which no entry of images has.",
        ),
        (
            coco(annotations=[{"image_id": 3, "category_id": 1, "bbox": [0, 0, 9, 9]}]),
            "c.json, annotation 0: its category_id is 1, which no entry of categories has.",
        ),
        (
            coco(annotations=[{"image_id": 3, "category_id": 18, "bbox": [0, 0, 9]}]),
            "c.json, annotation 0: its bbox is [0, 0, 9]; it must be the numbers x, y, width, height.",
        ),
    ],
)
def test_coco_refusals(tmp_path: Path, photos: Path, text: str, sentence: str) -> None:
    (tmp_path / "c.json").write_text(text)
    done = pack(photos, tmp_path / "c.json", tmp_path / "coco.rec")
    assert done.stderr.splitlines()[-1] == f"ClientError: {sentence.replace('{photos}', str(photos))}"
    assert done.returncode == 2
    assert not (tmp_path / "coco.rec").exists()


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_an_unreadable_image_is_not_packed(tmp_path: Path, photos: Path, kind: str) -> None:
    (photos / "a.jpg").write_bytes(b"no image")
    annotations = write(tmp_path / "labels", {"a.xml": voc("a.jpg"), "b.xml": voc("b.jpg")})
    if kind == "coco":
        annotations = tmp_path / "c.json"
        annotations.write_text(coco())
    done = pack(photos, annotations, tmp_path / "out.rec")
    assert done.stderr == "ClientError: photos/a.jpg: the file is no image; replace or remove the image.\n"
    assert done.returncode == 2


def test_several_faults_are_all_listed(tmp_path: Path, photos: Path) -> None:
    annotations = write(tmp_path / "xml", {"a.xml": "", "b.xml": ""})
    done = pack(photos, annotations, tmp_path / "voc.rec")
    assert done.stderr == (
        "warning: photos/a.jpg: no annotation names this image; it is left out.\n"
        "warning: photos/b.jpg: no annotation names this image; it is left out.\n"
        "2 x not XML\n"
        "  xml/a.xml: the file is not XML (no element found: line 1, column 0); correct or remove it.\n"
        "  xml/b.xml: the file is not XML (no element found: line 1, column 0); correct or remove it.\n"
        "ClientError: 2 faults; nothing is packed.\n"
    )


def test_classes_of_coco_by_their_names(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "instances.json").write_text(coco())
    (tmp_path / "names.txt").write_text("toothbrush\ndog\n")
    done = pack(photos, tmp_path / "instances.json", tmp_path / "coco.rec", "--classes", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert [sample.classes.tolist() for sample in read(tmp_path / "coco.rec").samples] == [[0, 1], []]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            "cat\nbird\n",
            'xml/a.xml: it has the class "dog", which is not among the classes given (cat, bird); add it there as the last '
            "line, or correct the annotations.",
        ),
        ("cat\n\ndog\n", "{names}, line 2: it is empty; each line must have a name of its own."),
        ("cat\ndog\ncat\n", '{names}, line 3: it is "cat" again; each line must have a name of its own.'),
    ],
)
def test_class_names_that_do_not_fit(tmp_path: Path, photos: Path, names: str, sentence: str) -> None:
    annotations = write(tmp_path / "xml", {"a.xml": voc("a.jpg", ("dog", 0, (1, 1, 40, 20)))})
    (tmp_path / "names.txt").write_text(names)
    done = pack(photos, annotations, tmp_path / "voc.rec", "--classes", tmp_path / "names.txt")
    assert done.stderr.splitlines()[-1] == f"ClientError: {sentence.replace('{names}', str(tmp_path / 'names.txt'))}"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("files", "options", "sentence"),
    [
        (
            {},
            (),
            "folder labels: {folder} holds no .json and no .xml file; give the folder of annotations, or a COCO file.",
        ),
        (
            {"a.xml": voc("a.jpg"), "b.json": "{}"},
            (),
            "folder labels: it holds 1 .xml and 1 .json files; give a folder with one of the formats.",
        ),
        (
            {"a.json": "{}"},
            ("--classes",),
            "folder labels: class names given with --classes have no use: SageMaker annotations hold the class ids "
            "themselves.",
        ),
        (
            {"a.json": coco()},
            (),
            "labels/a.json: the file is in COCO's format, which is not read directly; make a .rec file with ssd-algo pack.",
        ),
        (
            {"a.xml": voc("A.JPEG").replace("a.xml", "x"), "b.xml": voc("c/B.png")},
            (),
            "",
        ),
    ],
)
def test_folders_of_annotations(
    tmp_path: Path, photos: Path, files: dict[str, str], options: tuple[str, ...], sentence: str
) -> None:
    folder = write(tmp_path / "labels", files)
    (tmp_path / "names.txt").write_text("cat\n")
    done = pack(
        photos, folder, tmp_path / "out.rec", *(each for name in options for each in (name, tmp_path / "names.txt"))
    )
    if not sentence:  # carelessly named, found by the annotation's own name
        assert done.returncode == 0, done.stderr
        return
    assert done.stderr.splitlines()[-1] == f"ClientError: {sentence.replace('{folder}', str(folder))}"
    assert done.returncode == 2


def test_fractions_in_formats_of_pixels(tmp_path: Path, photos: Path) -> None:
    annotations = write(tmp_path / "xml", {"a.xml": voc("a.jpg", ("dog", 0, (0.25, 0.5, 0.75, 0.9)))})
    done = pack(photos, annotations, tmp_path / "voc.rec")
    assert done.stderr.splitlines()[-1] == (
        "ClientError: xml/a.xml, object 0: all boxes of the image lie within its first pixel, as fractions would; this "
        "format holds pixels: multiply them with the image's width and height."
    )


def test_a_folder_that_is_not_there(tmp_path: Path, photos: Path) -> None:
    annotations = write(tmp_path / "xml", {"a.xml": voc("a.jpg")})
    done = pack(photos, annotations, tmp_path / "no" / "voc.rec")
    assert done.stderr == f"ClientError: {tmp_path}/no/voc.rec: there is no folder {tmp_path}/no; make it first.\n"
    assert done.returncode == 2


def test_nothing_to_pack(tmp_path: Path, shapes: Path) -> None:
    done = pack(shapes / "train", shapes / "train_annotation", tmp_path / "a.bin")
    assert done.stderr == f"ClientError: {tmp_path}/a.bin: the file must end in .rec, by which training finds it.\n"
    assert done.returncode == 2


def test_a_failed_pack_leaves_an_earlier_file(tmp_path: Path, photos: Path) -> None:
    output = tmp_path / "out.rec"
    output.write_bytes(b"earlier")
    assert pack(photos, write(tmp_path / "xml", {"a.xml": ""}), output).returncode == 2
    assert output.read_bytes() == b"earlier"


VALUES = st.sampled_from([0, 3, 7, 18, -1, 0.5, 40, 10**400, float("nan"), "a.jpg", "", None, True, [3], {"id": 3}])
ENTRY = st.dictionaries(
    st.sampled_from(["id", "image_id", "category_id", "file_name", "bbox", "iscrowd", "width", "height", "name"]),
    VALUES | st.lists(VALUES, min_size=4, max_size=4),
)


@given(st.fixed_dictionaries({name: st.lists(ENTRY, max_size=3) for name in ("images", "annotations", "categories")}))
def test_any_coco_file_gives_samples_or_findings(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "photos").mkdir()
    cv2.imwrite(str(folder / "photos" / "a.jpg"), np.zeros((20, 40, 3), dtype=np.uint8))
    text = coco(**{name: json.loads(coco())[name] + entries for name, entries in document.items()})
    (folder / "c.json").write_text(text)
    packing.read(list_folder("photos", folder / "photos"), list_file(folder / "c.json"), [], Findings())


@given(
    st.lists(
        st.sampled_from(
            [
                "<annotation>",
                "</annotation>",
                "<object>",
                "</object>",
                "<name>",
                "dog",
                "</name>",
                "<bndbox>",
                "</bndbox>",
                "<xmin>",
                "9",
                "1e999",
                "</xmin>",
                "<size><width>",
                "</width></size>",
                "&amp;",
                "&lol;",
            ]
        )
    ).map("".join)
)
def test_any_voc_file_gives_samples_or_findings(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "photos").mkdir()
    cv2.imwrite(str(folder / "photos" / "a.jpg"), np.zeros((20, 40, 3), dtype=np.uint8))
    write(folder / "xml", {"a.xml": f"<annotation>{text}</annotation>"})
    packing.read(list_folder("photos", folder / "photos"), list_folder("xml", folder / "xml"), [], Findings())
