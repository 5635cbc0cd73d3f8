"""Mushroom, robot, car and teapot in their poses. They have faces, because glasses need eyes."""

from __future__ import annotations

import math

from farm.base.embedded.world.animals import _turned
from farm.base.embedded.world.body import Anchors, Palette, Spot, detail_or, draw_eyes
from farm.base.embedded.world.brush import Brush, blob, box, corners, ellipse, limb
from farm.base.embedded.world.scene import Look
from farm.base.embedded.world.words import RGB

_TURNS = {"standing": 0.0, "tilted": 0.5, "upside down": math.pi, "jumping": -0.3, "pouring": 0.85}
_SOUND: RGB = (60, 44, 52)


def draw_mushroom(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A mushroom: a coloured cap and a pale stem with the face."""
    stem: RGB = (250, 236, 208)
    turn, old = _TURNS[pose], brush.turn
    brush.turn += turn
    wide = 0.27 * look.width
    foot = 0.8 * (0.9 + 0.1 * look.limbs)
    brush.layer(
        (blob((-wide, -0.1), (-wide * 1.05, 0.4), (-wide * 1.3, foot), (0, foot + 0.08),
              (wide * 1.3, foot), (wide * 1.05, 0.4), (wide, -0.1)), stem)
    )  # fmt: skip
    if look.detail in ("socks", "tail"):
        brush.spot(ellipse(0, foot - 0.06, wide * 1.2, 0.1), tone.dark)
    brim = 0.82 * look.head
    cap = blob((-brim, 0.02), (-brim * 0.86, -0.4), (-0.36, -0.78), (0.36, -0.78),
               (brim * 0.86, -0.4), (brim, 0.02), (0.4, 0.12), (-0.4, 0.12))  # fmt: skip
    brush.layer((cap, tone.main))
    if look.detail in ("patch", "ear", "belly"):
        for x, y, r in ((-0.5, -0.24, 0.14), (0.5, -0.3, 0.12), (0.42, -0.56, 0.08)):
            brush.spot(ellipse(x, y, r, r), look.detail_shade)
    eyes = Spot(0, 0.36, 0.13)
    draw_eyes(brush, eyes, look)
    brush.stroke([(-0.07, 0.54), (0, 0.58), (0.07, 0.54)], _SOUND, 0.04)
    brush.turn = old
    anchors = Anchors(Spot(0, -0.76, 0.36), eyes, Spot(0, 0.7, 0.3), Spot(0, -0.32, 0.27))
    return _turned(anchors, turn)


def draw_robot(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A robot: boxes, an aerial, claws."""
    turn = {"sitting": 0.0, "standing": 0.0, "jumping": -0.22, "sleeping": math.pi / 2}[pose]
    old = brush.turn
    brush.turn += turn
    steel: RGB = (196, 202, 212) if sum(abs(c - 190) for c in look.shade) > 110 else (110, 114, 130)
    low = 0.2 if pose == "sitting" else 0.0
    foot = 0.5 + 0.38 * look.limbs
    sock = detail_or(look, "socks", tone.dark)
    for side in (-1, 1):
        if pose == "sitting":
            brush.layer((limb([(side * 0.2, 0.62), (side * 0.62, 0.8)], 0.11, 0.11), steel))
            brush.layer((box(side * 0.7, 0.76, 0.13, 0.16, 0.05), sock))
        else:
            out = 0.34 if pose == "jumping" else 0.0
            end = (side * (0.22 + out), foot - out * 0.5)
            brush.layer((limb([(side * 0.2, 0.4), end], 0.1, 0.1), steel))
            brush.layer((box(end[0] + side * 0.04, end[1], 0.18, 0.1, 0.05), sock))
        lift = -0.42 if pose == "jumping" else 0.36
        arm = [
            (side * 0.4, 0.04 + low),
            (side * 0.74, 0.16 + low + lift * 0.3),
            (side * 0.78, 0.1 + low + lift),
        ]
        brush.layer((limb(arm, 0.09, 0.09), steel))
        claw = detail_or(look, "tail", tone.dark) if side == -1 else tone.dark
        brush.layer((ellipse(arm[-1][0], arm[-1][1], 0.13, 0.13), claw))
    brush.layer((box(0, 0.2 + low, 0.42 * look.width, 0.38, 0.08), tone.main))
    if look.detail == "belly":
        brush.spot(box(0, 0.22 + low, 0.28, 0.24, 0.05), look.detail_shade)
    y = -0.5 + low
    brush.stroke([(0, y - 0.3), (0, y - 0.5)], tone.ink, 0.07)
    brush.layer((ellipse(0, y - 0.5, 0.09, 0.09), detail_or(look, "ear", tone.main)))
    head = 0.44 * look.head
    brush.layer((box(0, y, head, 0.32, 0.08), tone.main))
    if look.detail == "patch":
        brush.spot(box(-0.17, y - 0.06, 0.18, 0.19, 0.04), look.detail_shade)
    eyes = Spot(0, y - 0.05, 0.18)
    draw_eyes(brush, eyes, look, closed=pose == "sleeping")
    brush.spot(box(0, y + 0.18, 0.2, 0.05, 0.03), _SOUND)
    brush.turn = old
    anchors = Anchors(
        Spot(0, y - 0.32, 0.34), eyes, Spot(0, y + 0.36, 0.32), Spot(0, 0.24 + low, 0.25)
    )
    return _turned(anchors, turn)


def draw_car(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A car from the side, with eyes in its windows."""
    turn, old = _TURNS[pose], brush.turn
    brush.turn += turn
    long = 0.92 * (0.9 + 0.1 * look.width)
    glass: RGB = (206, 236, 250)
    top = -0.52 * look.head
    cabin = corners((-0.6, 0.0), (-0.4, top), (0.32, top), (0.58, 0.0))
    brush.layer((cabin, tone.main), (box(0, 0.16, long, 0.26, 0.16), tone.main))
    brush.spot(corners((-0.46, 0.0), (-0.32, top + 0.1), (0.26, top + 0.1), (0.44, 0.0)), glass)
    if look.detail in ("belly", "socks"):
        brush.spot(box(0, 0.34, long * 0.94, 0.07, 0.05), look.detail_shade)
    if look.detail in ("tail", "ear"):
        brush.spot(box(-long + 0.16, 0.12, 0.14, 0.2, 0.08), look.detail_shade)
    if look.detail == "patch":
        brush.spot(box(0, top + 0.04, 0.34, 0.06, 0.03), look.detail_shade)
    brush.layer((ellipse(long - 0.1, 0.08, 0.08, 0.1), (255, 240, 140)))
    for x in (-0.48, 0.48):
        radius = 0.22 * (0.8 + 0.2 * look.limbs)
        brush.layer((ellipse(x, 0.44, radius, radius), (58, 56, 66)))
        brush.spot(ellipse(x, 0.44, 0.1, 0.1), (214, 216, 224))
    eyes = Spot(0.06, top * 0.45, 0.15)
    draw_eyes(brush, eyes, look)
    brush.turn = old
    anchors = Anchors(Spot(-0.04, top, 0.32), eyes, Spot(-0.06, 0.04, 0.5), Spot(0, 0.16, 0.21))
    return _turned(anchors, turn)


def draw_teapot(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A teapot: round, spout to the right, handle to the left, knob on the lid."""
    turn = -0.4 if pose == "tilted" else _TURNS[pose]
    old = brush.turn
    brush.turn += turn
    wide = 0.56 * look.width
    handle = [(-wide * 0.8, -0.2), (-wide - 0.36, -0.22), (-wide - 0.38, 0.26), (-wide * 0.8, 0.36)]
    brush.layer((limb(handle, 0.085, 0.085), detail_or(look, "ear", tone.dark)))
    spout = [(wide * 0.7, 0.3), (wide + 0.16, 0.1), (wide + 0.26, -0.26)]
    brush.layer((limb(spout, 0.2, 0.09), tone.main))
    if look.detail == "tail":
        brush.spot(limb(spout[1:], 0.11, 0.09), look.detail_shade)
    brush.layer((ellipse(0, -0.62, 0.13 * look.head, 0.12), tone.dark))
    brush.layer(
        (ellipse(0, 0.16, wide, 0.56), tone.main), (ellipse(0, -0.38, 0.38, 0.13), tone.main)
    )
    brush.stroke([(-0.4, -0.28), (0, -0.22), (0.4, -0.28)], tone.ink, 0.045)
    if look.detail in ("belly", "socks"):
        brush.spot(ellipse(0, 0.56, wide * 0.7, 0.13), look.detail_shade)
    if look.detail == "patch":
        brush.spot(ellipse(-0.17, -0.05, 0.17, 0.18), look.detail_shade)
    eyes = Spot(0, -0.03, 0.17)
    draw_eyes(brush, eyes, look)
    brush.turn = old
    anchors = Anchors(Spot(0, -0.5, 0.34), eyes, Spot(0, -0.3, 0.36), Spot(0, 0.4, 0.22))
    return _turned(anchors, turn)
