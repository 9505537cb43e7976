"""DistilPose and DeepPose: official counts and names, and what they compute; TokenPose's forward pass beside them."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from helpers import reference_tokens as reference
from helpers.tiny_models import randomise

from posekd.codecs import coordinates, heatmaps
from posekd.codecs.heatmaps import TokenHeatmaps
from posekd.codecs.reordered import Reordered
from posekd.models import create_model, init_backbone, load_model, profile_model, save_weights

# parameters that train, GFLOPs as mmcv counts them (DistilPose's README, MMPose's model zoo), sha256 of the sorted keys
# and shapes of the released networks' state dicts
PUBLISHED = {
    "distilpose_s": (5_364_101, 2.3826, "85e566696398d825ae3238cd02998da4f0945c6a9c63a71b91852174e7c746e1"),
    "distilpose_l": (21_265_637, 10.3252, "05e149acf3fa04663c6485001f5cb3a851703580dcc63c3317bde5903640cc6d"),
    "distilpose_teacher_hrnet_w48": (
        69_411_360, 17.0281, "38084e3926a601d7201b49cbdf8420aa13e8810a5c4b3118c0ffc7aeacb2f5ae"
    ),
    "distilpose_teacher_stem": (6_620_736, 2.4039, "22d43a98d92c35fadfb39eabb23f0ac7b120740ed206d15c93a8322eee215c9d"),
    "tokenpose_b": (13_465_216, 5.9775, None),
    "tokenpose_l_d24": (27_482_400, 11.5655, None),
    "deeppose_r50": (23_577_698, 4.0359, "af058d97eb8f343c539538c5d867ca7fcafbe8d5c6e68aec94e649be7575f6de"),
}  # fmt: skip
SIZE = (32, 24)
TINY = {"dim": 8, "heads": 2, "depth": 3, "hidden": 12, "stem_width": 4, "stem_blocks": 2, "size": SIZE}
SIZES = {
    "distilpose_s": {**TINY, "head_hidden": 8},  # one layer, as with the released sizes
    "tokenpose_s": TINY,
    "distilpose_teacher_stem": TINY,
    "deeppose_r50": {"width": 8, "blocks": (1, 1, 1, 1), "size": (64, 32)},
}


def tiny(name: str, **overrides) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model(name, 5, **{**SIZES[name], **overrides}).eval()
    table = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("pos_embedding")}
    randomise(model)
    model.load_state_dict(table, strict=False)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_and_names(name):
    with torch.device("meta"):
        model = create_model(name)
    trainable, gflops, names = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert round(profile_model(model).mmcv / 1e9, 4) == gflops
    if names is not None:
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        assert hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest() == names


@pytest.mark.parametrize("name", ["distilpose_s", "tokenpose_s", "distilpose_teacher_stem"])
def test_token_networks_compute_their_definition(name):
    """Position table, order within a patch, attention scale, re-added positions, exact GELU, the head."""
    model = tiny(name).double()
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    scale = 8**-0.5 if name == "tokenpose_s" else 4**-0.5
    definition = reference.distilpose if name == "distilpose_s" else reference.tokenpose
    found, wanted = model(x), definition(model.state_dict(), x, (4, 3), 2, scale)
    for got, expected in zip(found, wanted, strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # the table is stored in float32


def test_learned_positions():
    """A row for every token, keypoints first, added once; fresh weights draw it."""
    model = tiny("distilpose_s", learned_positions=True, depth=2)
    encoder = model.keypoint_head.tokenhead
    assert encoder.pos_embedding.shape == (1, 5 + 4, 8)
    assert encoder.pos_embedding.requires_grad
    x = torch.randn(1, 3, *SIZE)
    plain = model(x).keypoint_tokens
    with torch.no_grad():  # what the table adds to keypoint tokens, they can say themselves: it comes once
        encoder.keypoint_token += encoder.pos_embedding[:, :5]
        encoder.pos_embedding[:, :5] = 0
    torch.testing.assert_close(model(x).keypoint_tokens, plain)
    fresh = create_model("tokenpose_s", 5, **TINY, learned_positions=True).keypoint_head.tokenpose.pos_embedding
    assert 0.005 < fresh.std() < 0.04


def test_deeppose_computes_its_definition():
    model = tiny("deeppose_r50", scores=True, sigmas=True).double()
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    found = model(x)
    for got, wanted in zip(found[:3], reference.deeppose(model.state_dict(), x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert found.keypoint_tokens is None
    assert [part is None for part in tiny("deeppose_r50")(x.float())] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("scores", "sigmas", "numbers"), [(True, True, 5), (False, True, 4), (True, False, 3), (False, False, 2)]
)
def test_a_student_says_what_it_is_asked_for(scores, sigmas, numbers):
    """The released `out_mode`s of 5, 4, 3 and 2 numbers per token."""
    model = tiny("distilpose_s", scores=scores, sigmas=sigmas)
    assert model.state_dict()["keypoint_head.tokenhead.mlp_head.1.weight"].shape == (numbers, 8)
    out = model(torch.randn(2, 3, *SIZE))
    assert (out.scores is not None, out.sigmas is not None) == (scores, sigmas)
    assert out.coords.shape == (2, 5, 2)
    assert out.visual_tokens.shape == (2, 4, 8)


def test_what_a_student_says_does_not_change_its_first_weights():
    """So students of one seed can be compared, with and without scores."""
    torch.manual_seed(0)
    some = create_model("distilpose_s", 5, **SIZES["distilpose_s"], scores=False).state_dict()
    torch.manual_seed(0)
    whole = create_model("distilpose_s", 5, **SIZES["distilpose_s"]).state_dict()
    differing = [key for key in whole if not torch.equal(whole[key], some[key])]
    assert differing == [f"keypoint_head.tokenhead.mlp_head.1.{kind}" for kind in ("weight", "bias")]


@pytest.mark.parametrize("name", ["distilpose_s", "tokenpose_s", "deeppose_r50"])
def test_weights_come_back(tmp_path, name):
    """Their names begin like those of MMPose's wrappers, which are removed for other networks."""
    model = tiny(name)
    save_weights(model, tmp_path / "w.safetensors")
    again = load_model(tmp_path / "w.safetensors").eval()
    x = torch.randn(1, 3, *model.spec.size)
    assert torch.equal(again(x)[0], model(x)[0])
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    assert torch.equal(create_model(name, 5, tmp_path / "w.pth", **SIZES[name]).eval()(x)[0], model(x)[0])


