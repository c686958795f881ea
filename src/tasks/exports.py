"""What a test writes on demand: predicted concepts and error matrix as the Dual Encoding authors, submissions."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from src.batch import Embedding, TextEmbedding, VideoEmbedding
from src.data.concepts import read_concepts
from src.data.splits import SplitPart
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.concept_space import CONCEPTS, top_concepts
from src.models.vocabulary import check_same_words
from src.tasks import submission_files

PREDICTED = 10  # concepts of each item
BLOCK = 1024  # captions per call of the scorer


def check_exports(cfg: DictConfig, by_topics: bool) -> None:
    """Find what cannot be written before anything is encoded.

    Args:
        cfg: the run's configuration.
        by_topics: the data set is searched by topics, which have neither ids nor videos of their own.

    Raises:
        UserError: no such file of concepts, or topics.
    """
    wanted = [key for key in ("concepts", "error_matrix") if cfg.task.get(key)]
    if by_topics and wanted:
        raise UserError(
            f"task.{wanted[0]} is for captions, found a data set that is searched by topics; drop it, the run folder "
            "has the scores of all topics anyway, and save_similarity=true writes them as a matrix"
        )
    if "concepts" in wanted:
        read_concepts(Path(cfg.task.concepts))


def write_exports(
    cfg: DictConfig, part: SplitPart, embeddings: tuple[TextEmbedding, VideoEmbedding], model: RetrievalModule
) -> None:
    """Write what `task.concepts`, `task.error_matrix` and `task.matrix` ask for, in tasks that have these keys.

    Args:
        cfg: the run's configuration.
        part: the evaluated part.
        embeddings: of its captions and videos.
        model: scores them.
    """
    run_dir, (text, video) = Path(cfg.paths.run_dir), embeddings
    if cfg.task.get("concepts"):
        _same_concepts(model, Path(cfg.task.concepts))
        write_predicted_tags(run_dir, part, text, video, Path(cfg.task.concepts))
    if cfg.task.get("error_matrix"):
        write_error_matrix(run_dir, part, text, video, model)
    if cfg.task.get("matrix"):
        submission_files.write_embedded(cfg, part, embeddings, model)


def _same_concepts(model: RetrievalModule, concepts: Path) -> None:
    """Refuse names of other concepts than the model's, where it knows them."""
    known: dict[str, dict[str, list[str]]] = {}
    model.on_save_checkpoint(known)
    check_same_words(known.get("words", {}).get("concepts"), read_concepts(concepts), "task.concepts")


def write_predicted_tags(
    run_dir: Path, part: SplitPart, text: TextEmbedding, video: VideoEmbedding, concepts: Path
) -> None:
    """Write video/pred_tags.txt and text/pred_tags.txt: `id<TAB>concept:probability …`, the ten most probable ones.

    Args:
        run_dir: gets the two folders.
        part: names the videos and captions.
        text: embeddings whose `parts["concepts"]` are probabilities.
        video: likewise.
        concepts: concepts.json, or a tag_vocab_K.json of the authors.

    Raises:
        UserError: the model predicts no concepts, or another number of them than the file names.
    """
    names = read_concepts(concepts)
    for item in (video, text):
        found = item.parts[CONCEPTS].shape[1] if CONCEPTS in item.parts else 0
        if found != len(names):
            raise UserError(
                f"task.concepts={concepts} names {len(names)} concepts but the model predicts {found or 'none'}, "
                "expected the file that it was trained with; drop task.concepts for a model without concept space"
            )
    _write_tags(run_dir / "video" / "pred_tags.txt", [part.videos[i].id for i in video.ids.tolist()], video, names)
    _write_tags(run_dir / "text" / "pred_tags.txt", caption_names(part, text), text, names)


def _write_tags(path: Path, ids: list[str], items: Embedding, names: list[str]) -> None:
    chosen, probabilities = top_concepts(items, PREDICTED)
    lines = []
    for item, numbers, values in zip(ids, chosen.tolist(), probabilities.tolist(), strict=True):
        # The authors' readers split at the blank that ends every entry, the last one too.
        tags = "".join(f"{names[k]}:{p:.3f} " for k, p in zip(numbers, values, strict=True))
        lines.append(f"{item}\t{tags}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def write_error_matrix(
    run_dir: Path, part: SplitPart, text: TextEmbedding, video: VideoEmbedding, model: RetrievalModule
) -> None:
    """Write pred_errors_matrix.pth.tar: `errors` (captions, videos), lower = better, with `captions` and `videos`.

    An error is minus the score that evaluation ranks by. Tensor and lists of names only, so that the file loads with
    `torch.load(…, weights_only=True)`.
    """
    score = model.scorer(text, video)
    errors_TV = torch.empty(len(text), len(video))
    for start in range(0, len(text), BLOCK):
        rows = slice(start, start + BLOCK)
        errors_TV[rows] = -score(text[rows], video).float().cpu()
    content = {
        "errors": errors_TV,
        "videos": [part.videos[i].id for i in video.ids.tolist()],
        "captions": caption_names(part, text),
    }
    torch.save(content, run_dir / "pred_errors_matrix.pth.tar")


def caption_names(part: SplitPart, text: TextEmbedding) -> list[str]:
    """`<video id>#<number>` of each caption; of a paragraph that of its first sentence."""
    return [part.captions[i].keys[0] if part.captions[i].keys else part.captions[i].video_id for i in text.ids.tolist()]
