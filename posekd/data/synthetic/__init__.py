"""People that are drawn, with exact labels, where no dataset can be had."""

from posekd.data.synthetic.people import SyntheticPeople, SyntheticSettings, render, write_coco

__all__ = ["SyntheticPeople", "SyntheticSettings", "render", "write_coco"]
