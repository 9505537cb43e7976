"""MPII's label files, each as it is, and what is said about those that are not."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from helpers.pck_folders import HEIGHT, WIDTH, figure, head_boxes, hrnet_person, mpii_folder, picture, rect, release
from scipy.io import loadmat, savemat

from posekd import geometry
from posekd.data import MpiiSettings, open_mpii
from posekd.data.sources.matlab import struct_array
from posekd.data.sources.mpii import mpii_predictions, mpii_records, read_mpii
from posekd.skeleton import MPII


class TestHrnetJson:
    def test_joints_count_from_zero_and_unlabelled_ones_are_zeroed(self, tmp_path):
        vis = [0] + [1] * 15
        source = open_mpii(mpii_folder(tmp_path, [hrnet_person("a.png", joints_vis=vis)]))
        keypoints = source.records.keypoints[0]
        np.testing.assert_array_equal(keypoints[1:, :2], figure(16, 0)[1:])
        assert keypoints[:, 2].tolist() == [0] + [2] * 15
        assert keypoints[0].tolist() == [0, 0, 0]
        assert source.records.skeleton is MPII
        assert source.records.metrics == ("pckh", "pck_torso")
        assert source.records.image_sizes.tolist() == [[HEIGHT, WIDTH]]

    def test_the_crop_is_hrnets(self, tmp_path):
        """Centre moved down by 15 scale and by the 1-based pixel, 200 scale x 1.25 wide."""
        source = open_mpii(mpii_folder(tmp_path, [hrnet_person("a.png", center=[100.0, 80.0], scale=0.8)]))
        center, scale = geometry.box_to_center_scale(torch.from_numpy(source.records.boxes), (256, 256))
        assert center[0].tolist() == pytest.approx([99.0, 80.0 + 12.0 - 1.0])
        assert scale[0].tolist() == pytest.approx([200.0, 200.0])

    def test_people_of_one_image_stand_together_and_remember_their_row(self, tmp_path):
        people = [hrnet_person(f"{name}.png", i) for i, name in enumerate("abac")]
        records = open_mpii(mpii_folder(tmp_path, people)).records
        assert records.image_rows.tolist() == [0, 0, 1, 2]
        assert records.sample_ids.tolist() == [0, 2, 1, 3]
        np.testing.assert_array_equal(records.keypoints[1, :, :2], figure(16, 2))

    def test_a_split_without_labels(self, tmp_path):
        person = {k: v for k, v in hrnet_person("a.png").items() if not k.startswith("joints")}
        records = open_mpii(mpii_folder(tmp_path, [person])).records
        assert not records.keypoints.any()
        assert records.boxes[0, 2] == pytest.approx(160)

    def test_people_without_a_position_are_left_out_and_counted(self, tmp_path):
        people = [
            hrnet_person("a.png", center=[-1.0, -1.0]),
            hrnet_person("a.png", 1),
            hrnet_person("a.png", scale=0.0),
        ]
        with pytest.warns(UserWarning, match="2 of 3 people have no position or scale and are left out"):
            source = open_mpii(mpii_folder(tmp_path, people))
        assert source.records.sample_ids.tolist() == [1]

    def test_joints_outside_the_picture_stay_labelled(self, tmp_path):
        joints = figure(16, 0)
        joints[4] = -30, 500
        source = open_mpii(mpii_folder(tmp_path, [hrnet_person("a.png", joints=(joints + 1).tolist())]))
        assert source.records.keypoints[0, 4].tolist() == [-30, 500, 2]

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_grey_and_rgba_pictures_come_as_rgb(self, tmp_path, channels):
        settings = mpii_folder(tmp_path, [hrnet_person("a.png")])
        picture(tmp_path / "images" / "a.png", channels=channels)
        assert open_mpii(settings).load_image(0).shape == (HEIGHT, WIDTH, 3)

    def test_files_that_count_from_zero(self, tmp_path):
        settings = mpii_folder(tmp_path, [hrnet_person("a.png", joints=figure(16, 0).tolist())], first_pixel=0)
        np.testing.assert_array_equal(open_mpii(settings).records.keypoints[0, :, :2], figure(16, 0))


class TestHeadBoxes:
    def test_sizes_come_from_a_second_file_in_the_same_order(self, tmp_path):
        people = [hrnet_person("a.png", 0), hrnet_person("b.png", 1), hrnet_person("a.png", 2)]
        file = head_boxes(tmp_path / "gt.mat", people, [[0, 0, 30, 40], [0, 0, 60, 80], [5, 5, 5, 5]])
        records = open_mpii(mpii_folder(tmp_path, people, head_boxes=file)).records
        np.testing.assert_array_equal(records.reference_lengths, [30, np.nan, 60])  # the last has a box of no extent

    def test_people_without_a_head_box_have_no_size(self, tmp_path):
        records = open_mpii(mpii_folder(tmp_path, [hrnet_person("a.png")])).records
        assert np.isnan(records.reference_lengths).all()

    def test_a_file_of_other_people(self, tmp_path):
        people = [hrnet_person("a.png", 0), hrnet_person("b.png", 1)]
        settings = mpii_folder(tmp_path, people)
        file = head_boxes(tmp_path / "gt.mat", people[::-1], [[0, 0, 3, 4]] * 2)
        with pytest.raises(ValueError, match="does not list the people of `annotations` in their order"):
            open_mpii(replace(settings, head_boxes=file))
        file = head_boxes(tmp_path / "gt.mat", people[:1], [[0, 0, 3, 4]])
        with pytest.raises(ValueError, match=r"headboxes_src must have shape \(2, 2, 2\).* it has \(2, 2\)"):
            open_mpii(replace(settings, head_boxes=file))

    @pytest.mark.parametrize(("first_pixel", "truth"), [(0, 1), (1, 0)])
    def test_a_wrong_base_shows_itself_in_the_comparison(self, tmp_path, first_pixel, truth):
        joints = (figure(16, 0) + truth).tolist()
        settings = mpii_folder(tmp_path, [hrnet_person("a.png", joints=joints)], first_pixel=first_pixel)
        file = head_boxes(tmp_path / "gt.mat", [hrnet_person("a.png")], [[0, 0, 3, 4]])
        with pytest.raises(
            ValueError, match=f"count pixels from {truth}.* says {first_pixel}: set first_pixel: {truth}"
        ):
            open_mpii(replace(settings, head_boxes=file))
        right = replace(settings, head_boxes=file, first_pixel=truth)
        np.testing.assert_array_equal(open_mpii(right).records.keypoints[0, :, :2], figure(16, 0))


def test_one_based_joints_given_as_zero_based_are_suspected_at_the_border(tmp_path):
    joints = figure(16, 0) + 1
    joints[3, 0] = WIDTH  # the last column, if the first is 1
    settings = mpii_folder(tmp_path, [hrnet_person("a.png", joints=joints.tolist())], first_pixel=0)
    with pytest.warns(UserWarning, match="1 coordinates equal the width or height of their image and none is 0"):
        open_mpii(settings)


class TestRelease:
    IMAGES = (
        ("a.png", True, [rect(1), rect(2, labelled=False), rect(3)], [1]),
        ("b.png", False, [rect(4, labelled=False, head=False), rect(5, labelled=False, head=False)], [2]),
        ("c.png", True, [rect(6, head=False)], [1]),
        ("d.png", True, [], []),
        ("e.png", False, [rect(7, labelled=False, head=False)], [1]),
    )

    def settings(self, folder: Path, split: str | None = None, **more) -> MpiiSettings:
        for name, *_ in self.IMAGES:
            picture(folder / "images" / name)
        return MpiiSettings(str(folder / "images"), release(folder / "r.mat", list(self.IMAGES)), split, **more)

    def held_out(self, folder: Path) -> str:
        savemat(folder / "valid.mat", {"RELEASE_img_index": [[1]], "RELEASE_person_index": [[3]]})
        return str(folder / "valid.mat")

    def test_train_is_everybody_with_labels(self, tmp_path):
        source = open_mpii(self.settings(tmp_path, "train"))
        np.testing.assert_array_equal(source.records.keypoints[:, 0, :2], [figure(16, s)[0] for s in (1, 3, 6)])
        assert [Path(source.image_name(r)).name for r in source.records.image_rows] == ["a.png", "a.png", "c.png"]
        # keypoint 5 has no point, 3 is occluded ('0' as text), 8 and 9 have no flag
        assert source.records.keypoints[0, :, 2].tolist() == [2, 2, 2, 1, 2, 0, *[2] * 10]
        np.testing.assert_array_equal(source.records.reference_lengths, [30, 30, np.nan])

    def test_a_list_of_people_makes_the_validation_split(self, tmp_path):
        train = open_mpii(self.settings(tmp_path, "train", validation_list=self.held_out(tmp_path)))
        valid = open_mpii(self.settings(tmp_path, "valid", validation_list=self.held_out(tmp_path)))
        assert len(train.records) == 2
        np.testing.assert_array_equal(valid.records.keypoints[:, 0, :2], [figure(16, 3)[0]])

    def test_test_is_the_single_people_and_has_no_labels(self, tmp_path):
        source = open_mpii(self.settings(tmp_path, "test"))
        assert len(source.records) == 2
        assert not source.records.keypoints.any()

    def test_test_predictions_become_the_servers_struct(self, tmp_path):
        source = open_mpii(self.settings(tmp_path, "test"))
        poses = np.stack([figure(16, 50), figure(16, 51)])
        savemat(tmp_path / "pred.mat", source.to_mat(source.records.sample_ids, poses))
        written = loadmat(tmp_path / "pred.mat", squeeze_me=True, struct_as_record=False)
        np.testing.assert_array_equal(written["preds"], poses + 1)
        pred = written["pred"]
        assert [image.image.name for image in pred] == ["b.png", "e.png"]  # every test image, in order
        first, second = pred[0].annorect
        assert not first.annopoints.size  # not a single person: no prediction
        assert [point.id for point in second.annopoints.point] == list(range(16))
        assert [[p.x, p.y] for p in second.annopoints.point] == (poses[0] + 1).tolist()
        assert pred[1].annorect.annopoints.point[15].x == poses[1, 15, 0] + 1

    def test_rows_of_people_that_were_skipped_are_nan(self):
        variables = mpii_predictions(None, np.zeros((3, 2), int), np.array([2]), np.zeros((1, 16, 2)))
        assert np.isnan(variables["preds"][:2]).all()
        assert (variables["preds"][2] == 1).all()
        assert "pred" not in variables

    @pytest.mark.parametrize("without", ["annolist", "img_train", "single_person"])
    def test_missing_fields_are_named(self, tmp_path, without):
        settings = self.settings(tmp_path, "test")
        release(tmp_path / "r.mat", list(self.IMAGES), without)
        with pytest.raises(ValueError, match=f"RELEASE has no field '{without}'; it has"):
            open_mpii(settings)

    def test_single_people_that_do_not_belong_to_the_images(self, tmp_path):
        images = [{"image": {"name": f"{n}.png"}, "annorect": np.zeros((0, 0))} for n in "abc"]
        struct = {"annolist": struct_array(images), "img_train": [0, 0, 0], "single_person": [1, 1]}
        savemat(tmp_path / "r.mat", {"RELEASE": struct})
        with pytest.raises(ValueError, match="RELEASE has 3 images in annolist but 2 in single_person"):
            read_mpii(MpiiSettings("", str(tmp_path / "r.mat"), "test"))

    def test_one_image_may_have_several_single_people(self, tmp_path):
        people = [rect(seed, labelled=False, head=False) for seed in (1, 2, 3)]
        file = release(tmp_path / "r.mat", [("a.png", False, people, [1, 3])])
        assert read_mpii(MpiiSettings("", file, "test")).release.tolist() == [[1, 1], [1, 3]]

    @pytest.mark.parametrize("split", ["train", "valid"])
    def test_a_list_of_other_people_would_leave_the_validation_split_in_training(self, tmp_path, split):
        savemat(tmp_path / "v.mat", {"RELEASE_img_index": [[1, 2]], "RELEASE_person_index": [[3, 1]]})
        settings = self.settings(tmp_path, split, validation_list=str(tmp_path / "v.mat"))
        message = r"v.mat does not belong to .*: 1 of its 2 people are not .* the first is annolist\(2\).annorect\(1\)"
        with pytest.raises(ValueError, match=message):
            read_mpii(settings)
        savemat(tmp_path / "v.mat", {"RELEASE_img_index": ["a"], "RELEASE_person_index": [1]})
        with pytest.raises(ValueError, match="RELEASE_img_index must be whole numbers"):
            read_mpii(settings)

    def test_an_unknown_split(self):
        with pytest.raises(ValueError, match="split must be one of train, valid, test, or none; got 'trian'"):
            MpiiSettings("", "r.mat", "trian")

    def test_a_split_must_be_chosen_and_made(self, tmp_path):
        with pytest.raises(ValueError, match="holds all splits: choose one with `split: train`"):
            open_mpii(self.settings(tmp_path))
        with pytest.raises(ValueError, match="no official validation split: give `validation_list`"):
            open_mpii(self.settings(tmp_path, "valid"))

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (rect(1, objpos={"x": 3}), r"annolist\(1\).annorect\(1\).objpos has no field 'y'; it has \['x'\]"),
            (rect(1, annopoints={"point": {"x": 3, "id": 2}}), "annopoints.point has no field 'y'"),
            (rect(1, annopoints={"point": {"x": 3, "y": 3, "id": 16}}), r"keypoint id 16 is outside 0..15"),
            (
                rect(1, annopoints={"point": {"x": np.nan, "y": 3, "id": 2}}),
                "keypoint right_hip has no finite coordinates",
            ),
            (rect(1, x2=np.zeros((0, 0))), "has a head box without x2"),
        ],
    )
    def test_broken_people_are_named(self, tmp_path, broken, message):
        picture(tmp_path / "a.png")
        file = release(tmp_path / "r.mat", [("a.png", True, [broken], [1])])
        with pytest.raises(ValueError, match=message):
            open_mpii(MpiiSettings(str(tmp_path), file, "train"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "person 0 has no image; it has"),
        ({"scale": "big"}, "person 0: scale must be 1 finite numbers, got"),
        ({"center": [1]}, "person 0: center must be 2 numbers"),
        ({"joints": [[0, 0]] * 14}, r"person 0: joints must have shape \(16, 2\), got \(14, 2\)"),
        ({"joints_vis": [1] * 3}, r"person 0: joints_vis must have shape \(16,\), got \(3,\)"),
        ({"joints": [["a", 0]] * 16}, "person 0: joints must be numbers"),
        ({"joints": [[float("nan"), 0.0]] * 16}, "person 0: a labelled keypoint is NaN or infinite"),
        ({"joints": [[1e39, 0.0]] * 16}, "person 0: a labelled keypoint is NaN or infinite"),  # in float32
        ({"joints": [[10**400, 0.0]] * 16}, "person 0: joints must be numbers"),
    ],
)
def test_broken_json_is_answered(tmp_path, change, message):
    person = {k: v for k, v in {**hrnet_person("a.png"), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        open_mpii(mpii_folder(tmp_path, [person]))


class TestOtherFiles:
    def test_json_that_is_no_list(self, tmp_path):
        settings = mpii_folder(tmp_path, [hrnet_person("a.png")])
        Path(settings.annotations).write_text('{"images": []}')
        with pytest.raises(ValueError, match="no MPII label file in HRNet's format"):
            open_mpii(settings)

    def test_a_mat_file_with_other_variables(self, tmp_path):
        savemat(tmp_path / "x.mat", {"joints": np.zeros(3)})
        with pytest.raises(
            ValueError, match=r"needs the variable RELEASE, annolist or pos_gt_src, and has \['joints'\]"
        ):
            read_mpii(MpiiSettings(str(tmp_path), str(tmp_path / "x.mat")))

    def test_a_file_that_is_no_mat_file(self, tmp_path):
        (tmp_path / "x.mat").write_bytes(b"not a mat file at all, but long enough to be looked at" * 10)
        with pytest.raises(ValueError, match="not a MATLAB file that scipy can read"):
            read_mpii(MpiiSettings(str(tmp_path), str(tmp_path / "x.mat")))
        with pytest.raises(FileNotFoundError, match=r"none.mat does not exist \(setting `annotations`\)"):
            read_mpii(MpiiSettings(str(tmp_path), str(tmp_path / "none.mat")))

    def test_joints_alone_can_be_scored_but_not_cropped(self, tmp_path):
        file = head_boxes(tmp_path / "gt.mat", [hrnet_person("a.png")], [[0, 0, 30, 40]])
        records = mpii_records(read_mpii(MpiiSettings("", file)), 1)
        assert records.reference_lengths.tolist() == [30]
        np.testing.assert_array_equal(records.keypoints[0, :, :2], figure(16, 0))
        with pytest.raises(ValueError, match="names no images: predictions can be scored against it"):
            open_mpii(MpiiSettings(str(tmp_path), file))

    def test_scipy_is_asked_for_by_its_extra(self, tmp_path, monkeypatch):
        file = head_boxes(tmp_path / "gt.mat", [hrnet_person("a.png")], [[0, 0, 30, 40]])
        real = builtins.__import__

        def without_scipy(name, *args, **kwargs):
            if name.startswith("scipy"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_scipy)
        with pytest.raises(
            ImportError, match=r"scipy, which reads and writes them, is not installed: pip install 'pos"
        ):
            read_mpii(MpiiSettings("", file))

    def test_a_missing_folder_or_picture(self, tmp_path):
        settings = mpii_folder(tmp_path, [hrnet_person("a.png"), hrnet_person("b.png")])
        with pytest.raises(FileNotFoundError, match=r"image folder .* does not exist"):
            open_mpii(replace(settings, images=str(tmp_path / "no")))
        (tmp_path / "images" / "b.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* the first is 'b.png'"):
            open_mpii(settings)
        with pytest.warns(UserWarning, match="going on without them"):
            assert len(open_mpii(replace(settings, on_missing_image="skip")).records) == 1


@pytest.mark.data
class TestRealFiles:
    def test_the_five_sample_people(self, real_data):
        folder = real_data / "mpii" / "mmpose-sample"
        source = open_mpii(MpiiSettings(str(folder), str(folder / "test_mpii.json")))
        assert len(source.records) == 5
        assert source.load_image(0).shape[:2] == tuple(source.records.image_sizes[0])
        assert source.records.keypoints[0, 0].tolist() == [803, 710, 2]

    def test_native_structs_and_arrays_of_the_validation_split_agree(self, real_data):
        """Two files of the same 2958 people: structs as MPII publishes them, and the arrays that HRNet scores with."""
        folder = real_data / "mpii" / "tompson-valid"
        native = read_mpii(MpiiSettings("", str(folder / "detections.mat")))
        arrays = read_mpii(MpiiSettings("", str(folder / "detections_our_format.mat")))
        assert len(native) == len(arrays) == 2958
        np.testing.assert_array_equal(native.visibility > 0, arrays.visibility > 0)
        # 17 coordinates of 13 keypoints are 0 in the arrays, and only there
        differ = np.abs(native.joints - arrays.joints) > 1e-3
        assert (differ.sum(), differ.any(-1).sum()) == (17, 13)
        assert not arrays.joints[differ].any()
        np.testing.assert_allclose(native.head_sizes, arrays.head_sizes, atol=1e-3)
        assert native.release[:3].tolist() == [[7, 1], [18, 1], [28, 1]]
        assert native.centers[0].tolist() == [966, 340]
        # HRNet's JSON of the same person says 4.718488
        assert native.scales[0] == pytest.approx(4.718488, abs=1e-6)
