"""From packed bytes to network inputs, on the device: the half of the data path that does not run in workers."""

from posekd.inputs.crops import prepare_crops
from posekd.inputs.images import prepare_images
from posekd.inputs.looks import change_looks
from posekd.inputs.warp import warp

__all__ = ["change_looks", "prepare_crops", "prepare_images", "warp"]
