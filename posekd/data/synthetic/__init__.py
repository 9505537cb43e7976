"""Synthetic people with exact labels, for use without a dataset."""

from posekd.data.synthetic.people import SyntheticPeople, SyntheticSettings, render, write_coco

__all__ = ["SyntheticPeople", "SyntheticSettings", "render", "write_coco"]
