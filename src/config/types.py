"""The few types that a configuration value can have, and how to say that a value does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Anything:
    """A type that only the live object knows; values are compared with the default instead."""


@dataclass(frozen=True)
class Scalar:
    """`kind` is int, float, str, bool or none."""

    kind: str


@dataclass(frozen=True)
class Choice:
    """One of a closed list of values (`Literal`)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Either:
    """Any one of several types."""

    options: tuple[Type, ...]


@dataclass(frozen=True)
class Many:
    """A list of any length."""

    item: Type


@dataclass(frozen=True)
class Fixed:
    """A list of known length."""

    items: tuple[Type, ...]


@dataclass(frozen=True)
class Table:
    """Names that the user chooses, each with a value."""

    key: Type
    value: Type


@dataclass(frozen=True)
class Record:
    """A dataclass, by its dotted name; its fields are read by `src.config.signature`."""

    target: str


Type = Anything | Scalar | Choice | Either | Many | Fixed | Table | Record

_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "none": "null"}


def union(*options: Type) -> Type:
    """`options` joined, nested unions flattened; Anything wins."""
    flat: list[Type] = []
    for option in options:
        flat += option.options if isinstance(option, Either) else (option,)
    if any(isinstance(option, Anything) for option in flat):
        return Anything()
    distinct = tuple(dict.fromkeys(flat))
    return distinct[0] if len(distinct) == 1 else Either(distinct)


def words(kind: Type) -> str:
    """How a message names the type."""
    match kind:
        case Scalar(name):
            return _WORDS[name]
        case Choice(values):
            return " | ".join(as_typed(value) for value in values)
        case Either(options):
            known = choices(kind)
            rest = [words(option) for option in options if not isinstance(option, Choice)]
            return " or ".join([*([" | ".join(as_typed(value) for value in known)] if known else []), *rest])
        case Many(item):
            return "a list" if isinstance(item, Anything) else f"a list ({words(item)} each)"
        case Fixed(items):
            return f"a list of {len(items)} ({', '.join(words(item) for item in items)})"
        case Table() | Record():
            return "a table of names and values"
        case _:
            return "anything"


def choices(kind: Type) -> list[Any]:
    """All values that the literals in `kind` list."""
    if isinstance(kind, Either):
        return [value for option in kind.options for value in choices(option)]
    return list(kind.values) if isinstance(kind, Choice) else []


def as_typed(value: Any) -> str:
    """The value as one types it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return str(value)


def found_words(value: Any) -> str:
    """How a message shows a wrong value."""
    if isinstance(value, bool) or value is None:
        return as_typed(value)
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return f"the list {list(value)}"
    return f"{value}"


def kind_of(value: Any) -> Type:
    """The type that a default value stands for, where no signature says more."""
    if isinstance(value, bool):
        return Scalar("bool")
    if isinstance(value, int | float):
        return Scalar("float")  # `limit_train_batches: 1.0` also takes 10, and the other way round
    if isinstance(value, str):
        return Scalar("str")
    if isinstance(value, list):
        return Many(Anything())
    return Anything()


def fits(kind: Type, value: Any) -> bool:
    """Whether `value` (plain, from yaml) can be passed where `kind` is expected; records are not opened."""
    match kind:
        case Scalar("int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case Scalar("float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Scalar("str"):
            return isinstance(value, str)
        case Scalar("bool"):
            return isinstance(value, bool)
        case Scalar("none"):
            return value is None
        case Choice(values):
            return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values)
        case Either(options):
            return any(fits(option, value) for option in options)
        case Many(item):
            return isinstance(value, list | tuple) and all(fits(item, element) for element in value)
        case Fixed(items):
            return (
                isinstance(value, list | tuple)
                and len(value) == len(items)
                and all(fits(item, element) for item, element in zip(items, value, strict=True))
            )
        case Table(key, inner):
            return isinstance(value, dict) and all(fits(key, k) and fits(inner, v) for k, v in value.items())
        case Record():
            return isinstance(value, dict)
        case _:
            return True
