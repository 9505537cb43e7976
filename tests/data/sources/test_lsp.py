"""LSP and LSP Extended: other axes, other flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from helpers.pck_folders import HEIGHT, WIDTH, lsp_folder, lspet_folder, picture
from scipy.io import loadmat, savemat

from posekd import geometry
from posekd.data import LspSettings, open_lsp
from posekd.data.loading.boxes import crops_of
from posekd.data.sources.lsp import lsp_records, read_lsp
from posekd.skeleton import LSP

FEW = [1, 2, 1000]


def test_row_three_of_lsp_marks_occluded_joints(tmp_path):
    settings, joints = lsp_folder(tmp_path, range(1, 4), image_ids=[2])
    records = open_lsp(settings).records
    np.testing.assert_allclose(records.keypoints[0, :, :2], joints[1])
    assert records.keypoints[0, :, 2].tolist() == [2, 2, 2, 1, *[2] * 10]
    assert records.skeleton is LSP
    assert records.metrics == ("pck",)
    assert records.reference_lengths[0] == pytest.approx(np.linalg.norm(joints[1, 9] - joints[1, 2]))


def test_the_first_thousand_train_and_the_others_test(tmp_path):
    settings, joints = lsp_folder(tmp_path, range(0))
    train, test = read_lsp(settings), read_lsp(replace(settings, split="test"))
    assert train.ids.tolist() == list(range(1, 1001))
    assert test.ids.tolist() == list(range(1001, 2001))
    np.testing.assert_array_equal(test.keypoints[0, :, :2], joints[1000])
    assert Path(test.files[0]).name == "im1001.jpg"


def test_column_three_of_the_extended_set_marks_visible_joints(tmp_path):
    images, annotations = lspet_folder(tmp_path, 3)
    records = open_lsp(LspSettings(images, annotations, "train")).records
    assert records.keypoints[:, :, 2].tolist() == [[2, 2, 2, 2, 2, 0, *[2] * 8]] * 3
    assert not records.keypoints[:, 5].any()  # (0, -26.1) in the file is no place
    assert records.sample_ids.tolist() == [10001, 10002, 10003]
    assert records.image_sizes.tolist() == [[HEIGHT, WIDTH]] * 3


def test_the_extended_set_mixes_into_training(tmp_path):
    settings, _ = lsp_folder(tmp_path, range(1, 4))
    images, annotations = lspet_folder(tmp_path / "extended", 2)
    mixed = replace(settings, extended_images=images, extended_annotations=annotations, image_ids=[1, 3, 10001, 10002])
    source = open_lsp(mixed)
    assert source.records.sample_ids.tolist() == [1, 3, 10001, 10002]
    assert [Path(file).name for file in source.files] == ["im0001.jpg", "im0003.jpg", "im00001.jpg", "im00002.jpg"]
    assert source.load_image(3).shape == (HEIGHT, WIDTH, 3)


def test_lsp_is_cropped_to_the_whole_picture_and_the_extended_set_to_its_joints(tmp_path):
    settings, joints = lsp_folder(tmp_path, range(1, 2), image_ids=[1, 10001])
    images, annotations = lspet_folder(tmp_path / "extended", 1)
    mixed = replace(settings, extended_images=images, extended_annotations=annotations)
    records = open_lsp(mixed).records
    for padding in (geometry.PADDING, 1.0):
        center, scale = crops_of(records, (128, 128), padding)
        corners = geometry.crop_matrices(center, scale, None, None, (128, 128))
        # the image is 100 wide and 120 high: crop pixel (0, 0) is 10 pixels left of its corner
        assert corners[0, :, 2].tolist() == pytest.approx([-10, 0], abs=1e-4)
        assert scale[0].tolist() == pytest.approx([120, 120])
    x, y, w, h = records.boxes[1]
    labelled = records.keypoints[1, records.keypoints[1, :, 2] > 0, :2]
    np.testing.assert_allclose([x, y, x + w, y + h], [*labelled.min(0), *labelled.max(0)], atol=1e-4)
    by_joints = open_lsp(replace(mixed, box="joints")).records.boxes
    np.testing.assert_allclose(by_joints[0, :2], joints[0].min(0), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_pictures_come_as_rgb(tmp_path, channels):
    settings, _ = lsp_folder(tmp_path, range(1, 2), image_ids=[1])
    picture(tmp_path / "images" / "as.png", (120, 100), channels)
    (tmp_path / "images" / "as.png").rename(tmp_path / "images" / "im0001.jpg")  # OpenCV looks at the content
    assert open_lsp(settings).load_image(0).shape == (120, 100, 3)


def test_missing_pictures(tmp_path):
    settings, _ = lsp_folder(tmp_path, range(1, 3), image_ids=[1, 2, 3])
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .* the first is 'im0003.jpg'"):
        open_lsp(settings)
    with pytest.warns(UserWarning, match="going on without them"):
        assert open_lsp(replace(settings, on_missing_image="skip")).records.sample_ids.tolist() == [1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_a_labelled_keypoint_that_is_no_number_in_float32_is_refused(tmp_path, value):
    settings, joints = lsp_folder(tmp_path, range(1, 3), on_missing_image="skip")
    joints[4, 2, 0] = value
    savemat(settings.annotations, {"joints": np.dstack((joints, np.zeros((2000, 14)))).transpose(2, 1, 0)})
    with pytest.raises(ValueError, match="image 5 has a labelled keypoint that is NaN or infinite"):
        open_lsp(settings)


def test_predictions_become_a_file_in_order(tmp_path):
    settings, joints = lsp_folder(tmp_path, range(1, 4), image_ids=[1, 2, 3])
    source = open_lsp(settings)
    variables = source.to_mat(np.array([3, 1]), joints[[2, 0]])
    np.testing.assert_array_equal(variables["preds"][[0, 2]], joints[[0, 2]])
    assert np.isnan(variables["preds"][1]).all()


def test_the_file_of_predictions_has_a_row_for_pictures_that_are_not_there(tmp_path):
    settings, joints = lsp_folder(tmp_path, range(1, 3), image_ids=[1, 2, 3], on_missing_image="skip")
    with pytest.warns(UserWarning, match="going on without them"):
        source = open_lsp(settings)
    variables = source.to_mat(source.records.sample_ids, joints[:2])
    assert variables["image_ids"].tolist() == [1, 2, 3]
    assert np.isnan(variables["preds"]).any(axis=(1, 2)).tolist() == [False, False, True]


class TestRefusals:
    def put(self, folder: Path, joints: np.ndarray, split: str = "train") -> LspSettings:
        savemat(folder / "j.mat", {"joints": joints})
        return LspSettings(str(folder), str(folder / "j.mat"), split)

    def test_wrong_shapes(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"joints must be \(3, 14, N\) as in LSP, or \(14, 3, N\).*it is \(2, 14, 5\)"
        ):
            read_lsp(self.put(tmp_path, np.zeros((2, 14, 5))))
        with pytest.raises(ValueError, match="has 5 people; LSP has 2000"):
            read_lsp(self.put(tmp_path, np.zeros((3, 14, 5))))

    def test_flags_that_are_none(self, tmp_path):
        with pytest.raises(ValueError, match="the third value of a keypoint is a flag, 0 or 1; found 7"):
            read_lsp(self.put(tmp_path, np.full((14, 3, 5), 7.0)))

    def test_a_converted_file_is_suspected(self, tmp_path):
        """LSP's flags in the layout of the extended set would make nearly all keypoints unlabelled."""
        joints = np.zeros((14, 3, 5))
        joints[3, 2] = 1
        with pytest.warns(UserWarning, match="fewer than half of the keypoints are visible"):
            read_lsp(self.put(tmp_path, joints))

    def test_a_labelled_joint_without_a_place(self, tmp_path):
        joints = np.ones((14, 3, 5))
        joints[2, 0, 3] = np.nan
        with pytest.raises(ValueError, match="image 4 has a labelled keypoint that is NaN"):
            read_lsp(self.put(tmp_path, joints))

    def test_the_extended_set_has_no_test_split(self, tmp_path):
        with pytest.raises(ValueError, match=r"LSP Extended's joints.mat, which has no test split"):
            read_lsp(self.put(tmp_path, np.ones((14, 3, 5)), "test"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"extended_images": "x"}, "belong together"),
            ({"extended_images": "x", "extended_annotations": "y", "split": "test"}, "for training only"),
            ({"split": "val"}, "split must be train or test, got 'val'"),
        ],
    )
    def test_settings(self, change, message):
        with pytest.raises(ValueError, match=message):
            LspSettings(**{"images": "i", "annotations": "a", "split": "train", **change})

    def test_the_extended_set_twice(self, tmp_path):
        images, annotations = lspet_folder(tmp_path, 1)
        twice = LspSettings(images, annotations, "train", images, annotations)
        with pytest.raises(ValueError, match=r"is LSP Extended's joints\.mat: where"):
            read_lsp(twice)

    def test_pictures_that_are_not_in_the_split(self, tmp_path):
        settings, _ = lsp_folder(tmp_path, range(0), image_ids=[1, 1500])
        with pytest.raises(ValueError, match=r"image_ids: \[1500\] are not in the split 'train'"):
            read_lsp(settings)

    def test_no_variable_joints(self, tmp_path):
        savemat(tmp_path / "x.mat", {"points": np.zeros(3)})
        with pytest.raises(ValueError, match=r"has no variable 'joints'; it has \['points'\]"):
            read_lsp(LspSettings("", str(tmp_path / "x.mat"), "train"))


