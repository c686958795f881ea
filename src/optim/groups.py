"""Which learning rate and weight decay each parameter gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from src.errors import UserError


@dataclass(frozen=True)
class GroupRule:
    """What holds for the parameters whose name matches.

    Attributes:
        pattern: regular expression, searched anywhere in the parameter's name.
        lr_multiplier: factor on the base learning rate; factors of several matching rules multiply.
        weight_decay: replaces the base weight decay; of several matching rules the last one counts.
    """

    pattern: str
    lr_multiplier: float = 1.0
    weight_decay: float | None = None


def read_rules(rules: Sequence[Mapping[str, Any]]) -> list[GroupRule]:
    """Check the rules of a configuration.

    Raises:
        UserError: a key that does not exist, a missing pattern, or a pattern that is no regular expression.
    """
    known = {f.name for f in fields(GroupRule)}
    read = []
    for rule in rules:
        unknown = sorted(rule.keys() - known)
        if unknown or "pattern" not in rule:
            raise UserError(
                f"optimizer rule {dict(rule)} has keys {sorted(rule)}, expected pattern and of {sorted(known)}"
            )
        try:
            re.compile(rule["pattern"])
        except re.error as error:
            raise UserError(f"optimizer rule pattern {rule['pattern']!r} is no regular expression ({error})") from None
        read.append(GroupRule(**rule))
    return read


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]], lr: float, weight_decay: float, rules: Sequence[GroupRule]
) -> list[dict[str, Any]]:
    """Group parameters of equal learning rate and weight decay, for a torch optimiser.

    Returns:
        One dict per group with `params`, `lr`, `weight_decay` and `names`; the order is that of the first
        parameter of each group, so that it is the same on every process and after a restart.

    Raises:
        UserError: no parameter is trained.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        own_lr, own_decay = lr, weight_decay
        for rule in rules:
            if re.search(rule.pattern, name):
                own_lr *= rule.lr_multiplier
                own_decay = own_decay if rule.weight_decay is None else rule.weight_decay
        group = groups.setdefault(
            (own_lr, own_decay), {"params": [], "names": [], "lr": own_lr, "weight_decay": own_decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("the model has no trained parameter (everything is frozen); lower model.freeze_layers")
    return list(groups.values())
