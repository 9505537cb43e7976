"""TokenPose: official counts, names of both code bases, and what the encoder computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from posekd.codecs import heatmaps
from posekd.models import create_model, profile_model

# state-dict entries, parameters that train, exact MACs without attention's products: measured with the official code
COUNTS = {
    "tokenpose_s": (234, 6_620_736, 2_382_667_776),
    "tokenpose_b": (1074, 13_465_216, 5_932_621_824),
    "tokenpose_l_d24": (1202, 27_482_400, 11_506_286_592),
    "distilpose_teacher_stem": (234, 6_620_736, 2_382_667_776),
    "distilpose_teacher_hrnet_w48": (1896, 69_411_360, 16_946_601_984),
}
TINY = {"dim": 8, "heads": 2, "depth": 2, "hidden": 12, "head_hidden": 20, "size": (32, 24)}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    with torch.device("meta"):
        model = create_model(name)
    entries, trainable, macs = COUNTS[name]
    assert len(model.state_dict()) == entries
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    profile = profile_model(model)
    assert (profile.macs, profile.params) == (macs, trainable + 256 * 192)  # the fixed position table


def test_output_and_tokens():
    model = create_model("tokenpose_s", 5, **TINY).eval()
    out = model(torch.randn(2, 3, 32, 24))
    assert [tuple(part.shape) for part in out] == [(2, 5, 8, 6), (2, 5, 8), (2, 4, 8)]
    assert heatmaps.final(out, 5) is out.heatmaps
    with pytest.raises(ValueError, match="images of 32x24"):
        model(torch.randn(1, 3, 64, 48))


@pytest.mark.parametrize(("name", "scale"), [("tokenpose_s", 8**-0.5), ("distilpose_teacher_stem", 4**-0.5)])
def test_attention_scale(name, scale):
    attention = create_model(name, 5, **TINY).keypoint_head.tokenpose.transformer.layers[0][0].fn.fn
    x = torch.randn(1, 3, 8)
    q, k, v = (part.view(1, 3, 2, 4).transpose(1, 2) for part in attention.to_qkv(x).chunk(3, dim=-1))
    mixed = functional.softmax(q @ k.transpose(2, 3) * scale, dim=-1) @ v
    torch.testing.assert_close(attention(x), attention.to_out(mixed.transpose(1, 2).reshape(1, 3, 8)))


def test_names_of_the_tokenpose_repository():
    model = create_model("tokenpose_s", 5, **TINY)
    state = model.state_dict()
    theirs = {"features." + k.removeprefix("backbone.").removeprefix("keypoint_head.tokenpose."): k for k in state}
    assert "features.conv1.weight" in theirs
    assert "features.mlp_head.0.weight" in theirs
    assert model.own_names({old: state[new] for old, new in theirs.items()}).keys() == state.keys()
