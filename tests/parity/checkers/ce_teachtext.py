"""TeachText: one training step of a student with three teachers, from their published form to the weights after it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor

from src.batch import PairBatch, TeacherScores
from src.convert.collaborative_experts import to_upstream
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.features.pickles import pickle_source
from src.data.features.source import import_source
from src.data.splits import SplitPart
from src.data.teachers import TeacherSource
from src.losses.distillation import mean_scores
from src.models.base import RetrievalModule
from src.optim.factories import RAdamFactory
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close
from tests.parity.checkers.ce_models import batches, load_case, make_model

RATE, DECAY = 1e-3, 1e-5  # of the case's `variant`


def imported_teachers(case: Case, folder: Path) -> TeacherScores:
    """The case's embeddings as the pickles of the authors, as stores, and as the scores of a batch."""
    groups = {name.split("/")[0] for name in case.group("in") if name.startswith("teacher")}
    videos = [f"v{n}" for n in range(len(case.tensors["in/text"]))]
    for teacher in groups:
        video, text = case.group(f"in/{teacher}/video"), case.group(f"in/{teacher}/text")
        content = {
            name: {
                "vid_embds": {expert: x[n].numpy() for expert, x in video.items()},
                "text_embds": {expert: [e.numpy() for e in x[n]] for expert, x in text.items()},
            }
            for n, name in enumerate(videos)
        }
        (folder / f"{teacher}.pkl").write_bytes(pickle.dumps(content))
        import_source(pickle_source([folder / f"{teacher}.pkl"], teacher), folder / teacher, dtype="float32")
    shown = videos[::-1]  # another order than in the files
    captions = tuple(CaptionRecord(name, "", (f"{name}#0",)) for name in shown)
    part = SplitPart("train", tuple(map(VideoRecord, shown)), captions, tuple(range(len(shown))))
    source = TeacherSource(sorted(groups), {name: folder / name for name in groups}, part, split="any")
    source.check()
    places = list(range(len(shown)))[::-1]
    scores = source.batch(places, places).scores
    # The batch numbers the videos as the case does.
    return TeacherScores({name: s_BN.flip(1) for name, s_BN in scores.items()}, torch.arange(len(shown)))


def check_step(case: Case) -> None:
    """Scores of the teachers, both parts of the loss, gradients, and the weights after one step of RAdam."""
    model = student(case)
    with TemporaryDirectory() as folder:
        teachers = imported_teachers(case, Path(folder))
    wanted = case.group("out")
    ids = torch.arange(len(case.tensors["in/text"]))
    model.configure(RAdamFactory(RATE, DECAY), None, total_steps=1, seed=0)
    optimizer = model.configure_optimizers()
    text, video = batches(case)
    logged: dict[str, Tensor] = {}
    scored: list[Tensor] = []
    score = model.similarity
    with (
        patch.object(model, "log", lambda name, value, **options: logged.update({name: value})),
        patch.object(model, "similarity", lambda *both: scored.append(score(*both)) or scored[-1]),
    ):
        total = model.training_step(PairBatch(text, video, teachers=teachers), 0)
    total.backward()
    found = {
        "teacher_sims": mean_scores(teachers, ids),
        "student_sims": scored[-1],
        "rank_loss": logged["train/ranking"],
        "distil_loss": logged["train/distillation"],
        "total_loss": total.double(),
    }
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert_close(found[name], expected, name=name)
    gradients = to_upstream({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in case.group("grad").items():
        assert_close(gradients[name], expected, GRADIENT_RTOL, f"gradient of {name}")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    after, start = to_upstream(dict(model.named_parameters())), to_upstream(before)
    for name, expected in case.group("after").items():
        assert_close(after[name], expected, name=f"{name} after the step")
        # The step itself is small beside the weights.
        assert_close(after[name] - start[name], expected - start[name], 1e-2, f"step of {name}")


def student(case: Case) -> RetrievalModule:
    """The case tells temporal experts by the shape of their features."""
    told = replace(case)
    hyper = case.meta["hyper"]
    experts = {name: {"vlad": x.ndim == 3} for name, x in case.group("in/experts").items()}
    told.__dict__["meta"] = case.meta | {"hyper": hyper | {"experts": experts}}
    model = make_model(told, teachers=["teacher0", "teacher1", "teacher2"]).train()
    load_case(model, case)
    return model


CHECKERS = {"collaborative_experts": {"teachtext_step": check_step}}
