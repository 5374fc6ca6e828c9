"""The HTML report: one file, well-formed, accessible, and working in a browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.show.chapter import HtmlTable, Markup, prose, tag
from cbsim.show.report_file import make_report, sweep_chapter, write_report
from cbsim.show.served_line import served_points, served_run, served_trials
from cbsim.show.text import Table
from cbsim.studies.capacity import Plan, capacity
from cbsim.studies.capacity.answer import save_capacity

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH = 600
"""Of the browser's window: tables that are wider scroll by themselves, the page does not."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=5000"),
    f"--window-size={WIDTH},900",
)
CONFIG: dict[str, Any] = {
    "name": "chat",
    "workload": {
        "type": "synthetic",
        "num_requests": 80,
        "arrivals": {"type": "poisson", "rate_per_s": 2.0},
        "prompt_tokens": {"type": "uniform", "min": 20, "max": 400},
        "output_tokens": {"type": "uniform", "min": 2, "max": 20},
    },
    "scheduler": {"type": "vllm", "max_tokens_per_step": 512},
    "cost_model": {"type": "constant", "step_s": 0.05},
    "slo": {"ttft_s": 0.3},
}
VOID = {"meta", "input", "br", "wbr", "use", "path"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("report")
    axes = {
        "scheduler.max_num_seqs": [1, 2, 4, 8],
        "scheduler.max_tokens_per_step": [256, 512],
        "replicates": 2,
    }
    cbsim.sweep(CONFIG | {"sweep": axes}, out=base / "sweep")
    cbsim.run(CONFIG, out=base / "one")
    cbsim.run(CONFIG | {"seed": 0, "scheduler": {"type": "static", "max_num_seqs": 4}}, out=base / "two")
    save_capacity(capacity(CONFIG, Plan(share=0.9, num_replicates=2, tolerance=0.3)), base / "capacity")
    return {name: base / name for name in ("sweep", "one", "two", "capacity")}


@pytest.fixture(scope="module")
def page(folders: dict[str, Path]) -> str:
    return make_report(list(folders.values()), title="All & everything")


class Reader(HTMLParser):
    """Collects elements with their attributes, and complains of tags that don't match."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def attributes(read: Reader, name: str) -> list[dict[str, str | None]]:
    return [attrs for element, attrs in read.elements if element == name]


def test_a_sweep_of_seeds_that_change_nothing_is_drawn_once_a_point(tmp_path: Path) -> None:
    workload = CONFIG["workload"] | {"arrivals": {"type": "all_at_once"}, "num_requests": 5}
    fixed = {name: {"type": "fixed", "value": 20} for name in ("prompt_tokens", "output_tokens")}
    for axes in ({"seed": [0, 1]}, {"seed": [0, 1], "scheduler.max_num_seqs": [2, 4]}):
        cbsim.sweep(CONFIG | {"workload": workload | fixed, "sweep": axes}, out=tmp_path / str(len(axes)))
        pictures = sweep_chapter(tmp_path / str(len(axes))).pictures
        assert "Latency distributions" in [picture.title for picture in pictures]


def test_tags_match_and_ids_are_unique_and_referred_to(read: Reader) -> None:
    assert read.open == []
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in read.elements:
        for key in ("aria-labelledby", "data-filters"):
            assert set((attrs.get(key) or "").split()) <= set(ids)
        for key in ("href", "xlink:href"):
            if key in attrs:
                assert (attrs[key] or "").removeprefix("#") in ids


def test_nothing_is_fetched(page: str, read: Reader) -> None:
    named = set(re.findall(r"https?://[^\s\"'<)]+", page))
    kept = {url for url in named if not url.startswith(("http://www.w3.org/", "https://huggingface.co/"))}
    assert kept == set()
    assert not any("src" in attrs or name in ("link", "img", "iframe") for name, attrs in read.elements)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_a_screen_reader_finds_its_way(read: Reader) -> None:
    assert attributes(read, "html") == [{"lang": "en"}]
    levels = [int(name[1]) for name, _ in read.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {name for name, _ in read.elements} >= {"header", "main", "nav", "footer"}
    num_tables = len(attributes(read, "table"))
    assert len(attributes(read, "caption")) == num_tables >= 4
    assert all(attrs["scope"] in ("col", "row") for attrs in attributes(read, "th"))
    pictures = attributes(read, "svg")
    assert pictures
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    assert sum(name == "desc" for name, _ in read.elements) == len(pictures)


def test_question_answer_warnings_and_provenance_are_there(read: Reader) -> None:
    text = " ".join(" ".join(read.texts).split())
    assert "Which scheduler.max_num_seqs and scheduler.max_tokens_per_step" in text
    assert re.search(
        r" the highest goodput, [\d.]+ \([\d.]+ to [\d.]+\) requests/s within TTFT ≤ 300 ms", text
    )
    assert re.search(
        r"Met up to [\d.]+ \([\d.]+ to [\d.]+\) requests/s by chat: TTFT ≤ 300 ms for 90% of requests", text
    )
    answers = re.findall(r"et by (?:one|two) : (.*?) Goodput is [\d.]+ of the [\d.]+ requests/s that", text)
    assert [len(re.findall(r"% of [\d ]*requests (?:are )?within", each)) for each in answers] == [1, 1]
    assert re.search(r"By 80 requests, the share within TTFT ≤ 300 ms is [\d.]+ to [\d.]+ %", answers[1])
    assert (
        text.count(
            "llama-3-8b on h200, vllm scheduler: 80 requests of the synthetic workload (poisson arrivals)"
        )
        == 3
    )
    assert "padding of static batches" in text
    assert "Differences, paired by request" in text
    assert f"cbsim {cbsim.__version__}" in text
    assert "sha256" in text


def test_a_page_of_one_chapter_has_its_title_once_and_is_the_same_each_time(
    folders: dict[str, Path], page: str, tmp_path: Path
) -> None:
    write_report([folders["sweep"]], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    alone, among_others = (
        each.partition('class="served"')[2].partition("</section>")[0] for each in (text, page)
    )
    assert alone == among_others
    assert re.findall(r"<h1>(.*?)</h1>", text) == re.findall(r"<title>(.*?)</title>", text)[:1]
    assert ">Answer</h2>" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "r.html"]


def test_folders_without_anything_are_all_told(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CbsimError) as caught:
        make_report([tmp_path, folders["one"], tmp_path / "gone"])
    assert caught.value.problems == (
        f"{tmp_path}: no run, sweep, capacity or tune was written there",
        f"{tmp_path / 'gone'}: no run, sweep, capacity or tune was written there",
    )


def test_the_command_writes_beside_the_only_folder(folders: dict[str, Path]) -> None:
    ran = CliRunner().invoke(main, ["report", str(folders["one"])])
    assert (ran.exit_code, ran.stdout) == (0, f"written to {folders['one'] / 'report.html'}\n")
    assert cbsim.load_run(folders["one"]).summary["num_requests"] == 80


def test_texts_are_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & 'c'", tag("b", "d")) == "<p>a &lt; b &amp; 'c'<b>d</b></p>"
    assert tag("input", type="search", data_filters='"x"', hidden=False, required=True) == (
        '<input type="search" data-filters="&quot;x&quot;" required>'
    )
    assert prose("set `a<b` to 1") == "set <code>a&lt;b</code> to 1"
    assert isinstance(prose(""), Markup)


def test_cells_without_a_value_carry_none() -> None:
    shown = HtmlTable("t", Table(("x", "y"), (("a", "-"), ("b", "1.0*")))).render("k")
    assert shown.count("data-value") == 1
    assert (
        '<td data-value="1.0" class="best number"><strong>1.0<span class="unseen"> (best)</span></strong>'
        in shown
    )


# What a reader does: sort by the third column, twice, then filter by one word and by two.
DRIVER = """
<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
const told = {};
const table = document.querySelector("#chapter-1-table-0");
const column = (number) => [...table.tBodies[0].rows].map((row) => row.cells[number].textContent);
const button = table.tHead.rows[0].cells[3].querySelector("button");
button.click();
told.rising = column(3);
told.sortRising = table.tHead.rows[0].cells[3].getAttribute("aria-sort");
button.click();
told.falling = column(3);
told.sortFalling = table.tHead.rows[0].cells[3].getAttribute("aria-sort");
const input = document.querySelector('input[data-filters="chapter-1-table-0"]');
input.value = "512";
input.dispatchEvent(new Event("input"));
told.shown = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[1].textContent);
told.count = document.getElementById("chapter-1-table-0-count").textContent;
input.value = "512 nowhere";
input.dispatchEvent(new Event("input"));
told.countOfNone = document.getElementById("chapter-1-table-0-count").textContent;
told.first = getComputedStyle(table.tBodies[0].rows[0].cells[0]).position;
told.width = document.scrollingElement.scrollWidth;
told.errors = errors;
document.body.dataset.told = JSON.stringify(told);
</script>
</body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_sorts_and_filters_in_a_browser(page: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    (tmp_path / "page.html").write_text(page.replace("</body>", DRIVER), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, profile, "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<body data-told="([^"]*)"', ran.stdout)
    assert found is not None
    told = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    assert told["errors"] == []
    assert told["width"] <= WIDTH
    assert told["first"] == "sticky"
    values = [float(text.split(" ")[0]) for text in told["rising"]]
    assert len(values) == 8
    assert values == sorted(values)
    assert (told["sortRising"], told["sortFalling"]) == ("ascending", "descending")
    assert [float(text.split(" ")[0]) for text in told["falling"]] == sorted(values, reverse=True)
    assert told["shown"] == ["512"] * 4
    assert (told["count"], told["countOfNone"]) == ("4 of 8 rows", "0 of 8 rows")


def test_model_gpus_and_traffic_are_the_first_line(page: str) -> None:
    for chapter in page.split("<h2")[1:]:
        assert chapter.partition("</h2>")[2].startswith('<p class="served">llama-3-8b on h200, ')
    assert page.count("<h2") == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {},
            "llama-3-8b on h200, vllm scheduler: 80 requests of the synthetic workload (poisson arrivals) ",
        ),
        ({"replicas": {"count": 2}, "parallel": {"tensor": 2}}, "llama-3-8b on 4 x h200, vllm scheduler: "),
        (
            {"workload": {"type": "trace", "path": "azure-like.csv", "limit": 50, "rate_per_s": 6.0}},
            "llama-3-8b on h200, vllm scheduler: 50 requests of azure-like.csv at 6.00 requests/s",
        ),
        ({"workload": CONFIG["workload"] | {"concurrency": 8}}, "by 8 clients in a closed loop"),
    ],
)
def test_what_was_served_in_a_line(change: dict[str, Any], told: str) -> None:
    assert told in served_run(cbsim.run(CONFIG | change))


def test_pools_are_counted_where_none_is_swept() -> None:
    pools = [{"name": "a", "count": 2}, {"name": "b", "gpu": {"name": "h100"}, "parallel": {"tensor": 4}}]
    config = {"model": {"name": "m"}, "gpu": {"name": "h200"}, "parallel": {}, "cluster": {"pools": pools}}
    assert served_trials(config, {"seed": [1, 2]}).startswith("m on 2 x h200 (a) and 4 x h100 (b): ")
    assert served_trials(config, {"cluster.pools.a.count": [1]}).startswith(
        "m on h200 and h100 in swept pools"
    )


def test_what_is_swept_is_named_with_its_values() -> None:
    swept = {"gpu": ["h100", "a100-80g"], "replicas.count": [1, 2]}
    told = served_points(cbsim.run(CONFIG), swept)
    assert told.startswith("llama-3-8b on h100 and a100-80g in swept numbers, vllm scheduler: 80 requests")
