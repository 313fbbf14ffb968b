"""The tabletop world: scenes of coloured solids, their pictures, their geometry and what can be said about them."""

from __future__ import annotations

from mgpt_edge.finetune.mini.world.caption import captions
from mgpt_edge.finetune.mini.world.dense import KINDS, view
from mgpt_edge.finetune.mini.world.render import Frame, render
from mgpt_edge.finetune.mini.world.scene import COLORS, FLOORS, HELD_OUT, LIGHTS, SHAPES, Scene, Solid, sample_scene

__all__ = [
    "COLORS",
    "FLOORS",
    "HELD_OUT",
    "KINDS",
    "LIGHTS",
    "SHAPES",
    "Frame",
    "Scene",
    "Solid",
    "captions",
    "render",
    "sample_scene",
    "view",
]
