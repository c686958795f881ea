"""The keys of somebody else's configuration, every one of them accounted for: read, not used, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from src.errors import UserError


class Keys:
    """The keys of a configuration, a dot between levels; which of them were read, and what is wrong with them.

    Attributes:
        leaves: dotted key -> value, of all keys.
        wrong: what is to be refused, for the message.
        decided: notes that say how something was read, for the log.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.leaves = dict(_leaves(config))
        self.left = set(self.leaves)
        self.wrong: list[str] = []
        self.reasons: dict[str, list[str]] = {}
        self.decided: list[str] = []

    def get(self, key: str, *default: Any) -> Any:
        """The value; of one that is missing without default, None, and it counts as wrong."""
        self.left.discard(key)
        if key not in self.leaves and not default:
            self.wrong.append(f"no {key}")
        return self.leaves.get(key, *default)

    def choice(self, key: str, ours: Mapping[Any, Any], *default: Any) -> Any:
        """What ours has for the value, one of the given ones."""
        value = self.get(key, *default)
        if isinstance(value, str | int | float | bool | None) and value in ours:
            return ours[value]
        if key in self.leaves:
            self.wrong.append(f"{key}={_shown(value)} (expected {' or '.join(map(_shown, ours))})")
        return None

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse all but the allowed values, of which the first is taken when the key is missing."""
        value = self.get(key, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            self.wrong.append(f"{key}={_shown(value)} (expected {' or '.join(map(_shown, allowed))})")

    def number(self, key: str, *default: float, least: float | None = None) -> Any:
        """A number, at least `least`; a whole one where `least` is whole."""
        value = self.get(key, *default)
        kinds = int if isinstance(least, int) else int | float
        if key in self.leaves and (
            isinstance(value, bool) or not isinstance(value, kinds) or (least is not None and value < least)
        ):
            what = "a whole number" if isinstance(least, int) else "a number"
            self.wrong.append(
                f"{key}={_shown(value)} (expected {what}{'' if least is None else f' of at least {least}'})"
            )
            return None
        return value

    def unused(self, names: Iterable[str], reason: str) -> None:
        """Note that nothing here uses these keys; a name with a dot at its end, or none, stands for all below it."""
        for name in names:
            below = not name or name.endswith(".")
            found = sorted(key for key in self.left if key == name or (below and key.startswith(name)))
            self.left.difference_update(found)
            self.reasons.setdefault(reason, []).extend(f"{key}={_shown(self.leaves[key])}" for key in found)

    def notes(self) -> tuple[str, ...]:
        """For the log.

        Raises:
            UserError: something is wrong, or a key was not read.
        """
        unknown = [f"{key}={_shown(self.leaves[key])} (unknown key)" for key in sorted(self.left)]
        if self.wrong or unknown:
            raise UserError(
                f"the configuration has {'; '.join([*self.wrong, *unknown])}: there is nothing like it here; correct "
                "or remove it, and set what you need on the command line that is printed then"
            )
        unused = [f"not used: {', '.join(keys)} ({reason})" for reason, keys in self.reasons.items() if keys]
        return (*self.decided, *unused)


def _leaves(table: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) if value != "" else "''"
