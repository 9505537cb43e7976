"""Kernels of pose distillation: plain functions of tensors, one file per kernel family."""

from posekd.ops.center_focal_loss import center_focal_loss
from posekd.ops.center_pool import center_pool
from posekd.ops.corner_pool import corner_pool, corner_pool_add, corner_pool_sum
from posekd.ops.crop_warp import PackedImages, crop_warp
from posekd.ops.decode_boxes import box_points, decode_boxes, pair_corners
from posekd.ops.decode_heatmaps import decode_heatmaps
from posekd.ops.distill_loss import distill_loss
from posekd.ops.group_keypoints import group_keypoints, group_keypoints_list
from posekd.ops.group_stages import GroupedKeypoints, match_by_tag, refine, top_k_peaks
from posekd.ops.library import build_info
from posekd.ops.mimic_loss import mimic_loss
from posekd.ops.oks import oks, oks_nms, soft_oks_nms
from posekd.ops.render_heatmaps import render_heatmaps
from posekd.ops.roi_align import roi_align
from posekd.ops.simulated_heatmap_loss import simulated_heatmap_loss
from posekd.ops.tag_loss import tag_loss

__all__ = [
    "GroupedKeypoints",
    "PackedImages",
    "box_points",
    "build_info",
    "center_focal_loss",
    "center_pool",
    "corner_pool",
    "corner_pool_add",
    "corner_pool_sum",
    "crop_warp",
    "decode_boxes",
    "decode_heatmaps",
    "distill_loss",
    "group_keypoints",
    "group_keypoints_list",
    "match_by_tag",
    "mimic_loss",
    "oks",
    "oks_nms",
    "pair_corners",
    "refine",
    "render_heatmaps",
    "roi_align",
    "simulated_heatmap_loss",
    "soft_oks_nms",
    "tag_loss",
    "top_k_peaks",
]
