"""SIMPLE's losses against their formulas, what is cut for the teacher, the two stages and Table 3's modes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.people_student import SPEC, B, K, Knowing, Quarter, batch, ideal, without_people

from posekd import ops
from posekd.codecs import people
from posekd.codecs.reordered import bridged_to
from posekd.distill import FrozenTeacher, Simple, SimpleSettings
from posekd.distill.people_boxes import Matched, find_and_match, match_boxes, peaks_to_keep
from posekd.distill.people_detection import offset_loss
from posekd.distill.simple import identity_adapter
from posekd.inputs import warp
from posekd.skeleton import COCO
from posekd.structures import ImageBatch


def method(data: ImageBatch, found: bool = True, **changes) -> Simple:
    points, offsets = ideal(data) if found else (torch.full((B, 3, 32, 32), -9.0), torch.zeros(B, 6, 32, 32))
    made = Simple(Knowing(points, offsets), FrozenTeacher(Quarter()), SimpleSettings(**{"mimic_from": 1, **changes}))
    return made.train()


@pytest.fixture(scope="module")
def data() -> ImageBatch:
    return batch()


def test_the_first_stage(data):
    """Equation 8 and CenterNet's terms, written out."""
    trained = method(data, mimic="none")
    terms = trained(data)
    said = people.read(trained.student(data.images))
    target = ops.render_heatmaps(data.keypoints[0], (32, 32), 2.0, "exact")[0]
    squares = ((said.heatmaps - target) ** 2 * data.masks[0][:, None]).sum((1, 2, 3)) / K
    assert terms["pose"].item() == pytest.approx(squares.mean().item(), rel=1e-4)
    boxes, counts = data.boxes / 4, torch.full((B,), data.boxes.shape[1])
    assert terms["points"] == ops.center_focal_loss(said.points, boxes, counts, data.masks[0])
    assert terms["offsets"] < 1e-6
    assert set(terms) == {"pose", "points", "offsets", "grouping"}
    assert trained.weights() == dict.fromkeys(terms, 1.0)


def test_offsets_are_learnt_at_the_points():
    boxes = torch.tensor([[[2.25, 3.5, 9.75, 20.0], [0.0, 0.0, 0.0, 0.0]]])
    offsets = torch.zeros(1, 6, 32, 32)
    wanted = torch.tensor([0.25, 0.5, 0.75, 0.0, 0.0, 0.75])  # of (2.25, 3.5), (9.75, 20), (6, 11.75)
    assert offset_loss(offsets, boxes).item() == pytest.approx((0.5 * wanted**2).sum().item(), rel=1e-3)
    assert offset_loss(offsets, boxes[:, 1:]).item() == 0


@pytest.mark.parametrize("training", [False, True])
def test_what_the_teacher_sees_is_what_the_student_sees(training):
    """Turned and mirrored as it was drawn, in pixels of the original: two networks that copy pixels agree."""
    data = batch(training)
    for start, (height, width, _) in zip(data.pixels.offsets.tolist(), data.pixels.shapes.tolist(), strict=True):
        ramp = (0.8 * torch.arange(width) + 0.6 * torch.arange(height)[:, None]).round().to(torch.uint8)
        data.pixels.data[start : start + height * width * 3] = ramp.flatten().repeat_interleave(3)
    data.images = warp(data.pixels, data.matrices, SPEC, SPEC.size)
    trained = method(data, mimic="teacher")
    said = people.read(trained.student(data.images))
    matched = find_and_match(said, data, 8)
    matrices, images = people.crop_matrices(matched.boxes, (32, 24)), matched.images
    theirs = trained._ask(data, images, matrices)[:, 0]
    ours = ops.roi_align(said.heatmaps, people.crop_table(matrices, images, (32, 24)), (32, 24), 1.0, 2)[:, 0]
    inside = (theirs > -2) & (ours != 0)  # beyond the image, and beyond the input
    assert inside.float().mean() > 0.4
    gaps = (theirs - ours)[inside].abs()
    assert gaps.median() < 0.02 * theirs[inside].std()


