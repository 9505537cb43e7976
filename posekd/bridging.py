"""Which keypoint of one set is which of another's: by name, by the synonyms of the common sets, or as a midpoint.

The synonyms are those by which public code joins these sets (MMPose's `KeypointConverter` of its body of eight sets):
the top of the head is `head` in Halpe and CrowdPose, `head_top` in MPII, LSP, AIC and PoseTrack; the neck is `neck`
in Halpe, LSP, CrowdPose and AIC, `upper_neck` in MPII, `head_bottom` in PoseTrack; the pelvis is MPII's `pelvis`,
Halpe's `hip`; COCO-WholeBody's `left_hand_root` is a wrist. Points that a set lacks and that lie midway between two
that it has are derived: neck and thorax between the shoulders, the pelvis between the hips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posekd.names import Side, split_side
from posekd.skeleton import COCO, COCO_WHOLEBODY, CROWDPOSE, LSP, MPII, POSETRACK

KEYPOINT_SETS: dict[str, tuple[str, ...]] = {
    **{skeleton.name: skeleton.keypoints for skeleton in (COCO, COCO_WHOLEBODY, MPII, LSP, CROWDPOSE, POSETRACK)},
    "halpe26": (
        *COCO.keypoints, "head", "neck", "hip", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe",
        "left_heel", "right_heel",
    ),
    "aic": (
        "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist", "right_hip",
        "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "head_top", "neck",
    ),
}  # fmt: skip
"""Name of a common set -> its keypoints, in the order of its data and networks."""

_MIDDLE = {
    **dict.fromkeys(("head", "head top", "top head", "top of head"), "head top"),
    **dict.fromkeys(("neck", "upper neck", "head bottom"), "neck"),
    **dict.fromkeys(("thorax", "mid shoulder"), "thorax"),
    **dict.fromkeys(("pelvis", "hip", "mid hip", "root"), "pelvis"),
}
_OF_A_SIDE = {"hand root": "wrist"}
_MIDWAY = {
    **dict.fromkeys(("neck", "thorax", "mid shoulder"), "shoulder"),
    **dict.fromkeys(("pelvis", "hip", "mid hip", "root"), "hip"),
}  # MPII's upper_neck and PoseTrack's head_bottom lie above the shoulders, and are not derived


@dataclass(frozen=True)
class Bridge:
    """How the keypoints of one set are had from another's.

    Attributes:
        theirs: names of the set that is asked, e.g. a teacher's.
        ours: K names that are wanted, e.g. the data's.
        sources: for each of ours the indices in `theirs`: one, two whose midpoint it is, or none.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]

    @staticmethod
    def from_names(names: Mapping[str, Sequence[str]], ours: Sequence[str]) -> Bridge:
        """What `names` gave, of a card; of their keypoints those that are used."""
        theirs = tuple(dict.fromkeys(name for source in names.values() for name in source))
        sources = tuple(tuple(theirs.index(name) for name in names.get(own, ())) for own in ours)
        return Bridge(theirs, tuple(ours), sources)

    @property
    def covered(self) -> tuple[bool, ...]:
        """Whether each of ours can be had."""
        return tuple(bool(source) for source in self.sources)

    @property
    def is_plain(self) -> bool:
        """Whether each of ours is one of theirs."""
        return all(len(source) == 1 for source in self.sources)

    def names(self) -> dict[str, list[str]]:
        """Each of our names -> the names of theirs that it comes from, for cards."""
        return {ours: [self.theirs[i] for i in source] for ours, source in zip(self.ours, self.sources, strict=True)}

    def lines(self, who: str) -> list[str]:
        """The mapping in words: what has another name, what is a midpoint, what is missing, what is not used."""
        named = self.names().items()
        same = [ours for ours, own in named if own == [ours]]
        renamed = [f"{ours} = {own[0]}" for ours, own in named if len(own) == 1 and own != [ours]]
        midway = [f"{ours} = midpoint of {' and '.join(own)}" for ours, own in named if len(own) == 2]
        missing = [ours for ours, own in named if not own]
        used = {i for source in self.sources for i in source}
        unused = [name for i, name in enumerate(self.theirs) if i not in used]
        parts = [f"{sum(self.covered)} of the data's {len(self.ours)} keypoints are known to {who}"]
        if same:
            parts.append(f"  by the same name: {', '.join(same)}")
        if renamed:
            parts.append(f"  by another name: {', '.join(renamed)}")
        if midway:
            parts.append(f"  derived: {', '.join(midway)}")
        if missing:
            parts.append(f"  not known, learnt from labels alone: {', '.join(missing)}")
        if unused:
            more = f" and {len(unused) - 12} more" if unused[12:] else ""
            parts.append(f"  not used: {', '.join(unused[:12])}{more}")
        return parts


def bridge(theirs: Sequence[str], ours: Sequence[str], derive: bool = True) -> Bridge:
    """Finds each of our keypoints among theirs.

    A name counts first as it is, then in any spelling (`left_ear`, `earLeft`, `L-ear`), then by the synonyms, and last
    as the midpoint of two. One that they have twice, in one of these ways, is not found that way.

    Args:
        theirs: their names.
        ours: K names.
        derive: whether midpoints are wanted.

    Examples:
        >>> from posekd.bridging import KEYPOINT_SETS, bridge
        >>> found = bridge(KEYPOINT_SETS["coco"], ["left_ear", "pelvis", "head_top"])
        >>> found.names()
        {'left_ear': ['left_ear'], 'pelvis': ['left_hip', 'right_hip'], 'head_top': []}
    """
    places = _Places(theirs)
    sources = []
    for name in ours:
        which, rest = split_side(name)
        source = places.find(name)
        if not source and derive and which is None and rest in _MIDWAY:
            couple = places.find(f"left {_MIDWAY[rest]}"), places.find(f"right {_MIDWAY[rest]}")
            source = (*couple[0], *couple[1]) if all(couple) else ()
        sources.append(source)
    return Bridge(tuple(theirs), tuple(ours), tuple(sources))


class _Places:
    """Where names stand in a set."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact: dict[object, list[int]] = defaultdict(list)
        self._spelt: dict[object, list[int]] = defaultdict(list)
        self._meant: dict[object, list[int]] = defaultdict(list)
        for i, name in enumerate(names):
            self._exact[name].append(i)
            self._spelt[split_side(name)].append(i)
            self._meant[_meaning(name)].append(i)

    def find(self, name: str) -> tuple[int, ...]:
        """The place of a name, or nothing."""
        tries = self._exact.get(name), self._spelt.get(split_side(name)), self._meant.get(_meaning(name))
        return next((tuple(places) for places in tries if places is not None and len(places) == 1), ())


def _meaning(name: str) -> tuple[Side | None, str]:
    which, rest = split_side(name)
    return which, (_MIDDLE if which is None else _OF_A_SIDE).get(rest, rest)


def named_set(name: str) -> tuple[str, ...]:
    """The keypoints of a common set.

    Raises:
        ValueError: no such set.
    """
    if name not in KEYPOINT_SETS:
        raise ValueError(f"there is no set of keypoints {name!r}: {', '.join(KEYPOINT_SETS)}, or a list of names")
    return KEYPOINT_SETS[name]


def sets_of(count: int) -> list[str]:
    """The common sets of a number of keypoints, for messages."""
    return [name for name, keypoints in KEYPOINT_SETS.items() if len(keypoints) == count]
