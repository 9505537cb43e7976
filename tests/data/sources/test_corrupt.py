"""Corrupt inputs in bulk: whatever the bytes, there comes an image of the stated size, or a sentence with the file."""

from __future__ import annotations

import copy
import json
import warnings
import zlib

import cv2
import numpy as np
import pytest
from helpers.coco_folder import labels, person, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from posekd.data import BadImageError, CocoKeypoints, CocoSettings, CropDataset, LoaderSettings, crop_loader
from posekd.data.images import REDUCTIONS, read_rgb, reduced_size

HEIGHT, WIDTH = 24, 36
COLOUR = cv2.resize(np.random.default_rng(0).integers(60, 190, (3, 4, 3), dtype=np.uint8), (WIDTH, HEIGHT))
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def jpeg(pixels, *flags):
    return cv2.imencode(".jpg", pixels, list(flags))[1].tobytes()


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def turned(data):
    """A JPEG with an EXIF block that says: show me turned by 90 degrees."""
    entry = b"\x01\x12" + b"\x00\x03" + b"\x00\x00\x00\x01" + b"\x00\x06\x00\x00"
    exif = b"Exif\x00\x00" + b"MM\x00\x2a\x00\x00\x00\x08" + b"\x00\x01" + entry + b"\x00\x00\x00\x00"
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def cmyk():
    """A JPEG of four components (an 8 x 8 block each, all grey), written by hand: OpenCV cannot make one."""
    quantisation = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    components = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3, 4))
    frame = b"\xff\xc0\x00\x14\x08" + (8).to_bytes(2, "big") + (8).to_bytes(2, "big") + b"\x04" + components
    # one code of one bit each: DC category 0, and end of block
    tables = b"".join(b"\xff\xc4\x00\x14" + bytes([kind]) + b"\x01" + b"\x00" * 15 + b"\x00" for kind in (0, 0x10))
    scan = b"\xff\xda\x00\x0e\x04" + b"".join(bytes([i, 0]) for i in (1, 2, 3, 4)) + b"\x00\x3f\x00"
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return b"\xff\xd8" + adobe + quantisation + frame + tables + scan + b"\x00" + b"\xff\xd9"


