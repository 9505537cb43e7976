"""The teacher's heatmaps from a file instead of from the teacher."""

import dataclasses
import pickle
import re

import numpy as np
import pytest
import torch
from helpers.tiny_recipe import TINY_NET
from helpers.tiny_training import losses, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from posekd import geometry, ops
from posekd.cli import main
from posekd.data import CropAugmentation, LoaderSettings, crop_loader
from posekd.data.loading.teacher_maps import (
    CARD,
    Answers,
    MapsCard,
    TeacherMaps,
    dequantise,
    fingerprint,
    larger_crops,
    quantise,
    write_maps,
)
from posekd.distill import CachedTeacher, FPDSettings
from posekd.distill.convert import resample
from posekd.engine.build import build_job, open_training_data
from posekd.engine.recipes.recipe import Recipe
from posekd.engine.teacher_cache import cache_teacher
from posekd.engine.train import train
from posekd.inputs import prepare_crops
from posekd.inputs.crops import unzoom_peaks
from posekd.models import create_model, save_weights
from posekd.ops import render_heatmaps
from posekd.structures import InputSpec

SPEC = InputSpec(size=(64, 64))
TOKENS = {
    "size": [64, 64], "patch": [4, 4], "stem_width": 4, "stem_blocks": 1, "dim": 8, "depth": 1, "heads": 2, "hidden": 8
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Weights whose heatmaps differ from keypoint to keypoint and place to place, by about 1."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(7)
    model = create_model("hrnet_w32", **TINY_NET)
    torch.nn.init.normal_(model.final_layer.weight, std=15.0)
    with torch.no_grad():
        for _ in range(60):  # batch statistics that keep the signal alive
            model(torch.randn(4, 3, 64, 64))
    save_weights(model, path)
    return str(path)


class TestCompactForm:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-12, 1e-3, 1.0, 50.0]), shift=st.floats(-2, 2))
    def test_bytes_are_off_by_a_510th_of_a_maps_range_at_most(self, seed, scale, shift):
        maps = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) * scale + shift
        back = dequantise(*quantise(maps, 8))
        span = maps.amax((-2, -1), keepdim=True) - maps.amin((-2, -1), keepdim=True)
        assert ((back - maps).abs() <= span / 510 * 1.001 + 3e-7 * maps.abs()).all()

    def test_a_constant_map_stays_what_it_is(self):
        maps = torch.full((1, 2, 4, 3), 0.25)
        assert torch.equal(dequantise(*quantise(maps, 8)), maps)

    def test_16_bits_are_float16(self):
        maps = torch.rand(1, 2, 4, 3)
        assert torch.equal(dequantise(*quantise(maps, 16)), maps.half().float())


def plain(recipe: Recipe) -> Recipe:
    """The same without augmentation."""
    still = CropAugmentation(flip=0.0, rotation=0.0, scale=0.0)
    return dataclasses.replace(recipe, augmentation=still)


@pytest.mark.parametrize("bits", [8, 16])
def test_maps_warped_by_the_identity_equal_the_live_teacher_within_the_stated_error(tmp_path, teacher, bits):
    recipe = plain(tiny(tmp_path / "run", teacher))
    card = cache_teacher(recipe, tmp_path / "cache", margin=1.0, bits=bits)
    assert (card.crop, card.margin) == ((64, 64), 1.0)
    live = build_job(recipe)
    cached = build_job(plain(tiny(tmp_path / "run", teacher, train__teacher_cache=str(tmp_path / "cache"))))
    assert isinstance(cached.learner.method.teacher, CachedTeacher)
    spans, largest = [], 0.0
    for packed in cached.loader.epoch(0):
        batch = cached.prepare(packed)
        expected = resample(live.learner.method.teacher.heatmaps(live.prepare(packed), SPEC)[-1], (16, 16))
        assert batch.teacher_maps.shape == expected.shape
        assert (batch.teacher_maps - expected).abs().max() <= card.error + 1e-5
        largest = max(largest, float(expected.abs().max()))
        spans.append(float((expected.amax((-2, -1)) - expected.amin((-2, -1))).max()))
    assert 0 < card.error <= (max(spans) / 510 if bits == 8 else largest / 2048) * 1.01
    assert max(spans) > 20 * card.error, "guard: the maps are no constants"
    a, b = (job.learner.method(job.prepare(next(job.loader.epoch(0)))) for job in (live, cached))
    for term in a:
        assert a[term].item() == pytest.approx(b[term].item(), rel=2e-2, abs=1e-6)


