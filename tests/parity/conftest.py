"""Print which golden systems are still pending."""

from __future__ import annotations

import pytest

from tests.parity.cases import GOLDEN_DIR, find_cases, is_pending, pending_patterns


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    patterns = pending_patterns()
    if not patterns:
        return
    count = sum(is_pending(case) for case in find_cases())
    terminalreporter.section("golden cases pending")
    terminalreporter.line(f"{', '.join(patterns)} ({count} cases in {GOLDEN_DIR.name})")
