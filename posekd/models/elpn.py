"""ELPN: HRNet made light, and the plain HRNets of the ablations that led to it.

ELPN is HRNet with fewer blocks and these changes:

* stage 1 keeps its four bottlenecks, each with a global context block on its residual branch;
* the basic blocks, two per branch, use separable convolutions. Stem, transitions and fuse layers stay
  ordinary convolutions: no other reading meets the published parameters and GFLOPs;
* there is a global context block before the head, and only the highest resolution leaves stage 4.

The paper leaves open: batch norm between depthwise and pointwise convolution (`dw_bn`, here on, as in
MobileNet), and the inner width of the global context blocks, here `max(4, C / 16)`. Without the floor
V1's last block would have an inner width of 1, where a layer norm can only return its bias.
"""

from __future__ import annotations

from dataclasses import replace

from posekd.models.hrnet import HRNET_W32, HRNetConfig
from posekd.structures import InputSpec

ELPN_V2 = HRNetConfig(width=32, blocks=2, block="light", stage1_block="efficient", final_gc=True)
ELPN_V1 = replace(ELPN_V2, width=16, modules=(1, 2, 2))

_MPII = replace(HRNET_W32, spec=InputSpec(size=(256, 256)))

TABLE_4 = {f"hrnet_w{width}": replace(_MPII, width=width) for width in (8, 16, 64)}
"""ELPN's Table 4 (256x256, 16 keypoints): HRNet of other widths. Its W32 row is `hrnet_w32`."""

TABLE_5 = {
    f"hrnet_w32_eu{''.join(map(str, modules))}": replace(_MPII, modules=modules, final_multiscale=modules[-1] != 3)
    for modules in ((1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 2, 2), (1, 1, 3))
}
"""ELPN's Table 5 (256x256, 16 keypoints): HRNet-W32 with fewer exchange units in stages 2, 3, 4.

The published rows with other than three units in stage 4 count the fuse layers to the lower resolutions in
the last unit, whose results the head never reads; `final_multiscale` is set to reproduce that. Override it
with False to train one on several GPUs: distributed training refuses parameters without a gradient.
"""