def oracle_cache(folder, source, size=(64, 64), margin=1.1, sigma=1.5):
    """A cache by a teacher that knows the labels: Gaussians at the keypoints, drawn in the cached crop."""
    records = source.records
    shape = (records.skeleton.num_keypoints, size[0] // 4, size[1] // 4)
    card = MapsCard(len(records), shape, 8, size, margin, geometry.PADDING, fingerprint(records), {})
    crops = geometry.crop_matrices(*larger_crops(records, np.arange(len(records)), card), None, None, size)
    joints = geometry.transform_keypoints(torch.from_numpy(records.keypoints), geometry.invert_matrices(crops))
    maps, _ = render_heatmaps(geometry.to_heatmap(joints), shape[1:], sigma, "exact")
    write_maps(folder, card, [Answers(maps)])
    return TeacherMaps(folder)


def test_warped_maps_peak_at_the_augmented_joints(tmp_path, teacher):
    """Rotation, zoom and mirror at once: a peak stands where its keypoint has gone, in mirrors left for right."""
    source = open_training_data(tiny(tmp_path, teacher))
    maps = oracle_cache(tmp_path / "cache", source)
    augmentation = CropAugmentation(flip=0.5, rotation=45.0, scale=0.3, rotation_probability=1.0)
    loader = crop_loader(
        source, SPEC.size, LoaderSettings(len(source.records), workers=0), training=True, augmentation=augmentation,
        teacher_maps=maps,
    )  # fmt: skip
    seen = 0
    for epoch in range(3):
        packed = next(loader.epoch(epoch))
        assert packed.flips.any()
        assert not packed.flips.all()
        batch = prepare_crops(packed, SPEC, source.records.skeleton.flip)
        x, y, visibility = geometry.to_heatmap(batch.keypoints).unbind(-1)
        inside = (visibility > 0) & (x > 1) & (x < 14) & (y > 1) & (y < 14)
        flat = batch.teacher_maps.flatten(2).argmax(-1)
        distance = torch.hypot(flat % 16 - x, flat // 16 - y)[inside]
        assert distance.max() < 1.2, (
            "half a pixel in each direction, a cached one 1.1 times as large, the interpolation"
        )
        seen += int(inside.sum())
    assert seen > 100


@pytest.mark.parametrize("zoom", [0.75, 1.0, 1.3])
def test_a_zoomed_peak_is_as_wide_as_a_live_teachers(zoom):
    """A teacher draws a keypoint equally wide however large the person is; a warped peak is zoomed with it."""

    def gaussian(x, y):
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        return 0.8 * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))

    background = 0.002
    before = (gaussian(30.3, 36.1) + background)[None, None]
    moves = torch.tensor([[[1 / zoom, 0.0, 4.0], [0.0, 1 / zoom, 6.0]]])
    live = gaussian((30.3 - 4) * zoom, (36.1 - 6) * zoom)
    warped = ops.crop_warp(before, moves, (64, 64))
    maps = unzoom_peaks(warped, before.amax((2, 3), keepdim=True), moves)[0, 0]
    missed = (maps - live).square().sum() / live.square().sum()
    assert missed < 0.02  # most of it background
    assert maps.abs()[live < 1e-3].max() <= 6 * background
    zoomed = (warped[0, 0] - live).square().sum() / live.square().sum()
    assert zoomed > 0.04 or zoom == 1.0
    assert torch.equal(maps, warped[0, 0]) == (zoom == 1.0)


