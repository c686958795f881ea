"""Dual Encoding: losses, similarities of both spaces, and the published evaluation against ours."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.convert.dual_encoding import from_upstream, read_vocabulary_words
from src.data.annotation import VideoRecord, number_captions
from src.data.caption_files import read_captions
from src.data.features.bigfile import bigfile_source
from src.data.splits import SplitPart
from src.losses.triplet import TripletLoss, concept_loss
from src.metrics.ranks import count_ranks
from src.metrics.result import rank_metrics
from src.metrics.retrieval import RetrievalResult, evaluate, evaluate_matrix
from src.models.concept_space import CONCEPTS, LATENT, Space, hybrid_spaces, space_scorer
from src.models.dual_encoding import MEAN, DualEncoding
from src.models.measures import MeasureFn, evaluation_measure, training_measure
from src.models.weights import load_strictly, read_state_dict
from src.tasks.exports import write_exports
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close
from tests.parity.checkers.dual_encoding_models import FRAMES, make_model

RECALLS = ("R1", "R5", "R10")
# Upstream's measures that grow with the distance; ours have the opposite sign.
INVERTED = ("l1_norm", "l2_norm")


def pair(text: dict[str, Tensor], video: dict[str, Tensor]) -> tuple[TextEmbedding, VideoEmbedding]:
    (texts,), (videos,) = ({len(t) for t in side.values()} for side in (text, video))
    return (
        TextEmbedding(torch.arange(texts), text, video_ids=torch.arange(texts) % videos),
        VideoEmbedding(torch.arange(videos), video),
    )


def published(measure: Any) -> MeasureFn:
    ours = training_measure(measure)
    return (lambda s, v: -ours(s, v)) if measure in INVERTED else ours


def check_losses(case: Case) -> None:
    for measure in {variant["measure"] for variant in case.meta["variants"]}:
        kind = "prob" if measure == "jaccard" else "norm"
        found = published(measure)(case.tensors[f"in/s_{kind}"], case.tensors[f"in/im_{kind}"])
        assert_close(found, case.tensors[f"out/sim/{measure}"].T, name=f"similarity {measure}")
    for variant in case.meta["variants"]:
        check_variant(case, variant)
    check_concepts(case)


def check_variant(case: Case, variant: dict[str, Any]) -> None:
    key, kind = variant["key"], variant["inputs"]
    s, v = (case.tensors[f"in/{side}_{kind}"].clone().requires_grad_() for side in ("s", "im"))
    loss = triplet(s, v, variant)
    assert_close(loss, case.tensors[f"out/loss/{key}"], name=key)
    if f"grad/s/{key}" in case.tensors:
        loss.backward()
        for name, leaf in (("s", s), ("im", v)):
            assert_close(leaf.grad, case.tensors[f"grad/{name}/{key}"], GRADIENT_RTOL, f"gradient of {name}, {key}")


def triplet(s: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    loss = TripletLoss(*(options[name] for name in ("margin", "max_violation", "cost_style", "direction")))
    similarity = published(options["measure"])
    return loss(lambda text, video: similarity(text.parts["x"], video.parts["x"]), *pair({"x": s}, {"x": v}))


def check_concepts(case: Case) -> None:
    tensors, size = case.tensors, case.meta["B"]
    p = tensors["in/im_prob"].clone().requires_grad_()
    mean = concept_loss(p, tensors["in/tags"]) / size
    mean.backward()
    assert_close(mean, tensors["out/bce"], name="bce")
    assert_close(p.grad, tensors["grad/bce"], GRADIENT_RTOL, "gradient of bce")
    saturated = concept_loss(tensors["in/prob_saturated"], tensors["in/tags"]) / size
    assert_close(saturated, tensors["out/bce_saturated"], name="bce of saturated probabilities")
    options = {"margin": 0.2, "max_violation": True, "cost_style": "sum", "direction": "all"}
    total = triplet(tensors["in/s_norm"], tensors["in/im_norm"], {**options, "measure": "cosine"})
    total = total + triplet(tensors["in/s_prob"], tensors["in/im_prob"], {**options, "measure": "jaccard"})
    total = total + sum(concept_loss(tensors[f"in/{side}_prob"], tensors["in/tags"]) for side in ("s", "im"))
    assert_close(total, tensors["out/hybrid_total"], name="hybrid total")


def check_similarities(case: Case) -> None:
    tensors = case.tensors
    caption, video = tensors["in/caption"], tensors["in/video"]
    for measure in ("cosine", "euclidean", "l1", "l2", "l1_norm", "l2_norm"):
        error = -evaluation_measure(measure)(caption, video)  # type: ignore[arg-type]
        if measure in INVERTED:
            error = -error - 2
        assert_close(error, tensors[f"out/error/{measure}"], name=f"error {measure}")
    jaccard = evaluation_measure("jaccard")(tensors["in/caption_prob"], tensors["in/video_prob"])
    for name in ("error/jaccard", "error/jaccard_batched"):
        assert_close(-jaccard, tensors[f"out/{name}"], name=name)
    assert_close(jaccard, tensors["out/simi/jaccard"], name="jaccard")
    items = pair(
        {LATENT: caption, CONCEPTS: tensors["in/caption_prob"]}, {LATENT: video, CONCEPTS: tensors["in/video_prob"]}
    )
    assert_close(space_scorer([Space(LATENT, "cosine")], *items)(*items), tensors["out/simi/cosine"], name="cosine")
    # A space beside an empty one with weight 0 is normalised alone.
    for part, measure in ((LATENT, "cosine"), (CONCEPTS, "jaccard")):
        alone = space_scorer([Space(part, measure), Space(part, measure, 0.0)], *items)  # type: ignore[arg-type]
        assert_close(-alone(*items), tensors[f"out/norm/{measure}"], name=f"normalised {measure}")
    combined = space_scorer(hybrid_spaces(0.6), *items)(*items)
    assert_close(-combined, tensors["out/combined_w0.6"], name="combined")
    on_probabilities = space_scorer([Space(CONCEPTS, "cosine")], *items)(*items)
    assert_close(on_probabilities, tensors["out/simi/cosine_on_prob"], name="cosine on probabilities")
    topics = space_scorer(hybrid_spaces(0.8, "cosine", "cosine"), *items)(*items)
    assert_close(topics - 1, tensors["out/avs_combined_w0.8"], name="combined for topics")  # there in [-1, 0]


def check_hybrid_scores(case: Case) -> None:
    """The error matrices, from the embeddings of the case itself."""
    out = case.group("out")
    sides = ({LATENT: out[f"{side}_latent"], CONCEPTS: out[f"{side}_concept"]} for side in ("text", "video"))
    items = pair(*sides)
    for space, name in zip(hybrid_spaces(0.6), ("latent", "concept"), strict=True):
        assert_close(-space_scorer([space], *items)(*items), out[f"err_{name}_text_x_video"], name=name)
    for kept in (0, 1 << 20):
        score = space_scorer(hybrid_spaces(0.6), *items, kept_bytes=kept)
        assert_close(-score(*items), out["err_combined_w0.6"], name="combined")


# ---- metrics -------------------------------------------------------------------------------------------------


def owners(meta: dict[str, Any]) -> np.ndarray:
    position = {video: column for column, video in enumerate(meta["video_ids"])}
    return np.array([position[caption.split("#")[0]] for caption in meta["caption_ids"]])


def ours(errors: Tensor, owner: np.ndarray, ties: Any = "optimistic") -> RetrievalResult:
    return evaluate_matrix(-errors, torch.from_numpy(owner), errors.shape[1], ties=ties)


def check_metrics(case: Case) -> None:
    check_owners(case.meta["get_gt_ids"])
    for expected in case.meta["cases"]:
        errors, owner = case.tensors[f"in/{expected['name']}/errors"], owners(expected)
        check_owners({**expected, **expected["expected_stable_argsort"], "v2t": None})
        best, worst = ours(errors, owner), ours(errors, owner, "pessimistic")
        check_ranks(expected, best, worst, num_captions=len(owner))
        for way in ("stable_argsort", "unpatched_np_argsort"):
            for side in ("t2v", "v2t"):
                between(
                    whole(best, side, len(owner)), whole(worst, side, len(owner)), expected[f"expected_{way}"][side]
                )
    check_fixed_captions(case)
    check_varied(case)
    check_scorers(case)


def check_owners(expected: dict[str, Any]) -> None:
    owner = owners(expected)
    wanted = expected.get("v2t") or expected.get("v2t_gt")
    for column, captions in enumerate(wanted):
        assert np.flatnonzero(owner == column).tolist() == captions


def check_ranks(expected: dict[str, Any], best: RetrievalResult, worst: RetrievalResult, num_captions: int) -> None:
    for result, name in ((best, "best"), (worst, "worst")):
        assert result.t2v_ranks.tolist() == expected[f"t2v_rank_{name}"], f"{expected['name']} t2v {name}"
        ranks = np.full(len(result.video_ids), num_captions + 1)  # what upstream gives a video without captions
        ranks[result.v2t_ids.numpy()] = result.v2t_ranks.numpy()
        assert ranks.tolist() == expected[f"v2t_rank_{name}"], f"{expected['name']} v2t {name}"


def whole(result: RetrievalResult, side: str, num_captions: int) -> dict[str, float]:
    """Our metrics with upstream's last place for videos without captions, which we do not ask about."""
    found, silent = getattr(result, side), len(result.video_ids) - len(result.v2t_ids)
    if side == "t2v" or not silent:
        return dict(found)
    ranks = np.concatenate([result.v2t_ranks.numpy(), np.full(silent, num_captions + 1)])
    again = rank_metrics(ranks, 1 / ranks)
    return {**again, "mAP": found["mAP"] * len(result.v2t_ids) / len(result.video_ids)}


