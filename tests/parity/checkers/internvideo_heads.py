"""Token interaction in InternVideo's copy of CLIP4Clip, the heads of X-Pool and X-CLIP, and the losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.convert.clip4clip import from_upstream, to_upstream
from src.convert.clip_heads import NAMES
from src.losses.dual_softmax import DualSoftmaxLoss
from src.losses.infonce import SymmetricInfoNCE
from src.losses.max_margin import MaxMarginLoss
from src.models.clip4clip import Clip4Clip
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.heads.base import Head, HeadFactory, TextTokens, VideoTokens
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.heads.xclip import XClipHead
from src.models.heads.xpool import XPoolHead
from src.models.weights import load_strictly
from tests.head_host import host_of
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close, assert_gradients
from tests.parity.checkers.clip_models import register_arch


def golden_model(case: Case, head: HeadFactory, **options: Any) -> Clip4Clip:
    """The plain CLIP of the case with a head, filled through the converter, and converted back."""
    cfg = case.meta["cfg"]
    dims = {"embed": cfg["embed"], "res": cfg["res"], "patch": cfg["patch"], "vl": cfg["vlayers"], "vw": cfg["vwidth"]}
    dims |= {"ctx": cfg["ctx"], "vocab": cfg["vocab"], "tw": cfg["twidth"], "tl": cfg["tlayers"]}
    head_dim = cfg["twidth"] // cfg["theads"]
    assert cfg["vwidth"] // cfg["vheads"] == head_dim
    model = Clip4Clip(
        arch=register_arch(dims, head_dim),
        head=head,
        linear_patch=case.meta["task_config"]["linear_patch"],
        num_frames=cfg["T"],
        max_words=cfg["max_words"],
        head_dim=cfg["embed"] // cfg["xheads"],
        **options,
    )
    load_golden(model, case)
    return model


def load_golden(model: ClipRetrievalModule, case: Case) -> None:
    own = to_upstream(model.state_dict())
    unused = {name: own[name] for name in case.meta["unused_params"] if name in own}  # the file leaves them out
    state = unused | case.group("param")
    load_strictly(model, from_upstream(state), case.id)
    exported = to_upstream(model.state_dict())
    assert exported.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(exported[name], value), name


def golden_batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    tensors, frames = case.group("in"), case.meta["cfg"]["T"]
    batch, video = len(tensors["input_ids"]), tensors["video"]
    ids = torch.arange(batch)
    tokens_BL = tensors["input_ids"].view(batch, -1)
    text = TextBatch(tokens_BL, tensors["attention_mask"].view(batch, -1).bool(), ids=ids, video_ids=ids)
    frames_BTCHW = video.view(batch, frames, *video.shape[-3:])
    return text, VideoBatch(ids=ids, frames_BTCHW=frames_BTCHW, mask_BT=tensors["video_mask"].view(batch, -1).bool())


def check_training(model: ClipRetrievalModule, case: Case, forward_rtol: float = 1e-5) -> None:
    """Loss, gradients, and that exactly the parameters of the case have one; in float64, see clip_models."""
    text, video = golden_batches(case)
    video = video.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    model.double().train()
    model.zero_grad()
    loss = model.loss(model.encode_text(text), model.encode_video(video))["loss"]
    loss.backward()
    assert_close(loss, case.tensors["out/loss"], forward_rtol, name="loss")
    parameters = to_upstream(dict(model.named_parameters()))
    assert_gradients(parameters, case.group("grad"))
    assert {name for name, p in parameters.items() if p.grad is None} == set(case.meta["unused_params"]) & set(
        parameters
    )


def check_interaction(case: Case) -> None:
    config = case.meta["task_config"]
    head = {
        "ti": partial(TokenInteractionHead, scale_evaluation=False),
        "wti": partial(
            WeightedTokenInteractionHead, arch=config["wti_arch"], cdcr=config["cdcr"], scale_evaluation=False
        ),
    }[config["interaction"]]
    model = golden_model(case, head)
    model.eval()
    text, video = golden_batches(case)
    with torch.no_grad():
        assert_close(
            model.tower.encode_text_tokens(text.tokens_BL)[1], case.tensors["out/sequence_output"], name="words"
        )
        assert_close(model.encode_frames(video)[0], case.tensors["out/visual_output"], name="frames")
        embeddings = model.encode_text(text), model.encode_video(video)
        cosines = model.similarity(*embeddings)
        assert_close(cosines, case.tensors["out/sim"], name="sim")
        model.head.scale_evaluation = True
        scaled = model.similarity(*embeddings)
    assert_close(scaled, model.tower.logit_scale.exp() * case.tensors["out/sim"], name="scaled sim")
    check_training(model, case)


def embeddings(head: Head, text: TextTokens, video: VideoTokens) -> tuple[TextEmbedding, VideoEmbedding]:
    ids = torch.arange(len(text.sentence_BD))
    return (
        TextEmbedding(ids=ids, parts=head.text_parts(text), video_ids=ids),
        VideoEmbedding(ids=torch.arange(len(video.frames_BTD)), parts=head.video_parts(video)),
    )


def fill(head: Head, state: dict[str, Tensor], source: str) -> dict[str, str]:
    """Load published tensors of a head; returns published name -> ours."""
    names = {}
    for name in state:
        published, ours = next(pair for pair in NAMES if name.startswith(pair[0]))
        names[name] = (ours + name[len(published) :]).removeprefix("head.")
    load_strictly(head, {names[name]: value for name, value in state.items()}, source)
    return names


def check_xpool(case: Case) -> None:
    given = case.group("in")
    text_BD, frames_BTD = given["text"].double(), given["frames"].double()
    mask_BT = torch.ones(frames_BTD.shape[:2], dtype=torch.bool)
    head = XPoolHead(host_of(text_BD.shape[1], frames_BTD.shape[1], 1), attention_heads=case.meta["heads"])
    names = fill(head, {f"pool_frames.{name}": value for name, value in case.group("param").items()}, case.id)
    head.double().eval()
    text_BD.requires_grad_(), frames_BTD.requires_grad_()
    video = VideoTokens(frames_BTD, mask_BT, ordered_BTD=frames_BTD)
    pair = embeddings(head, TextTokens(text_BD, torch.ones(len(text_BD), 1, dtype=torch.bool)), video)
    logit_scale = given["logit_scale"].double()
    s_NV = head.similarity(*pair, logit_scale)
    assert_close(s_NV / logit_scale.exp(), case.tensors["out/sim"], name="sim")
    normed_BTD = head.norm_in(frames_BTD)
    query_ND, key_BTD, value_BTD = head.query(head.norm_in(text_BD)), head.key(normed_BTD), head.value(normed_BTD)
    assert_close(head.pool(query_ND, key_BTD, value_BTD, mask_BT), case.tensors["out/pooled"], name="pooled")
    loss = head.loss(SymmetricInfoNCE(), *pair, logit_scale)["loss"]
    loss.backward()
    assert_close(loss, case.tensors["out/loss"], name="loss")
    expected = case.group("grad")
    assert_close(text_BD.grad, expected.pop("in_text"), GRADIENT_RTOL, "gradient of the text")
    assert_close(frames_BTD.grad, expected.pop("in_frames"), GRADIENT_RTOL, "gradient of the frames")
    parameters = dict(head.named_parameters())
    assert_gradients({name: parameters[names[f"pool_frames.{name}"]] for name in expected}, expected)


def check_xclip(case: Case) -> None:
    given = {name: value.double() if value.is_floating_point() else value for name, value in case.group("in").items()}
    words_BLD, frames_BTD = given["words"], given["frames"]
    host = host_of(words_BLD.shape[2], frames_BTD.shape[1], words_BLD.shape[1])
    head = XClipHead(host, padding="upstream")
    fill(head, case.group("param"), case.id)
    head.double()
    text = TextTokens(given["sentence"][:, 0], given["text_mask"].bool(), words_BLD)
    pair = embeddings(head, text, VideoTokens(frames_BTD, given["video_mask"].bool(), ordered_BTD=frames_BTD))
    logit_scale = given["logit_scale"]
    assert_close(head.similarity(*pair, logit_scale), case.tensors["out/logits"], name="logits")
    turned = {**pair[0].parts, "turned_words": pair[0].parts["words"] @ head.local_mat_weight}
    aosm_NV = head.score_words_frames(turned, pair[1].parts)
    assert_close(aosm_NV, case.tensors["out/frame_word_aosm"], name="words with frames")
    loss = head.loss(SymmetricInfoNCE(), *pair, logit_scale)["loss"]
    loss.backward()
    assert_close(loss, case.tensors["out/loss"], name="loss")
    assert_gradients(dict(head.named_parameters()), case.group("grad"))


LEFTOVERS = {"milnce"}  # classes of the reference that nothing there calls and that are not built here


def check_losses(case: Case) -> None:
    """Cross-entropy and the dual softmax loss of a matrix; the margin loss, whose factor differs."""
    outputs, gradients = case.group("out"), case.group("grad")
    ids = torch.arange(len(case.tensors["in/x"]))
    pair = TextEmbedding(ids=ids, parts={}, video_ids=ids), VideoEmbedding(ids=ids, parts={})
    for name in outputs.keys() - LEFTOVERS:
        kind, _, number = name.rpartition("_")
        x = case.tensors["in/x"].double().requires_grad_()
        loss = {
            "symmetric": lambda _: SymmetricInfoNCE(),
            "dsl_loss": lambda number: DualSoftmaxLoss(temperature=float(number.removeprefix("temp"))),
            "max_margin": lambda number: MaxMarginLoss(float(number), fix_norm=False),
        }[kind](number)
        value = loss(lambda text, video, x=x: x, *pair)
        if kind == "max_margin":  # the reference adds the two directions up
            value = 2 * value
        value.backward()
        assert_close(value, outputs[name], name=name)
        if kind != "max_margin":
            assert_close(x.grad, gradients[name], GRADIENT_RTOL, f"gradient of {name}")


CHECKERS = {
    "internvideo": {
        "clip_ti": check_interaction,
        "clip_wti": check_interaction,
        "head_xpool": check_xpool,
        "head_xclip": check_xclip,
        "losses": check_losses,
    }
}
