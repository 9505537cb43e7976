"""People that are drawn, with exact labels, where no dataset can be had."""

from posekd.data.synthetic.people import SyntheticPeople, SyntheticSettings, render

__all__ = ["SyntheticPeople", "SyntheticSettings", "render"]
