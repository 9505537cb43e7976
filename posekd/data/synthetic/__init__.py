"""Synthetic people with exact labels, for use without a dataset."""

from posekd.data.synthetic.moving import SyntheticVideos, SyntheticVideoSettings, render_video, write_posetrack
from posekd.data.synthetic.people import SyntheticPeople, SyntheticSettings, render, write_coco

__all__ = [
    "SyntheticPeople",
    "SyntheticSettings",
    "SyntheticVideoSettings",
    "SyntheticVideos",
    "render",
    "render_video",
    "write_coco",
    "write_posetrack",
]
