"""SIMPLE's losses against their formulas, what is cut for the teacher, the two stages and Table 3's modes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posekd import ops
from posekd.codecs import people
from posekd.codecs.reordered import bridged_to
from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.distill import FrozenTeacher, Simple, SimpleSettings
from posekd.distill.people_boxes import Matched, find_and_match, match_boxes, peaks_to_keep
from posekd.distill.people_detection import offset_loss
from posekd.distill.simple import identity_adapter
from posekd.inputs import warp
from posekd.ops.reference.center_focal_loss import point_targets
from posekd.paradigms.single_network import open_loader, prepare
from posekd.skeleton import COCO
from posekd.structures import ImageBatch, InputSpec

SIDE, K, B = 128, 17, 2
SPEC = InputSpec(size=(SIDE, SIDE))


class Knowing(nn.Module):
    """A student whose points and offsets are given, and whose heatmaps are a quarter of the image, times a weight."""

    def __init__(self, points: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.spec, self.num_keypoints = SPEC, K
        self.points, self.offsets = nn.Parameter(points), nn.Parameter(offsets)
        self.weight = nn.Parameter(torch.ones(K))
        self.pose_head = nn.Conv2d(3, 4, 1)
        self.grouping = nn.Conv2d(K, K, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.pose_head(images[:, :, ::4, ::4])
        maps = images[:, :1, ::4, ::4].expand(-1, K, -1, -1) * self.weight[:, None, None]
        return [maps, self.points[: len(images)], self.offsets[: len(images)]]

    def group(self, crops: Tensor) -> Tensor:
        return self.grouping(crops).sigmoid()


class Quarter(nn.Module):
    """A teacher whose heatmaps are every fourth pixel of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.final_layer = InputSpec(size=(128, 96)), nn.Conv2d(3, 5, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.final_layer(x[:, :, ::4, ::4])
        return x[:, :1, ::4, ::4].expand(-1, K, -1, -1)


def batch(training: bool = True, seed: int = 0) -> ImageBatch:
    source = SyntheticPeople(SyntheticSettings(images=B, size=(SIDE, SIDE + 30), people=(1, 2), difficulty=0.0))
    loader = open_loader(source, SPEC, LoaderSettings(B, 0), training=training, seed=seed)
    packed = next(iter(loader))
    packed.rotations += 20.0
    packed.flips[0] = True
    return prepare(packed, SPEC, COCO.flip)


def ideal(data: ImageBatch, sure: float = 9.0) -> tuple[Tensor, Tensor]:
    """Points and offsets from which the batch's boxes come back."""
    boxes = data.boxes / 4
    targets = point_targets(boxes, torch.full((B,), boxes.shape[1]), (32, 32), True)
    offsets = torch.zeros(B, 6, 32, 32)
    for b, own in enumerate(boxes.tolist()):
        for x1, y1, x2, y2 in own:
            for i, (x, y) in enumerate(((x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2))):
                offsets[b, 2 * i : 2 * i + 2, int(y), int(x)] = torch.tensor([x % 1, y % 1])
    return (targets - 0.5) * 2 * sure, offsets


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
    empty = ImageBatch(**{**vars(data), "boxes": torch.zeros_like(data.boxes)})
    empty.keypoints = [torch.zeros_like(points) for points in data.keypoints]
    terms = method(data, mimic="both")(empty)
    assert terms["grouping"] == terms["mimic_teacher"] == 0
    assert all(term.isfinite() for term in terms.values())


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
