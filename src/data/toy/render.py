"""Pixels of a toy clip.

Motion and order clips are built from one list of frames per pair, which the members show in different order:
averaged over time the two are the same picture, so nothing but order over time can tell them apart.
Legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.data.toy.scenes import Clip, Scene, ToyParams

RGB = {
    "red": (225, 25, 25),
    "green": (20, 165, 45),
    "blue": (30, 60, 235),
    "yellow": (250, 220, 20),
    "pink": (250, 90, 190),
    "cyan": (20, 210, 220),
    "black": (0, 0, 0),
    "gray": (120, 120, 120),
    "white": (255, 255, 255),
    "brown": (100, 55, 20),
}
_SUPERSAMPLING = 3  # shapes are drawn larger and reduced: smooth edges and movement below one pixel
_SIZE = {"small": 0.28, "large": 0.54}  # side of a still object as a fraction of the frame
_PLACE = {"left": (0.26, 0.5), "right": (0.74, 0.5), "top": (0.5, 0.26), "bottom": (0.5, 0.74), "middle": (0.5, 0.5)}
_MOVING_SIZE = 0.5
_ORDER_SIZE = 0.6
_JITTER = 0.04  # largest displacement of a still layout, fraction of the frame


def _outline(shape: str, x: float, y: float, side: float) -> list[tuple[float, float]]:
    """Corner points of a shape that fills a square of this side around (x, y); empty for a circle."""
    half = side / 2
    if shape == "square":
        half *= 0.9  # about the area of the circle
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "triangle":
        return [(x, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "star":
        radii = [half * 1.1 if corner % 2 == 0 else half * 0.45 for corner in range(10)]
        angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
        return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return []


class _Canvas:
    """A frame drawn in fractions of its side."""

    def __init__(self, size: int, background: str) -> None:
        self.size = size
        self.side = size * _SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side), RGB[background])
        self.draw = ImageDraw.Draw(self.image)

    def shape(self, scene_shape: str, colour: str, x: float, y: float, side: float) -> None:
        points = _outline(scene_shape, x * self.side, y * self.side, side * self.side)
        if points:
            self.draw.polygon(points, fill=RGB[colour])
            return
        half = side / 2
        box = [(x - half) * self.side, (y - half) * self.side, (x + half) * self.side, (y + half) * self.side]
        self.draw.ellipse(box, fill=RGB[colour])

    def frame(self, colour: str, thickness: float) -> None:
        width = round(thickness * self.side)
        self.draw.rectangle([0, 0, self.side - 1, self.side - 1], outline=RGB[colour], width=width)

    def finish(self) -> Image.Image:
        return self.image.reduce(_SUPERSAMPLING)


def _still(image: Image.Image, num_frames: int) -> np.ndarray:
    return np.repeat(np.asarray(image)[None], num_frames, axis=0)


def _appearance(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    canvas = _Canvas(params.frame_size, scene.background)
    x, y = (place + _JITTER * shift for place, shift in zip(_PLACE[scene.place], clip.shift, strict=True))
    canvas.shape(scene.shape, scene.colour, x, y, _SIZE[scene.size])
    return _still(canvas.finish(), params.num_frames)


def positions(scene: Scene, num_frames: int, phase: int) -> list[float]:
    """Place of a moving object on its path in each frame, 0 (just outside) to 1 (just outside at the other end).

    The path is a ring of `num_frames` places: what leaves at one end enters at the other. One place per frame,
    forwards or (to the left or the top) backwards, and three when moving quickly (or the next number without a common
    divisor with `num_frames`), so all clips of one path visit the same places. Every second frame of them does
    so too: models that look at half of the frames see equal sets as well.
    """
    stride = next(s for s in range(3, num_frames) if math.gcd(s, num_frames) == 1) if scene.speed == "quickly" else 1
    if scene.direction in ("left", "top"):
        stride = -stride
    steps = [(phase + stride * frame) % num_frames for frame in range(num_frames)]
    return [(step + 0.5) / num_frames for step in steps]


def _motion(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    horizontal = scene.direction in ("left", "right")
    across = 0.5 + 3 * _JITTER * clip.shift[1 if horizontal else 0]
    frames = []
    for position in positions(scene, params.num_frames, clip.phase):
        along = position * (1 + _MOVING_SIZE) - _MOVING_SIZE / 2
        canvas = _Canvas(params.frame_size, scene.background)
        x, y = (along, across) if horizontal else (across, along)
        canvas.shape(scene.shape, scene.colour, x, y, _MOVING_SIZE)
        frames.append(np.asarray(canvas.finish()))
    return np.stack(frames)


def _order(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    x, y = (0.5 + _JITTER * shift for shift in clip.shift)
    halves = []
    for colour, shape in ((scene.colour, scene.shape), (scene.other_colour, scene.other_shape)):
        canvas = _Canvas(params.frame_size, scene.background)
        canvas.shape(shape, colour, x, y, _ORDER_SIZE)
        halves.append(_still(canvas.finish(), params.num_frames // 2))
    return np.concatenate(halves)


_SIGNS = (("white", "black"), ("black", "white"), ("yellow", "black"), ("blue", "white"))  # board, letters
_SIGN_FONT = 0.28  # smallest font size as a fraction of the frame: capitals of 18 pixels at 96
_SIGN_MARGIN = 3  # pixels between the letters and the ends of the board


def sign_font(word: str, width: float, wanted: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font at the wanted size, or the largest at which the word fits into `width` pixels."""
    for size in range(round(wanted), 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(word) <= width:
            break
    return font  # type: ignore[return-value]


def _reading(clip: Clip, params: ToyParams) -> np.ndarray:
    """The sign's board, its place and the size of its letters vary, so that a word has no fixed picture."""
    scene, size = clip.scene, params.frame_size
    canvas = _Canvas(size, scene.background)
    sign_y, object_y = (0.27, 0.76) if scene.place == "top" else (0.73, 0.24)
    canvas.shape(scene.shape, scene.colour, 0.5 - 6 * _JITTER * clip.shift[0], object_y, 0.36)
    image = canvas.finish()
    draw = ImageDraw.Draw(image)
    board, letters = _SIGNS[int((clip.style + 1) / 2 * len(_SIGNS)) % len(_SIGNS)]
    wanted = size * (_SIGN_FONT + 0.05 * abs(clip.shift[0] * clip.style))
    font = sign_font(scene.word, size - 4 * _SIGN_MARGIN, wanted)
    half_width = font.getlength(scene.word) / 2 + _SIGN_MARGIN
    half_height = 0.62 * font.size
    x = size / 2 + clip.shift[0] * (size / 2 - half_width - _SIGN_MARGIN / 2)
    y = (sign_y + 1.5 * _JITTER * clip.shift[1]) * size
    box = [round(x - half_width), round(y - half_height), round(x + half_width), round(y + half_height)]
    draw.rectangle(box, fill=RGB[board], outline=RGB[letters], width=1)
    draw.text((round(x), round(y)), scene.word, font=font, fill=RGB[letters], anchor="mm")
    return _still(image, params.num_frames)


def _sound(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    canvas = _Canvas(params.frame_size, scene.background)
    x, y = (0.5 + _JITTER * shift for shift in clip.shift)
    canvas.shape(scene.shape, scene.colour, x, y, 0.4)
    canvas.frame(scene.other_colour, 0.13)
    return _still(canvas.finish(), params.num_frames)


_RENDER: dict[str, Callable[[Clip, ToyParams], np.ndarray]] = {
    "appearance": _appearance,
    "motion": _motion,
    "order": _order,
    "reading": _reading,
    "sound": _sound,
}


def render(clip: Clip, params: ToyParams) -> np.ndarray:
    """uint8 RGB frames_THWC of a clip, before encoding; a pure function of its arguments."""
    return _RENDER[clip.scene.skill](clip, params)
