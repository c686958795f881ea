"""Signatures read from source text: inheritance, re-exports, annotations."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.config import types
from src.config.signature import names_in, signature_of
from src.config.types import Anything, Choice, Either, Fixed, Many, Record, Scalar, Table

SOURCE = """
from __future__ import annotations
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Optional, Union, TYPE_CHECKING
import elsewhere
from .kinds import Mode
if TYPE_CHECKING:
    from .kinds import Size

class Base(ABC):
    def __init__(self, width: int, *, mode: Mode = "a", size: Size | None = None) -> None: ...

class Inherits(Base):
    pass

class Extends(Base):
    def __init__(self, depth: "int", **rest: object) -> None: ...

class Closed(Base):
    def __init__(self, depth: int, other: elsewhere.Thing, plain=3) -> None: ...

class Foreign(elsewhere.Thing):
    pass

@dataclass
class Data(Base):
    constant: ClassVar[int] = 1
    names: list[str]
    _: KW_ONLY
    pair: tuple[float, float] = (0.0, 1.0)
    sizes: tuple[int, ...] = ()
    table: Mapping[str, Size] = field(default_factory=dict)
    place: Optional[Path] = None
    either: Union[int, str, None] = None
    hidden: int = field(init=False, default=3)
    needed: bool = field(kw_only=True)

def function(x: Literal[1, "two", None], y: Sequence[float] = ()) -> None: ...
"""
KINDS = """
from dataclasses import dataclass
from typing import Literal
Mode = Literal["a", "b"]

@dataclass(frozen=True)
class Size:
    height: int
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "invented_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from invented_package.core import Inherits as Renamed, function\n")
    (folder / "core.py").write_text(SOURCE)
    (folder / "kinds.py").write_text(KINDS)
    monkeypatch.syspath_prepend(str(tmp_path))


def parameters(name: str) -> dict[str, tuple[types.Type, bool]]:
    signature = signature_of(f"invented_package.{name}")
    assert signature is not None
    return {key: (p.type, p.required) for key, p in signature.parameters.items()}


def test_inherited_constructor_through_a_renamed_re_export() -> None:
    size = Either((Record("invented_package.kinds.Size"), Scalar("none")))
    expected = {"width": (Scalar("int"), True), "mode": (Choice(("a", "b")), False), "size": (size, False)}
    assert parameters("core.Inherits") == expected
    assert parameters("Renamed") == expected


def test_keyword_rest_takes_what_the_base_takes() -> None:
    signature = signature_of("invented_package.core.Extends")
    assert signature is not None
    assert set(signature.parameters) == {"depth", "width", "mode", "size"}
    assert not signature.open_ended


def test_own_constructor_hides_the_base() -> None:
    assert parameters("core.Closed") == {
        "depth": (Scalar("int"), True),
        "other": (Anything(), True),
        "plain": (Anything(), False),
    }


def test_unreadable_base_is_open_ended() -> None:
    signature = signature_of("invented_package.core.Foreign")
    assert signature is not None
    assert signature.open_ended


def test_dataclass_fields() -> None:
    found = parameters("core.Data")
    assert set(found) == {"names", "pair", "sizes", "table", "place", "either", "needed"}
    assert found["names"] == (Many(Scalar("str")), True)
    assert found["pair"] == (Fixed((Scalar("float"), Scalar("float"))), False)
    assert found["sizes"] == (Many(Scalar("int")), False)
    assert found["table"] == (Table(Scalar("str"), Record("invented_package.kinds.Size")), False)
    assert found["place"] == (Either((Scalar("str"), Scalar("none"))), False)
    assert found["either"] == (Either((Scalar("int"), Scalar("str"), Scalar("none"))), False)
    assert found["needed"] == (Scalar("bool"), True)


def test_function() -> None:
    assert parameters("function") == {"x": (Choice((1, "two", None)), True), "y": (Many(Scalar("float")), False)}


def test_absent_things() -> None:
    assert signature_of("invented_package.core.Dtaa") is None
    assert signature_of("invented_package.nowhere.Data") is None
    assert signature_of("no_such_package.Data") is None
    assert "Data" in names_in("invented_package.core")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Scalar("int"), [0, -3], [True, 1.0, "1", None]),
        (Scalar("float"), [1, 0.5], [False, "0.5", None, [1.0]]),
        (Scalar("bool"), [True], [0, "true", None]),
        (Scalar("str"), ["", "no"], [1, None, True]),
        (Choice((0, 1, "uniform")), [0, 1, "uniform"], [2, True, "Uniform"]),
        (Either((Scalar("int"), Scalar("none"))), [3, None], ["3"]),
        (Many(Scalar("int")), [[], [1, 2]], [1, [1, "2"], "12"]),
        (Fixed((Scalar("float"), Scalar("float"))), [[0.1, 1]], [[0.1], [0.1, 0.2, 0.3]]),
        (Table(Scalar("str"), Scalar("int")), [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
        (Anything(), [None, 1, "x", [], {}], []),
    ],
)
def test_fits(kind: types.Type, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not types.fits(kind, value)] == []
    assert [value for value in bad if types.fits(kind, value)] == []


def test_words_join_literals() -> None:
    kind = types.union(Choice((16, 32)), Choice(("bf16",)), Scalar("none"))
    assert types.words(kind) == "16 | 32 | bf16 or null"
