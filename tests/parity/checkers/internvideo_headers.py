"""The similarity headers of InternVideo's copy of CLIP4Clip on its plain CLIP, which does not normalise frames."""

from __future__ import annotations

from functools import partial

import torch

from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.tight import TightTransfHead
from tests.parity.cases import Case, assert_close
from tests.parity.checkers.internvideo_heads import check_training, golden_batches, golden_model


def check_header(case: Case) -> None:
    config = case.meta["task_config"]
    layers = config["cross_num_hidden_layers"]
    heads: dict[str, HeadFactory] = {
        "meanP": partial(MeanHead, normalise_frames=False),
        "seqLSTM": partial(SeqLstmHead, normalise_frames=False),
        "seqTransf": partial(SeqTransfHead, temporal_layers=layers, normalise_frames=False),
        "tightTransf": partial(TightTransfHead, temporal_layers=layers, dropout=0.0),
    }
    model = golden_model(case, heads[config["sim_header"]])
    model.eval()
    text, video = golden_batches(case)
    with torch.no_grad():
        values = {
            "sequence_output": model.text_tokens(text).sentence_BD[:, None],
            "visual_output": model.video_tokens(video).frames_BTD,
            "sim": model.similarity(model.encode_text(text), model.encode_video(video)),
        }
    assert case.group("out").keys() == {*values, "loss"}
    for name, value in values.items():
        assert_close(value, case.tensors[f"out/{name}"], name=name)
    check_training(model, case)


CHECKERS = {
    "internvideo": {
        "clip_meanP": check_header,
        "clip_seqLSTM": check_header,
        "clip_seqTransf": check_header,
        "clip_tightTransf": check_header,
        "clip_patch3d": check_header,
    }
}
