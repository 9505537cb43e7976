"""SIMPLE: counts, which the paper does not print, as computed from its text; what the network gives; how it starts."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.tiny_models import tiny_model

from posekd.models import create_model, create_model_from_card, init_backbone, model_card, profile_model
from posekd.models.grouping import PersonGrouping
from posekd.models.hrnet import HRNetConfig, HRNetTrunk

TINY = {"head_dim": 8, "head_mid": 4, "grouping_widths": (4, 8)}
CENTERNETS = {"head_dim": 256, "head_mid": 128}
LITERAL = {"detection": "literal"}


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


# parameters without the grouping network, of the detection branch, and 10^9 multiply-accumulates at 512 x 512
@pytest.mark.parametrize(
    ("name", "changes", "network", "detection", "gmac"),
    [
        ("simple_w18", {}, 11_286_524, 1_646_217, 45.3),
        ("simple_w32", {}, 31_218_170, 1_673_097, 72.5),
        ("simple_w18", CENTERNETS, 16_127_612, 6_487_305, 124.6),
        ("simple_w32", CENTERNETS, 36_086_138, 6_541_065, 152.2),
        ("simple_w18", LITERAL, 9_647_600, 7_293, 18.5),
        ("simple_w32", LITERAL, 29_558_036, 12_963, 45.3),
    ],
)
def test_counts(name, changes, network, detection, gmac):
    with torch.device("meta"):
        alone, whole = (create_model(name, **changes, **more) for more in ({"grouping_widths": None}, {}))
        profile = profile_model(whole)
    assert parameters(alone) == network
    assert parameters(whole) == network + 326_682
    assert parameters(whole.detection) == detection
    assert round(profile.macs / 1e9, 1) == gmac


# by hand: laterals and smoothing of 1/8 to 1/32, two strided convolutions, towers, last convolutions
@pytest.mark.parametrize(("name", "width"), [("simple_w18", 18), ("simple_w32", 32)])
def test_an_anchor_head(name, width):
    """RetinaNet's, 128 wide: nine anchors at each pixel of five levels, four convolutions before the last."""
    conv = 9 * 128 * 128 + 128
    branches = [2 * width, 4 * width, 8 * width]
    expected = sum(128 * c + 128 for c in branches) + 3 * conv + (9 * branches[-1] * 128 + 128) + conv + 8 * conv
    expected += (9 * 128 + 1) * 9 * (1 + 4)
    with torch.device("meta"):
        model = create_model(name, detection="anchors")
    assert parameters(model.detection) == expected
    assert model.output == "anchored_people"


@pytest.mark.parametrize(("name", "network"), [("simple_w18_tags", 9_644_914), ("simple_w32_tags", 29_553_250)])
def test_tags_beside_the_heatmaps(name, network):
    """Trunk and pose head as they are, and a 1x1 convolution to 17 tags in place of the detection branch."""
    width = 18 if "w18" in name else 32
    with torch.device("meta"):
        model = create_model(name)
        points = create_model(name.removesuffix("_tags"), grouping_widths=None)
    assert parameters(model) == network
    assert network == parameters(points) - parameters(points.detection) + 15 * width * 17 + 17
    small = tiny_model(name)
    (said,) = small(torch.zeros(2, 3, 64, 96))
    assert said.shape == (2, 10, 16, 24)
    assert (small.paradigm, small.output) == ("bottom_up", "tagged_heatmaps")


def test_the_grouping_network():
    """326,682 parameters at 17 keypoints, 0.1157 GMAC for a box of 64 x 48."""
    with torch.device("meta"):
        assert parameters(PersonGrouping(17)) == 326_682
    convolutions, macs = [], []
    grouping = PersonGrouping(17).eval()
    for module in grouping.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _, out: macs.append(m.weight[0].numel() * out.numel()) or convolutions.append(m)
            )
    masks = grouping(torch.rand(1, 17, 64, 48))
    assert masks.shape == (1, 17, 64, 48)
    assert round(sum(macs) / 1e9, 4) == 0.1157


