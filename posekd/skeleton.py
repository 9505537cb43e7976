"""Plain facts about keypoint sets: names, edges, mirror pairs, OKS sigmas. What names tell is in `names.py`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posekd.names import infer_flip, infer_upper_body, match, side, unpaired

DEFAULT_SIGMA = 0.05

__all__ = [
    "COCO",
    "COCO_WHOLEBODY",
    "CROWDPOSE",
    "DEFAULT_SIGMA",
    "LSP",
    "MPII",
    "POSETRACK",
    "Skeleton",
    "infer_flip",
    "side",
    "skeleton_from_category",
    "skeleton_from_facts",
]


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


POSETRACK = Skeleton(
    name="posetrack",
    keypoints=("nose", "head_bottom", "head_top", *COCO.keypoints[3:]),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 5), (1, 6), (1, 0), (0, 2), (1, 2), (0, 3), (0, 4),
    ),
    flip=(0, 1, 2, *COCO.flip[3:]),
    # COCO's where the keypoints are; those of MPII above for neck and head top. There are no official ones.
    sigmas=(0.026, 0.079, 0.026, *COCO.sigmas[3:]),
    upper_body=tuple(range(11)),
)  # fmt: skip


# Names are MMPose's: the data set itself numbers all but the body.
_TOES = ("big_toe", "small_toe", "heel")
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_SIDES = ("left", "right")
# The 68 points of a face (iBUG): contour, brows, bridge of the nose, nostrils, eyes, outer and inner lips. A mirror
# turns each of these runs round, or a run on the left into one on the right: the two add up to a constant.
_FACE_MIRRORS = (
    (range(17), 16), (range(17, 27), 43), (range(31, 36), 66), ((36, 37, 38, 39, 42, 43, 44, 45), 81),
    ((40, 41, 46, 47), 87), (range(48, 55), 102), (range(55, 60), 114), (range(60, 65), 124), (range(65, 68), 132),
)  # fmt: skip
_FACE_FLIP = {i: total - i for run, total in _FACE_MIRRORS for i in run}
_HAND_SIGMAS = (
    0.029, 0.022, 0.035, 0.037, 0.047, 0.026, 0.025, 0.024, 0.035, 0.018, 0.024, 0.022, 0.026, 0.017, 0.021, 0.021,
    0.032, 0.02, 0.019, 0.022, 0.031,
)  # fmt: skip
FOOT, FACE, LEFT_HAND, RIGHT_HAND = 17, 23, 91, 112
"""Where the parts of `COCO_WHOLEBODY` begin, after the 17 keypoints of the body."""


def _hand(start: int, wrist: int) -> list[tuple[int, int]]:
    """Edges of a hand: each finger a chain from the wrist."""
    fingers = [start + 1 + 4 * finger for finger in range(5)]
    return [edge for first in fingers for edge in ((wrist, first), *((first + i, first + i + 1) for i in range(3)))]


COCO_WHOLEBODY = Skeleton(
    name="coco_wholebody",
    keypoints=(
        *COCO.keypoints,
        *(f"{side}_{part}" for side in _SIDES for part in _TOES),
        *(f"face-{i}" for i in range(68)),
        *(
            f"{side}_{part}"
            for side in _SIDES
            for part in ("hand_root", *(f"{finger}{i}" for finger in _FINGERS for i in range(1, 5)))
        ),
    ),
    edges=(
        *COCO.edges,
        *((15, FOOT + i) for i in range(3)),
        *((16, FOOT + 3 + i) for i in range(3)),
        *_hand(LEFT_HAND, 9),
        *_hand(RIGHT_HAND, 10),
    ),
    flip=(
        *COCO.flip,
        *(FOOT + (i + 3) % 6 for i in range(6)),
        *(FACE + _FACE_FLIP.get(i, i) for i in range(68)),
        *range(RIGHT_HAND, RIGHT_HAND + 21),
        *range(LEFT_HAND, LEFT_HAND + 21),
    ),
    # jin-s13/COCO-WholeBody, evaluation/myeval_wholebody.py
    sigmas=(
        *COCO.sigmas,
        0.068, 0.066, 0.066, 0.092, 0.094, 0.094,
        0.042, 0.043, 0.044, 0.043, 0.040, 0.035, 0.031, 0.025, 0.020, 0.023, 0.029, 0.032, 0.037, 0.038, 0.043, 0.041,
        0.045, 0.013, 0.012, 0.011, 0.011, 0.012, 0.012, 0.011, 0.011, 0.013, 0.015, 0.009, 0.007, 0.007, 0.007, 0.012,
        0.009, 0.008, 0.016, 0.010, 0.017, 0.011, 0.009, 0.011, 0.009, 0.007, 0.013, 0.008, 0.011, 0.012, 0.010, 0.034,
        0.008, 0.008, 0.009, 0.008, 0.008, 0.007, 0.010, 0.008, 0.009, 0.009, 0.009, 0.007, 0.007, 0.008, 0.011, 0.008,
        0.008, 0.008, 0.010, 0.008,
        *_HAND_SIGMAS,
        *_HAND_SIGMAS,
    ),
    upper_body=(*COCO.upper_body, *range(FACE, RIGHT_HAND + 21)),
)  # fmt: skip


def skeleton_from_facts(facts: Mapping[str, Any]) -> Skeleton:
    """The skeleton in a card, as `dataclasses.asdict` wrote it (JSON makes lists of its tuples).

    Raises:
        ValueError: an entry is missing, unknown, or of a wrong form.
    """
    try:
        return Skeleton(
            name=str(facts["name"]),
            keypoints=tuple(map(str, facts["keypoints"])),
            edges=tuple((int(a), int(b)) for a, b in facts["edges"]),
            flip=tuple(map(int, facts["flip"])),
            sigmas=tuple(map(float, facts["sigmas"])),
            upper_body=tuple(map(int, facts.get("upper_body", ()))),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the card's skeleton is not one ({error!r}): {facts!r:.120}") from None


def skeleton_from_category(
    category: Mapping[str, Any],
    *,
    flip_pairs: Sequence[tuple[str | int, str | int]] | None = None,
    sigmas: Sequence[float] | None = None,
    upper_body: Sequence[str] | None = None,
) -> Skeleton:
    """Reads a skeleton from a COCO category.

    Args:
        category: an entry of a COCO file's `categories`, with `keypoints` and, optionally, 1-based `skeleton`.
        flip_pairs: pairs of names, or of indices from 0, that a mirror exchanges; when not given, those of the
            known sets (see `sigmas`), else inferred from the names, with a warning that lists names which look like
            such pairs and have no partner.
        sigmas: K OKS constants. When not given: the official ones where the keypoints are COCO's 17, CrowdPose's 14
            or COCO-WholeBody's 133, in whatever order, else `DEFAULT_SIGMA` for each, with a warning, because AP
            depends on them.
        upper_body: names of the keypoints that half-body augmentation treats as the upper half; inferred from the names
            when not given.

    Raises:
        ValueError: no keypoints, an unknown name in `flip_pairs` or `upper_body`, or a wrong number of sigmas.
    """
    names = tuple(category.get("keypoints") or ())
    label = str(category.get("name", "?"))
    if not names:
        raise ValueError(f"category {label!r} has no 'keypoints' list: this is not a keypoint annotation file")
    known = next(
        (s for s in (COCO, CROWDPOSE, COCO_WHOLEBODY, POSETRACK) if sorted(s.keypoints) == sorted(names)), None
    )
    if known is not None and known.keypoints == names and flip_pairs is None and sigmas is None and upper_body is None:
        return known
    if known is not None:
        known = _in_order(known, names)
    if flip_pairs is not None:
        flip = _flip_of(flip_pairs, names)
    else:
        flip = known.flip if known is not None else _inferred_flip(names, label)
    if upper_body is not None:
        upper = tuple(_index(name, names, "upper_body") for name in upper_body)
    else:
        upper = known.upper_body if known is not None else infer_upper_body(names)
    if sigmas is None and known is not None:
        sigmas = known.sigmas
    elif sigmas is None:
        warnings.warn(
            f"category {label!r} has {len(names)} keypoints and no OKS sigmas were given: using "
            f"{DEFAULT_SIGMA} for each. AP depends on them; pass `sigmas` for meaningful numbers.",
            stacklevel=2,
        )
        sigmas = (DEFAULT_SIGMA,) * len(names)
    edges = tuple((a - 1, b - 1) for a, b in category.get("skeleton") or ())
    return Skeleton(label, names, edges, flip, tuple(float(s) for s in sigmas), upper)


def _in_order(skeleton: Skeleton, names: tuple[str, ...]) -> Skeleton:
    """A skeleton with its keypoints in another order, without edges."""
    order = match(skeleton.keypoints, names)
    return Skeleton(
        skeleton.name,
        names,
        (),
        tuple(order.index(skeleton.flip[k]) for k in order),
        tuple(skeleton.sigmas[k] for k in order),
        tuple(i for i, k in enumerate(order) if k in skeleton.upper_body),
    )


def _inferred_flip(names: tuple[str, ...], label: str) -> tuple[int, ...]:
    flip = infer_flip(names)
    alone = unpaired(names, flip)
    if alone:
        warnings.warn(
            f"category {label!r}: {', '.join(alone)} look like keypoints of two sides and have no partner, so a mirror "
            "exchanges nothing there: give the pairs (`flip_pairs`), or train and test without flips",
            stacklevel=4,
        )
    return flip


def _flip_of(pairs: Sequence[tuple[str | int, str | int]], names: tuple[str, ...]) -> tuple[int, ...]:
    flip = list(range(len(names)))
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"flip_pairs are pairs of keypoints, by name or by index from 0; got {pair!r}")
        a, b = (_index(keypoint, names, f"flip pair ({pair[0]!r}, {pair[1]!r})") for keypoint in pair)
        flip[a], flip[b] = b, a
    return tuple(flip)


def _index(keypoint: str | int, names: tuple[str, ...], where: str) -> int:
    """Index of a keypoint that is given by name or by index."""
    if isinstance(keypoint, int) and 0 <= keypoint < len(names):
        return keypoint
    if keypoint not in names:
        raise ValueError(f"{where}: {keypoint!r} is not among the keypoints {list(names)}")
    return names.index(str(keypoint))
