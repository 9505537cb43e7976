"""Evaluators whose numbers agree with the official ones."""

from posekd.lengths import head_sizes, torso_lengths
from posekd.metrics.bootstrap import Gain, paired_bootstrap
from posekd.metrics.boxes import BoxResult, evaluate_boxes
from posekd.metrics.coco import NUMBERS, CocoResult, PersonScore, evaluate_coco
from posekd.metrics.coco_files import NoLabelsError
from posekd.metrics.crowdpose import CrowdPoseResult, evaluate_crowdpose, evaluate_people
from posekd.metrics.keypoint_table import KeypointScore
from posekd.metrics.mpii_groups import GroupsResult, evaluate_groups
from posekd.metrics.oks import keypoint_similarity, oks, oks_nms, rescore
from posekd.metrics.pck import PckResult, pck, pckh
from posekd.metrics.posetrack import PoseTrackResult, evaluate_posetrack, read_posetrack

__all__ = [
    "NUMBERS",
    "BoxResult",
    "CocoResult",
    "CrowdPoseResult",
    "Gain",
    "GroupsResult",
    "KeypointScore",
    "NoLabelsError",
    "PckResult",
    "PersonScore",
    "PoseTrackResult",
    "evaluate_boxes",
    "evaluate_coco",
    "evaluate_crowdpose",
    "evaluate_groups",
    "evaluate_people",
    "evaluate_posetrack",
    "head_sizes",
    "keypoint_similarity",
    "oks",
    "oks_nms",
    "paired_bootstrap",
    "pck",
    "pckh",
    "read_posetrack",
    "rescore",
    "torso_lengths",
]