@pytest.mark.parametrize("changes", [{}, LITERAL, {"grouping_widths": None}], ids=str)
def test_what_it_gives(changes):
    model = tiny_model("simple_w18", **{**TINY, **changes})
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    heatmaps, points, offsets = model(x)
    assert (heatmaps.shape, points.shape, offsets.shape) == ((2, 5, 16, 24), (2, 3, 16, 24), (2, 6, 16, 24))
    masks = model.group(torch.rand(3, 5, 64, 48))
    assert masks.shape == (3, 5, 64, 48)
    assert (masks == 1).all() == ("grouping_widths" in changes)
    assert (masks >= 0).all()
    assert (offsets != 0).any() == ("detection" not in changes)


def test_what_anchors_give():
    """On every level all anchors; a fresh network finds nobody: RetinaNet's probability of 0.01."""
    model = create_model(
        "simple_w18", size=(64, 96), width=4, modules=(1, 1, 1), blocks=1, detection="anchors", **TINY
    ).eval()
    heatmaps, anchors = model(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    pixels = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    assert heatmaps.shape == (2, 17, 16, 24)
    assert anchors.shape == (2, 9 * pixels, 5)
    assert (anchors[..., 0].sigmoid() - 0.01).abs().max() < 0.01
    assert model.group(torch.rand(3, 17, 64, 48)).shape == (3, 17, 64, 48)


def test_a_fresh_network_sees_nobody():
    """CenterNet's bias: every point starts at a probability of 0.1."""
    model = create_model("simple_w18", size=(64, 64), width=4, modules=(1, 1, 1), blocks=1, **TINY).eval()
    points = model(torch.zeros(1, 3, 64, 64))[1].sigmoid()
    torch.testing.assert_close(points, torch.full_like(points, 0.1), atol=0.01, rtol=0)


def test_corners_look_along_their_own_sides():
    """What lies right of or below a pixel reaches its top-left map only, and the other way round (Equation 9)."""
    model = tiny_model("simple_w18", **TINY, **LITERAL)
    shared = torch.zeros(1, sum(model.config.branch_widths), 16, 16, requires_grad=True)
    tl, br, ct = model.detection(shared)[0].split(1, 1)
    for maps, ahead in ((tl, True), (br, False)):
        (gradient,) = torch.autograd.grad(maps[0, 0, 8, 8], shared, retain_graph=True)
        rows, columns = gradient.abs().sum((0, 1)).nonzero().T
        near = 1  # of the last convolution
        assert (rows >= 8 - near).all() if ahead else (rows <= 8 + near).all()
        assert (columns >= 8 - near).all() if ahead else (columns <= 8 + near).all()
    assert torch.autograd.grad(ct[0, 0, 8, 8], shared)[0].any()


def test_an_imagenet_hrnet_starts_the_backbone(tmp_path):
    model = tiny_model("simple_w18", **TINY)
    fields = ("width", "modules", "blocks", "stem_width", "stage1_width", "stage1_blocks")
    trunk = HRNetTrunk(HRNetConfig(**{k: getattr(model.config, k) for k in fields}, final_multiscale=True))
    torch.save({**trunk.state_dict(), "classifier.weight": torch.ones(10, 2)}, tmp_path / "imagenet.pth")
    report = init_backbone(model, tmp_path / "imagenet.pth")
    assert all(key.startswith(("pose_head.", "detection.", "grouping.")) for key in report.fresh)
    assert report.loaded == len(trunk.state_dict())


def test_a_card_builds_it_again():
    model = tiny_model("simple_w18", **TINY)
    again = create_model_from_card(json.loads(json.dumps(model_card(model))))
    assert again.config == model.config
    assert (again.paradigm, again.output) == ("single_network", "people")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_multiscale": False}, "read all scales"),
        ({"detection": "boxes"}, "detection must be one of"),
        ({"head_dim": 0}, "head_dim must be a positive integer"),
        ({"grouping_widths": ()}, "grouping_widths"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        create_model("simple_w18", **changes)