@pytest.mark.data
class TestRealFiles:
    def settings(self, real_data: Path, split: str) -> LspSettings:
        folder = real_data / "lsp" / "lsp_dataset"
        return LspSettings(str(folder / "images"), str(folder / "joints.mat"), split)

    def test_lsp_has_all_joints_and_one_in_fourteen_occluded(self, real_data):
        records = [open_lsp(self.settings(real_data, split)).records for split in ("train", "test")]
        assert [len(r) for r in records] == [1000, 1000]
        visibility = np.concatenate([r.keypoints[..., 2] for r in records])
        assert visibility.min() == 1
        assert (visibility == 1).mean() == pytest.approx(0.073, abs=5e-4)  # the data's README: 7.3 %
        sizes = np.concatenate([r.image_sizes for r in records])
        assert (sizes.min(0).tolist(), sizes.max(0).tolist()) == ([67, 57], [202, 202])
        points = np.concatenate([r.keypoints[..., :2] for r in records])
        inside = ((points > -1) & (points < sizes[:, None, ::-1] + 1)).all(-1)
        assert inside.mean() > 0.999  # x before y, or a third of them would lie outside

    def test_the_extended_set_and_its_first_400(self, real_data):
        folder = real_data / "lspet"
        whole = read_lsp(LspSettings("", str(folder / "lspet_dataset" / "joints.mat"), "train"))
        assert (whole.keypoints[..., 2] > 0).mean() == pytest.approx(0.880, abs=5e-4)
        first = open_lsp(
            LspSettings(str(folder / "first400" / "images"), str(folder / "first400" / "joints.mat"), "train")
        )
        assert len(whole) == 10000
        assert len(first.records) == 400
        np.testing.assert_allclose(first.records.keypoints, whole.keypoints[:400], atol=1e-4)
        raw = loadmat(folder / "first400" / "joints.mat")["joints"]
        np.testing.assert_allclose(first.records.keypoints[7, 3, :2], raw[3, :2, 7], atol=1e-4)
        assert len(lsp_records(whole)) == 10000
