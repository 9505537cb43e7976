"""Training data with fewer labels than persons."""

import numpy as np
import pytest
import torch

from posekd.data import FewLabels, LabelSettings, LoaderSettings, WithUnlabelled, crop_loader
from posekd.data.records import Regions
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.distill import FPD
from posekd.engine import build
from posekd.engine.recipes.recipe import recipe_from_dict

PEOPLE = SyntheticSettings(images=12, size=(96, 96), people=(1, 2))


@pytest.fixture(scope="module")
def people():
    return SyntheticPeople(PEOPLE)


def labelled(source) -> np.ndarray:
    return (source.records.keypoints[..., 2] > 0).any(1)


def test_some_images_keep_their_labels_and_the_others_keep_their_persons(people):
    few = FewLabels(people, LabelSettings(images=5))
    keep = labelled(few)
    assert len(few.records) == len(people.records)
    assert len(np.unique(few.records.image_rows[keep])) == 5
    assert not set(few.records.image_rows[keep]) & set(few.records.image_rows[~keep]), "an image has all or none"
    assert np.array_equal(few.records.keypoints[keep], people.records.keypoints[keep])
    assert (few.records.keypoints[~keep] == 0).all()
    assert np.array_equal(few.load_image(3), people.load_image(3))


def test_the_draw_follows_the_seed_and_grows(people):
    def chosen(images: int, seed: int = 0) -> set[int]:
        few = FewLabels(people, LabelSettings(images, seed=seed))
        return set(few.records.image_rows[labelled(few)])

    assert chosen(3) == chosen(3) < chosen(7)
    assert chosen(3) != chosen(3, seed=1)


def test_left_out_is_the_same_draw_without_the_rest(people):
    with_others = FewLabels(people, LabelSettings(images=5))
    alone = FewLabels(people, LabelSettings(images=5, others="left_out"))
    rows = np.flatnonzero(labelled(with_others))
    assert alone.records.num_images == 5
    for name in ("keypoints", "boxes", "sample_ids", "box_scores"):
        assert np.array_equal(getattr(alone.records, name), getattr(people.records, name)[rows]), name
    for own, theirs in zip(alone.records.image_rows, people.records.image_rows[rows], strict=True):
        assert alone.records.image_ids[own] == people.records.image_ids[theirs]
        assert alone.image_name(own) == people.image_name(theirs)
        assert np.array_equal(alone.load_image(own), people.load_image(theirs))


def test_ignored_regions_stay_with_their_image():
    runs = [np.array(run, np.uint8) for run in ([1, 2], [3], [4, 5, 6], [7])]
    regions = Regions(np.array([0, 2, 2, 5]), np.cumsum([2, 1, 3, 1]), np.concatenate(runs))
    some = regions.take(np.array([1, 2, 5]))
    assert some.image_rows.tolist() == [1, 1, 2]
    assert [run.tolist() for run in np.split(some.runs, some.ends[:-1])] == [[3], [4, 5, 6], [7]]
    assert len(regions.take(np.array([1]))) == 0


def test_another_dataset_lends_its_pictures_but_not_its_labels(people):
    other = SyntheticPeople(SyntheticSettings(images=3, seed=9, size=(64, 128), people=(1, 1)))
    both = WithUnlabelled(people, other)
    N = len(people.records)
    assert len(both.records) == N + len(other.records)
    assert labelled(both)[:N].all()
    assert not labelled(both)[N:].any()
    assert np.array_equal(both.records.boxes[N:], other.records.boxes)
    assert np.array_equal(both.load_image(both.records.image_rows[N]), other.load_image(other.records.image_rows[0]))
    assert both.image_name(12) == other.image_name(0)
    batches = list(crop_loader(both, (64, 64), LoaderSettings(batch_size=8, workers=0), training=False))
    assert torch.cat([batch.keypoints for batch in batches]).shape[0] == len(both.records)


def test_more_images_than_there_are_is_refused(people):
    with pytest.raises(ValueError, match=r"labels.images is 13, and the training data have 12"):
        FewLabels(people, LabelSettings(images=13))


def test_a_recipe_trains_on_few_labels_and_another_dataset(tmp_path):
    from posekd.models import create_model, save_weights

    tiny = {"size": [64, 64], "stages": 1, "width": 8}
    save_weights(create_model("hourglass", 17, **tiny), tmp_path / "teacher.safetensors")
    data = {"name": "synthetic", "images": 6, "size": [96, 96], "people": [1, 1]}
    recipe = recipe_from_dict(
        {
            "student": {"name": "hourglass", "overrides": tiny},
            "teacher": {"name": "hourglass", "overrides": tiny, "weights": str(tmp_path / "teacher.safetensors")},
            "method": {"name": "fpd"},
            "train_data": data,
            "labels": {"images": 2},
            "unlabelled_data": {**data, "images": 4, "seed": 5},
            "loader": {"batch_size": 10, "workers": 0},
            "train": {"epochs": 1, "validate_every": 0},
            "out": str(tmp_path),
        }
    )
    job = build.build_job(recipe)
    (batch,) = job.loader.epoch(0)
    assert (batch.keypoints[..., 2] > 0).any(1).sum() == 2
    terms = job.learner.method(job.prepare(batch))
    assert isinstance(job.learner.method, FPD)
    assert all(term.item() > 0 for term in terms.values())
