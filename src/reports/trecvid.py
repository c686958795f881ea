"""The files of a TRECVID ad-hoc search: scores (.txt), submission (.xml), run (.treceval) and its evaluation.

A run is topic -> (shot, score), best first, in the order of the query file.

Source: file formats of danieljf24/hybrid_space@b934eff (tv-avs-eval) and NIST's sample_eval.pl, equal byte by byte.
Deviates: a topic may have fewer than 1000 results (small collections), as TRECVID's own rules allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from src.errors import UserError
from src.metrics.infap import CUTOFFS, MAX_RESULTS, SearchResult

Results = dict[str, list[tuple[str, float]]]
FIRST_SCORE = 9999  # of a .treceval file, whose scores only say the order
DTD = "https://www-nlpir.nist.gov/projects/tv2018/dtds/videoAdhocSearchResults.dtd"


@dataclass(frozen=True)
class Submission:
    """What a submission says of itself; the defaults are those of Dual Encoding's authors.

    Attributes:
        train_type: which training data: A only IACC, D other data, E, F: collected automatically.
        run_class: F fully automatic, M manually assisted, R with relevance feedback.
        team: participant id; also the last column of the .treceval file.
        priority: 1 is the team's main run.
        description: one sentence.
        elapsed_s: seconds that a search takes.
        depth: shots of each topic in the score file, which other systems may combine; None = all. The submission and
            the evaluation take at most 1000.
    """

    train_type: str = "D"
    run_class: str = "F"
    team: str = "RUCMM"
    priority: int = 1
    description: str = "This run uses the top secret x-component"
    elapsed_s: float = 1.0
    depth: int | None = None


def write_run(path: Path, topics: Iterable[tuple[str, Sequence[tuple[str, str]]]], about: Submission) -> Results:
    """Write PATH, PATH.xml and PATH.treceval in one pass.

    Args:
        path: usually `id.sent.score.txt`.
        topics: (topic, its (shot, written score), best first); the scores of all shots may be many, so one topic is
            held at a time.
        about: the submission.

    Returns:
        The first 1000 of each topic as `sample_eval` sees them: scores are replaced by 9999, 9998, ….
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    best: dict[str, list[str]] = {}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for topic, results in topics:
            file.write(" ".join([topic, *(f"{shot} {score}" for shot, score in results)]) + "\n")
            best[topic] = [shot for shot, _ in results[:MAX_RESULTS]]
    with Path(f"{path}.xml").open("w", encoding="utf-8", newline="\n") as file:
        write_xml(file, best, about)
    with Path(f"{path}.treceval").open("w", encoding="utf-8", newline="\n") as file:
        write_treceval(file, best, about.team)
    return {topic: _ranked(shots) for topic, shots in best.items()}


def write_xml(file: TextIO, best: Mapping[str, Sequence[str]], about: Submission) -> None:
    """The submission; `best` is topic -> at most 1000 shots."""
    lines = [f'<!DOCTYPE videoAdhocSearchResults SYSTEM "{DTD}">', "", "<videoAdhocSearchResults>"]
    lines.append(
        f"<videoAdhocSearchRunResult trType={_quoted(about.train_type)} class={_quoted(about.run_class)} "
        f'pid={_quoted(about.team)} priority="{about.priority}" desc={_quoted(about.description)}>'
    )
    for topic, shots in best.items():
        lines.append(f'<videoAdhocSearchTopicResult tNum={_quoted(topic)} elapsedTime="{about.elapsed_s:g}">')
        lines += [f'<item seqNum="{rank}" shotId={_quoted(shot)} />' for rank, shot in enumerate(shots, start=1)]
        lines += ["</videoAdhocSearchTopicResult>", ""]
    file.write("\n".join([*lines, "", "</videoAdhocSearchRunResult>", "</videoAdhocSearchResults>"]))


def write_treceval(file: TextIO, best: Mapping[str, Sequence[str]], team: str) -> None:
    """The run as `sample_eval` reads it: topic 561 is called 1561, as in the judgements."""
    for topic, shots in best.items():
        for place, (shot, score) in enumerate(_ranked(shots), start=1):
            file.write(f"1{topic} 0 {shot} {place} {score:.0f} {team}\n")


