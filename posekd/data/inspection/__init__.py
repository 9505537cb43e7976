"""Labelled data looked at before anything is trained: facts, judgements, and images that two splits share."""

from posekd.data.inspection.facts import Facts, gather_facts
from posekd.data.inspection.judge import ACKNOWLEDGEABLE, Judgement, judge, shared
from posekd.data.inspection.same_images import same_images

__all__ = ["ACKNOWLEDGEABLE", "Facts", "Judgement", "gather_facts", "judge", "same_images", "shared"]