def test_keypoints_that_the_teacher_does_not_know_mimic_nothing(data):
    trained = method(data, mimic="teacher")
    network, found = bridged_to(Quarter(), COCO.keypoints, [*COCO.keypoints[:-1], "tail"], "the teacher")
    trained.teacher = FrozenTeacher(network, bridge=found)
    with torch.no_grad():
        trained.student.weight.mul_(0.5)
    trained(data)["mimic_teacher"].backward()
    gradient = trained.student.weight.grad
    assert gradient[-1] == 0
    assert (gradient[:-1] != 0).all()
    assert trained.why_not_partial(trained.settings) is None


def test_mimicking_labels(data):
    """Equation 15 of the boxes that were found, with label heatmaps of the crop."""
    trained = method(data, mimic="labels")
    terms = trained(data)
    persons = int((data.boxes[..., 2] > 0).sum())
    assert persons >= 2
    assert terms["mimic_labels"] > 1
    terms["mimic_labels"].backward()
    assert trained.adapters["labels"].weight.grad.any()
    assert trained.student.weight.grad.any()
    still = method(data, mimic="labels", adapter_grad=False)
    assert not any(p.requires_grad for p in still.adapters.parameters())


@pytest.mark.parametrize(
    ("mimic", "extra"),
    [
        ("none", set()),
        ("labels", {"mimic_labels"}),
        ("features", {"mimic_features"}),
        ("teacher", {"mimic_teacher"}),
        ("both", {"mimic_teacher", "mimic_labels"}),
    ],
)
def test_the_modes_of_table_3(data, mimic, extra):
    trained = method(data, mimic=mimic)
    terms = trained(data)
    assert set(terms) == {"pose", "points", "offsets", "grouping"} | extra
    assert set(trained.weights()) == set(terms)
    assert all(terms[name] > 0 for name in extra)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in trained.teacher.model.parameters())


def test_the_second_stage_begins_with_its_epoch(data):
    trained = method(data, mimic="both", mimic_from=3)
    for epoch, mimicking in ((0, False), (1, False), (2, True), (5, True)):
        trained.start_epoch(epoch)
        assert trained.mimicking == mimicking
        assert ("mimic_teacher" in trained(data)) == mimicking
    assert len(trained.teacher.model.seen) == 2  # not asked before


def test_a_batch_in_which_nothing_is_found(data):
    trained = method(data, found=False, mimic="both")
    terms = trained(data)
    assert terms["mimic_teacher"] == terms["mimic_labels"] == 0
    assert not trained.teacher.model.seen
    assert terms["grouping"] > 0  # by label boxes
    torch.stack(list(terms.values())).sum().backward()


def test_nobody_at_all(data):
    terms = method(data, mimic="both")(without_people(data))
    assert terms["grouping"] == terms["mimic_teacher"] == 0
    assert all(term.isfinite() for term in terms.values())


def test_sixty_people_one_who_is_cut_and_one_of_a_pixel(data):
    """Their boxes are targets as far as they are inside; the losses stay finite, and so do the gradients."""
    low = torch.stack(torch.meshgrid(torch.arange(10.0) * 12, torch.arange(6.0) * 20, indexing="xy"), -1).view(60, 2)
    boxes = torch.cat((low, low + torch.tensor([10.0, 18.0])), 1)
    boxes[0], boxes[1] = torch.tensor([0.0, 30.0, 2.0, 127.0]), torch.tensor([64.0, 64.0, 65.0, 65.0])
    middles = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 8, torch.ones(60, 1)), 1)
    crowd = ImageBatch(**{**vars(data), "boxes": boxes.expand(B, -1, -1).contiguous()})
    crowd.keypoints = [middles[None, :, None].expand(B, -1, K, -1).contiguous()]
    trained = method(crowd, mimic="both")
    matched = find_and_match(people.read(trained.student(crowd.images)), crowd, 8)
    assert matched.images.bincount().tolist() == [16, 16]  # eight that were found and eight that were not
    assert matched.found == 16
    terms = trained(crowd)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert terms["mimic_labels"] > 0
    assert trained.student.points.grad.isfinite().all()


