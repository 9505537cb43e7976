"""What keypoints' names tell: sides, mirror pairs, the upper body, and which keypoint of one set is which of another.

Sides come as prefix, suffix, camel case or abbreviation, in several languages: `left_ear`, `earLeft`, `L-ear`,
`lt ear`, `oreille gauche`, `linkes Ohr`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

Side = Literal["left", "right"]


def _list(text: str) -> list[str]:
    return text.split()


_LEFT = _list(
    """left l lt lft links linke linker linkes gauche izquierda izquierdo izq esquerda esquerdo sinistra sinistro
    lewy lewa sx vänster venstre левый левая левое 왼쪽"""
)
_RIGHT = _list(
    """right r rt rgt rechts rechte rechter rechtes droite droit derecha derecho der direita direito destra destro
    prawy prawa dx höger højre høyre правый правая правое 오른쪽"""
)
_SIDES: dict[str, Side] = {**dict.fromkeys(_LEFT, "left"), **dict.fromkeys(_RIGHT, "right")}
_GLUED: tuple[tuple[str, Side], ...] = (("left", "left"), ("right", "right"), ("左", "left"), ("右", "right"))
_UPPER = _list(
    """head neck nose eye ear face mouth lip chin forehead brow shoulder elbow wrist hand arm finger thumb thorax chest
    clavicle forearm eyebrow kopf hals nase auge ohr schulter ellbogen handgelenk tete cou nez oeil oreille epaule coude
    poignet"""
)
_LOWER = _list(
    """hip knee ankle foot toe heel leg thigh shin pelvis calf paw hoof hüfte hufte knie knöchel knochel fuss fuß hanche
    genou cheville pied"""
)
_ENOUGH = 3  # keypoints of either half, before a set is taken to have two


def _words(name: str) -> list[str]:
    """A name's words in lower case: `pawLeft2` and `LPaw` are cut where capitals and digits begin."""
    cut = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])|(?<=[^\W\d_])(?=\d)", " ", name)
    return [word for word in re.split(r"[\W_]+", cut.lower()) if word]


def split_side(name: str) -> tuple[Side | None, str]:
    """The side that a name tells, and what is left of it."""
    words = _words(name)
    told = {_SIDES[word] for word in words if word in _SIDES}
    if len(told) == 1:
        return told.pop(), " ".join(word for word in words if word not in _SIDES)
    if not told and len(words) == 1:
        for word, which in _GLUED:
            if words[0].startswith(word) and words[0] != word:
                return which, words[0][len(word) :]
    return None, " ".join(words)


def side(name: str) -> Side | None:
    """The side that a keypoint's name tells: left for `left_ear`, `leftEar` and `L-ear`; None for `nose`."""
    return split_side(name)[0]


def infer_flip(names: Sequence[str]) -> tuple[int, ...]:
    """Mirror permutation read from the names: `left_ear` pairs with `right_ear`, `L-paw` with `R-paw`.

    A keypoint without a partner maps to itself. Letters glued to a word (`lear`, `rear`) count where two couples or
    more have them.
    """
    flip = list(range(len(names)))
    for couple in _couples(list(map(split_side, names))) or _glued_couples(names):
        a, b = couple
        flip[a], flip[b] = b, a
    return tuple(flip)


def _couples(told: Sequence[tuple[Side | None, str]]) -> list[tuple[int, int]]:
    """Indices of names that say the same of the two sides, and each alone."""
    groups: dict[str, dict[Side, list[int]]] = defaultdict(lambda: {"left": [], "right": []})
    for i, (which, rest) in enumerate(told):
        if which is not None:
            groups[rest][which].append(i)
    return [(g["left"][0], g["right"][0]) for g in groups.values() if len(g["left"]) == len(g["right"]) == 1]


def _glued_couples(names: Sequence[str]) -> list[tuple[int, int]]:
    words = ["".join(_words(name)) for name in names]
    for at_the_end in (False, True):
        told: list[tuple[Side | None, str]] = []
        for word in words:
            letter, rest = (word[-1:], word[:-1]) if at_the_end else (word[:1], word[1:])
            told.append((_SIDES.get(letter) if len(rest) > 1 else None, rest))
        couples = _couples(told)
        if len(couples) > 1:
            return couples
    return []


def unpaired(names: Sequence[str], flip: Sequence[int]) -> list[str]:
    """Names that look as if a mirror exchanged them, and that `flip` leaves where they are.

    That is names that tell a side, and names that are equal but for a number at their end (`ear1`, `ear2`).
    """
    alone = [name for i, name in enumerate(names) if flip[i] == i]
    numbered: dict[str, list[str]] = defaultdict(list)
    for name in alone:
        numbered[re.sub(r"\d+$", "", name)].append(name)
    couples = {name for group in numbered.values() if len(group) == 2 for name in group}
    return [name for name in alone if side(name) is not None or name in couples]


def infer_upper_body(names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the upper body's keypoints, read from the names; none where the two halves cannot be told apart."""
    upper = [i for i, name in enumerate(names) if _has(name, _UPPER) and not _has(name, _LOWER)]
    lower = [i for i, name in enumerate(names) if _has(name, _LOWER)]
    return tuple(upper) if min(len(upper), len(lower)) >= _ENOUGH else ()


def _has(name: str, parts: Sequence[str]) -> bool:
    """Whether a word of the name is one of some parts of a body, their plural, or, for long ones, a compound of it."""
    words = _words(split_side(name)[1])
    return any(
        word.rstrip("s") == part.rstrip("s") or (len(part) > 4 and part in word) for word in words for part in parts
    )


def match(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...]:
    """Where each of our keypoints stands among theirs, by name; the spelling of sides and words does not matter.

    Args:
        theirs: names of a set that has at least ours.
        ours: names.

    Returns:
        For each of ours its index in theirs.

    Raises:
        ValueError: a name that they do not have, or have twice.
    """
    places: dict[tuple[Side | None, str], list[int]] = defaultdict(list)
    for i, name in enumerate(theirs):
        places[split_side(name)].append(i)
    exact = {name: i for i, name in enumerate(theirs)}
    found = [[exact[name]] if name in exact else places[split_side(name)] for name in ours]
    missing = [name for name, where in zip(ours, found, strict=True) if len(where) != 1]
    if missing:
        raise ValueError(
            f"the keypoints {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} are not among "
            f"{', '.join(theirs)}, or not once"
        )
    return tuple(where[0] for where in found)
