"""Cat, dog, bird and fish in their poses. Each returns its anchors for accessories and marks."""

from __future__ import annotations

import math

from farm.base.embedded.world.body import Anchors, Palette, Spot, detail_or, draw_eyes
from farm.base.embedded.world.brush import Brush, blob, corners, ellipse, limb
from farm.base.embedded.world.scene import Look
from farm.base.embedded.world.words import RGB

NOSE: RGB = (60, 36, 44)


def draw_cat(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A cat: pointed ears, round face, long tail."""
    return _quadruped(brush, pose, look, tone, is_cat=True)


def draw_dog(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A dog: hanging ears, pale muzzle, short tail."""
    return _quadruped(brush, pose, look, tone, is_cat=False)


def _quadruped(brush: Brush, pose: str, look: Look, tone: Palette, *, is_cat: bool) -> Anchors:
    if pose == "sitting":
        return _sit(brush, look, tone, is_cat=is_cat)
    if pose == "sleeping":
        return _sleep(brush, look, tone, is_cat=is_cat)
    return _on_legs(brush, look, tone, is_cat=is_cat, is_jumping=pose == "jumping")


def _head(
    brush: Brush,
    x: float,
    y: float,
    look: Look,
    tone: Palette,
    *,
    is_cat: bool,
    asleep: bool = False,
) -> tuple[Spot, Spot]:
    size = 0.4 * look.head
    first, second = detail_or(look, "ear", tone.main), tone.main
    if is_cat:
        ear = 0.34 * look.ears
        ears = [
            (corners((x + s * size * 0.95, y), (x + s * size * 0.86, y - size * 0.62 - ear),
                     (x + s * size * 0.12, y - size * 0.8)), shade)
            for s, shade in ((-1, first), (1, second))
        ]  # fmt: skip
        brush.layer(*ears, (ellipse(x, y, size, size * 0.86), tone.main))
        for side in (-1, 1):
            inner = corners(
                (x + side * size * 0.8, y - size * 0.5),
                (x + side * size * 0.76, y - size * 0.55 - ear * 0.62),
                (x + side * size * 0.36, y - size * 0.74),
            )
            if not (look.detail == "ear" and side == -1):
                brush.spot(inner, (250, 170, 180))
    else:
        brush.layer((ellipse(x, y, size * 0.92, size * 0.92), tone.main))
        for side, shade in ((-1, first), (1, detail_or(look, "none", tone.dark))):
            fill = shade if side == -1 and look.detail == "ear" else tone.dark
            drop = 0.34 * look.ears
            brush.layer((ellipse(x + side * size * 0.98, y + 0.02, 0.14, drop, side * -0.22), fill))
    if look.detail == "patch":
        brush.spot(ellipse(x - 0.15, y - 0.06, 0.17, 0.19), look.detail_shade)
    eyes = Spot(x, y - 0.05, 0.16 * look.head)
    draw_eyes(brush, eyes, look, closed=asleep)
    if not is_cat:
        brush.spot(ellipse(x, y + size * 0.46, 0.2, 0.16), tone.light)
    nose = y + (0.1 if is_cat else 0.13)
    wide = 0.05 if is_cat else 0.09
    brush.spot(ellipse(x, nose, wide, wide * 0.75), (240, 130, 150) if is_cat else NOSE)
    if is_cat:
        for side in (-1, 1):
            start, end = (x + side * 0.22, y + 0.13), (x + side * 0.5, y + 0.1)
            brush.stroke([start, end], tone.ink, 0.03)
    return Spot(x, y - size * 0.78, size * 0.75), eyes


def _sit(brush: Brush, look: Look, tone: Palette, *, is_cat: bool) -> Anchors:
    wide = 0.44 * look.width
    tip = detail_or(look, "tail", tone.main)
    if is_cat:
        brush.layer(
            (limb([(0.3, 0.78), (0.72, 0.72), (0.78, 0.3), (0.62, 0.08)], 0.11, 0.1), tone.main)
        )
        if look.detail == "tail":
            brush.spot(limb([(0.76, 0.26), (0.62, 0.08)], 0.1, 0.1), tip)
    else:
        brush.layer((limb([(0.34, 0.7), (0.62, 0.6), (0.76, 0.36)], 0.1, 0.07), tone.main))
        if look.detail == "tail":
            brush.spot(limb([(0.68, 0.52), (0.76, 0.36)], 0.09, 0.07), tip)
    body = blob((0, -0.2), (wide * 0.75, 0.15), (wide * 1.1, 0.62), (wide * 0.7, 0.88),
                (-wide * 0.7, 0.88), (-wide * 1.1, 0.62), (-wide * 0.75, 0.15))  # fmt: skip
    brush.layer((body, tone.main))
    if look.detail == "belly":
        brush.spot(ellipse(0, 0.45, wide * 0.6, 0.32), look.detail_shade)
    sock = detail_or(look, "socks", tone.main)
    for side in (-1, 1):
        brush.layer((ellipse(side * 0.17, 0.84, 0.15, 0.11), sock))
    head, eyes = _head(brush, 0, -0.4, look, tone, is_cat=is_cat)
    return Anchors(head, eyes, Spot(0, 0.02, 0.3), Spot(0, 0.42, 0.25))


def _on_legs(brush: Brush, look: Look, tone: Palette, *, is_cat: bool, is_jumping: bool) -> Anchors:
    old = brush.turn
    if is_jumping:
        brush.turn += -0.42
    long = 0.5 * look.limbs
    foot = 0.28 + long
    spread = 0.42 if is_jumping else 0.0
    tall = 0.18 if is_jumping else 0.0
    sock = detail_or(look, "socks", tone.main)
    if is_cat:
        tail = [(-0.58, 0.1), (-0.86, -0.1), (-0.8, -0.42), (-0.92, -0.66)]
        tip = tail[2:]
    else:
        tail = [(-0.58, 0.08), (-0.74, -0.1), (-0.8, -0.34)]
        tip = tail[1:]
    brush.layer((limb(tail, 0.11, 0.08), tone.main))
    if look.detail == "tail":
        brush.spot(limb(tip, 0.1, 0.08), look.detail_shade)
    legs = []
    socks = []
    for x, way, shade in (
        (-0.5, -1, tone.dark),
        (0.2, 1, tone.dark),
        (-0.3, -1, tone.main),
        (0.4, 1, tone.main),
    ):
        end = (x + way * spread, foot - tall)
        legs.append((limb([(x, 0.2), end], 0.14, 0.11), shade))
        middle = ((x + 2 * end[0]) / 3, (0.2 + 2 * end[1]) / 3)
        socks.append(limb([middle, end], 0.12, 0.11))
    brush.layer(*legs[:2])
    if look.detail == "socks":
        for polygon in socks[:2]:
            brush.spot(polygon, sock)
    body = ellipse(-0.06, 0.12, 0.6, 0.31 * look.width)
    brush.layer(*legs[2:], (body, tone.main))
    if look.detail == "socks":
        for polygon in socks[2:]:
            brush.spot(polygon, sock)
    if look.detail == "belly":
        brush.spot(ellipse(-0.08, 0.26, 0.4, 0.15 * look.width), look.detail_shade)
    head, eyes = _head(brush, 0.5, -0.26, look, tone, is_cat=is_cat)
    brush.turn = old
    anchors = Anchors(head, eyes, Spot(0.46, 0.13, 0.26), Spot(-0.22, 0.1, 0.24))
    return _turned(anchors, -0.42) if is_jumping else anchors


def _turned(anchors: Anchors, turn: float) -> Anchors:
    """Transform the anchors of a turned figure to upright figure coordinates."""
    cos, sin = math.cos(turn), math.sin(turn)

    def carry(spot: Spot) -> Spot:
        x, y = spot.x * cos - spot.y * sin, spot.x * sin + spot.y * cos
        return Spot(x, y, spot.size, spot.turn + turn)

    return Anchors(*(carry(s) for s in (anchors.head, anchors.eyes, anchors.neck, anchors.mark)))


def _sleep(brush: Brush, look: Look, tone: Palette, *, is_cat: bool) -> Anchors:
    body = ellipse(-0.12, 0.42, 0.76, 0.42 * look.width)
    brush.layer((body, tone.main))
    if look.detail == "belly":
        brush.spot(ellipse(-0.1, 0.6, 0.45, 0.2), look.detail_shade)
    if is_cat:
        tail = [(-0.8, 0.5), (-0.66, 0.82), (-0.2, 0.86), (0.12, 0.8)]
    else:
        tail = [(-0.8, 0.4), (-0.98, 0.2), (-0.9, 0.02)]
    brush.layer((limb(tail, 0.12, 0.09), tone.main))
    if look.detail == "tail":
        brush.spot(limb(tail[-2:], 0.1, 0.09), look.detail_shade)
    head, eyes = _head(brush, 0.46, 0.36, look, tone, is_cat=is_cat, asleep=True)
    sock = detail_or(look, "socks", tone.main)
    brush.layer((limb([(0.3, 0.8), (0.66, 0.82)], 0.1, 0.1), sock))
    return Anchors(head, eyes, Spot(0.34, 0.72, 0.26), Spot(-0.36, 0.34, 0.25))


def draw_bird(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A bird: round body, beak to the side, wing, fanned tail."""
    flying, asleep = pose == "flying", pose == "sleeping"
    low = 0.26 if pose in ("sitting", "sleeping") else 0.0
    beak: RGB = (250, 170, 40) if look.shade[2] > 90 or look.shade[0] < 200 else (120, 70, 30)
    wide = 0.5 * look.width
    if pose == "standing":
        for x in (-0.12, 0.14):
            brush.stroke([(x, 0.4), (x, 0.86), (x + 0.2, 0.88)], (226, 130, 30), 0.1)
    tip = detail_or(look, "tail", tone.dark)
    fan = corners((-0.3, 0.1 + low), (-0.98, -0.04 + low), (-0.94, 0.34 + low), (-0.3, 0.34 + low))
    brush.layer((fan, tip))
    hx, hy = (0.36, -0.36 + low) if not asleep else (0.2, -0.14 + low)
    head = 0.33 * look.head
    brush.layer(
        (corners((hx + 0.2, hy - 0.12), (hx + head + 0.34, hy + 0.06), (hx + 0.2, hy + 0.2)), beak)
    )
    brush.layer(
        (ellipse(0, 0.2 + low, wide * 1.1, 0.4), tone.main),
        (ellipse(hx, hy, head, head), tone.main),
    )
    if look.detail in ("belly", "socks"):
        brush.spot(ellipse(0.16, 0.36 + low, 0.3, 0.2), look.detail_shade)
    if look.detail in ("patch", "ear"):
        brush.spot(ellipse(hx + 0.06, hy - 0.04, 0.19, 0.2), look.detail_shade)
    if flying:
        up = 0.85 * look.limbs
        near = blob(
            (0.14, 0.26), (-0.3, -up * 0.75), (-0.66, -up), (-0.62, -up * 0.5), (-0.36, 0.22)
        )
        brush.layer((near, tone.dark))
    else:
        wing = blob((0.18, 0.1 + low), (-0.16, 0.0 + low), (-0.62, 0.34 + low), (-0.2, 0.46 + low))
        brush.layer((wing, tone.dark))
    eyes = Spot(hx + 0.08, hy - 0.05, 0.13)
    draw_eyes(brush, eyes, look, closed=asleep)
    return Anchors(
        Spot(hx, hy - head * 0.85, 0.28), eyes, Spot(hx - 0.08, hy + head * 0.95, 0.25),
        Spot(0.2, 0.32 + low, 0.21),
    )  # fmt: skip


def draw_fish(brush: Brush, pose: str, look: Look, tone: Palette) -> Anchors:
    """A fish: oval, forked tail, fins. It leaps nose up, dives nose down, sleeps belly up."""
    turn = {"swimming": 0.0, "jumping": -0.75, "diving": 0.75, "sleeping": 0.0}[pose]
    asleep = pose == "sleeping"
    old = brush.turn
    brush.turn += turn
    over = -1 if asleep else 1
    tip = detail_or(look, "tail", tone.dark)
    tall = 0.46 * look.width
    fork = 0.4 * look.limbs
    brush.layer((corners((-0.42, 0), (-0.98, -fork), (-0.84, 0), (-0.98, fork)), tip))
    fins = detail_or(look, "ear", tone.dark)
    top = corners((-0.3, -0.3 * over), (-0.12, -0.76 * look.ears * over), (0.34, -0.32 * over))
    low = corners((-0.2, 0.3 * over), (-0.24, 0.66 * over), (0.14, 0.36 * over))
    brush.layer((top, fins), (low, fins))
    body = blob((0.86 * look.head, 0.02), (0.46, -tall * 0.86), (-0.06, -tall), (-0.6, -0.1),
                (-0.6, 0.1), (-0.06, tall), (0.46, tall * 0.86))  # fmt: skip
    brush.layer((body, tone.main))
    if look.detail in ("belly", "socks"):
        brush.spot(ellipse(0.1, 0.26 * over, 0.4, 0.13), look.detail_shade)
    if look.detail == "patch":
        brush.spot(ellipse(0.5, -0.08 * over, 0.2, 0.2), look.detail_shade)
    eyes = Spot(0.5, -0.1 * over, 0.13)
    draw_eyes(brush, eyes, look, closed=asleep)
    mouth = [(0.62, 0.16 * over), (0.7, 0.2 * over), (0.78, 0.14 * over)]
    brush.stroke(mouth, tone.ink, 0.04)
    brush.turn = old
    anchors = Anchors(
        Spot(0.36, -tall * 0.9, 0.28),
        eyes,
        Spot(0.16, 0.0, tall * 0.9, math.pi / 2),
        Spot(-0.12, 0, 0.22),
    )
    return _turned(anchors, turn)
