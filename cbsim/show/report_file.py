"""The report: runs, sweeps and capacities as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.results.output import REPORT_MARK, check_report_target, holds
from cbsim.results.result import load_run
from cbsim.show.chapter import Chapter, Markup, joined, tag
from cbsim.show.reader_tables import run_labels
from cbsim.show.report_chapters import capacity_chapter, run_chapter, sweep_chapter
from cbsim.studies.capacity.answer import load_capacity


def write_report(folders: Sequence[Path], path: Path, title: str | None = None) -> None:
    """Write the report on some folders, whole or not at all.

    Each sweep and each capacity has a chapter of its own; all runs share one. Raises `CbsimError` with a line
    for each folder that holds none of them, or if the file can't be written or is another than a report.
    """
    check_report_target(path)
    write_text(path, make_report(folders, title))


def make_report(folders: Sequence[Path], title: str | None = None) -> str:
    """The text of the report, without a title under its first chapter's; equal folders give equal texts."""
    problems = [
        f"{folder}: no run, sweep or capacity was written there"
        for folder in folders
        if not any(holds(folder, kind) for kind in ("run", "sweep", "capacity"))
    ]
    if problems:
        raise CbsimError(*problems)
    chapters = _chapters(folders)
    heading = title or chapters[0].title
    # A page of one chapter has its title already.
    own = "Answer" if len(chapters) == 1 and heading == chapters[0].title else None
    sections = {f"chapter-{number}": chapter for number, chapter in enumerate(chapters, 1)}
    links = (tag("li", tag("a", each.title, href=f"#{key}")) for key, each in sections.items())
    contents = tag("nav", tag("ul", *links), aria_label="Chapters")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(REPORT_MARK),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", heading),
        tag("style", _own_file("page.css")),
    )
    body = tag(
        "body",
        tag("header", tag("h1", heading), contents if len(chapters) > 1 else None),
        tag("main", *(each.render(key, own) for key, each in sections.items())),
        tag("footer", "Written by cbsim. Columns sort by a click on their names."),
        tag("script", _own_file("page.js")),
    )
    return joined([Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"])


def _chapters(folders: Sequence[Path]) -> list[Chapter]:
    chapters: list[Chapter] = []
    runs: list[Path] = []
    for folder in folders:
        if holds(folder, "capacity"):
            chapters.append(capacity_chapter(load_capacity(folder)))
        elif holds(folder, "sweep"):
            chapters.append(sweep_chapter(folder))
        else:
            runs.append(folder)
    if runs:
        results = dict(zip(run_labels(runs), map(load_run, runs), strict=True))
        title = next(iter(results.values())).name if len(results) == 1 else f"{len(results)} runs"
        chapters.append(run_chapter(results, title))
    return chapters


def _own_file(name: str) -> Markup:
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))
