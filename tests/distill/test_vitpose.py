"""ViTPose and ViTPose++ of transformers as teachers, on tiny networks of random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_recipe import TINY_NET
from helpers.tiny_training import tiny

from posekd import packages
from posekd.distill.convert import from_corners
from posekd.distill.vitpose import ViTPoseTeacher
from posekd.engine.build import build_loader, open_training_data
from posekd.engine.teacher_cache import cache_teacher
from posekd.engine.teachers import build_teacher, open_cache, teacher_card, teacher_facts
from posekd.models import create_model
from posekd.ops import decode_heatmaps
from posekd.packages import MissingPackageError
from posekd.skeleton import COCO, MPII
from posekd.structures import InputSpec

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
NAMES = {i: name.title().replace("Left_", "L_").replace("Right_", "R_") for i, name in enumerate(COCO.keypoints)}


def save(folder, experts: int = 1, simple: bool = True, **changes) -> str:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 64], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        mlp_ratio=2, num_experts=experts, part_features=4 if experts > 1 else 0, out_indices=[1],
    )  # fmt: skip
    config = transformers.VitPoseConfig(
        backbone_config=backbone, use_simple_decoder=simple, **{"id2label": NAMES, "initializer_range": 0.3, **changes}
    )
    transformers.VitPoseForPoseEstimation(config).save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    return str(folder)


@pytest.fixture(scope="module")
def vitpose(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vitpose"))


def recipe(folder, path, **changes):
    given = {"name": "huggingface", "path": path, **changes.pop("given", {})}
    return tiny(folder, "-", teacher=given, train__validate_every=0, val_data=None, **changes)


@pytest.mark.parametrize("simple", [True, False], ids=["simple", "classic"])
def test_its_heatmaps_are_those_of_transformers(tmp_path, simple):
    path = save(tmp_path, simple=simple)
    made = recipe(tmp_path / "run", path)
    teacher = build_teacher(made, made.teacher, COCO)
    assert teacher.spec == InputSpec((64, 64), tuple(MEAN), tuple(STD))
    pixels = torch.rand(2, 3, 64, 64)
    own = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    whole = transformers.VitPoseForPoseEstimation.from_pretrained(path).eval()
    with torch.no_grad():
        expected = from_corners(whole(own).heatmaps, (64, 64))
    student = InputSpec((64, 64))  # ImageNet's normalisation, which is converted
    seen = (pixels - torch.tensor(student.mean)[:, None, None]) / torch.tensor(student.std)[:, None, None]
    torch.testing.assert_close(teacher.outputs(seen, student)[0], expected, rtol=1e-4, atol=1e-4)


def test_names_and_licence_are_told(vitpose, tmp_path):
    found = ViTPoseTeacher(vitpose)
    assert found.keypoint_names[:3] == ("Nose", "L_Eye", "R_Eye")
    assert found.said.endswith("is a ViTPose of 17 keypoints: heatmaps")
    made = recipe(tmp_path, vitpose)
    teacher = build_teacher(made, made.teacher, COCO)
    assert teacher.covered is None
    assert teacher_card(made.teacher, teacher)["licence"] == "apache-2.0"
    assert teacher_facts(made.teacher)["path"] == teacher_card(made.teacher, teacher)["sha256"]
    of_others = build_teacher(made, made.teacher, MPII)
    missing = [name for name, known in zip(MPII.keypoints, of_others.covered.tolist(), strict=True) if not known]
    assert missing == ["upper_neck", "head_top"]


def test_a_cache_of_it_is_known_by_its_weights(vitpose, tmp_path):
    data = {"name": "synthetic", "images": 2}
    made = recipe(tmp_path / "run", vitpose, train_data=data, loader__batch_size=2)
    card = cache_teacher(made, tmp_path / "cache", margin=1.0, bits=16)
    source = open_training_data(made)
    changed = replace(made, train=replace(made.train, teacher_cache=str(tmp_path / "cache")))
    maps = open_cache(changed, source)
    assert card.teacher["path"] == teacher_facts(made.teacher)["path"]
    batch = next(iter(build_loader(changed, source, create_model("elpn_v1", 17, **TINY_NET))))
    assert batch.teacher.maps.shape[1:] == (17, 16, 16)
    assert maps.card.keypoints["left_eye"] == ["L_Eye"]
    other = save(tmp_path / "other", initializer_range=0.2)
    with pytest.raises(ValueError, match=r"was made with path '\w+', the recipe says '\w+'"):
        open_cache(replace(changed, teacher=replace(made.teacher, path=other)), source)


def test_an_expert_of_a_mixture_is_chosen(tmp_path):
    path = save(tmp_path, experts=3)
    images = torch.randn(2, 3, 64, 64)
    whole = transformers.VitPoseForPoseEstimation.from_pretrained(path).eval()
    for given, index in ((None, 0), (2, 2)):
        teacher = ViTPoseTeacher(path, dataset=given)
        expected = whole(images, dataset_index=torch.tensor([index, index])).heatmaps
        torch.testing.assert_close(teacher(images), expected)
        assert f", expert {index} of 3" in teacher.said
    assert not torch.allclose(ViTPoseTeacher(path)(images), ViTPoseTeacher(path, dataset=1)(images))
    with pytest.raises(ValueError, match=r"teacher.dataset 3: .* has the experts 0 to 2"):
        ViTPoseTeacher(path, dataset=3)


def test_without_names_seventeen_keypoints_are_cocos(tmp_path):
    labels = {i: f"LABEL_{i}" for i in range(17)}
    assert ViTPoseTeacher(save(tmp_path, id2label=labels)).keypoint_names == COCO.keypoints


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_a_mixture_is_asked_for_where_there_is_none(vitpose):
    with pytest.raises(ValueError, match=r"teacher.dataset 1: .* is no mixture of experts"):
        ViTPoseTeacher(vitpose, dataset=1)


def test_pickles_are_not_read(vitpose, tmp_path):
    shutil.copytree(vitpose, tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors: only safetensors are read"):
        ViTPoseTeacher(str(tmp_path / "net"))


def test_damaged_files(vitpose, tmp_path):
    shutil.copytree(vitpose, tmp_path / "net")
    weights = tmp_path / "net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot be read as a ViTPose"):
        ViTPoseTeacher(str(tmp_path / "net"))
    (tmp_path / "net" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is a bert: teachers of huggingface are of the model_type vitpose"):
        ViTPoseTeacher(str(tmp_path / "net"))
    (tmp_path / "net" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"is not valid JSON"):
        ViTPoseTeacher(str(tmp_path / "net"))


def test_no_such_folder(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no config.json: it is no network of transformers"):
        ViTPoseTeacher(str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*nowhere, and a repository on the hub is OWNER/NAME"
    ):
        ViTPoseTeacher(str(tmp_path / "nowhere"))
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"the hub does not give it: no network here"):
        ViTPoseTeacher("someone/vitpose")


def test_without_transformers_a_sentence(vitpose, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(packages.importlib, "import_module", missing)
    with pytest.raises(
        MissingPackageError, match=r"No module named 'transformers': pip install 'posekd\[huggingface\]'"
    ):
        ViTPoseTeacher(vitpose)


def test_a_peak_stands_at_the_input_pixel_where_transformers_decodes_it():
    """Their image coordinates, taken back through UDP's crop (first and last pixel on the box's edges)."""
    pytest.importorskip("scipy")
    H, W = 256, 192
    at = torch.tensor([[37.0, 50.0], [4.0, 9.0], [20.5, 33.25]])
    u, v = torch.arange(48.0), torch.arange(64.0)[:, None]
    maps = torch.stack([torch.exp(-((u - x) ** 2 + (v - y) ** 2) / 8) for x, y in at])[None]
    processor = transformers.VitPoseImageProcessor(size={"height": H, "width": W})
    box = [10.0, 20.0, 96.0, 128.0]  # of the crop's aspect ratio; the crop is 1.25 times as large
    said = SimpleNamespace(heatmaps=maps)
    found = processor.post_process_pose_estimation(said, boxes=[[box]])[0][0]["keypoints"]
    extent = 1.25 * torch.tensor(box[2:])
    corner = torch.tensor(box[:2]) + torch.tensor(box[2:]) / 2 - extent / 2
    theirs = (torch.as_tensor(found)[:, :2] - corner) * torch.tensor([W - 1.0, H - 1.0]) / extent
    ours = 4 * decode_heatmaps(from_corners(maps, (H, W)), "dark")[0, :, :2]
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=0.25)
    assert (4 * decode_heatmaps(maps, "dark")[0, :, :2] - theirs).abs().max() > 1.5  # what UDP makes otherwise