def test_a_checkpoint_of_the_tokenpose_repository_loads(tmp_path):
    model = tiny("tokenpose_s")
    theirs = {
        "features." + key.removeprefix("backbone.").removeprefix("keypoint_head.tokenpose."): value
        for key, value in model.state_dict().items()
    }
    torch.save(theirs, tmp_path / "theirs.pth")
    x = torch.randn(1, 3, *SIZE)
    assert torch.equal(create_model("tokenpose_s", 5, tmp_path / "theirs.pth", **TINY).eval()(x)[0], model(x)[0])


def test_a_student_starts_from_its_teachers_backbone(tmp_path):
    """As DistilPose-L does; the HRNet of a plain ImageNet file has no prefix."""
    teacher, student = tiny("distilpose_teacher_stem"), tiny("distilpose_s", depth=1)
    save_weights(teacher, tmp_path / "teacher.safetensors")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    done = init_backbone(student, tmp_path / "teacher.safetensors")
    assert done.loaded == len(teacher.backbone.state_dict())
    for key, value in teacher.backbone.state_dict().items():
        assert torch.equal(student.backbone.state_dict()[key], value), key
    torch.save({**teacher.backbone.state_dict(), "classifier.weight": torch.zeros(1)}, tmp_path / "imagenet.pth")
    assert init_backbone(tiny("distilpose_s"), tmp_path / "imagenet.pth").loaded == done.loaded


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"images of 32x24 .*, got 64x48"):
        tiny("distilpose_s")(torch.randn(1, 3, 64, 48))


def test_reordered_networks_keep_their_tokens():
    order = [4, 0, 2]
    x = torch.randn(2, 3, *SIZE)
    student, teacher = tiny("distilpose_s"), tiny("tokenpose_s")
    said, whole = Reordered(student, order)(x), student(x)
    assert torch.equal(coordinates.final(said, 3), coordinates.final(whole, 5)[:, order])
    assert torch.equal(said.keypoint_tokens, whole.keypoint_tokens[:, order])
    assert torch.equal(said.visual_tokens, whole.visual_tokens)
    taught, whole = Reordered(teacher, order)(x), teacher(x)
    assert isinstance(taught, TokenHeatmaps)
    assert torch.equal(heatmaps.final(taught, 3), whole.heatmaps[:, order])
    assert torch.equal(taught.keypoint_tokens, whole.keypoint_tokens[:, order])
