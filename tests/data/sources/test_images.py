"""One image file: what is decoded, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.pck_folders import HEIGHT, WIDTH, hrnet_person, lsp_folder, mpii_folder

from posekd.data import BadImageError
from posekd.data.images import is_complete, read_rgb
from posekd.data.sources.lsp import open_lsp
from posekd.data.sources.mpii import open_mpii

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
RGB_PICTURE = np.ascontiguousarray(PICTURE[..., ::-1])


def save(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def encode(extension: str) -> bytes:
    return cv2.imencode(extension, PICTURE)[1].tobytes()


def with_exif_orientation(jpeg: bytes, thumbnail: bytes = b"") -> bytes:
    """Adds an APP1 segment that says "rotate by 90 degrees" (TIFF tag 0x0112 = 6)."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


class TestDecoding:
    def test_colour_comes_as_rgb(self, tmp_path):
        np.testing.assert_array_equal(read_rgb(save(tmp_path / "a.png", PICTURE)), RGB_PICTURE)

    def test_grey_becomes_three_equal_channels(self, tmp_path):
        grey = PICTURE[..., 0]
        image = read_rgb(save(tmp_path / "a.png", grey))
        np.testing.assert_array_equal(image, np.stack([grey] * 3, -1))

    def test_alpha_is_dropped(self, tmp_path):
        alpha = np.dstack((PICTURE, np.zeros((24, 36), np.uint8)))
        np.testing.assert_array_equal(read_rgb(save(tmp_path / "a.png", alpha)), RGB_PICTURE)

    def test_sixteen_bits_become_eight(self, tmp_path):
        image = read_rgb(save(tmp_path / "a.png", PICTURE.astype(np.uint16) * 257))
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - RGB_PICTURE).max() <= 1

    def test_exif_orientation_is_ignored_as_the_labels_are_in_the_stored_one(self, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(with_exif_orientation(encode(".jpg")))
        assert cv2.imread(str(path)).shape == (36, 24, 3)  # the marker is understood...
        assert read_rgb(path, (24, 36)).shape == (24, 36, 3)  # ...and not followed


class TestRefusals:
    @pytest.mark.parametrize("extension", [".jpg", ".png"])
    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
    def test_a_truncated_file(self, tmp_path, extension, kept):
        path, data = tmp_path / f"cut{extension}", encode(extension)
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(BadImageError, match=rf"cut{extension}: the file is truncated"):
            read_rgb(path)

    def test_the_end_marker_of_an_exif_thumbnail_does_not_count(self):
        whole = with_exif_orientation(encode(".jpg"), thumbnail=encode(".jpg"))
        assert is_complete(whole)
        assert not is_complete(whole[:-40])

    def test_bytes_after_the_end_are_harmless(self, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(encode(".jpg") + b"\0" * 100)
        assert read_rgb(path).shape == (24, 36, 3)

    def test_a_progressive_jpeg_is_complete(self):
        data = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
        assert is_complete(data)
        assert not is_complete(data[:-30])

    @pytest.mark.parametrize("cut", range(0, 12))
    def test_the_check_survives_any_stump(self, cut):
        assert not is_complete(b"\xff\xd8" + encode(".jpg")[2 : 2 + cut])

    def test_no_file(self, tmp_path):
        with pytest.raises(BadImageError, match=r"none.jpg: cannot be read \(No such file"):
            read_rgb(tmp_path / "none.jpg")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"")
        with pytest.raises(BadImageError, match="the file is empty"):
            read_rgb(tmp_path / "a.jpg")

    def test_something_else(self, tmp_path):
        (tmp_path / "a.jpg").write_text("<html>not found</html>")
        with pytest.raises(BadImageError, match="not an image that OpenCV can decode"):
            read_rgb(tmp_path / "a.jpg")

    def test_another_size_than_stated(self, tmp_path):
        path = save(tmp_path / "a.png", PICTURE)
        with pytest.raises(BadImageError, match=r"a.png: the image is 36 x 24, but its annotations say 72 x 48"):
            read_rgb(path, (48, 72))

    def test_a_turned_size_points_at_the_exif_orientation(self, tmp_path):
        path = save(tmp_path / "a.png", PICTURE)
        with pytest.raises(BadImageError, match="annotations say 24 x 36; were they made on the image turned"):
            read_rgb(path, (36, 24))


def tagged(shown: np.ndarray, tag: int) -> bytes:
    """A JPEG that viewers show as `shown`, by the EXIF orientation `tag` (2, 3 or 4: of the same size)."""
    stored = {2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1]}[tag]
    data = cv2.imencode(".jpg", np.ascontiguousarray(stored))[1].tobytes()
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, tag, 0, 0])
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + bytes(4)
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