def test_a_larger_crop_shows_more_in_as_many_pixels(tmp_path, teacher):
    """What a teacher says depends on the size of its input, so that stays: a pixel is larger, the middle the same."""
    source = open_training_data(tiny(tmp_path, teacher))
    one, two = (oracle_cache(tmp_path / f"{m}", source, margin=m) for m in (1.0, 2.0))
    assert one.card.shape == two.card.shape
    a, b = (maps.matrices(np.arange(4), source.records) for maps in (one, two))
    torch.testing.assert_close(2 * a[..., :2], b[..., :2])
    middle = torch.tensor([8.0, 8.0, 1.0])  # of 16 x 16 heatmap pixels
    torch.testing.assert_close(a @ middle, b @ middle)


def test_the_files_have_the_stated_size_and_worker_processes_open_them_themselves(tmp_path, teacher):
    recipe = tiny(tmp_path, teacher)
    card = cache_teacher(recipe, tmp_path / "cache")
    files = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.name != CARD)
    assert files == card.persons * card.bytes_per_person
    K, h, w = card.shape
    assert card.bytes_per_person == K * h * w + 8 * K
    maps, records = TeacherMaps(tmp_path / "cache"), open_training_data(recipe).records
    before = maps.read(np.array([3, 1]), records)
    again = pickle.loads(pickle.dumps(maps))
    assert len(pickle.dumps(maps)) < 2000
    after = again.read(np.array([3, 1]), records)
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in ("maps", "ranges", "matrices"))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_cache_resumes_like_any_other(tmp_path, teacher, workers):
    cache_teacher(tiny(tmp_path, teacher), tmp_path / "cache")
    changes = {"train__teacher_cache": str(tmp_path / "cache"), "loader__workers": workers}
    train(tiny(tmp_path / "whole", teacher, **changes))
    train(tiny(tmp_path / "parts", teacher, **changes, train__epochs=1))
    with pytest.warns(UserWarning, match="changed recipe"):
        train(tiny(tmp_path / "parts", teacher, **changes), resume="auto")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


