"""Codecs of network outputs: one file per kind of output, named by `PoseModel.output`.

A codec reads and checks an output (`read`, for training), merges the maps of one view (`final`), mirrors back the maps
of the mirrored view (`unmirror`), averages both views (`average`) and turns the maps into keypoints (`decode`).
"""

from posekd.codecs import anchored_people, coordinates, heatmaps, people, tagged_heatmaps

CODECS = {codec.NAME: codec for codec in (anchored_people, coordinates, heatmaps, people, tagged_heatmaps)}
"""Name of an output -> its codec, a module of plain functions."""

__all__ = ["CODECS", "anchored_people", "coordinates", "heatmaps", "people", "tagged_heatmaps"]
