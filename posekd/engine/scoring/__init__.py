"""Metrics by name, as datasets name them (`PoseRecords.metrics`): one file per family, and one entry here."""

from posekd.engine.scoring.base import Metric, NotScoredError, Report, Score
from posekd.engine.scoring.boxes import COCO_BOXES
from posekd.engine.scoring.coco import COCO_KEYPOINTS
from posekd.engine.scoring.mpii_groups import MPII_GROUPS
from posekd.engine.scoring.pck import PCK, PCK_TORSO, PCKH
from posekd.engine.scoring.posetrack import POSETRACK

METRICS: dict[str, Metric] = {
    "coco_keypoints": COCO_KEYPOINTS,
    "coco_boxes": COCO_BOXES,
    "pckh": PCKH,
    "pck": PCK,
    "pck_torso": PCK_TORSO,
    "posetrack": POSETRACK,
    "mpii_groups": MPII_GROUPS,
}

__all__ = ["METRICS", "Metric", "NotScoredError", "Report", "Score"]
