"""Plain facts about keypoint sets: names, edges, mirror pairs, OKS sigmas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DEFAULT_SIGMA = 0.05


@dataclass(frozen=True)
class Skeleton:
    """A keypoint set.

    Attributes:
        name: short name, for messages and cards.
        keypoints: K keypoint names.
        edges: pairs of 0-based keypoint indices to draw.
        flip: permutation of 0..K-1 that a mirror image applies.
        sigmas: K OKS constants, one per keypoint.
        upper_body: indices that half-body augmentation treats as the upper half.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip: tuple[int, ...]
    sigmas: tuple[float, ...]
    upper_body: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        K = len(self.keypoints)
        if sorted(self.flip) != list(range(K)):
            raise ValueError(f"skeleton {self.name!r}: flip {self.flip} is not a permutation of 0..{K - 1}")
        if any(self.flip[self.flip[i]] != i for i in range(K)):
            raise ValueError(f"skeleton {self.name!r}: flip {self.flip} does not undo itself when applied twice")
        if len(self.sigmas) != K:
            raise ValueError(f"skeleton {self.name!r}: {len(self.sigmas)} sigmas for {K} keypoints")
        if not all(s > 0 for s in self.sigmas):
            raise ValueError(f"skeleton {self.name!r}: sigmas must be positive, got {self.sigmas}")
        for a, b in self.edges:
            if not (0 <= a < K and 0 <= b < K):
                raise ValueError(f"skeleton {self.name!r}: edge {(a, b)} names a keypoint outside 0..{K - 1}")
        if not all(0 <= i < K for i in self.upper_body):
            raise ValueError(f"skeleton {self.name!r}: upper_body {self.upper_body} goes outside 0..{K - 1}")

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoints)


COCO = Skeleton(
    name="coco",
    keypoints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    # cocodataset/cocoapi, Params.setKpParams: kpt_oks_sigmas
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
    upper_body=tuple(range(11)),
)  # fmt: skip

MPII = Skeleton(
    name="mpii",
    keypoints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder",
        "left_elbow", "left_wrist",
    ),
    edges=(
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9),
        (10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15),
    ),
    flip=(5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10),
    sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.107, 0.079, 0.079, 0.026, 0.062, 0.072, 0.079, 0.079,
        0.072, 0.062,
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
)  # fmt: skip

CROWDPOSE = Skeleton(
    name="crowdpose",
    keypoints=(
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
    ),
    edges=(
        (12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
        (9, 11),
    ),
    flip=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13),
    # Jeff-sjtu/CrowdPose, crowdposetools/cocoeval.py
    sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
)  # fmt: skip

LSP = Skeleton(
    name="lsp",
    keypoints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
        "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
    ),
    edges=(
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13),
        (8, 2), (9, 3),
    ),
    flip=(5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13),
    sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062, 0.079, 0.026,
    ),
    upper_body=(6, 7, 8, 9, 10, 11, 12, 13),
)  # fmt: skip

_SIDES = (("left", "right"), ("l", "r"))


def side(name: str) -> Literal["left", "right"] | None:
    """The side in a keypoint's name: left for `left_ear`, `leftEar` and `L-ear`; None for `nose`."""
    words = {part.lower() for part in _parts(name)}
    left, right = ({long, short} & words for long, short in zip(*_SIDES, strict=True))
    if bool(left) == bool(right):
        return None
    return "left" if left else "right"


def _parts(name: str) -> list[str]:
    """A name split into its words, the separators included: `L-paw` to L, -, paw; `pawLeft` to paw, '', Left."""
    return re.split(r"([^A-Za-z]+|(?<=[a-z])(?=[A-Z]))", name)


def infer_flip(names: Sequence[str]) -> tuple[int, ...]:
    """Mirror permutation read from the names: `left_ear` pairs with `right_ear`, `L-paw` with `R-paw`.

    A keypoint without a partner maps to itself.
    """
    index = {name.lower(): i for i, name in enumerate(names)}
    flip = list(range(len(names)))
    for i, name in enumerate(names):
        parts = _parts(name)
        for a, b in (*_SIDES, *((b, a) for a, b in _SIDES)):
            mirrored = "".join(b if part.lower() == a else part for part in parts).lower()
            j = index.get(mirrored, i)
            if j != i:
                flip[i] = j
    return tuple(flip if all(flip[flip[i]] == i for i in range(len(names))) else range(len(names)))


def skeleton_from_category(
    category: Mapping[str, Any],
    *,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Skeleton:
    """Reads a skeleton from a COCO category.

    Args:
        category: an entry of a COCO file's `categories`, with `keypoints` and, optionally, 1-based `skeleton`.
        flip_pairs: pairs of names that a mirror exchanges; inferred from left/right names when not given.
        sigmas: K OKS constants. When not given: the official ones where the keypoints are COCO's 17 or CrowdPose's
            14, else `DEFAULT_SIGMA` for each, with a warning, because AP depends on them.

    Raises:
        ValueError: no keypoints, an unknown name in `flip_pairs`, or a wrong number of sigmas.
    """
    names = tuple(category.get("keypoints") or ())
    label = str(category.get("name", "?"))
    if not names:
        raise ValueError(f"category {label!r} has no 'keypoints' list: this is not a keypoint annotation file")
    known = next((skeleton for skeleton in (COCO, CROWDPOSE) if skeleton.keypoints == names), None)
    if known is not None and flip_pairs is None and sigmas is None:
        return known
    if flip_pairs is None:
        flip = infer_flip(names)
    else:
        order = list(range(len(names)))
        for a, b in flip_pairs:
            for name in (a, b):
                if name not in names:
                    raise ValueError(f"flip pair ({a!r}, {b!r}): {name!r} is not among the keypoints {list(names)}")
            order[names.index(a)], order[names.index(b)] = names.index(b), names.index(a)
        flip = tuple(order)
    if sigmas is None:
        if known is not None:
            sigmas = known.sigmas
        else:
            warnings.warn(
                f"category {label!r} has {len(names)} keypoints and no OKS sigmas were given: using "
                f"{DEFAULT_SIGMA} for each. AP depends on them; pass `sigmas` for meaningful numbers.",
                stacklevel=2,
            )
            sigmas = (DEFAULT_SIGMA,) * len(names)
    edges = tuple((a - 1, b - 1) for a, b in category.get("skeleton") or ())
    return Skeleton(label, names, edges, flip, tuple(float(s) for s in sigmas))