class TestRefusals:
    @pytest.fixture
    def recipe(self, tmp_path, teacher):
        recipe = tiny(tmp_path / "run", teacher, train__teacher_cache=str(tmp_path / "cache"))
        cache_teacher(recipe, tmp_path / "cache")
        return recipe

    def test_no_cache(self, tmp_path, teacher):
        with pytest.raises(FileNotFoundError, match=r"no complete teacher cache: make it with `posekd cache-teacher`"):
            build_job(tiny(tmp_path, teacher, train__teacher_cache=str(tmp_path / "nowhere")))

    def test_a_killed_writer_leaves_none(self, tmp_path, teacher, monkeypatch):
        from posekd.data.loading import teacher_maps

        recipe = tiny(tmp_path / "run", teacher)
        cache_teacher(recipe, tmp_path / "cache")
        monkeypatch.setattr(teacher_maps, "quantise", lambda maps, bits: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache_teacher(recipe, tmp_path / "cache")
        with pytest.raises(FileNotFoundError, match="no complete teacher cache"):
            TeacherMaps(tmp_path / "cache")

    def test_a_cut_file(self, tmp_path, recipe):
        file = tmp_path / "cache" / "maps.bin"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"is damaged: .* make it again"):
            build_job(recipe)

    def test_another_dataset(self, tmp_path, recipe):
        data = dataclasses.replace(recipe.train_data, images=11)
        with pytest.raises(ValueError, match="is of another dataset"):
            build_job(dataclasses.replace(recipe, train_data=data))

    def test_another_teacher(self, tmp_path, recipe):
        torch.manual_seed(8)
        save_weights(create_model("hrnet_w32", **TINY_NET), tmp_path / "other.safetensors")
        other = dataclasses.replace(recipe.teacher, weights=str(tmp_path / "other.safetensors"))
        with pytest.raises(ValueError, match=r"was made with weights '[0-9a-f]{16}', the recipe says '[0-9a-f]{16}'"):
            build_job(dataclasses.replace(recipe, teacher=other))

    def test_another_padding(self, recipe):
        loader = dataclasses.replace(recipe.loader, padding=1.5)
        with pytest.raises(ValueError, match=r"was made with padding 1\.25, the recipe says 1.5"):
            build_job(dataclasses.replace(recipe, loader=loader))

    def test_a_teacher_of_several_stages_asked_stage_by_stage(self, recipe):
        """The cache holds the last stage only; a student of one stage can learn from it, one of two cannot."""
        settings = FPDSettings(teacher_stage="matched")
        student = dataclasses.replace(recipe.student, name="hourglass_4x128", overrides={"size": [64, 64]})
        job = build_job(dataclasses.replace(recipe, method=settings, student=student))
        with pytest.raises(ValueError, match="cannot teach stage by stage"):
            job.learner.method(job.prepare(next(job.loader.epoch(0))))

    def test_several_processes(self, tmp_path, teacher, monkeypatch):
        """Each would write the same files."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="written by one process: start it without torchrun"):
            cache_teacher(tiny(tmp_path, teacher), tmp_path)

    def test_nonsense(self, tmp_path, teacher):
        with pytest.raises(ValueError, match="margin must be 1 or more"):
            cache_teacher(tiny(tmp_path, teacher), tmp_path, margin=0.5)
        with pytest.raises(ValueError, match="no teacher to cache"):
            cache_teacher(tiny(tmp_path, teacher, teacher=None), tmp_path)


def test_the_command_says_what_it_has_written(tmp_path, teacher, capsys):
    import yaml

    from posekd.engine.recipes.recipe import recipe_to_dict

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_to_dict(tiny(tmp_path / "run", teacher))))
    assert main(["cache-teacher", str(file), "--train.precision", "fp32"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "run" / "teacher_cache"
    assert re.search(rf"\d+ persons, 4,488 bytes each \(0 MiB\) in {folder}; largest error 0\.00", out), out
    assert f"train with --train.teacher_cache {folder}" in out
    assert TeacherMaps(folder).card.error < 0.1


class TestTokens:
    """A token teacher's tokens are those of one crop: stored for training without augmentation."""

    @pytest.fixture
    def recipe(self, tmp_path):
        torch.manual_seed(3)
        model = create_model("distilpose_teacher_stem", **TOKENS)
        save_weights(model, tmp_path / "teacher.safetensors")
        return tiny(
            tmp_path / "run",
            str(tmp_path / "teacher.safetensors"),
            student={"name": "distilpose_s", "overrides": TOKENS},
            teacher__name="distilpose_teacher_stem",
            teacher__overrides=TOKENS,
            method={"name": "distilpose"},
            augmentation={"flip": 0.0, "rotation": 0.0, "scale": 0.0},
        )

    def cached(self, recipe: Recipe, folder) -> Recipe:
        return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, teacher_cache=str(folder)))

    def test_cached_terms_are_those_of_the_teacher(self, recipe, tmp_path):
        card = cache_teacher(recipe, tmp_path / "cache", margin=1.0, bits=16, tokens=True)
        assert card.tokens == ((17, 8), (16, 8))
        assert TeacherMaps(tmp_path / "cache").card == card
        live, cached = build_job(recipe), build_job(self.cached(recipe, tmp_path / "cache"))
        wanted, found = (job.learner.method(job.prepare(next(job.loader.epoch(0)))) for job in (live, cached))
        assert list(found) == ["labels", "simulated_heatmaps", "scores", "keypoint_tokens", "visual_tokens"]
        for term in wanted:
            assert found[term].item() == pytest.approx(wanted[term].item(), rel=2e-3, abs=1e-9), term

    def test_they_do_not_fit_augmented_crops(self, recipe, tmp_path):
        cache_teacher(recipe, tmp_path / "cache", margin=1.0, tokens=True)
        moving = dataclasses.replace(self.cached(recipe, tmp_path / "cache"), augmentation=CropAugmentation())
        with pytest.raises(ValueError, match=r"holds the tokens of unaugmented crops: set augmentation\.flip"):
            build_job(moving)

    def test_what_cannot_be_stored_is_refused(self, recipe, tmp_path):
        with pytest.raises(ValueError, match=r"margin must be 1 with them, got 1\.1"):
            cache_teacher(recipe, tmp_path / "cache", tokens=True)

    def test_a_teacher_without_tokens(self, teacher, tmp_path):
        with pytest.raises(ValueError, match="the teacher hrnet_w32 gives no tokens"):
            cache_teacher(tiny(tmp_path, teacher), tmp_path / "cache", margin=1.0, tokens=True)
