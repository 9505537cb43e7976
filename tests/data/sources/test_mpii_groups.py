"""MPII's groups: who is in them, the windows around them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")

from helpers.pck_folders import figure, head_boxes, hrnet_person, mpii_folder, picture, rect, release
from scipy.io import savemat

from posekd.data.regions import decode_mask
from posekd.data.sources.mpii_groups import MpiiGroups, MpiiGroupsSettings, read_groups


def four_people(folder, **settings) -> MpiiGroupsSettings:
    """Three people of a.png, one of b.png; 320 x 240 pixels, scale 0.2: 40 pixels high."""
    centers = [[51.0, 61.0], [71.0, 61.0], [251.0, 181.0], [161.0, 121.0]]
    people = [
        hrnet_person(name, i, center=center, scale=0.2)
        for i, (name, center) in enumerate(zip("aaab", centers, strict=True))
    ]
    for person in people:
        person["image"] += ".png"
        person["joints"] = (figure(16, 1, person["center"], 15.0)).tolist()
    heads = head_boxes(folder / "gt.mat", people, [[0, 0, 6, 8]] * 4)
    single = mpii_folder(folder, people)
    return MpiiGroupsSettings(single.images, single.annotations, **{"head_boxes": heads, **settings})


def groups_file(folder, content) -> str:
    (folder / "groups.json").write_text(json.dumps(content))
    return str(folder / "groups.json")


def test_all_people_of_an_image_are_a_group_without_a_list(tmp_path):
    source = MpiiGroups(four_people(tmp_path))
    assert [(g.image, g.number, g.rows.tolist()) for g in source.groups] == [("a.png", 1, [0, 1, 2]), ("b.png", 1, [3])]
    assert source.records.sample_ids.tolist() == [0, 1, 2, 3]
    assert source.records.image_rows.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(source.records.reference_lengths, 6)  # 0.6 times a diagonal of 10


def test_a_group_is_seen_through_its_window(tmp_path):
    """Around the members' positions, counting from 0, 0.75 of their height more on each side, whole pixels."""
    settings = four_people(tmp_path, groups=groups_file(tmp_path, {"a.png": [[1, 2], [3]]}))
    source = MpiiGroups(settings)
    assert [g.rows.tolist() for g in source.groups] == [[0, 1], [2]]
    assert source.windows.tolist() == [[50 - 30, 60 - 30, 70 + 30, 60 + 30], [220, 150, 280, 210]]
    assert source.records.image_sizes.tolist() == [[60, 80], [60, 60]]
    picture_of = MpiiGroups(replace(settings, margin=None))
    assert picture_of.windows.tolist() == [[0, 0, 320, 240]] * 2
    window = picture_of.load_image(0)[30:90, 20:100]
    np.testing.assert_array_equal(source.load_image(0), window)
    np.testing.assert_allclose(
        source.records.keypoints[0, :, :2] + (20, 30), picture_of.records.keypoints[0, :, :2], atol=1e-4
    )
    np.testing.assert_allclose(source.groups[0].points[0], np.array(figure(16, 1, (51.0, 61.0), 15.0)) - 1)


def test_windows_end_with_the_image(tmp_path):
    source = MpiiGroups(four_people(tmp_path, margin=4.0))
    assert source.windows.tolist()[0] == [0, 0, 320, 240]
    assert source.windows.tolist()[1] == [0, 0, 320, 240]


def test_the_official_files(tmp_path):
    """RELEASE and a cell array of groups; whoever has no labels is masked, and people of the test images are groups."""
    nobody = {"labelled": False, "head": False}
    images = [
        ("a.png", True, [rect(0), rect(1), rect(2, **nobody, scale=0.1)], [1]),
        ("b.png", True, [rect(3)], [1]),
        ("c.png", False, [rect(4, **nobody), rect(5, **nobody)], []),
    ]
    for name, *_ in images:
        picture(tmp_path / "images" / name)
    official = release(tmp_path / "r.mat", images)
    cells = np.empty((1, 3), object)
    for i, own in enumerate(([[2], [1, 3]], [[1]], [[1, 2]])):
        inner = np.empty((1, len(own)), object)
        for j, members in enumerate(own):
            inner[0, j] = np.array([members], np.uint8)
        cells[0, i] = inner
    savemat(tmp_path / "groups.mat", {"groups": cells})
    settings = MpiiGroupsSettings(str(tmp_path / "images"), official, "train", str(tmp_path / "groups.mat"))
    source = MpiiGroups(settings)
    assert [(g.image, g.rows.tolist()) for g in source.groups] == [("a.png", [1]), ("a.png", [0]), ("b.png", [3])]
    whole = MpiiGroups(replace(settings, margin=None))
    mask = decode_mask(whole.records.ignored, 1, (240, 320))
    assert mask is not None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (110, 129, 150, 169)  # 20 pixels around (160, 120)
    test = MpiiGroups(replace(settings, split="test"))
    assert [(g.image, len(g.rows)) for g in test.groups] == [("c.png", 0)]
    assert len(test.records) == 0
    assert test.load_image(0).shape[:2] == tuple(test.records.image_sizes[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "must map images' names to lists of groups, it is a list"),
        ({"a.png": [1, 2]}, r"groups.json: a.png must be a list of groups, .* got \[1, 2\]"),
        ({"a.png": [[1], [1, 2]]}, "nobody is in two groups"),
        ({"a.png": [[0]]}, "people count from 1"),
        ({"a.png": [["x"]]}, "a person's number must be a whole number"),
        ({"z.png": [[1]]}, "lists no group of the images"),
        ({"a.png": [[9]]}, "nobody of .* is in a group"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_groups(four_people(tmp_path, groups=groups_file(tmp_path, content)))


def test_files_that_are_missing(tmp_path):
    settings = four_people(tmp_path)
    with pytest.raises(FileNotFoundError, match="groups"):
        read_groups(replace(settings, groups=str(tmp_path / "nowhere.json")))
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(ValueError, match=r"has no variable 'groups'; it has \['x'\]"):
        read_groups(replace(settings, groups=str(tmp_path / "other.mat")))
    with pytest.raises(ValueError, match="margin is a share of people's height"):
        replace(settings, margin=-1.0)
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images"):
        MpiiGroups(settings)
    with pytest.warns(UserWarning, match="going on without them"):
        assert len(MpiiGroups(replace(settings, on_missing_image="skip")).groups) == 1