def palette_png():
    """A PNG of two colours, one bit a pixel."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    rows = b"".join(b"\x00" + bytes([0b10101010] * 5) for _ in range(HEIGHT))
    header = WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + b"\x01\x03\x00\x00\x00"
    parts = [(b"IHDR", header), (b"PLTE", b"\xff\x00\x00\x00\x00\xff"), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


KINDS = {
    "jpeg": (jpeg(COLOUR), (HEIGHT, WIDTH)),
    "progressive jpeg": (jpeg(COLOUR, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (HEIGHT, WIDTH)),
    "grey jpeg": (jpeg(COLOUR[..., 0]), (HEIGHT, WIDTH)),
    "cmyk jpeg": (cmyk(), (8, 8)),
    "turned jpeg": (turned(jpeg(COLOUR)), (HEIGHT, WIDTH)),
    "png": (png(COLOUR), (HEIGHT, WIDTH)),
    "grey png": (png(COLOUR[..., 0]), (HEIGHT, WIDTH)),
    "16-bit png": (png(COLOUR.astype(np.uint16) * 257), (HEIGHT, WIDTH)),
    "16-bit grey png": (png(COLOUR[..., 0].astype(np.uint16) * 257), (HEIGHT, WIDTH)),
    "rgba png": (png(np.dstack((COLOUR, COLOUR[..., 0]))), (HEIGHT, WIDTH)),
    "palette png": (palette_png(), (HEIGHT, WIDTH)),
    "12,000 pixels wide": (jpeg(np.zeros((40, 12000, 3), np.uint8)), (40, 12000)),
    "12,000 pixels high": (jpeg(np.zeros((12000, 30, 3), np.uint8)), (12000, 30)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_ordinary_kind_is_three_channels_of_bytes_in_stored_orientation(tmp_path, kind):
    data, size = KINDS[kind]
    (tmp_path / "a").write_bytes(data)
    image = read_rgb(tmp_path / "a", size)
    assert image.dtype == np.uint8
    assert image.shape == (*size, 3)
    if kind not in ("cmyk jpeg", "palette png") and "pixels" not in kind:
        expected = np.repeat(COLOUR[..., :1], 3, -1) if "grey" in kind else COLOUR[..., ::-1]
        assert np.abs(image.astype(int) - expected).max() <= (30 if "jpeg" in kind else 1)
    if kind == "palette png":
        assert image[0, :2].tolist() == [[0, 0, 255], [255, 0, 0]]


@pytest.mark.parametrize("reduction", REDUCTIONS[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_of_any_kind_can_be_reduced_in_stored_orientation_and_the_rest_comes_whole(tmp_path, kind, reduction):
    data, size = KINDS[kind]
    (tmp_path / "a").write_bytes(data)
    image = read_rgb(tmp_path / "a", size, reduction)
    is_jpeg = data[:2] == b"\xff\xd8"
    assert image.shape == (*(reduced_size(size, reduction) if is_jpeg else size), 3)
    if kind == "turned jpeg":
        corners = np.array([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]], int)
        expected = COLOUR[..., ::-1][[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.abs(corners - expected).max() <= 45, "the image's corners, averaged"


@pytest.mark.parametrize("kind", KINDS)
def test_no_stump_of_a_file_passes_for_a_picture(tmp_path, kind):
    data, size = KINDS[kind]
    for kept in [*range(0, min(40, len(data))), *np.linspace(40, len(data) - 3, 30).astype(int)]:
        (tmp_path / "a.bin").write_bytes(data[:kept])
        with pytest.raises(BadImageError, match=r"a\.bin"):
            read_rgb(tmp_path / "a.bin", size)


def assert_picture_or_sentence(path, size, reduction=1):
    image = outcome(lambda: read_rgb(path, size, reduction), BadImageError, str(path))
    if image is not None:
        assert image.shape[2:] == (3,)
        assert image.shape[:2] in (size, reduced_size(size, reduction))
        assert image.dtype == np.uint8


def outcome(work, errors, *names):
    """What `work` gives; None after one of the errors, whose message holds one of the names."""
    try:
        return work()
    except errors as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"the message names nobody: {error}") from error
        return None


@MANY
@given(
    kind=st.sampled_from([kind for kind in KINDS if "pixels" not in kind]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_damage_gives_a_picture_of_the_stated_size_or_a_sentence(tmp_path, kind, damage, reduction):
    data, size = bytearray(KINDS[kind][0]), KINDS[kind][1]
    for where, value in damage:
        data[int(where * (len(data) - 1))] = value
    (tmp_path / "a").write_bytes(data)
    assert_picture_or_sentence(tmp_path / "a", size, reduction)


@MANY
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"]))
@example(data=b"", start=b"")
def test_any_bytes_at_all(tmp_path, data, start):
    (tmp_path / "a").write_bytes(start + data)
    assert_picture_or_sentence(tmp_path / "a", (HEIGHT, WIDTH))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_of_all_kinds_loads_but_for_the_broken_ones(tmp_path):
    """Through the loader: whole images of every kind come, stumps are skipped and counted."""
    content = labels([person(i, i) for i in range(2 * len(KINDS))], range(2 * len(KINDS)))
    for entry in content["images"]:
        data, (height, width) = list(KINDS.values())[entry["id"] // 2]
        entry |= {"height": height, "width": width, "file_name": f"{entry['id']}.bin"}
        content["annotations"][entry["id"]] |= {"bbox": [0, 0, min(width, 30), min(height, 30)], "area": 10}
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.json").write_text(json.dumps(content))
    for i, (data, _) in enumerate(KINDS.values()):
        (tmp_path / "images" / f"{2 * i}.bin").write_bytes(data)
        (tmp_path / "images" / f"{2 * i + 1}.bin").write_bytes(data[: len(data) // 2])
    source = CocoKeypoints(CocoSettings(str(tmp_path / "images"), str(tmp_path / "labels.json")))
    loader = crop_loader(source, (32, 24), LoaderSettings(4, workers=0, on_bad_image="skip"), training=False)
    seen = [sample for batch in loader for sample in batch.sample_ids.tolist()]
    assert seen == list(range(0, 2 * len(KINDS), 2))
    assert loader.skipped == len(KINDS)


# Annotation files. Any leaf or branch of a good one is replaced by something else.

GOOD = labels([person(10, 1), person(11, 1), person(20, 2)])
NONSENSE = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.lists(st.one_of(st.none(), st.integers(-3, 3), st.text(max_size=2), st.just({})), max_size=4),
    st.dictionaries(st.sampled_from(["id", "image_id", "bbox"]), st.integers(0, 3), max_size=2),
)  # fmt: skip


def places(value, path=()):
    """Every path in nested dicts and lists; of a long list only the first and last element."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for i in sorted({0, len(value) - 1}):
            yield from places(value[i], (*path, i))


PLACES = [path for path in places(GOOD) if path]


def read_all(folder):
    """Opens a dataset and makes the batch of all persons, as training would."""
    source = CocoKeypoints(folder)
    CropDataset(source, (32, 24)).__getitems__([(0, row) for row in range(len(source.records))])
    return source


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, GOOD)


@settings(parent=MANY, max_examples=400)
@given(place=st.sampled_from(PLACES), value=NONSENSE, drop=st.booleans())
def test_a_broken_annotation_file_is_read_or_refused_with_its_name(folder, place, value, drop):
    content = copy.deepcopy(GOOD)
    target = content
    for key in place[:-1]:
        target = target[key]
    if drop:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    with open(folder.annotations, "w") as file:
        json.dump(content, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = (ValueError, FileNotFoundError, BadImageError)
        source = outcome(lambda: read_all(folder), errors, folder.annotations, folder.images)
    if source is not None:
        records = source.records
        assert np.isfinite(records.keypoints).all()
        assert np.isfinite(records.boxes).all()
        assert set(np.unique(records.keypoints[..., 2])) <= {0, 1, 2}


@MANY
@given(cut=st.floats(0, 1), noise=st.binary(max_size=6))
def test_a_cut_or_garbled_annotation_file_is_refused_with_its_name(folder, cut, noise):
    text = json.dumps(GOOD).encode()
    at = int(cut * (len(text) - 2))
    with open(folder.annotations, "wb") as file:
        file.write(text[:at] + noise)
    with pytest.raises(ValueError, match=r"labels\.json"):
        read_all(folder)
