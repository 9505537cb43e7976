"""HigherHRNet and the SmallerHRNet students: official keys, published counts, the definition, official files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import reference_models as reference
from helpers.tiny_models import tiny_model

from posekd.models import create_model, create_model_from_card, init_backbone, load_weights, model_card, profile_model
from posekd.models.hrnet import HRNetConfig, HRNetTrunk

MANIFESTS = Path(__file__).parent / "manifests"
STUDENTS = ("smallerhrnet_1_5m", "smallerhrnet_2_3m", "smallerhrnet_2_84m", "smallerhrnet_2_96m")


@pytest.mark.parametrize(("name", "width"), [("higherhrnet_w32", 32), ("higherhrnet_w48", 48)])
def test_state_dict_is_the_official_one(name, width):
    """1,810 entries; the official CrowdPose network differs in the heads and in what the deconvolution takes."""
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    assert len(manifest) == 1810
    with torch.device("meta"):
        coco, crowdpose = create_model(name), create_model(name, 14)
    assert {k: list(v.shape) for k, v in coco.state_dict().items()} == manifest
    heads = {
        "final_layers.0.weight": [28, width, 1, 1],
        "final_layers.0.bias": [28],
        "final_layers.1.weight": [14, width, 1, 1],
        "final_layers.1.bias": [14],
        "deconv_layers.0.0.0.weight": [width + 28, width, 4, 4],
    }
    assert {k: list(v.shape) for k, v in crowdpose.state_dict().items()} == {**manifest, **heads}


# name, side, keypoints, parameters, HRNet tool's count, exact MACs: measured with the official code. The README and
# the paper print the tool's count / 10^9: 47.9, 74.8, 154.3.
@pytest.mark.parametrize(
    ("name", "side", "keypoints", "params", "tool", "macs", "printed"),
    [
        ("higherhrnet_w32", 512, 17, 28_645_331, 47_864_348_672, 46_203_404_288, 47.9),
        ("higherhrnet_w32", 640, 17, 28_645_331, 74_788_044_800, 72_192_819_200, 74.8),
        ("higherhrnet_w48", 640, 17, 63_827_139, 154_305_331_200, 149_468_774_400, 154.3),
        ("higherhrnet_w32", 512, 14, 28_641_962, 47_653_584_896, 46_143_635_456, None),
    ],
)
def test_published_counts(name, side, keypoints, params, tool, macs, printed):
    with torch.device("meta"):
        profile = profile_model(create_model(name, keypoints), (side, side))
    assert (profile.params, profile.hrnet_tool, profile.macs) == (params, tool, macs)
    assert printed is None or round(profile.hrnet_tool / 1e9, 1) == printed


# SmallerHRNet, Table 1, at 512x512: "GFLOPs" count out x w0. The paper's 2.96M is 2.92M by its own configuration.
@pytest.mark.parametrize(
    ("name", "params", "gflops"),
    [
        ("smallerhrnet_1_5m", 1_524_747, 8.66),
        ("smallerhrnet_2_3m", 2_322_227, 15.77),
        ("smallerhrnet_2_84m", 2_840_291, 9.87),
        ("smallerhrnet_2_96m", 2_918_291, 14.92),
    ],
)
def test_published_counts_of_the_students(name, params, gflops):
    with torch.device("meta"):
        profile = profile_model(create_model(name))
    assert profile.size == (512, 512)
    assert profile.params == params
    assert profile.out_x_w0 / 1e9 == pytest.approx(gflops, rel=6e-4)


def test_output_equals_the_definition():
    model = tiny_model("higherhrnet_w32", deconv_width=6, deconv_blocks=2).double()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    out = model(x)
    assert [tuple(o.shape) for o in out] == [(2, 10, 16, 24), (2, 5, 32, 48)]
    for ours, expected in zip(out, reference.higherhrnet(model.state_dict(), x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_compiles_into_one_graph():
    model, x = tiny_model("higherhrnet_w32"), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ours, expected in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_checkpoint_of_the_fp16_wrapper_loads(tmp_path):
    """Official FP16 training saves Sequential(cast, net, cast): keys start with `1.`, convolutions are half."""
    source = tiny_model("higherhrnet_w32")
    wrapped = {f"1.{k}": v.half() if v.ndim == 4 else v for k, v in source.state_dict().items()}
    torch.save(wrapped, tmp_path / "official.pth")
    model = tiny_model("higherhrnet_w32")
    torch.nn.init.zeros_(model.final_layers[1].weight)
    load_weights(model, tmp_path / "official.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for key, tensor in model.state_dict().items():
        expected = source.state_dict()[key]
        assert torch.equal(tensor, expected.half().float() if tensor.ndim == 4 else expected), key


def test_an_imagenet_hrnet_starts_the_backbone(tmp_path):
    model = tiny_model("higherhrnet_w32")
    fields = ("width", "modules", "blocks", "stem_width", "stage1_width", "stage1_blocks")
    trunk = HRNetTrunk(HRNetConfig(**{k: getattr(model.config, k) for k in fields}, final_multiscale=True))
    # the classifier's final_layer is not HigherHRNet's final_layers
    head = {"final_layer.0.weight": torch.ones(2, 2), "classifier.weight": torch.ones(10, 2)}
    torch.save({**trunk.state_dict(), **head}, tmp_path / "imagenet.pth")
    report = init_backbone(model, tmp_path / "imagenet.pth")
    assert all(key.startswith(("final_layers.", "deconv_layers.")) for key in report.fresh)
    assert torch.equal(model.stage4[0].branches[3][0].conv1.weight, trunk.stage4[0].branches[3][0].conv1.weight)


def test_a_top_down_network_is_told_what_the_file_is(tmp_path):
    with torch.device("meta"):
        student, hrnet = create_model("smallerhrnet_1_5m", 14), create_model("hrnet_w32")
    state = {k: torch.zeros(()).expand(v.shape) for k, v in student.state_dict().items()}
    torch.save(state, tmp_path / "student.pth")
    with pytest.raises(ValueError, match=r"It looks like 'smallerhrnet_1_5m' with 14 keypoints"):
        load_weights(hrnet, tmp_path / "student.pth")


def test_a_card_builds_it_again():
    model = create_model("smallerhrnet_1_5m", 3, modules=(1, 1), widths=(4, 8, 12), blocks=1, size=(64, 64))
    again = create_model_from_card(json.loads(json.dumps(model_card(model))))
    assert again.config == model.config
    assert (again.paradigm, again.output) == ("bottom_up", "tagged_heatmaps")


def test_settings_that_the_heads_would_not_read_are_refused():
    with pytest.raises(ValueError, match="no final_gc, no final_multiscale"):
        create_model("higherhrnet_w32", final_multiscale=True)
    with pytest.raises(ValueError, match="deconv_blocks must be a positive integer"):
        create_model("higherhrnet_w32", deconv_blocks=0)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_go_through_a_tiny_picture(name):
    coarse, fine = create_model(name, size=(64, 64)).eval()(torch.randn(1, 3, 64, 128))
    assert (coarse.shape, fine.shape) == ((1, 34, 16, 32), (1, 17, 32, 64))
