"""Dual Encoding: captions and videos at three levels, compared in a latent and in a concept space.

Shape suffixes: B items, L tokens, T frames, D feature, joint or word dimension, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import ExpertSpec, InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.losses.gather import gather_rows
from src.losses.pairs import Direction, SimilarityFn
from src.losses.triplet import CostStyle, TripletLoss, concept_loss
from src.models.base import RetrievalModule, Similarity
from src.models.concept_space import CONCEPTS, LATENT, Space, hybrid_spaces, space_scorer
from src.models.measures import Measure, cosine, training_measure
from src.models.recurrent import Padding, Pooling, RecurrentEncoder
from src.models.vocabulary import SPECIAL, check_same_words, read_concept_list, read_vocabulary, read_word_vectors

Spaces = Literal["hybrid", "latent", "concept"]
TARGETS = "concepts"
"""Name of the expert that holds the concept targets; all others are frame features."""
MEAN = ".mean"
"""Ending of the feature that holds the mean of all frames of an expert, also of those past its `max_steps`."""


class Projection(nn.Module):
    """Linear layer and batch normalisation (`mapping` and `tag_fc` of the reference), in float32.

    With several processes the statistics are those of the whole batch, on every backend, so that training takes the
    steps of one process; torch's own synchronised normalisation has no CPU version.

    Args:
        input_dim: length of the encoded item.
        output_dim: length of the result.
    """

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim)
        self.norm = nn.BatchNorm1d(output_dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        if not self.training:
            return self.norm(self.linear(x_BD))
        x_ND, own = gather_rows(self.linear(x_BD))
        if len(x_ND) < 2:
            raise UserError(
                "a training batch holds 1 pair, expected at least 2 for batch normalisation; "
                "choose a dataset.recipe.batch_size that leaves no single pair over"
            )
        return self.norm(x_ND)[own]


class Projections(nn.Module):
    """An encoded item in the spaces of the model, in float32 whatever the trainer's precision.

    Args:
        input_dim: length of the encoded item.
        sizes: name of each space -> its dimension.
        dropout: on the latent vector, before it is brought to unit length.
    """

    def __init__(self, input_dim: int, sizes: Mapping[str, int], dropout: float) -> None:
        super().__init__()
        self.latent = Projection(input_dim, sizes[LATENT]) if LATENT in sizes else None
        self.concepts = Projection(input_dim, sizes[CONCEPTS]) if CONCEPTS in sizes else None
        self.dropout = nn.Dropout(dropout)
        if self.latent is not None:  # the concept layer starts as torch has it
            nn.init.xavier_uniform_(self.latent.linear.weight)
            nn.init.zeros_(self.latent.linear.bias)

    def forward(self, x_BD: Tensor) -> dict[str, Tensor]:
        """Parts "latent" (B, D), of unit length, and "concepts" (B, K), probabilities, as far as there are."""
        parts = {}
        with torch.autocast(x_BD.device.type, enabled=False):
            x_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
            if self.latent is not None:
                parts[LATENT] = F.normalize(self.dropout(self.latent(x_BD)), dim=-1)
            if self.concepts is not None:
                parts[CONCEPTS] = self.concepts(x_BD).sigmoid()
        return parts


class DualEncoding(RetrievalModule):
    """Dual Encoding (arXiv 2009.05381; the latent space alone: arXiv 1809.06181).

    Each side is encoded as a whole (mean frame, bag of words), by a biGRU, and by convolutions over the biGRU.

    Args:
        vocabulary: JSON file of words, written by task=prepare task.steps=[vocabulary].
        experts: frame features by name (entries of conf/experts), concatenated frame by frame where there are
            several; `concepts` are the targets of the concept space, read in training only.
        space: "latent" (cosine of projections), "concept" (probabilities of tags), or both ("hybrid").
        concate: "full" = all three levels; "reduced" = without the first (fewer parameters).
        text_rnn_size: units of each direction of the GRU over words.
        visual_rnn_size: units of each direction of the GRU over frames.
        text_kernel_num: channels of each convolution over words.
        visual_kernel_num: channels of each convolution over frames.
        text_kernel_sizes: words that each of them covers.
        visual_kernel_sizes: frames that each of them covers.
        word_dim: length of a word's vector.
        word_vectors: .npy file with a vector for each word of the vocabulary to start from, written by task=prepare
            task.steps=[vocabulary] beside it; null starts from random ones.
        embed_dim: length of the latent vectors.
        num_concepts: size of the concept space.
        concept_list: JSON file that names the concepts, written by task=prepare task.steps=[concepts]. Checkpoints
            hold the names, and are refused beside other ones. Null, or no such file: the names are not known.
        gru_pool: how GRU states are pooled.
        dropout: after pooling, after the convolutions, and on the latent projection.
        padding: "upstream" as published: the video GRU and the convolutions read the padding, so that embeddings
            depend on the longest item of their batch. "masked" reads real steps only: what the published code
            gives for one item at a time, and faster.
        measure: similarity in the latent space.
        measure_2: similarity in the concept space.
        margin: of the triplet loss in the latent space.
        margin_2: of the triplet loss in the concept space.
        max_violation: hardest negative of the batch instead of all.
        cost_style: sum or mean over the batch; the tag loss is not affected.
        direction: which queries count in the triplet losses.
        alpha: weight of the latent space in the scores of the hybrid space; the concept space gets the rest.
        topic_alpha: the same in searches by topics; null: as `alpha`.
        topic_measure_2: similarity in the concept space in searches by topics; null: as `measure_2`.
        gather: see `RetrievalModule`.

    Source: danieljf24/hybrid_space @ b934eff; latent space with mean pooling: danieljf24/dual_encoding @ c0aaf60.
    Deviates: space=concept, which the reference names but does not have; a zero vector stays zero instead of NaN;
        a video whose frames are missing counts as one zero frame.
    """

    def __init__(
        self,
        *,
        vocabulary: str,
        experts: dict[str, dict[str, Any]],
        space: Spaces = "hybrid",
        concate: Literal["full", "reduced"] = "full",
        text_rnn_size: int = 512,
        visual_rnn_size: int = 512,
        text_kernel_num: int = 512,
        visual_kernel_num: int = 512,
        text_kernel_sizes: Sequence[int] = (2, 3, 4),
        visual_kernel_sizes: Sequence[int] = (2, 3, 4, 5),
        word_dim: int = 500,
        word_vectors: str | None = None,
        embed_dim: int = 1536,
        num_concepts: int = 512,
        concept_list: str | None = None,
        gru_pool: Pooling = "mean",
        dropout: float = 0.2,
        padding: Padding = "upstream",
        measure: Measure = "cosine",
        measure_2: Measure = "jaccard",
        margin: float = 0.2,
        margin_2: float = 0.2,
        max_violation: bool = True,
        cost_style: CostStyle = "sum",
        direction: Direction = "all",
        alpha: float = 0.6,
        topic_alpha: float | None = None,
        topic_measure_2: Measure | None = None,
        gather: Literal["exact", "upstream"] = "exact",
    ) -> None:
        super().__init__(gather=gather)
        _check_sizes("text", text_rnn_size, text_kernel_num, text_kernel_sizes)
        _check_sizes("visual", visual_rnn_size, visual_kernel_num, visual_kernel_sizes)
        self.frame_experts, self.target_expert = _specs(experts, num_concepts if space != "latent" else 0)
        self.concate = concate
        self.spaces = _spaces(space, alpha, measure, measure_2)
        self.topic_spaces = _spaces(
            space, alpha if topic_alpha is None else topic_alpha, measure, topic_measure_2 or measure_2
        )
        self.tokenizer = read_vocabulary(vocabulary)
        self.concept_names = () if space == "latent" else read_concept_list(concept_list, num_concepts)
        masked = padding == "masked"
        options: dict[str, Any] = {"pool": gru_pool, "dropout": dropout, "masked": masked}
        frame_dim = sum(spec.dim for spec in self.frame_experts)
        num_words = len(self.tokenizer.words)
        self.words = nn.Embedding(len(SPECIAL) + num_words, word_dim)
        self.text_encoder = RecurrentEncoder(
            word_dim, text_rnn_size, text_kernel_num, text_kernel_sizes, packed=True, **options
        )
        self.video_encoder = RecurrentEncoder(
            frame_dim, visual_rnn_size, visual_kernel_num, visual_kernel_sizes, packed=masked, **options
        )
        full = concate == "full"
        text_dim = self.text_encoder.output_dim + full * num_words
        video_dim = self.video_encoder.output_dim + full * frame_dim
        dims = {LATENT: embed_dim, CONCEPTS: num_concepts}
        sizes = {one.part: dims[one.part] for one in self.spaces}
        self.text_spaces = Projections(text_dim, sizes, dropout)
        self.video_spaces = Projections(video_dim, sizes, dropout)
        margins = {LATENT: margin, CONCEPTS: margin_2}
        self.triplet = TripletLoss(margins, max_violation, cost_style, direction, gather)
        self._initialise(word_vectors)

    def _initialise(self, word_vectors: str | None) -> None:
        """Word vectors from a file, or uniform in ±0.1."""
        if word_vectors is None or self.words.weight.is_meta:
            nn.init.uniform_(self.words.weight, -0.1, 0.1)
        else:
            with torch.no_grad():
                self.words.weight.copy_(read_word_vectors(word_vectors, self.tokenizer, self.words.embedding_dim))

    @property
    def input_spec(self) -> InputSpec:
        """Of each frame expert its first steps, and the mean of all of them; and the concept targets."""
        means = tuple(ExpertSpec(s.name + MEAN, s.dim, store=s.store or s.name) for s in self.frame_experts)
        targets = (self.target_expert,) if self.target_expert else ()
        return InputSpec(self.tokenizer, experts=(*self.frame_experts, *means, *targets))

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Parts: see `Projections`."""
        text_BD = self.text_encoder(batch.tokens_BL, batch.mask_BL.sum(1), self.words)
        if self.concate == "full":
            text_BD = torch.cat([text_BD, self.tokenizer.bag_of_words(batch.tokens_BL).to(text_BD)], 1)
        return TextEmbedding(ids=batch.ids, parts=self.text_spaces(text_BD), video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """As `encode_text`; in training also "targets" (B, K), when the batch has them."""
        frames_BTD, lengths_B, mean_BD = self._frames(batch)
        video_BD = self.video_encoder(frames_BTD, lengths_B)
        if self.concate == "full":
            video_BD = torch.cat([video_BD, mean_BD.to(video_BD)], 1)
        parts = self.video_spaces(video_BD)
        if self.training and self.target_expert and TARGETS in batch.features:
            parts["targets"] = batch.features[TARGETS]
        return VideoEmbedding(ids=batch.ids, parts=parts)

    def _frames(self, batch: VideoBatch) -> tuple[Tensor, Tensor, Tensor]:
        """First frames (B, T, D), their number (B,), and the mean of all frames (B, D), experts side by side."""
        names = [spec.name for spec in self.frame_experts]
        if len(names) == 1:
            (name,) = names
            return batch.features[name], batch.feature_masks[name].sum(1), batch.features[name + MEAN]
        # Frames that all experts of a video have; an expert that it lacks is zeros beside those of the others.
        steps = min(batch.features[name].shape[1] for name in names)
        columns = list(batch.features)
        lengths_BE = torch.stack([batch.feature_masks[name][:, :steps].sum(1) for name in names], 1)
        if batch.present_BE is not None:
            present_BE = batch.present_BE[:, [columns.index(name) for name in names]]
            lengths_BE = lengths_BE.masked_fill(~present_BE & present_BE.any(1, keepdim=True), steps)
        lengths_B = lengths_BE.amin(1)
        frames_BTD = torch.cat([batch.features[name][:, :steps] for name in names], 2)
        real_BT = torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]
        mean_BD = torch.cat([batch.features[name + MEAN] for name in names], 1)
        return frames_BTD * real_BT[..., None], lengths_B, mean_BD

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Weighted sum of the spaces as they are; `scorer` first brings both to the same range over the gallery."""
        if len(self.spaces) == 1:
            return self.spaces[0].score(text, video)
        return torch.stack([space.weight * space.score(text, video) for space in self.spaces]).sum(0)

    def scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        return space_scorer(self.spaces, text, video)

    def bank_scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        """Nothing is looked up by ids, which mean other items; the range is that of the test's own scores."""
        return space_scorer(self.spaces, text, video, kept_bytes=0)

    def topic_scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        return space_scorer(self.topic_spaces, text, video)

    @property
    def topic_score_words(self) -> str:
        weights = [f"{space.weight:g} " if len(self.topic_spaces) > 1 else "" for space in self.topic_spaces]
        return " + ".join(f"{w}{s.part} {s.measure}" for w, s in zip(weights, self.topic_spaces, strict=True))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What numbers rows and columns of the weights: equally long lists of other words would fit as well."""
        lists = {"vocabulary": self.tokenizer.words, "concepts": self.concept_names}
        checkpoint["words"] = {name: list(words) for name, words in lists.items() if words}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse weights of other words; names of concepts that are not known here are taken over.

        Raises:
            UserError: names the first difference.
        """
        lists = checkpoint.get("words", {})
        check_same_words(lists.get("vocabulary"), self.tokenizer.words, "model.vocabulary")
        if CONCEPTS in {space.part for space in self.spaces}:
            check_same_words(lists.get("concepts"), self.concept_names, "model.concept_list")
            self.concept_names = self.concept_names or tuple(lists.get("concepts", ()))

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        """Triplet loss of each space, and the cross-entropy of the concepts on both sides.

        Source: equations 11 to 14 of the paper; hybrid_space model.py forward_loss @ b934eff.
        """
        targets_BK = video.parts.get("targets")
        # Nothing else of the embeddings has to travel between processes.
        text = replace(text, parts={space.part: text.parts[space.part] for space in self.spaces})
        video = replace(video, parts={space.part: video.parts[space.part] for space in self.spaces})
        losses = self.triplet.each({space.part: _similarity(space) for space in self.spaces}, text, video)
        if CONCEPTS in losses:
            if targets_BK is None:
                raise UserError(
                    f"the concept space is trained on the video feature {TARGETS!r}, found none in the batch; write it "
                    f"by task=prepare task.steps=[concepts] and choose experts with {TARGETS}, or model.space=latent"
                )
            both = (concept_loss(side.parts[CONCEPTS], targets_BK) for side in (video, text))
            losses["tags"] = torch.stack(list(both)).sum()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _check_sizes(side: str, rnn_size: int, kernel_num: int, kernel_sizes: Sequence[int]) -> None:
    """Say which size of an encoder is impossible."""
    for name, value in (("rnn_size", rnn_size), ("kernel_num", kernel_num), ("kernel_sizes", kernel_sizes)):
        sizes = [value] if isinstance(value, int) else list(value)
        if not sizes or min(sizes) < 1:
            raise UserError(f"model.{side}_{name}={value}, expected 1 or more; the published one is in conf/model")


