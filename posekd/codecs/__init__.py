"""What networks say: one file per kind of output, named by `PoseModel.output`.

A codec reads and checks an output (`read`, for training), merges what a network says of one view (`final`), makes the
mirrored view's that of the view (`unmirror`), joins both (`average`) and turns them into keypoints (`decode`).
"""

from posekd.codecs import heatmaps, tagged_heatmaps

CODECS = {codec.NAME: codec for codec in (heatmaps, tagged_heatmaps)}
"""Name of an output -> its codec, a module of plain functions."""

__all__ = ["CODECS", "heatmaps", "tagged_heatmaps"]
