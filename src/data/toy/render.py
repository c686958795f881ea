"""Pixels of a toy clip.

Motion and order clips are built from one set of frames per pair, which the members show in different order:
averaged over time the two are the same picture, so nothing but order over time can tell them apart.
Legend: T frames, H height, W width, C channels.
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
_THICKNESS = 0.3  # of a pillar, a beam or the arm of a cross, fraction of its length
# Extents and places as fractions of the frame.
_SIZE = {"small": 0.32, "large": 0.62}
_MOVING_SIZE = 0.5
_ORDER_SIZE = 0.6
_BESIDE_SIGN_SIZE = 0.36
_FRAMED_SIZE = 0.4
_FRAME_THICKNESS = 0.13
_JITTER = 0.04  # largest displacement of a layout


class _Canvas:
    """A frame drawn in fractions of its side."""

    def __init__(self, size: int, background: str) -> None:
        self.side = size * _SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side), RGB[background])
        self.draw = ImageDraw.Draw(self.image)

    def shape(self, shape: str, colour: str, centre: tuple[float, float], extent: float) -> None:
        """Fill a circle, a cross, a pillar (upright) or a beam (lying)."""
        x, y, half = centre[0] * self.side, centre[1] * self.side, extent * self.side / 2
        if shape == "circle":
            self.draw.ellipse([x - half, y - half, x + half, y + half], fill=RGB[colour])
            return
        arm = _THICKNESS * half
        if shape in ("pillar", "cross"):
            self.draw.rectangle([x - arm, y - half, x + arm, y + half], fill=RGB[colour])
        if shape in ("beam", "cross"):
            self.draw.rectangle([x - half, y - arm, x + half, y + arm], fill=RGB[colour])

    def frame(self, colour: str) -> None:
        width = round(_FRAME_THICKNESS * self.side)
        self.draw.rectangle([0, 0, self.side - 1, self.side - 1], outline=RGB[colour], width=width)

    def finish(self) -> Image.Image:
        return self.image.reduce(_SUPERSAMPLING)


def _still(image: Image.Image, num_frames: int) -> np.ndarray:
    return np.repeat(np.asarray(image)[None], num_frames, axis=0)


def _moved(clip: Clip, x: float, y: float) -> tuple[float, float]:
    return x + _JITTER * clip.shift[0], y + _JITTER * clip.shift[1]


def _appearance(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    canvas = _Canvas(params.frame_size, scene.background)
    canvas.shape(scene.shape, scene.colour, _moved(clip, 0.5, 0.5), _SIZE[scene.size])
    return _still(canvas.finish(), params.num_frames)


def positions(scene: Scene, num_frames: int) -> list[float]:
    """Place of a moving object on its path in each frame, 0 (just outside) to 1 (just outside at the other end).

    The path is a ring of `num_frames` places: what leaves at one end enters at the other. One place per frame,
    forwards or (to the left or the top) backwards, and three when moving quickly (or the next number without a
    common divisor with `num_frames`), so all clips of one path visit the same places. Every second frame of them
    does so too: models that look at half of the frames see equal sets as well.
    """
    stride = next(s for s in range(3, num_frames) if math.gcd(s, num_frames) == 1) if scene.speed == "quickly" else 1
    if scene.direction in ("left", "top"):
        stride = -stride
    return [(stride * frame % num_frames + 0.5) / num_frames for frame in range(num_frames)]


def _motion(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    horizontal = scene.direction in ("left", "right")
    across = 0.5 + _JITTER * clip.shift[0]
    frames = []
    for position in positions(scene, params.num_frames):
        along = position * (1 + _MOVING_SIZE) - _MOVING_SIZE / 2
        canvas = _Canvas(params.frame_size, scene.background)
        centre = (along, across) if horizontal else (across, along)
        canvas.shape(scene.shape, scene.colour, centre, _MOVING_SIZE)
        frames.append(np.asarray(canvas.finish()))
    return np.stack(frames)


def _order(clip: Clip, params: ToyParams) -> np.ndarray:
    scene = clip.scene
    halves = []
    for colour, shape in ((scene.colour, scene.shape), (scene.other_colour, scene.other_shape)):
        canvas = _Canvas(params.frame_size, scene.background)
        canvas.shape(shape, colour, _moved(clip, 0.5, 0.5), _ORDER_SIZE)
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
    canvas.shape(scene.shape, scene.colour, (0.5 - 6 * _JITTER * clip.shift[0], object_y), _BESIDE_SIGN_SIZE)
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
    canvas.shape(scene.shape, scene.colour, _moved(clip, 0.5, 0.5), _FRAMED_SIZE)
    canvas.frame(scene.other_colour)
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