def between(best: dict[str, float], worst: dict[str, float], expected: dict[str, float]) -> None:
    """Equal without ties; with them, no better than our optimistic and no worse than our pessimistic rule."""
    for key, value in expected.items():
        name = {"MedR": "MdR", "MeanR": "MnR"}.get(key, key)
        value = 100 * value if key == "mAP" else value
        low, high = sorted((best[name], worst[name]))
        assert low - 1e-9 <= value <= high + 1e-9, f"{key}: {value}, expected {low} to {high}"


def check_fixed_captions(case: Case) -> None:
    for expected in case.meta["fixed_caption_functions"]:
        count = expected["n_caption"]
        errors = case.tensors[f"in/fixedfn_{count}/errors"]
        owner = np.repeat(np.arange(errors.shape[1]), count)
        result = ours(errors, owner)
        for side in ("t2v", "v2t"):
            found = getattr(result, side)
            floored = [*(found[key] for key in RECALLS), float(np.floor(found["MdR"])), found["MnR"]]
            np.testing.assert_allclose(floored, expected[side], rtol=1e-9)
        np.testing.assert_allclose(result.t2v["mAP"] / 100, expected["t2v_inv_rank"], rtol=1e-9)
        np.testing.assert_allclose(inverse_rank_sum(errors, owner), expected["v2t_inv_rank"], rtol=1e-9)
        singles = [ours(errors[n::count], np.arange(errors.shape[1])).v2t["mAP"] / 100 for n in range(count)]
        np.testing.assert_allclose(singles, expected["v2t_inv_rank_multi"], rtol=1e-9)


