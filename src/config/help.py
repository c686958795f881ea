"""The text of --help, from the first lines of the yaml files."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from src.config.validate import CONF, GROUPS, nested_groups

_WIDTH = 120


def first_comment(path: Path) -> str:
    """The first comment line of a yaml file that is not a directive of Hydra."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def root_keys() -> dict[str, tuple[str, str]]:
    """Key at the root of conf/config.yaml -> its default and its comment."""
    found = {}
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\w+): (.*?) # (.*)", line)
        if match:
            found[match[1]] = (match[2], match[3])
    return found


def defaults() -> dict[str, tuple[str, str]]:
    """Group -> its default option and its comment, in the order of the table of contents."""
    found = {}
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        match = re.match(r"  - (?:override |optional )?/?(\w+): (.*?)(?: # (.*))?$", line)
        if match:
            found[match[1]] = (match[2], match[3] or "")
    return found


def text() -> str:
    """Usage, tasks, groups with options, root keys and flags."""
    lines = [
        "videotext: train and evaluate text-video retrieval models on every benchmark, under one protocol.",
        "",
        "usage: python -m src.run [GROUP=OPTION ...] [KEY=VALUE ...]     e.g. model=clip4clip optimizer.lr=1e-4",
        "       python -m src.run -m KEY=A,B ...                         one run per combination, then a table",
    ]
    chosen = defaults()
    for group in [*(g for g in chosen if g in (*GROUPS, "recipe", "experiment", "hydra"))]:
        default, comment = chosen[group]
        lines += ["", f"{group} (default {default}): {comment}"]
        for path in sorted((CONF / group).glob("*.yaml")):
            lines += _entry(path.stem, first_comment(path))
        for nested in (name for name in nested_groups() if name.startswith(f"{group}/")):
            lines += ["", f"{nested.replace('/', '.')} (default: see conf/{group}): a part of some options of {group}"]
            for path in sorted((CONF / nested).glob("*.yaml")):
                lines += _entry(path.stem, first_comment(path))
    lines += ["", "keys (KEY=VALUE; every key inside a group too, as GROUP.KEY=VALUE):"]
    for key, (default, comment) in root_keys().items():
        lines += _entry(key, f"{comment} [{default}]")
    lines += ["", "flags:"]
    for flag, meaning in _FLAGS.items():
        lines += _entry(flag, meaning)
    return "\n".join(lines)


_FLAGS = {
    "--help, -h": "this text",
    "--cfg job": "print the composed configuration instead of running (add --resolve to fill in references)",
    "--info defaults-tree": "how the configuration is put together (also: plugins, searchpath, config, all)",
    "--multirun, -m": "one run per combination of comma-separated values, range(..), choice(..), glob(*)",
    "--config-dir DIR": "a folder with your own yaml files, beside conf/",
    "--hydra-help": "Hydra's remaining flags",
}


def _entry(name: str, meaning: str) -> list[str]:
    # A long name pushes the first line to the right, the others stay in their column.
    lead = f"  {name:<20}  "
    wrapped = textwrap.wrap(
        lead + meaning, _WIDTH, subsequent_indent=" " * 24, break_on_hyphens=False, drop_whitespace=True
    )
    return wrapped or [lead.rstrip()]