def test_every_parameter_has_a_gradient_where_processes_wait_for_one(data, tmp_path):
    """In a process group: adapters that are idle, and a batch without boxes, as DistributedDataParallel needs it."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        for changes in ({"mimic_from": 9}, {"found": False}):
            trained = method(data, mimic="both", **changes)
            torch.stack(list(trained(data).values())).sum().backward()
            idle = [name for name, p in trained.named_parameters() if p.grad is None]
            assert idle == ["student.pose_head.weight", "student.pose_head.bias"]  # what this student does not use
    finally:
        torch.distributed.destroy_process_group()


def test_the_grouping_loss_leaves_the_heatmaps_alone(data):
    trained = method(data, mimic="none")
    trained(data)["grouping"].backward()
    assert trained.student.grouping.weight.grad.any()
    assert trained.student.weight.grad is None


def test_grouping_learns_to_keep_its_persons_peaks():
    """Two people side by side in one box: the peak near the label is reserved, the other not."""
    points = torch.tensor([[[[10.0, 10.0, 2.0], [0.0, 0.0, 0.0]]]])
    maps = ops.render_heatmaps(
        torch.tensor([[[[11.0, 10.0, 1.0], [8.0, 8.0, 1.0]], [[22.0, 11.0, 1.0]] * 2]]), (32, 32)
    )[0]
    data = ImageBatch(
        torch.zeros(1, 3, 128, 128), [points], [torch.ones(1, 32, 32, dtype=torch.bool)], torch.eye(2, 3)[None],
        torch.zeros(1, dtype=torch.int64), boxes=torch.tensor([[[16.0, 8.0, 120.0, 120.0]]]),
    )  # fmt: skip
    zero = torch.zeros(1, dtype=torch.int64)
    matched = Matched(data.boxes[0] / 4, zero, zero, 1)
    kept, labelled = peaks_to_keep(maps, data, matched, torch.eye(2, 3)[None], 0.1, 0.07, 8)
    assert kept.tolist() == [[[11.0, 10.0, 1.0], [0.0, 0.0, 0.0]]]
    assert labelled.tolist() == [[True, False]]


def test_matching_boxes():
    labels = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 0.0, 0.0]]])
    found = torch.tensor([[[1.0, 0, 10, 10], [0, 0, 9, 10], [40, 40, 50, 50], [21, 0, 30, 10], [0, 0, 10, 10.0]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.0]])
    person, taken, alone = match_boxes(found, scores, labels, 8)
    assert taken.tolist() == [[True, True, False, True, False]]
    assert person[taken].tolist() == [0, 0, 1]
    assert not alone.any()
    _, taken, alone = match_boxes(found, scores, labels, 2)
    assert taken.tolist() == [[True, True, False, False, False]]
    assert alone.tolist() == [[False, True, False]]


def test_adapters_start_as_the_identity():
    maps = torch.rand(2, 5, 16, 12)
    torch.testing.assert_close(identity_adapter(5)(maps), maps)
    assert sum(p.numel() for p in identity_adapter(17).parameters()) == 2618
    assert F.mse_loss(identity_adapter(5)(maps), maps) < 1e-12


def test_what_is_refused(data):
    with pytest.raises(ValueError, match=r"method\.mimic is 'both', which learns from a top-down teacher"):
        Simple(Knowing(*ideal(data)), None, SimpleSettings())
    with pytest.raises(ValueError, match="mimic_from must be at least 1, got 0"):
        SimpleSettings(mimic_from=0)
    with pytest.raises(ValueError, match="alpha is a weight and cannot be negative"):
        SimpleSettings(alpha=-1.0)
    with pytest.raises(ValueError, match="has no boxes of people"):
        method(data)(ImageBatch(**{**vars(data), "boxes": None}))
    with pytest.raises(ValueError, match="has lost its pixels"):
        method(data)(ImageBatch(**{**vars(data), "pixels": None}))
