"""Evaluators whose numbers agree with the official ones."""

from posekd.metrics.coco import NUMBERS, CocoResult, PersonScore, evaluate_coco
from posekd.metrics.coco_files import NoLabelsError
from posekd.metrics.keypoint_table import KeypointScore
from posekd.metrics.oks import keypoint_similarity, oks, oks_nms, rescore

__all__ = [
    "NUMBERS",
    "CocoResult",
    "KeypointScore",
    "NoLabelsError",
    "PersonScore",
    "evaluate_coco",
    "keypoint_similarity",
    "oks",
    "oks_nms",
    "rescore",
]
