"""Following people over the frames of a video, for evaluation and for prediction."""

from posekd.tracking.flow import dense_flow, move_points
from posekd.tracking.smoothing import OneEuro
from posekd.tracking.tracker import Look, Tracker, TrackSettings, refuse_blind

__all__ = ["Look", "OneEuro", "TrackSettings", "Tracker", "dense_flow", "move_points", "refuse_blind"]
