"""Which CLIP parameters are trained."""

from __future__ import annotations

import re
from typing import Literal

from src.errors import UserError
from src.models.clip_tower import ClipTower

FreezeRule = Literal["intended", "upstream"]

# Trained whatever the number of frozen blocks. The released InternVideo code asks for CLIP's names of the last visual
# norm and projection, which its tower calls otherwise, and does not name the other new parameters.
_UPSTREAM = r"ln_final\.|text_projection|logit_scale|visual\.ln_post\.|visual\.proj|visual\.transformer\.(dpe|dec)\."
_FORGOTTEN = r"visual_ln_post\.|visual_proj|visual\.transformer\.(temporal_cls_token|balance|resblocks\.\d+\.lmhra)"
ALWAYS_TRAINED: dict[FreezeRule, re.Pattern[str]] = {
    "upstream": re.compile(_UPSTREAM),
    "intended": re.compile(f"{_UPSTREAM}|{_FORGOTTEN}"),
}
BLOCK = re.compile(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.")


def freeze_clip(tower: ClipTower, freeze_layers: int, rule: FreezeRule = "intended") -> None:
    """Stop the gradients of CLIP's lower layers in both towers.

    Args:
        tower: changed in place.
        freeze_layers: −1 trains everything; n ≥ 0 freezes the embeddings, the patch convolution,
            `visual.ln_pre` and the first n blocks. The final norms, projections and the logit scale are
            always trained. So 0, the published value, is not "train all".
        rule: "intended" applies this in both patch modes; the 3-d patch convolution is always trained, and so is
            what InternVideo adds to CLIP. "upstream" makes the mistakes of the released code: it freezes nothing
            with 3-d patches, and of InternVideo the last visual norm and projection, the global token and its
            `balance`. Its published numbers come from the latter.

    Raises:
        UserError: the text tower has other parameter names than CLIP's.

    Source: CLIP4Clip main_task_retrieval.py @ 508ffa3, freeze testing; InternVideo main_task_retrieval.py @ 3965eef.
    """
    if freeze_layers < 0 or (rule == "upstream" and tower.patch_conv3d is not None):
        return
    if not tower.is_plain:
        raise UserError(
            f"model.freeze_layers={freeze_layers} needs a CLIP ViT architecture, found model.arch={tower.arch}; "
            "set model.freeze_layers=-1"
        )
    for name, parameter in tower.clip.named_parameters():
        block = BLOCK.match(name)
        trained = ALWAYS_TRAINED[rule].match(name) or (block and int(block[1]) >= freeze_layers)
        if not trained:
            parameter.requires_grad_(False)
