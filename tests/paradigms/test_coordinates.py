"""Networks that say coordinates: the flip test, the way into the image, and the score of a person."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posekd import geometry
from posekd.codecs import coordinates
from posekd.codecs.coordinates import Coordinates
from posekd.metrics import rescore
from posekd.paradigms import TopDownInference
from posekd.paradigms.top_down import ask

FLIP = (0, 2, 1)
SIZE = (64, 48)


class Reading(nn.Module):
    """Says where a bright pixel of each keypoint's channel is, and the pixel's brightness."""

    output = coordinates.NAME

    def forward(self, images: torch.Tensor) -> Coordinates:
        value, place = images.flatten(2).max(2)
        x, y = place % SIZE[1] / SIZE[1], place // SIZE[1] / SIZE[0]
        return Coordinates(torch.stack((x, y), 2), value[..., None])


def images() -> torch.Tensor:
    """Nose at column 10 of row 5; left at 3, 20; right at 40, 20."""
    x = torch.zeros(1, 3, *SIZE)
    x[0, 0, 5, 10], x[0, 1, 20, 3], x[0, 2, 20, 40] = 0.9, 0.8, 0.3
    return x


class Mirroring(Reading):
    """As a real network: it knows left from right by the picture, so in a mirrored picture they change places."""

    def forward(self, images: torch.Tensor) -> Coordinates:
        mirrored = images[0, 0, 5, 10] == 0
        return super().forward(images[:, list(FLIP)] if mirrored else images)


def test_the_flip_test_changes_nothing_for_a_symmetric_network():
    """Column x becomes W - 1 - x, left becomes right, and so does its score."""
    plain = ask(Mirroring(), images(), FLIP, TopDownInference(flip_test=False))[1]
    both = ask(Mirroring(), images(), FLIP, TopDownInference())[1]
    torch.testing.assert_close(both, plain, rtol=0, atol=1e-6)
    wanted = torch.tensor([[[10 / 48, 5 / 64, 0.9], [3 / 48, 20 / 64, 0.8], [40 / 48, 20 / 64, 0.3]]])
    torch.testing.assert_close(plain, wanted)


def test_the_released_flip_test_is_half_a_pixel_off_and_mixes_the_scores():
    plain = ask(Mirroring(), images(), FLIP, TopDownInference(flip_test=False))[1]
    released = ask(Mirroring(), images(), FLIP, TopDownInference(released_flip=True))[1]
    torch.testing.assert_close(released[..., 0], plain[..., 0] + 0.5 / 48)
    torch.testing.assert_close(released[..., 1], plain[..., 1])
    torch.testing.assert_close(released[0, :, 2], torch.tensor([0.9, 0.55, 0.55]))


def test_coordinates_are_decoded_into_the_image():
    """DistilPose: x W scale_w / W + c_x - scale_w / 2, without any shift."""
    said = torch.tensor([[[0.25, 0.5, 0.7]], [[0.0, 1.0, -0.1]]])
    centers, scales = torch.tensor([[100.0, 50.0], [10.0, 20.0]]), torch.tensor([[96.0, 128.0], [24.0, 32.0]])
    matrices = geometry.crop_matrices(centers, scales, None, None, SIZE)
    found = coordinates.decode(said, matrices, SIZE, TopDownInference())
    wanted = [[100 + (0.25 - 0.5) * 96, 50, 0.7], [10 - 12, 20 + 16, -0.1]]
    torch.testing.assert_close(found[:, 0], torch.tensor(wanted))


def test_a_network_without_scores_is_sure_of_everything():
    """So a person's score is that of the box, as for MMPose's DeepPose."""
    said = coordinates.final(Coordinates(torch.rand(2, 3, 2)), 3)
    assert said[..., 2].tolist() == [[1.0] * 3] * 2
    assert rescore([0.4, 0.9], said[..., 2].numpy(), 0.2) == pytest.approx([0.4, 0.9])


def test_a_persons_score_counts_the_sure_keypoints():
    """Box score times the mean of the scores above 0.2; raw scores may be negative or above 1."""
    assert rescore([0.5, 0.5], [[0.8, 0.2, -0.3], [1.2, 0.6, 0.1]], 0.2) == pytest.approx([0.4, 0.45])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(1, 3, 16, 12), "gives Coordinates, with coords .B, K, 2.; this one gives Tensor"),
        (Coordinates(torch.zeros(1, 3, 3)), r"this one gives \(1, 3, 3\)"),
        (Coordinates(torch.zeros(1, 4, 2)), "the network has 4 coordinates, the dataset 3 keypoints"),
    ],
)
def test_another_output_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        coordinates.read(output, 3)
