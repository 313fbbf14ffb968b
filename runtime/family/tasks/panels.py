"""Lumina-mGPT 2.0's pictures in two panels: a picture and its map, or a picture below a given upper half."""

from __future__ import annotations

from mgpt_edge.runtime.family.tasks.task import Task


def _panels(shown: str, half: str, other: str) -> str:
    return (
        f"Generate a dual-panel image of {{width}}x{{height}} where the <{half} half> displays a <{shown}>, while the "
        f"<{other} half> retains the original image for direct visual comparison:\n{{prompt}}"
    )


def _pair(name: str, order: int, shown: str) -> Task:
    template = _panels(shown, "lower", "upper")
    return Task(name=f"pair-{name}", order=order, template=template, given="words", generation=2)


def _panel(name: str, order: int, shown: str) -> Task:
    template = _panels(shown, "upper", "lower")
    return Task(name=f"panel-{name}", order=order, template=template, given="upper half", generation=2)


PAIR_DEPTH = _pair("depth", 13, "depth map")
PAIR_CANNY = _pair("canny", 14, "canny edge map")
PAIR_HED = _pair("hed", 15, "hed edge map")
PAIR_POSE = _pair("pose", 16, "pose estimation map")
PANEL_DEPTH = _panel("depth", 17, "depth map")
PANEL_CANNY = _panel("canny", 18, "canny edge map")
PANEL_SUBJECT = _panel("subject", 19, "Bubbly and effervescent with a sparkling allure.")
