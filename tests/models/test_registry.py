"""Models by name, overrides, cards, and the official state-dict keys."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from posekd.models import config_to_dict, create_model, create_model_from_card, list_models, model_card
from posekd.structures import InputSpec

MANIFESTS = Path(__file__).parent / "manifests"


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


# Key and shape of every tensor of the official COCO networks (256x192 and 384x288 share theirs), and the
# number of entries of the state dict.
@pytest.mark.parametrize(
    ("name", "entries", "head_width"),
    [
        ("hrnet_w32", 1754, 32),
        ("hrnet_w48", 1754, 48),
        ("simplebaseline_r50", 338, 256),
        ("simplebaseline_r101", 644, 256),
        ("simplebaseline_r152", 950, 256),
    ],
)
def test_state_dict_is_the_official_one(name, entries, head_width):
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    assert len(manifest) == entries
    with torch.device("meta"):
        coco, mpii = create_model(name), create_model(name, 16)
    assert shapes(coco) == manifest
    # the official MPII networks differ in the head alone
    mpii_head = {"final_layer.weight": [16, head_width, 1, 1], "final_layer.bias": [16]}
    assert shapes(mpii) == {**manifest, **mpii_head}


def test_names():
    assert list_models() == sorted(list_models())
    wanted = {"hrnet_w32", "hrnet_w48", "elpn_v1", "elpn_v2"} | {f"simplebaseline_r{d}" for d in (50, 101, 152)}
    wanted |= {"higherhrnet_w32", "higherhrnet_w48"} | {f"smallerhrnet_{m}m" for m in ("1_5", "2_3", "2_84", "2_96")}
    tables = {"hrnet_w8", "hrnet_w16", "hrnet_w64"} | {f"hrnet_w32_eu{u}" for u in (111, 113, 121, 122, 131)}
    hourglasses = {"hourglass", "hourglass_8x256", "hourglass_4x128", "hourglass_fpd_8x256", "hourglass_fpd_4x128"}
    hourglasses |= {"hourglass_princeton_8x256", "hourglass_princeton_2x256", "pyranet", "pyranet_4x128"}
    tokens = {
        "tokenpose_s",
        "tokenpose_b",
        "tokenpose_l_d24",
        "distilpose_teacher_stem",
        "distilpose_teacher_hrnet_w48",
    }
    regression = {"distilpose_s", "distilpose_l", "deeppose_r50"}
    people = {"simple_w18", "simple_w32", "simple_w18_tags", "simple_w32_tags"}
    assert set(list_models()) == wanted | tables | hourglasses | tokens | regression | people


def test_a_model_carries_its_facts():
    model = create_model("simplebaseline_r50", num_keypoints=4, width=8, deconv_width=8)
    assert (model.name, model.num_keypoints) == ("simplebaseline_r50", 4)
    assert model.config.width == 8
    assert model.spec == InputSpec(size=(256, 192), bgr=True)  # the official networks saw BGR
    assert not create_model("hrnet_w32", width=8, blocks=1, modules=(1, 1, 1)).spec.bgr
    with pytest.raises(FrozenInstanceError):
        model.config.width = 16


def test_size_and_spec_overrides():
    with torch.device("meta"):
        assert create_model("hrnet_w32", size=[384, 288]).spec == InputSpec(size=(384, 288))
        assert create_model("hrnet_w32", spec={"bgr": True}, size=(64, 64)).spec == InputSpec((64, 64), bgr=True)
        own = InputSpec(size=(128, 96), mean=(0.5, 0.5, 0.5))
        assert create_model("elpn_v1", spec=own).spec == own


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("hrnet_w23", {}, "unknown model 'hrnet_w23'; did you mean 'hrnet_w32'"),
        ("xyzzy", {}, r"unknown model 'xyzzy'; valid: deeppose_r50, distilpose_l, distilpose_s"),
        ("elpn_v1", {"widht": 8}, "elpn_v1 has no setting 'widht'; did you mean 'width'"),
        ("simplebaseline_r50", {"modules": (1, 1, 1)}, "simplebaseline_r50 has no setting 'modules'"),
        ("elpn_v1", {"spec": {"sise": (64, 64)}}, "no field 'sise'; did you mean 'size'"),
        ("elpn_v1", {"size": (100, 64)}, "multiples of 32, got 100x64"),
        ("elpn_v1", {"size": 64}, "size is .height, width. in whole pixels, got 64"),
        ("elpn_v1", {"width": 0}, "width must be a positive integer.*got 0"),
        ("elpn_v1", {"width": "8"}, "width must be a positive integer.*got '8'"),
        ("elpn_v1", {"width": (8, 16)}, "width must be one number"),
        ("elpn_v1", {"modules": 2}, "modules must be a tuple, got 2"),
        ("elpn_v1", {"modules": (1, 1, 1, 1)}, "one to three"),
        ("elpn_v1", {"widths": (8, 16)}, "3 stages need 4 widths"),
        ("elpn_v1", {"block": "lite"}, "block must be one of"),
        ("elpn_v1", {"dw_bn": 1}, "dw_bn must be of type bool, got 1"),
        ("simplebaseline_r50", {"blocks": (3, 4, 6)}, "four ResNet stages"),
    ],
)
def test_what_cannot_be_is_answered_with_a_sentence(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **overrides)


@pytest.mark.parametrize("num_keypoints", [0, -1, 2.5, True])
def test_number_of_keypoints_must_be_positive(num_keypoints):
    with pytest.raises(ValueError, match="num_keypoints must be a positive integer"):
        create_model("elpn_v1", num_keypoints)


@pytest.mark.parametrize(
    "name", ["elpn_v1", "hrnet_w32_eu122", "simplebaseline_r152", "hourglass_princeton_2x256", "pyranet"]
)
def test_a_card_survives_json_and_builds_the_same_model(name):
    with torch.device("meta"):
        model = create_model(name, 7)
        card = json.loads(json.dumps(model_card(model)))
        again = create_model_from_card(card)
    assert card["config"] == config_to_dict(model.config)
    assert (again.name, again.num_keypoints, again.config) == (name, 7, model.config)
    assert shapes(again) == shapes(model)


def test_a_card_keeps_overrides_and_outlives_its_name():
    with torch.device("meta"):
        card = model_card(create_model("elpn_v1", 3, width=8, widths=(8, 8, 8, 8), size=(64, 64), dw_bn=False))
        again = create_model_from_card({"model": {**card, "name": "my_net"}, "metrics": {"AP": 0.5}})
    assert again.name == "my_net"
    assert config_to_dict(again.config) == card["config"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"metrics": 1}, "not a model card: it has no name, family, num_keypoints, config; it has metrics"),
        (
            {"name": "x", "family": "hrnt", "num_keypoints": 3, "config": {}},
            "family 'hrnt'; did you mean 'hrnet'",
        ),
        (
            {"name": "x", "family": "hrnet", "num_keypoints": 3, "config": {"depth": 1}},
            "has no setting 'depth'",
        ),
    ],
)
def test_a_card_that_cannot_be_read(card, message):
    with pytest.raises(ValueError, match=message):
        create_model_from_card(card)
