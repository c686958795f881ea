"""What the toy clips show: one small record per clip, drawn in minimal pairs.

A pair is two clips that differ in exactly one attribute, and only the skill named by the pair can see it:

| skill | differs in | the rest of the two clips |
|---|---|---|
| appearance | colour, shape or size of a still object | the other attributes and the background |
| motion | direction or speed | the same set of frames in another order |
| order | which of two objects comes first | the same set of frames in another order |
| reading | the word on a sign | same sign, object, place |
| sound | the tone pattern | the same picture, moved by a few pixels |
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from src.errors import UserError

GENERATOR_VERSION = 6
"""Raise it whenever pixels, samples, captions or files change: old folders are then ignored."""

Skill = Literal["appearance", "motion", "order", "reading", "sound"]
SKILLS: tuple[Skill, ...] = ("appearance", "motion", "order", "reading", "sound")
PARTS = ("train", "val", "test")

COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan")
SHAPES = ("circle", "cross", "pillar", "beam")
BACKGROUNDS = ("black", "gray", "white", "brown")
SIZES = ("small", "large")
DIRECTIONS = ("left", "right", "top", "bottom")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SPEEDS = ("slowly", "quickly")
SOUNDS = ("rising", "falling", "high", "low", "two", "five")
# Many words, so that each is seen on about two training clips: enough to learn that the printed and the captioned
# word are the same when something reads it, too few to learn the picture of each word. Four letters each, so that
# the length of the lettering says little; none of them occurs elsewhere in the captions.
WORDS = (
    "BIRD", "BOAT", "BONE", "BOOK", "BUSH", "CAKE", "CAMP", "CITY", "COIN", "CORN", "CROW", "DESK", "DOOR", "DRUM",
    "DUCK", "DUST", "FARM", "FIRE", "FISH", "FLAG", "FROG", "GATE", "GIFT", "GOLD", "HAND", "HARP", "HILL", "HOME",
    "JUMP", "KING", "KITE", "LAKE", "LAMP", "LEAF", "LION", "LUCK", "MILK", "MOON", "NEST", "NOTE", "PARK", "PATH",
    "POND", "RAIN", "RICE", "ROAD", "ROCK", "ROOF", "ROSE", "SAND", "SEED", "SHIP", "SNOW", "SOUP", "TENT", "TREE",
    "VASE", "WIND", "WOLF", "WOOD",
)  # fmt: skip


@dataclass(frozen=True)
class ToyParams:
    """Everything that decides the content of the benchmark; its fingerprint names the folder.

    Attributes:
        num_train, num_val, num_test: clips of each part; multiples of 10 (five skills, two clips a pair).
        frame_size: side of the square video, pixels; 64 to 96 (signs need 96 to be legible).
        fps: frames per second.
        duration_s: seconds.
        captions_per_clip: different wordings per clip, at most 6.
        seed: of the scenes; not the seed of the training.
    """

    num_train: int = 600
    num_val: int = 100
    num_test: int = 200
    frame_size: int = 96
    fps: int = 8
    duration_s: float = 2.0
    captions_per_clip: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for part in PARTS:
            count = self.count(part)
            if count < 0 or count % (2 * len(SKILLS)):
                raise UserError(
                    f"dataset.num_{part}={count}, expected a multiple of {2 * len(SKILLS)} "
                    f"(two clips for each of {len(SKILLS)} skills); set dataset.num_{part}={max(10, count // 10 * 10)}"
                )
        if not 64 <= self.frame_size <= 256:
            raise UserError(f"dataset.frame_size={self.frame_size}, expected 64 to 256; set dataset.frame_size=96")
        if self.num_frames < 8 or self.num_frames % 2:
            raise UserError(
                f"dataset.fps={self.fps} times dataset.duration_s={self.duration_s} gives {self.num_frames} frames, "
                "expected an even number of at least 8; set dataset.fps=8 dataset.duration_s=2.0"
            )
        if not 1 <= self.captions_per_clip <= 6:
            raise UserError(f"dataset.captions_per_clip={self.captions_per_clip}, expected 1 to 6")

    def count(self, part: str) -> int:
        """Clips of one part."""
        return int(getattr(self, f"num_{part}"))

    @property
    def num_frames(self) -> int:
        """Frames of every clip."""
        return round(self.fps * self.duration_s)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change with any parameter and with the generator's version."""
        text = json.dumps({"version": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Scene:
    """The content of one clip; attributes that its skill does not use keep their defaults.

    Attributes:
        skill: which of the five the clip belongs to.
        colour, shape: the object (of "order": the one that comes first).
        background: colour of everything else.
        size: of a still object (appearance).
        place: of the sign, top or bottom (reading).
        direction, speed: of a moving object; the direction is the side that it moves to.
        other_colour: of the second object (order), of the frame (sound).
        other_shape: of the second object (order).
        word: on the sign (reading).
        sound: tone pattern; "silence" for every other skill.
    """

    skill: Skill
    colour: str
    shape: str
    background: str
    size: str = "large"
    place: str = ""
    direction: str = ""
    speed: str = ""
    other_colour: str = ""
    other_shape: str = ""
    word: str = ""
    sound: str = "silence"


@dataclass(frozen=True)
class Clip:
    """A scene with a name, a part and what the renderer and the caption writer need to vary.

    Attributes:
        id: unique name, also the file's stem.
        part: train, val or test.
        group: shared by the two members of a pair.
        scene: what is shown.
        shift: (x, y) displacement of the drawing, -1 to 1 of what the layout allows; the same for both members
            except those of a sound pair.
        style: -1 to 1, decides the look of the sign; the same for both members.
        wording: seed of the caption templates; the same for both members.
    """

    id: str
    part: str
    group: str
    scene: Scene
    shift: tuple[float, float]
    style: float
    wording: int


Pair = tuple[Scene, Scene]


def _other(rng: random.Random, options: tuple[str, ...], *taken: str) -> str:
    return rng.choice([option for option in options if option not in taken])


# Shapes are the hardest to generalise and get the largest share of training.
_DIFFERENCES = {"train": ("shape", "shape", "size", "shape", "colour")}
# Mostly what one names first, colour and shape; in training more of what is harder to learn.
_TESTED_DIFFERENCES = ("colour", "shape", "colour", "shape", "colour", "colour", "shape", "colour", "size", "colour")


def _appearance(rng: random.Random, index: int, part: str) -> Pair:
    first = Scene(
        "appearance", rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(BACKGROUNDS), size=rng.choice(SIZES)
    )
    differences = _DIFFERENCES.get(part, _TESTED_DIFFERENCES)
    match differences[index % len(differences)]:
        case "colour":
            return first, replace(first, colour=_other(rng, COLOURS, first.colour))
        case "shape":
            return first, replace(first, shape=_other(rng, SHAPES, first.shape))
        case _:
            return first, replace(first, size=_other(rng, SIZES, first.size))


def _motion(rng: random.Random, index: int, part: str) -> Pair:
    del part
    colour, shape, background = rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(BACKGROUNDS)
    first = Scene("motion", colour, shape, background, direction=DIRECTIONS[index % 4], speed="slowly")
    if index % 5 == 4:
        return first, replace(first, speed="quickly")
    return first, replace(first, direction=OPPOSITE[first.direction])


def _order(rng: random.Random, index: int, part: str) -> Pair:
    del index, part
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    first = Scene(
        "order",
        colour,
        shape,
        rng.choice(BACKGROUNDS),
        other_colour=_other(rng, COLOURS, colour),
        other_shape=_other(rng, SHAPES, shape),
    )
    swapped = replace(first, colour=first.other_colour, shape=first.other_shape, other_colour=colour, other_shape=shape)
    return first, swapped


def _reading(rng: random.Random, index: int, part: str) -> Pair:
    del part
    first = Scene(
        "reading",
        rng.choice(COLOURS),
        rng.choice(SHAPES),
        rng.choice(BACKGROUNDS),
        place=rng.choice(("top", "bottom")),
        word=WORDS[index % len(WORDS)],
    )
    return first, replace(first, word=_other(rng, WORDS, first.word))


def _sound(rng: random.Random, index: int, part: str) -> Pair:
    del part
    colour = rng.choice(COLOURS)
    first = Scene(
        "sound",
        colour,
        rng.choice(SHAPES),
        rng.choice(BACKGROUNDS),
        other_colour=_other(rng, COLOURS, colour),
        sound=SOUNDS[index % len(SOUNDS)],
    )
    return first, replace(first, sound=_other(rng, SOUNDS, first.sound))


_ATTEMPTS = 400  # draws of one pair before giving up
_DRAW: dict[Skill, Callable[[random.Random, int, str], Pair]] = {
    "appearance": _appearance,
    "motion": _motion,
    "order": _order,
    "reading": _reading,
    "sound": _sound,
}


def context(pair: Pair) -> frozenset[str]:
    """What the two members share: within one part no two pairs of a skill have the same, so that R@1 can be 100 %."""
    first, second = asdict(pair[0]), asdict(pair[1])
    if pair[0].skill == "order":
        return frozenset({f"{s.colour} {s.shape}" for s in pair} | {pair[0].background})
    return frozenset(f"{name}={value}" for name, value in first.items() if second[name] == value)


def _pairs(params: ToyParams, skill: Skill, part: str, taken: set[Scene]) -> Iterator[Pair]:
    """Draw this part's pairs; no scene of the parts drawn before (`taken`) comes again.

    Within a part scenes do not repeat either, except in training once new ones have become rare. Two pairs of
    one skill share no context outside training.
    """
    rng = random.Random(f"{params.seed}/{part}/{skill}")
    own: set[Scene] = set()
    contexts: set[frozenset[str]] = set()
    for index in range(params.count(part) // (2 * len(SKILLS))):
        for attempt in range(_ATTEMPTS):
            pair = _DRAW[skill](rng, index, part)
            may_repeat = part == "train" and attempt >= _ATTEMPTS // 2
            fresh = may_repeat or not own.intersection(pair)
            if fresh and not taken.intersection(pair) and (part == "train" or context(pair) not in contexts):
                break
        else:
            raise UserError(
                f"dataset=toy: no new {skill} scene left after {index} pairs of part {part!r}, expected "
                f"{params.count(part) // 10}; ask for fewer clips with dataset.num_{part}="
            )
        own.update(pair)
        contexts.add(context(pair))
        yield pair
    taken.update(own)


def draw_clips(params: ToyParams) -> tuple[Clip, ...]:
    """All clips of the benchmark, a pure function of `params`.

    Test is drawn first, then val, then train, so that the size of the training part never changes the test part.
    Returned in the order train, val, test; the two members of a pair are neighbours.
    """
    clips: dict[str, list[Clip]] = {part: [] for part in PARTS}
    taken: set[Scene] = set()
    for part in reversed(PARTS):
        rng = random.Random(f"{params.seed}/{part}/layout")
        for skill in SKILLS:
            for number, pair in enumerate(_pairs(params, skill, part, taken)):
                group = f"{part}_{skill}_{number:03d}"
                shift = (rng.uniform(-1, 1), rng.uniform(-1, 1))
                style = rng.uniform(-1, 1)
                wording = rng.randrange(2**32)
                for member, scene in zip("ab", pair, strict=True):
                    clips[part].append(Clip(group + member, part, group, scene, shift, style, wording))
                    if skill == "sound":
                        # A new random place, which says nothing of the sound. Equal pixels would give equal scores,
                        # and a rule that is kind to ties would count both clips as found.
                        shift = (rng.uniform(-1, 1), rng.uniform(-1, 1))
    return tuple(clip for part in PARTS for clip in clips[part])
