"""Captions of the toy clips: several wordings, all of which name every attribute of the scene.

The two members of a pair get the same templates in the same order, so their captions differ in the words of
the skill alone. Every template of a skill names the whole context, so one caption is enough to find the clip.
"""

from __future__ import annotations

import random

from src.data.toy.scenes import Clip, Scene

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "appearance": (
        "a {size} {colour} {shape} on a {background} background",
        "a still {size} {shape} in {colour}, {background} background",
        "there is a {size} {colour} {shape} in front of a {background} wall",
        "in a {background} picture rests a {size} {colour} {shape}",
        "one {size} {colour} {shape} stays on a {background} wall",
        "{background} background with a {size} {colour} {shape}",
    ),
    "motion": (
        "a {colour} {shape} moves {speed} {towards} on a {background} background",
        "a {colour} {shape} is moving {towards} {speed} in front of a {background} wall",
        "on a {background} background a {colour} {shape} {speed} goes {towards}",
        "the {colour} {shape} travels {speed} {towards}, {background} background",
        "{speed} moving {towards}: a {colour} {shape} on a {background} wall",
        "{background} background, a {colour} {shape} going {towards} {speed}",
    ),
    "order": (
        "a {colour} {shape} appears before a {other_colour} {other_shape} on a {background} background",
        "first a {colour} {shape}, then a {other_colour} {other_shape}, {background} background",
        "a {colour} {shape} is followed by a {other_colour} {other_shape} in front of a {background} wall",
        "on a {background} background a {colour} {shape} turns into a {other_colour} {other_shape}",
        "we see a {colour} {shape} and later a {other_colour} {other_shape} on a {background} wall",
        "{background} background: a {colour} {shape} comes first, a {other_colour} {other_shape} comes next",
    ),
    "reading": (
        "a sign says {word} {beside} a {colour} {shape} on a {background} background",
        "the word {word} is written on a sign {beside} a {colour} {shape}, {background} background",
        "a sign {beside} a {colour} {shape} reads {word} in front of a {background} wall",
        "on a {background} background a sign with the text {word} {beside} a {colour} {shape}",
        "{beside} a {colour} {shape} there is a sign that says {word}, {background} wall",
        "{background} background, sign with the word {word} {beside} a {colour} {shape}",
    ),
    "sound": (
        "{sound} while a {colour} {shape} is shown in a {other_colour} frame on a {background} background",
        "a {colour} {shape} in a {other_colour} frame on a {background} background, we hear {sound}",
        "the sound of {sound} and a framed {colour} {shape}, frame {other_colour}, {background} background",
        "in a {other_colour} frame a {colour} {shape} with {sound}, {background} wall",
        "you can hear {sound} with a {colour} {shape} inside a {other_colour} frame on {background}",
        "{background} background, {other_colour} frame, {colour} {shape}, the audio is {sound}",
    ),
}

_BESIDE = {"top": "above", "bottom": "below"}
_SOUND = {
    "rising": "a rising tone",
    "falling": "a falling tone",
    "high": "a steady high tone",
    "low": "a steady low tone",
    "two": "two long beeps",
    "five": "five short beeps",
    "silence": "silence",
}


def words_of(scene: Scene) -> dict[str, str]:
    """What each placeholder of the templates becomes for this scene."""
    return {
        "colour": scene.colour,
        "shape": scene.shape,
        "background": scene.background,
        "size": scene.size,
        "towards": f"to the {scene.direction}",
        "speed": scene.speed,
        "other_colour": scene.other_colour,
        "other_shape": scene.other_shape,
        "word": scene.word.lower(),
        "beside": _BESIDE.get(scene.place, ""),
        "sound": _SOUND[scene.sound],
    }


def captions_of(clip: Clip, number: int) -> list[str]:
    """`number` different wordings, the same templates for both members of the pair."""
    templates = random.Random(clip.wording).sample(_TEMPLATES[clip.scene.skill], number)
    return [template.format(**words_of(clip.scene)) for template in templates]
