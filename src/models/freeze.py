"""Which CLIP parameters are trained."""

from __future__ import annotations

import re
from typing import Literal

from src.errors import UserError
from src.models.clip_tower import ClipTower

FreezeRule = Literal["intended", "upstream"]

# Trained whatever the number of frozen blocks.
ALWAYS_TRAINED = re.compile(r"(ln_final\.|text_projection|logit_scale|visual\.ln_post\.|visual\.proj)")
BLOCK = re.compile(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.")


def freeze_clip(tower: ClipTower, freeze_layers: int, rule: FreezeRule = "intended") -> None:
    """Stop the gradients of CLIP's lower layers in both towers.

    Args:
        tower: changed in place.
        freeze_layers: −1 trains everything; n ≥ 0 freezes the embeddings, the patch convolution,
            `visual.ln_pre` and the first n blocks. The final norms, projections and the logit scale are
            always trained. So 0, the published value, is not "train all".
        rule: "intended" applies this in both patch modes; the 3-d patch convolution is always trained.
            "upstream" freezes nothing with 3-d patches, as the released code does by mistake.

    Raises:
        UserError: the text tower has other parameter names than CLIP's.

    Source: CLIP4Clip main_task_retrieval.py @ 508ffa3, freeze testing.
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
        trained = ALWAYS_TRAINED.match(name) or (block and int(block[1]) >= freeze_layers)
        if not trained:
            parameter.requires_grad_(False)