@pytest.mark.parametrize("tag", [2, 3, 4])
def test_an_orientation_that_keeps_the_size_is_told_once_and_applied_if_asked_for(tmp_path, tag):
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:16, :24] = 255
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(tagged(shown, tag))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stored = read_rgb(tmp_path / "a.jpg", (32, 48))
        read_rgb(tmp_path / "b.jpg", (32, 48))
        turned = read_rgb(tmp_path / "b.jpg", (32, 48), apply_orientation=True)
    assert stored[4, 4, 0] < 50
    assert turned[4, 4, 0] > 200
    assert len(said) == 1
    assert f"a.jpg: the picture has the EXIF orientation {tag}" in str(said[0].message)
    assert "set apply_orientation: true" in str(said[0].message)


def turned_by(shown: np.ndarray, tag: int) -> bytes:
    """A JPEG that viewers show as `shown`, stored on its side (orientation 6) or upside down (3)."""
    stored = {3: shown[::-1, ::-1], 6: np.rot90(shown)}[tag]
    data = cv2.imencode(".jpg", np.ascontiguousarray(stored))[1].tobytes()
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([tag, 0, 0, 0]) + b"\0\0\0\0"
    return data[:2] + b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff + data[2:]


@pytest.mark.parametrize("tag", [3, 6])
@pytest.mark.parametrize("dataset", ["mpii", "lsp"])
def test_mpii_and_lsp_apply_an_orientation_if_asked_for(tmp_path, dataset, tag):
    """The shown picture is 240 x 320 (height, width), its upper left corner white."""
    shown = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    shown[: HEIGHT // 2, : WIDTH // 2] = 255
    if dataset == "mpii":
        settings, opened = mpii_folder(tmp_path, [hrnet_person("a.jpg")]), open_mpii
    else:
        settings, opened = lsp_folder(tmp_path, range(1, 3), split="train", on_missing_image="skip")[0], open_lsp
    for file in Path(settings.images).glob("*.jpg"):
        file.write_bytes(turned_by(shown, tag))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pictures that are not there, and of the tag
        turned, stored = opened(replace(settings, apply_orientation=True)), opened(settings)
        assert turned.records.image_sizes[0].tolist() == [HEIGHT, WIDTH]
        assert turned.load_image(0).shape == (HEIGHT, WIDTH, 3)
        assert turned.load_image(0)[4, 4, 0] > 200
        assert turned.load_image(0, 2).shape[0] in (HEIGHT, HEIGHT // 2)
        assert stored.records.image_sizes[0].tolist() == ([HEIGHT, WIDTH] if tag == 3 else [WIDTH, HEIGHT])
        assert stored.load_image(0)[4, 4, 0] < 50


@pytest.mark.parametrize(("brightest", "warned"), [(4095, True), (65535, False)])
def test_sixteen_bits_of_which_few_are_used_are_told(tmp_path, brightest, warned):
    grey = np.linspace(0, brightest, 600).reshape(20, 30).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_rgb(tmp_path / "a.png").max() == brightest // 256
    assert [("is nearly black: its brightest value is 15 of 255" in str(w.message)) for w in said] == [True] * warned
