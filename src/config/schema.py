"""The keys that belong to a run as a whole, and the facts that configuration files declare.

`src.config.validate` reads these classes as it reads every signature: from the source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TaskName = Literal[
    "fit",
    "evaluate",
    "score",
    "prepare",
    "check_data",
    "describe",
    "convert",
    "compare",
    "bench",
    "extract",
    "export_submission",
]  # a name here has src/tasks/<name>.py with `run(cfg)` and conf/task/<name>.yaml
Modality = Literal["frames", "audio", "features"]

# Keys of a group that are facts for the validation or data for other groups, not arguments of its `_target_`.
DECLARED = {"dataset": ("provides", "recipe"), "model": ("needs",)}
# Arguments of a group's `_target_` that src/tasks/build.py passes itself, or the model to its part.
GIVEN = {
    "model.head": ("host",),
    "dataset": ("split", "inputs", "seed", "problems_file", "stores"),
    "trainer": ("logger", "callbacks", "plugins", "default_root_dir"),
}


@dataclass(frozen=True)
class LossKeys:
    """How a training step computes the loss, whatever the model.

    Attributes:
        cache_chunks: pieces in which a batch is encoded, so that the activations of one exist at a time.
    """

    cache_chunks: int = 1


@dataclass(frozen=True)
class RunKeys:
    """Keys at the root of the configuration (conf/config.yaml says what each is for)."""

    seed: int = 0
    ckpt_path: str | None = None
    selection: Literal["val", "test", "last"] = "val"
    selection_tie: Literal["first", "last"] = "first"
    ties: Literal["optimistic", "average", "pessimistic"] = "optimistic"
    loss: LossKeys = field(default_factory=LossKeys)
    compatibility: Literal["none", "clip4clip"] = "none"
    save_similarity: bool = False
    similarity: str | None = None
    captions: str | None = None
    videos: str | None = None
    runs: list[str] = field(default_factory=list)
    optimized_metric: str | None = "val/t2v/R1"
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TaskKeys:
    """What every conf/task file declares besides the task's own keys.

    Attributes:
        name: the module of src.tasks that runs.
        uses: groups that the task needs complete; all when absent.
        folder: in the path of the run folder, in place of DATASET_MODEL.
    """

    name: TaskName
    uses: list[str] = field(default_factory=list)
    folder: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What suits a data set; other groups refer to it, so every key stays overridable there.

    Attributes:
        arch: open_clip architecture, or one of src/models/archs.
        pretrained: null, `openai`, or a local file.
        num_frames: frames per video.
        max_words: tokens per caption, start and end included.
        max_epochs: epochs of training.
        lr: peak learning rate of new parameters.
        coef_lr: factor on `lr` for the pretrained towers.
        batch_size: pairs per training step, over all processes.
    """

    arch: str
    pretrained: str | None
    num_frames: int
    max_words: int
    max_epochs: int
    lr: float
    coef_lr: float
    batch_size: int


@dataclass(frozen=True)
class DatasetFacts:
    """What every conf/dataset file declares besides the arguments of its class."""

    provides: list[Modality]
    recipe: Recipe


@dataclass(frozen=True)
class ModelFacts:
    """What every conf/model file declares besides the arguments of its class."""

    needs: list[Modality]


@dataclass(frozen=True)
class ExpertEntry:
    """One entry of conf/experts: the only place that says an expert's dimension.

    Attributes:
        dim: length of one vector.
        temporal: one vector per time step (and a mask) instead of one per video.
        max_steps: temporal only: at most so many vectors, the first ones.
        pad: longest = to the longest video of a batch; max = always to max_steps.
        store: name of the feature store; null = the name of the entry.
        path: folder of the store; null = DATA_DIR/DATASET/features/STORE.
    """

    dim: int
    temporal: bool = False
    max_steps: int | None = None
    pad: Literal["longest", "max"] = "longest"
    store: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class TextEntry:
    """The entry of conf/text: precomputed features of captions.

    Attributes:
        name: key in `TextBatch.features`.
        dim: length of one vector.
        temporal: one vector per token (and a mask) instead of one per caption.
        max_steps: temporal only: at most so many tokens, the first ones.
        pad: longest = to the longest caption of a batch; max = always to max_steps.
        store: name of the feature store; null = the name.
        path: folder of the store; null = DATA_DIR/DATASET/features/STORE.
    """

    name: str
    dim: int
    temporal: bool = True
    max_steps: int | None = None
    pad: Literal["longest", "max"] = "longest"
    store: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Paths:
    """Where things are: both may be given relative to the working folder."""

    data_dir: str
    run_dir: str