def perf_text(result: SearchResult, prefix: str = "") -> str:
    """The evaluation as the official script prints it with -q; `prefix` is "1" where the topics are those of a query
    file, since a .treceval file and judgements put it before their numbers.
    """
    lines: list[str] = []
    for name, row in [*((prefix + topic, row) for topic, row in result.topics.items()), ("all", result.all)]:
        cutoffs = [f"iP{k}" for k in (*CUTOFFS, CUTOFFS[-1])]  # the script prints the last one twice
        curve = [key for key in row if key.startswith("iprec")]
        lines += [f"{key}\t{name}\t\t{row[key]:6.4f}" if key in curve else f"{key}\t\t{name}\t\t{row[key]:6.4f}"
                  for key in ("infAP", "infNDCG", *curve, *cutoffs)]  # fmt: skip
        lines += [f"{key}\t{name}\t{row[key]:14.4f}" for key in ("inum_rel_ret", "inum_rel")]
        lines.append(f"num_ret\t\t{name}\t{int(row['num_ret']):9d}")
    return "\n".join(lines) + "\n"


def read_run(path: Path) -> Results:
    """Read a score, .xml or .treceval file; which one, its first line says.

    Scores of a score file give way to 9999, 9998, … of the first 1000 shots, in the order of the file, as in the
    authors' chain; a .treceval file keeps all its lines and scores.

    Raises:
        UserError: the file cannot be read, is of none of these formats, or is not sorted.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            first = next(lines, None)
            if first is None:
                raise UserError(f"{path} is empty, expected a run file (scores, .xml or .treceval)")
            if first[1].lstrip().startswith("<"):
                return _read_xml(path)
            # A line of scores is a topic and pairs: an odd number of fields.
            read = _read_scores if len(first[1].split()) % 2 else _read_treceval
            return read(path, chain([first], lines))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}), expected a run file (scores, .xml or .treceval)") from error


def with_names_of(results: Results, topics: Iterable[str]) -> Results:
    """The run with its topics named as in the judgements, which call topic 561 of a query file 1561, or 561.

    Args:
        results: the run.
        topics: of the judgements.
    """
    known = set(topics)
    names: list[dict[str, str]] = [
        {topic: topic for topic in results},
        {topic: f"1{topic}" for topic in results},
        {topic: topic.removeprefix("1") for topic in results},
    ]
    best = max(names, key=lambda renamed: len(known.intersection(renamed.values())))
    return {best[topic]: shots for topic, shots in results.items()}


def _read_scores(path: Path, lines: Iterable[tuple[int, str]]) -> Results:
    results: Results = {}
    for number, line in lines:
        topic, *pairs = line.split()
        shots, scores = pairs[::2], [_number(score, path, number) for score in pairs[1::2]]
        if len(shots) != len(scores) or topic in results:
            what = "occurs twice" if topic in results else "has a shot without score"
            raise UserError(
                f"{path}, line {number}: topic {topic} {what}, "
                "expected one line '<topic> <shot> <score> <shot> <score> …' per topic"
            )
        if any(later > earlier + 1e-8 for earlier, later in pairwise(scores)):
            raise UserError(f"{path}, line {number}: the shots of topic {topic} are not sorted; put the best first")
        results[topic] = _ranked(shots[:MAX_RESULTS])
    return results


def _read_treceval(path: Path, lines: Iterable[tuple[int, str]]) -> Results:
    results: Results = {}
    for number, line in lines:
        fields = line.split()
        if len(fields) != 6:
            raise UserError(
                f"{path}, line {number}: found {line.strip()[:60]!r}, "
                "expected '<topic> 0 <shot> <rank> <score> <team>', or '<topic> <shot> <score> <shot> <score> …'"
            )
        results.setdefault(fields[0], []).append((fields[2], _number(fields[4], path, number)))
    return results


def _read_xml(path: Path) -> Results:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not XML ({error}), expected videoAdhocSearchResults") from error
    results: Results = {}
    for topic in root.iter("videoAdhocSearchTopicResult"):
        items = sorted(topic.iter("item"), key=lambda item: int(item.get("seqNum", 0)))
        results[topic.get("tNum", "")] = _ranked([item.get("shotId", "") for item in items])
    if not results:
        raise UserError(f"{path} holds no videoAdhocSearchTopicResult, expected a TRECVID ad-hoc search submission")
    return results


def _ranked(shots: Sequence[str]) -> list[tuple[str, float]]:
    return [(shot, float(FIRST_SCORE - place)) for place, shot in enumerate(islice(shots, MAX_RESULTS))]


def _number(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(f"{path}, line {number}: found {text[:20]!r}, expected a score")
    return value


def _quoted(text: str) -> str:
    return quoteattr(text, {'"': "&quot;"})