def inverse_rank_sum(errors: Tensor, owner: np.ndarray) -> float:
    """Mean over videos of the summed 1 / rank of their captions."""
    counts = count_ranks(lambda rows, cols: -errors[rows][:, cols], torch.from_numpy(owner), errors.shape[1], topk=0)
    own = -errors[torch.arange(len(owner)), torch.from_numpy(owner)]
    place = [1 + int(((own > own[i]).numpy() & (owner == owner[i])).sum()) for i in range(len(owner))]
    return float((counts.above_Q + torch.tensor(place)).double().reciprocal().sum()) / errors.shape[1]


def check_varied(case: Case) -> None:
    expected = case.meta["conf2019_varied"]
    result = ours(case.tensors["in/conf2019_varied/errors"], owners(expected))
    for side, name in (("t2v", "t2i_varied"), ("v2t", "i2t_varied")):
        found = getattr(result, side)
        values = [*(found[key] for key in RECALLS), float(np.floor(found["MdR"])), found["MnR"], found["mAP"] / 100]
        np.testing.assert_allclose(values, expected[name], rtol=1e-9)


def check_scorers(case: Case) -> None:
    """AP and reciprocal rank of label lists; P@k and NDCG are used by no published evaluation, and not by ours."""
    for expected in case.meta["scorers"]:
        labels = np.array(expected["labels"])
        if not labels.any():  # no relevant item: no query
            continue
        # Column 0 ranks the captions as listed; captions of the other video come first in its own column.
        scores = np.stack([-np.arange(len(labels), dtype=float), 1.0 - labels], axis=1)
        result = ours(torch.from_numpy(-scores), 1 - labels)
        precision = result.v2t["mAP"] / 100 * len(result.v2t_ids) - (len(result.v2t_ids) - 1)
        np.testing.assert_allclose(precision, expected["AP"], rtol=1e-9)
        np.testing.assert_allclose(1 / result.v2t_ranks[0].item(), expected["RR"], rtol=1e-9)


