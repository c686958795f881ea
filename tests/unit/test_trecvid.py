"""TRECVID run files: what is written reads back, and what cannot be read is said."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.annotation import Judgement
from src.errors import UserError
from src.metrics.infap import evaluate_run
from src.reports.trecvid import Submission, perf_text, read_run, with_names_of, write_run

TOPICS = [("561", [("shot2", "0.5"), ("shot1", "0.25")]), ("562", [("shot1", "1e-07")])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "id.sent.score.txt"


def test_the_three_files(path: Path) -> None:
    about = Submission("A", "M", "ME", 2, 'say "<this>" & that', 0.25)
    run = write_run(path, TOPICS, about)
    assert run == {"561": [("shot2", 9999.0), ("shot1", 9998.0)], "562": [("shot1", 9999.0)]}
    assert path.read_bytes() == b"561 shot2 0.5 shot1 0.25\n562 shot1 1e-07\n"
    assert Path(f"{path}.treceval").read_text() == (
        "1561 0 shot2 1 9999 ME\n1561 0 shot1 2 9998 ME\n1562 0 shot1 1 9999 ME\n"
    )
    root = ElementTree.parse(f"{path}.xml").getroot()
    assert root[0].attrib == {
        "trType": "A", "class": "M", "pid": "ME", "priority": "2", "desc": 'say "<this>" & that',
    }  # fmt: skip
    assert [topic.attrib for topic in root[0]] == [
        {"tNum": "561", "elapsedTime": "0.25"},
        {"tNum": "562", "elapsedTime": "0.25"},
    ]
    assert [item.attrib for item in root[0][0]] == [
        {"seqNum": "1", "shotId": "shot2"},
        {"seqNum": "2", "shotId": "shot1"},
    ]


def test_the_submission_takes_the_first_thousand(path: Path) -> None:
    run = write_run(path, [("1", [(f"s{n}", str(1 - n / 2000)) for n in range(1001)])], Submission())
    assert run["1"][-1] == ("s999", 9000.0)
    assert len(path.read_text().split()) == 1 + 2 * 1001
    assert Path(f"{path}.treceval").read_text().count("\n") == 1000
    assert "s1000" not in Path(f"{path}.xml").read_text()
    assert read_run(path) == run


SHOTS = st.lists(st.from_regex(r"shot[0-9]{1,4}_[0-9]{1,3}", fullmatch=True), min_size=1, max_size=8, unique=True)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(500, 599).map(str), SHOTS, min_size=1, max_size=4))
def test_every_file_reads_back_as_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, topics: dict[str, list[str]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "id.sent.score.txt"
    written = [(topic, [(shot, str(-n)) for n, shot in enumerate(shots)]) for topic, shots in topics.items()]
    run = write_run(path, written, Submission())
    assert read_run(path) == read_run(Path(f"{path}.xml")) == run
    assert with_names_of(read_run(Path(f"{path}.treceval")), topics) == run


def test_topics_take_the_names_of_the_judgements() -> None:
    run = {"561": [("a", 1.0)], "562": [("b", 1.0)]}
    assert list(with_names_of(run, ["1561", "1562"])) == ["1561", "1562"]
    assert list(with_names_of(run, ["561", "1562"])) == ["561", "562"]
    assert list(with_names_of({"1561": []}, ["561"])) == ["561"]
    # 161 and 61 are two topics, whatever the judgements have.
    assert list(with_names_of({"161": [], "61": []}, ["61"])) == ["161", "61"]


def test_layout_of_the_official_evaluation() -> None:
    result = evaluate_run({"561": [("a", 1.0)]}, [Judgement("561", "a", 1, 1)])
    lines = perf_text(result, prefix="1").splitlines()
    assert lines[0] == "infAP\t\t1561\t\t1.0000"
    assert lines[4:9] == [
        "iP1000\t\t1561\t\t0.0010",
        "iP1000\t\t1561\t\t0.0010",
        "inum_rel_ret\t1561\t        1.0000",
        "inum_rel\t1561\t        1.0000",
        "num_ret\t\t1561\t        1",
    ]
    assert "iprec@rec0.10\tall\t\t1.0000" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 a 0.5 b\n", "expected '<topic> 0 <shot> <rank> <score> <team>'"),
        ("1 a 0.5\n1 b 0.5\n", "line 2: topic 1 occurs twice"),
        ("1 a 0.5\n2 b\n", "line 2: topic 2 has a shot without score"),
        ("1 a 0.5 b 0.6\n", "not sorted"),
        ("1 a nan\n", "found 'nan', expected a score"),
        ("1 0 a 1 high T\n", "found 'high', expected a score"),
        ("1 0 a 1 9 T\n\n1 0 b 2 8\n", "line 3: found '1 0 b 2 8'"),
        ("<oops", "is not XML"),
        ("<oops/>", "holds no videoAdhocSearchTopicResult"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_run(tmp_path / "run")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_run(tmp_path / "absent")
