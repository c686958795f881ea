"""Every golden case against our implementation; a case without a checker fails."""

from __future__ import annotations

import pytest

from tests.parity.cases import GOLDEN_DIR, Case, find_cases, orphans
from tests.parity.checkers import checkers_of

CASES = find_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_golden(case: Case) -> None:
    checkers = checkers_of(case)
    if not checkers:
        pytest.fail(f"no checker for {case.id}", pytrace=False)
    for check in checkers:
        check(case)


def test_there_are_cases() -> None:
    assert CASES, f"no golden case in {GOLDEN_DIR}"


def test_every_tensor_file_belongs_to_a_case() -> None:
    assert orphans() == []


def test_case_without_checker_is_named(tmp_path) -> None:
    (tmp_path / "clip2video").mkdir()
    (tmp_path / "clip2video" / "brand_new.json").write_text("{}")
    (case,) = find_cases(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="no checker for clip2video/brand_new"):
        test_golden(case)


def test_folder_cases_are_found(tmp_path) -> None:
    folder = tmp_path / "dual_encoding" / "infap"
    folder.mkdir(parents=True)
    (folder / "infap.json").write_text("{}")
    (folder / "other.json").write_text("{}")
    assert [case.id for case in find_cases(tmp_path)] == ["dual_encoding/infap"]
