"""The embedded benchmark "Shapes & Signs": scenes, pixels, sounds, captions and the files that hold them.

Nothing here imports torch, so that the processes which render start quickly.
"""

from src.data.toy.build import ensure_built
from src.data.toy.scenes import GENERATOR_VERSION, SKILLS, ToyParams

__all__ = ["GENERATOR_VERSION", "SKILLS", "ToyParams", "ensure_built"]
