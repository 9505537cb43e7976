"""From boxes to crops: padding enlarges boxes, and leaves alone what is a crop already."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from posekd.data import FewLabels, LabelSettings, WithUnlabelled, open_lsp
from posekd.data.loading.boxes import crops_of
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings

SIZE = (64, 48)


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(SyntheticSettings(images=4, size=(120, 160), seed=1))


@pytest.mark.parametrize("padding", [1.0, 1.25])
def test_padding_is_a_factor_on_boxes(people, padding):
    _, bare = crops_of(people.records, SIZE, 1.0)
    centers, scales = crops_of(people.records, SIZE, padding)
    np.testing.assert_allclose(scales, bare * padding, rtol=1e-6)
    middle = people.records.boxes[:, :2] + people.records.boxes[:, 2:] / 2
    np.testing.assert_allclose(centers, middle, rtol=1e-6)


def test_boxes_that_are_crops_already_are_not_padded(people):
    exact = np.arange(len(people.records)) % 2 == 0
    records = replace(people.records, exact_boxes=exact)
    _, bare = crops_of(records, SIZE, 1.0)
    _, scales = crops_of(records, SIZE, 1.5)
    np.testing.assert_allclose(scales / bare, np.where(exact, 1.0, 1.5)[:, None].repeat(2, 1), rtol=1e-6)


def test_some_of_the_persons(people):
    rows = np.array([2, 0])
    everybody, some = crops_of(people.records, SIZE, 1.25), crops_of(people.records, SIZE, 1.25, rows)
    for column, part in zip(everybody, some, strict=True):
        np.testing.assert_array_equal(column[rows], part)


def test_joined_and_chosen_persons_keep_what_their_boxes_are(people):
    exact = np.ones(len(people.records), bool)
    source = SyntheticPeople(SyntheticSettings(images=4, size=(120, 160), seed=1))
    source.records = replace(people.records, exact_boxes=exact)
    joined = WithUnlabelled(source, people).records
    assert joined.are_exact().tolist() == exact.tolist() + (~exact).tolist()
    few = FewLabels(source, LabelSettings(2, "left_out")).records
    assert few.are_exact().all()
    assert len(few.are_exact()) == len(few)


@pytest.mark.parametrize("padding", [1.0, 1.25, 1.5])
def test_lsp_shows_the_whole_image_whatever_the_padding(tmp_path, padding):
    pytest.importorskip("scipy")
    from helpers.pck_folders import lsp_folder

    settings, _ = lsp_folder(tmp_path, range(1, 4), image_ids=[1, 2, 3])
    records = open_lsp(settings).records
    centers, scales = crops_of(records, (64, 64), padding)
    np.testing.assert_allclose(scales.amax(1), records.image_sizes.max(1), rtol=1e-6)
    np.testing.assert_allclose(centers, records.image_sizes[:, ::-1] / 2, rtol=1e-6)