# ---- the published tester on a published checkpoint ----------------------------------------------------------


def check_tester(case: Case) -> None:
    """Checkpoint, captions and features in the authors' formats to error matrix, metrics and predicted concepts."""
    root = case.folder / "root" / "toy"
    lines = read_captions(root / "TextData" / "toytest.caption.txt")
    videos = list(dict.fromkeys(line.video_id for line in lines))
    owner = [videos.index(line.video_id) for line in lines]
    words = read_vocabulary_words(root / "TextData" / "vocabulary" / "bow" / "word_vocab_5.pkl")
    texts = [line.text for line in lines]
    frames = list(bigfile_source(root / "FeatureData" / "feat").read(videos))
    part = SplitPart(
        "test", tuple(map(VideoRecord, videos)), number_captions(line.record() for line in lines), tuple(owner)
    )
    for name in ("zip", "legacy"):
        model = make_model(case.meta["opt"], words, padding="upstream").eval()
        state = read_state_dict(case.folder / f"model_best_{name}.pth.tar")
        load_strictly(model, from_upstream(state), name)
        with torch.no_grad():
            text, video = encode(model, texts, owner, frames, case.meta["tester_batch_size"])
        compare_outcome(case, model, part, (text, video))


def encode(
    model: DualEncoding, texts: list[str], owner: list[int], frames: list[Any], size: int
) -> tuple[TextEmbedding, VideoEmbedding]:
    """In the tester's batches, which count in this mode of padding."""
    text, video = [], []
    for start in range(0, len(texts), size):
        tokens_BL, mask_BL = model.tokenizer(texts[start : start + size])
        ids = torch.arange(start, start + len(tokens_BL))
        text.append(model.encode_text(TextBatch(tokens_BL, mask_BL, ids, torch.tensor(owner)[ids])))
    for start in range(0, len(frames), size):
        rows = [torch.from_numpy(np.array(x)) for x in frames[start : start + size]]
        padded = pad_sequence([x[:64] for x in rows], batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor([[min(64, len(x))] for x in rows])
        features = {FRAMES: padded, FRAMES + MEAN: torch.stack([x.mean(0) for x in rows])}
        ids = torch.arange(start, start + len(rows))
        video.append(model.encode_video(VideoBatch(ids, features=features, feature_masks={FRAMES: mask})))
    return TextEmbedding.cat(text), VideoEmbedding.cat(video)


def compare_outcome(
    case: Case, model: DualEncoding, part: SplitPart, items: tuple[TextEmbedding, VideoEmbedding]
) -> None:
    concepts = case.folder / "root" / "toy" / "TextData" / "tags" / "video_label_th_1" / "tag_vocab_10.json"
    with TemporaryDirectory() as folder:
        cfg = OmegaConf.create(
            {"paths": {"run_dir": folder}, "task": {"concepts": str(concepts), "error_matrix": True}}
        )
        write_exports(cfg, part, items, model)
        for side in ("video", "text"):
            found = Path(folder, side, "pred_tags.txt").read_bytes()
            assert found == (case.folder / f"pred_tags_{side}.txt").read_bytes(), f"concepts of {side}"
        written = torch.load(Path(folder, "pred_errors_matrix.pth.tar"), weights_only=True)
    errors, ids = written.pop("errors"), json.loads((case.folder / "errors_ids.json").read_text())
    assert_close(errors, case.tensors["out/errors_combined_w0.6"], name="errors")
    assert written == ids
    result = evaluate(*items, model.scorer(*items))
    for side in ("t2v", "v2t"):
        expected = case.meta["test_metrics"][side]
        between(whole(result, side, len(part.captions)), whole(result, side, len(part.captions)), expected)


CHECKERS = {
    "dual_encoding": {
        "losses": check_losses,
        "similarities": check_similarities,
        "metrics": check_metrics,
        "hybrid_[fr]*_m*": check_hybrid_scores,
        "pipeline_onefol[d]er": check_tester,
    }
}
