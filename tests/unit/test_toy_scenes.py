"""The toy benchmark's scenes and captions: pairs differ in one skill only, parts never share a scene."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict

import pytest

from src.data.toy.captions import captions_of
from src.data.toy.scenes import SKILLS, WORDS, Clip, ToyParams, draw_clips
from src.errors import UserError

PARAMS = ToyParams()
CLIPS = draw_clips(PARAMS)
SKILL_WORDS = {
    "appearance": "red green blue yellow pink cyan circle cross pillar beam small large",
    "motion": "left right top bottom slowly quickly",
    "reading": " ".join(WORDS).lower(),
    "sound": "a rising falling tone steady high low two long beeps five short",
}


def pairs_of(part: str) -> list[tuple[Clip, Clip]]:
    clips = [clip for clip in CLIPS if clip.part == part]
    return list(zip(clips[::2], clips[1::2], strict=True))


def test_parts_and_skills_have_the_promised_sizes() -> None:
    counts = Counter((clip.part, clip.scene.skill) for clip in CLIPS)
    assert counts == {
        (part, skill): size // 5 for part, size in (("train", 600), ("val", 100), ("test", 200)) for skill in SKILLS
    }
    assert len({clip.id for clip in CLIPS}) == 900


def test_no_scene_of_one_part_occurs_in_another_or_twice_in_val_or_test() -> None:
    train, val, test = ([clip.scene for clip in CLIPS if clip.part == part] for part in ("train", "val", "test"))
    assert len(set(val)) == 100
    assert len(set(test)) == 200
    assert not set(train) & set(val)
    assert not set(train) & set(test)
    assert not set(val) & set(test)
    assert len(set(train)) > 540, "training repeats few scenes"


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_pair_members_differ_in_one_attribute_of_their_skill(part: str) -> None:
    allowed = {
        "appearance": [{"colour"}, {"shape"}, {"size"}],
        "motion": [{"direction"}, {"speed"}],
        "order": [{"colour", "shape", "other_colour", "other_shape"}],
        "reading": [{"word"}],
        "sound": [{"sound"}],
    }
    for first, second in pairs_of(part):
        assert first.group == second.group
        assert (first.style, first.wording) == (second.style, second.wording)
        assert (first.shift == second.shift) == (first.scene.skill != "sound")
        other = asdict(second.scene)
        different = {name for name, value in asdict(first.scene).items() if value != other[name]}
        assert different in allowed[first.scene.skill]
        if first.scene.skill == "order":
            assert (first.scene.colour, first.scene.shape) == (second.scene.other_colour, second.scene.other_shape)


def test_captions_of_a_pair_differ_in_the_words_of_the_skill_only() -> None:
    for first, second in pairs_of("test"):
        for one, two in zip(captions_of(first, 5), captions_of(second, 5), strict=True):
            assert one != two
            words, other_words = Counter(re.findall(r"\w+", one)), Counter(re.findall(r"\w+", two))
            changed = set((words - other_words) + (other_words - words))
            if first.scene.skill == "order":
                assert changed == set(), "the same words in another order"
            else:
                assert changed <= set(SKILL_WORDS[first.scene.skill].split())


def test_each_clip_has_five_different_captions_and_no_two_clips_share_one() -> None:
    captions = [caption for clip in CLIPS for caption in captions_of(clip, PARAMS.captions_per_clip)]
    assert len(captions) == 4500
    test = [caption for clip in CLIPS if clip.part == "test" for caption in captions_of(clip, 5)]
    assert len(set(test)) == 1000
    assert all("{" not in caption and "  " not in caption for caption in captions)


def test_training_shows_every_attribute_value_and_every_word() -> None:
    train, test = ([clip.scene for clip in CLIPS if clip.part == part] for part in ("train", "test"))
    for skill in SKILLS:
        for name in asdict(train[0]):
            seen = {getattr(scene, name) for scene in train if scene.skill == skill}
            asked = {getattr(scene, name) for scene in test if scene.skill == skill}
            assert asked <= seen, (skill, name)
    words = Counter(scene.word for scene in train if scene.skill == "reading")
    assert set(words) == set(WORDS)
    assert max(words.values()) <= 6, "too many clips of one word: its picture could be learnt"


def test_the_training_size_does_not_change_the_test_part() -> None:
    small = draw_clips(ToyParams(num_train=50, num_val=20))
    assert [clip for clip in small if clip.part == "test"] == [clip for clip in CLIPS if clip.part == "test"]


def test_fingerprint_follows_every_parameter() -> None:
    changed = {
        "num_train": 610, "num_val": 110, "num_test": 210, "frame_size": 64, "fps": 10, "duration_s": 3.0,
        "captions_per_clip": 4, "seed": 1,
    }  # fmt: skip
    assert set(changed) == set(asdict(PARAMS))
    prints = [ToyParams(**{name: value}).fingerprint for name, value in changed.items()]  # type: ignore[arg-type]
    assert len({PARAMS.fingerprint, *prints}) == len(changed) + 1
    assert PARAMS.fingerprint == ToyParams().fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_test": 15}, "dataset.num_test=15, expected a multiple of 10"),
        ({"num_train": -10}, "dataset.num_train=-10"),
        ({"frame_size": 16}, "dataset.frame_size=16, expected 64 to 256"),
        ({"fps": 3}, "gives 6 frames"),
        ({"captions_per_clip": 7}, "dataset.captions_per_clip=7"),
    ],
)
def test_impossible_parameters_are_explained(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToyParams(**options)  # type: ignore[arg-type]


def test_asking_for_more_scenes_than_exist_is_explained() -> None:
    with pytest.raises(UserError, match=r"no new .* scene left .*dataset.num_test="):
        draw_clips(ToyParams(num_train=0, num_val=0, num_test=40_000))
