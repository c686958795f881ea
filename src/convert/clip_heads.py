"""Tensor names of the heads that other repositories put on CLIP4Clip: DRL, X-CLIP, X-Pool.

Known: those of InternVideo's copy of CLIP4Clip (weighted token interaction) and of the heads of X-CLIP and X-Pool.
Assumed, without a published file at hand: that DRL names its weighting networks as InternVideo's copy does, and that
the rest of a DRL or X-CLIP file is named as in CLIP4Clip. Of TS2-Net only the tensors that it has in common with
CLIP4Clip are known; its token shift and token selection are not built, so its files are refused with a list of the
others.

Source: InternVideo1 Downstream/Video-Text-Retrieval modules/modeling.py @ 3965eef; xuguohai/X-CLIP
modules/modeling_xclip.py; layer6ai-labs/xpool modules/transformer.py.
"""

from __future__ import annotations

XCLIP_MATRICES = (
    "global_mat_weight",
    "local_mat_weight",
    "word_logit_weight",
    "frame_logit_weight",
    "word_mat_weight2",
    "frame_mat_weight2",
    "word_mat_weight",
    "frame_mat_weight",
)

# (published prefix, our prefix); the first that matches counts, so longer ones stand first.
NAMES = (
    ("text_weight_fc.", "head.word_score."),
    ("video_weight_fc.", "head.frame_score."),
    *((name, f"head.{name}") for name in XCLIP_MATRICES),
    ("pool_frames.cross_attn.q_proj.", "head.query."),
    ("pool_frames.cross_attn.k_proj.", "head.key."),
    ("pool_frames.cross_attn.v_proj.", "head.value."),
    ("pool_frames.cross_attn.out_proj.", "head.mixed."),
    ("pool_frames.linear_proj.", "head.feed_forward."),
    ("pool_frames.layer_norm1.", "head.norm_in."),
    ("pool_frames.layer_norm2.", "head.norm_pooled."),
    ("pool_frames.layer_norm3.", "head.norm_out."),
)
