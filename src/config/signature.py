"""What a `_target_` accepts, read from its source text with `ast`.

The configuration is checked before anything heavy is imported, so the signatures of our classes, of
Lightning's and of torch's cannot be taken from the live objects. This module finds the source file of a
dotted name, follows re-exports and base classes, and turns annotations into `src.config.types`.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from src.config import types
from src.config.types import Type

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Parameter:
    """One keyword of a target."""

    type: Type
    required: bool


@dataclass(frozen=True)
class Signature:
    """The keywords of a target; `open_ended` means that it takes others besides (`**kwargs`)."""

    target: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    open_ended: bool = False


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path
    symbols: dict[str, ast.AST]  # classes, functions and assigned values
    imports: dict[str, tuple[str, str | None]]  # local name -> (module, name in it or None for the module)


def signature_of(target: str) -> Signature | None:
    """Signature of the class or function called `target`; None when there is no such thing."""
    found = _find(target)
    return None if found is None else _signature(*found, target=target)


def names_in(module_name: str) -> list[str]:
    """Classes and functions that a module defines or imports, for suggestions."""
    module = _load(module_name)
    return [] if module is None else [*module.symbols, *module.imports]


@cache
def _load(name: str) -> _Module | None:
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)  # of a top-level name: finds the folder, imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        base = Path(location, *rest)
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.is_file() and (rest or path.name == "__init__.py"):
                return _parse(name, path)
    return None


def _parse(name: str, path: Path) -> _Module:
    symbols: dict[str, ast.AST] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _top_level(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            symbols[node.name] = node
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            symbols[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            symbols[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parent = package.split(".")
                source = ".".join([*parent[: len(parent) - node.level + 1], *([source] if source else [])])
            imports.update({item.asname or item.name: (source, item.name) for item in node.names})
        elif isinstance(node, ast.Import):
            imports.update({item.asname or item.name.split(".")[0]: (item.name, None) for item in node.names})
    return _Module(name, path, symbols, imports)


def _top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of a module, including those under `if TYPE_CHECKING` and `try`."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            found += _top_level(node.orelse) + _top_level(node.body)
        elif isinstance(node, ast.Try):
            found += _top_level([statement for handler in node.handlers for statement in handler.body])
            found += _top_level(node.body)
        else:
            found.append(node)
    return found


def _find(dotted: str) -> tuple[_Module, Definition] | None:
    module_name, _, name = dotted.rpartition(".")
    module = _load(module_name) if module_name else None
    if module is None:
        return None
    found = _resolve(module, name)
    return (found[0], found[1]) if found and isinstance(found[1], ast.ClassDef | ast.FunctionDef) else None


def _resolve(module: _Module, name: str, depth: int = 0) -> tuple[_Module, ast.AST] | None:
    """The definition behind `name` as seen from `module`, through at most ten re-exports."""
    head, _, tail = name.partition(".")
    if head in module.symbols and not tail:
        return module, module.symbols[head]
    if head not in module.imports or depth > 10:
        return None
    source, original = module.imports[head]
    inner = _load(source if original is None else f"{source}.{original}") if tail else _load(source)
    if inner is None:
        return None
    return _resolve(inner, tail or original or "", depth + 1)


def _signature(module: _Module, node: Definition, target: str) -> Signature:
    if isinstance(node, ast.FunctionDef):
        return _from_function(module, node, target, skip=0)
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    bases = [_base_signature(module, base, target) for base in node.bases]
    inherited = next((base for base in bases if base is not None), Signature(target, open_ended=bool(node.bases)))
    if init is not None:
        own = _from_function(module, init, target, skip=1)
        if not own.open_ended:
            return own
        return Signature(target, {**inherited.parameters, **own.parameters}, inherited.open_ended or not bases)
    if _is_dataclass(node):
        return Signature(target, _from_fields(module, node))
    return inherited


def _base_signature(module: _Module, base: ast.expr, target: str) -> Signature | None:
    expression = base.value if isinstance(base, ast.Subscript) else base
    name = ast.unparse(expression)
    if name in ("ABC", "abc.ABC", "Protocol", "object", "Generic"):
        return None
    found = _resolve(module, name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return Signature(target, open_ended=True)
    return _signature(found[0], found[1], target)


def _from_function(module: _Module, node: ast.FunctionDef, target: str, skip: int) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)][skip:]
    pairs += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = {a.arg: Parameter(_type(module, a.annotation), default is None) for a, default in pairs}
    return Signature(target, parameters, open_ended=arguments.kwarg is not None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_mentions(decorator, "dataclass") for decorator in node.decorator_list)


def _from_fields(module: _Module, node: ast.ClassDef) -> dict[str, Parameter]:
    """The fields of a dataclass, those of its bases first; bases that are no dataclasses add none."""
    found: dict[str, Parameter] = {}
    for base in node.bases:
        behind = _resolve(module, ast.unparse(base.value if isinstance(base, ast.Subscript) else base))
        if behind is not None and isinstance(behind[1], ast.ClassDef) and _is_dataclass(behind[1]):
            found.update(_from_fields(behind[0], behind[1]))
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        value = item.value
        options = {k.arg: k.value for k in value.keywords} if isinstance(value, ast.Call) else {}
        hidden = "init" in options and ast.unparse(options["init"]) == "False"
        if hidden or _mentions(item.annotation, "ClassVar") or _mentions(item.annotation, "KW_ONLY"):
            continue
        is_field = isinstance(value, ast.Call) and _mentions(value.func, "field")
        required = value is None or (is_field and not {"default", "default_factory"} & set(options))
        found[item.target.id] = Parameter(_type(module, item.annotation), required)
    return found


def _mentions(node: ast.AST, name: str) -> bool:
    return any(
        (isinstance(n, ast.Name) and n.id == name) or (isinstance(n, ast.Attribute) and n.attr == name)
        for n in ast.walk(node)
    )


_SCALARS = {"int": "int", "float": "float", "str": "str", "bool": "bool", "None": "none", "Path": "str"}
_SEQUENCES = {"list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def _type(module: _Module, node: ast.AST | None, depth: int = 0) -> Type:
    """The type that an annotation means; `types.Anything` where this module cannot tell."""
    if node is None or depth > 20:
        return types.Anything()
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _type(module, ast.parse(node.value, mode="eval").body, depth + 1)
        return types.Scalar("none") if node.value is None else types.Anything()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return types.union(_type(module, node.left, depth + 1), _type(module, node.right, depth + 1))
    if isinstance(node, ast.Subscript):
        return _subscript(module, node, depth)
    name = ast.unparse(node)
    short = name.rpartition(".")[2]
    if short in _SCALARS:
        return types.Scalar(_SCALARS[short])
    if short in _SEQUENCES or short in ("tuple", "Tuple"):
        return types.Many(types.Anything())
    if short in _MAPPINGS:
        return types.Table(types.Anything(), types.Anything())
    found = _resolve(module, name)
    if found is None:
        return types.Anything()
    owner, definition = found
    if isinstance(definition, ast.ClassDef):
        return types.Record(f"{owner.name}.{definition.name}") if _is_dataclass(definition) else types.Anything()
    return _type(owner, definition, depth + 1) if isinstance(definition, ast.expr) else types.Anything()


def _subscript(module: _Module, node: ast.Subscript, depth: int) -> Type:
    short = ast.unparse(node.value).rpartition(".")[2]
    items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if short == "Literal":
        return types.Choice(tuple(item.value for item in items if isinstance(item, ast.Constant)))
    inner = [_type(module, item, depth + 1) for item in items]
    if short == "Optional":
        return types.union(inner[0], types.Scalar("none"))
    if short == "Union":
        return types.union(*inner)
    if short in ("Annotated", "Final"):
        return inner[0]
    if short in _SEQUENCES:
        return types.Many(inner[0])
    if short in ("tuple", "Tuple"):
        endless = isinstance(items[-1], ast.Constant) and items[-1].value is Ellipsis
        return types.Many(inner[0]) if endless else types.Fixed(tuple(inner))
    if short in _MAPPINGS:
        return types.Table(inner[0], inner[1])
    return types.Anything()