def _spaces(space: Spaces, alpha: float, measure: Measure, measure_2: Measure) -> tuple[Space, ...]:
    """The spaces of a model, with their weights.

    Raises:
        UserError: a weight that is no share, or a measure that means nothing there.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"model.alpha or topic_alpha={alpha}, expected the latent space's share; choose from 0 to 1")
    if measure == "jaccard" and space != "concept":
        raise UserError(
            "model.measure=jaccard is for vectors without negative numbers, found the latent space, which has them; "
            "choose model.measure=cosine; jaccard is for model.measure_2"
        )
    latent, concept = hybrid_spaces(alpha, measure, measure_2)
    return {"hybrid": (latent, concept), "latent": (latent,), "concept": (concept,)}[space]


def _similarity(space: Space) -> SimilarityFn:
    """How training compares in a space.

    Deviates: the cosine of concepts is one, where upstream takes the inner product of the probabilities, which only
        grows with their number.
    """
    if space.part == CONCEPTS and space.measure == "cosine":
        return lambda text, video: cosine(text.parts[CONCEPTS], video.parts[CONCEPTS])
    measure = training_measure(space.measure)
    return lambda text, video: measure(text.parts[space.part], video.parts[space.part])


def _specs(experts: Mapping[str, Mapping[str, Any]], num_concepts: int) -> tuple[list[ExpertSpec], ExpertSpec | None]:
    """The frame features, and the concept targets if there are any and the model has so many concepts (0: unused).

    Raises:
        UserError: no frame features, or entries that cannot be what they are read as.
    """
    specs = {name: ExpertSpec(name, **{k: v for k, v in e.items() if k != "path"}) for name, e in experts.items()}
    targets = specs.pop(TARGETS, None)
    if targets is not None:
        targets = replace(targets, training_only=True)
    if not specs:
        raise UserError(
            "this model reads frame features, but experts has none; choose some, such as experts=[imagenet,concepts]"
        )
    for spec in specs.values():
        if not spec.temporal:
            raise UserError(f"experts.{spec.name}.temporal=false, expected frame features; set it to true")
    if targets is not None and num_concepts and (targets.temporal or targets.dim != num_concepts):
        raise UserError(
            f"experts.{TARGETS} has dim {targets.dim}, expected model.num_concepts={num_concepts} and temporal=false; "
            f"set model.num_concepts={targets.dim}, or prepare that many concepts"
        )
    return list(specs.values()), targets if num_concepts else None
