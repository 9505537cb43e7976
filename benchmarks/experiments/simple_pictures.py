"""What a network of `simple_modes.py` finds on drawn people: corners and centres, boxes, skeletons, beside the labels.

python benchmarks/experiments/simple_pictures.py runs/simple_modes/seed0/both/last.safetensors docs/images/simple.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from posekd import geometry
from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.models import load_model
from posekd.paradigms.single_network import SingleNetworkInference, find_people, open_loader, predict_maps, suppress
from posekd.viz.crops import save_picture
from posekd.viz.people import draw_boxes, draw_people, draw_points

ZOOM = 2
FOUND = 0.0  # score of a keypoint from which it is drawn: a mask that has not learnt much is low everywhere
SURE = 0.3  # probability of a point, and score of a box, from which it is drawn


def pictures(weights: Path, count: int) -> np.ndarray:
    """Three rows of `count` drawn images: labels; points; boxes and skeletons."""
    model = load_model(weights).eval()
    source = SyntheticPeople(
        SyntheticSettings(images=count, split="val", seed=1, size=(128, 128), people=(2, 2), difficulty=0.0)
    )
    skeleton, settings = source.records.skeleton, SingleNetworkInference(flip_test=False, oks_threshold=0.9)
    loader = open_loader(source, model.spec, LoaderSettings(count, 0), training=False, inference=settings)
    (packed,) = loader
    with torch.inference_mode():
        maps, to_image = predict_maps(model, packed, model.spec, skeleton.flip, settings)
        found = suppress(find_people(model, maps, to_image, packed, settings), skeleton, settings)
    rows: list[list[np.ndarray]] = [[], [], []]
    for i, image_id in enumerate(packed.image_ids.tolist()):
        records = source.records
        row = int(np.flatnonzero(records.image_ids == image_id)[0])
        image, own = source.load_image(row), records.image_rows == row
        here = found.take((found.image_ids == image_id) & (found.box_scores > SURE))
        rows[0].append(draw_people(image, records.keypoints[own], records.boxes[own], skeleton, zoom=ZOOM))
        canvas = cv2.resize(image, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
        sure = [kind[kind[:, 2] > SURE][:, :2] for kind in maps.corners[i, 0]]
        heat = maps.centers[i]
        highest = heat == F.max_pool2d(heat, 3, 1, 1)
        sure.append((highest & (heat > SURE))[0].nonzero().flip(1).float())
        draw_boxes(canvas, here.boxes.numpy(), ZOOM)
        moved = [geometry.transform_keypoints(kind[None], to_image[i : i + 1])[0].numpy() for kind in sure]
        draw_points(canvas, moved, ZOOM)
        rows[1].append(canvas)
        rows[2].append(
            draw_people(image, here.keypoints.numpy(), here.boxes.numpy(), skeleton, zoom=ZOOM, threshold=FOUND)
        )
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="weights of a SIMPLE student")
    parser.add_argument("picture", type=Path, help="where to write")
    parser.add_argument("--count", type=int, default=4, help="images")
    options = parser.parse_args()
    save_picture(pictures(options.weights, options.count), str(options.picture))


if __name__ == "__main__":
    main()
