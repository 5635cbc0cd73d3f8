"""Renders a scene as an image."""

from __future__ import annotations

from PIL import Image

from farm.base.embedded.world.accessories import (
    draw_crown,
    draw_glasses,
    draw_hat,
    draw_mark,
    draw_scarf,
)
from farm.base.embedded.world.animals import draw_bird, draw_cat, draw_dog, draw_fish
from farm.base.embedded.world.body import Anchors, Palette
from farm.base.embedded.world.brush import CANVAS_PX, PAPER, Brush
from farm.base.embedded.world.places import paint_place
from farm.base.embedded.world.scene import Scene
from farm.base.embedded.world.things import draw_car, draw_mushroom, draw_robot, draw_teapot
from farm.base.embedded.world.words import COLOURS

PICTURE_PX = 64

_FIGURES = {
    "cat": draw_cat,
    "dog": draw_dog,
    "bird": draw_bird,
    "fish": draw_fish,
    "mushroom": draw_mushroom,
    "robot": draw_robot,
    "car": draw_car,
    "teapot": draw_teapot,
}
_LIFT = {"jumping": -0.07, "flying": -0.04}


def render_scene(scene: Scene, *, size_px: int = PICTURE_PX) -> Image.Image:
    """Render a scene as an RGB image with sides of `size_px`, at most 256."""
    pencil = scene.style == "pencil"
    image = Image.new("RGB", (CANVAS_PX, CANVAS_PX), PAPER)
    paint_place(image, scene.place, scene.view.scenery, pencil=pencil)
    tone = Palette.of(scene.look, pencil=pencil)
    view = scene.view
    lift = _LIFT.get(scene.pose, 0.03)
    brush = Brush(
        image,
        origin=(CANVAS_PX * (0.5 + view.x), CANVAS_PX * (0.5 + view.y + lift)),
        scale=CANVAS_PX / 2 * view.scale,
        flip=view.flip,
        turn=view.turn,
        ink=tone.ink,
        line_px=7.0 if pencil else 5.0,
        pencil=pencil,
    )
    anchors = _FIGURES[scene.class_noun](brush, scene.pose, scene.look, tone)
    _dress(brush, scene, anchors)
    return image.resize((size_px, size_px), Image.Resampling.BOX)


def _dress(brush: Brush, scene: Scene, anchors: Anchors) -> None:
    if scene.mark and scene.mark_colour:
        draw_mark(brush, anchors.mark, scene.mark, COLOURS[scene.mark_colour])
    if not (scene.accessory and scene.accessory_colour):
        return
    shade = COLOURS[scene.accessory_colour]
    brush.ink = (150, 148, 160) if sum(shade) < 210 else (44, 36, 46)
    if scene.accessory == "hat":
        draw_hat(brush, anchors.head, shade)
    elif scene.accessory == "crown":
        draw_crown(brush, anchors.head, shade)
    elif scene.accessory == "scarf":
        draw_scarf(brush, anchors.neck, shade)
    else:
        draw_glasses(brush, anchors.eyes, shade)
