"""Reports as they are written, and in a browser as they are seen."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser, open_browser
from support.harness_rows import race, row, write_run

from harness.figures import quote
from harness.figures.reading import newest, read_results, record_of
from harness.figures.report import Format, Report, formats, make
from harness.results_file import Row
from instant_env.errors import UsageError
from instant_env.settings import ROOT

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '<script>document.title="had"</script>|`*_'


def three(n: int = 10) -> list[Row]:
    marks: dict[str, Any] = {"guest_boot_ms": 3_000.0, "t3_ms": 7_000.0}
    return [
        row(one.technique, one.t4_ms, attempt=one.attempt, block=one.block, **marks)
        for one in race(n, cold=40_000, minimal_ami=20_000, custom_init=8_000)
    ]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every kind of failure, two kinds of machine, and text from outside that would be markup."""
    rows = [
        *three(),
        row("cold", None, block=11, attempt=31),
        row("minimal-ami", None, "capacity", block=11, attempt=32, error=NASTY),
        row(NASTY, 9_000.0, block=11, attempt=33),
        *(
            row(t, 9_000.0, block=1, attempt=34, arch="arm64", instance_type="m7g.large")
            for t in ("cold", NASTY)
        ),
    ]
    directory = tmp_path_factory.mktemp("nasty")
    path = write_run(directory / "20260101T000000Z-nasty.csv", rows, command_line=["invoke", NASTY])
    return make(read_results(path))


@pytest.fixture(scope="module")
def written(nasty: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    nasty.write(directory, tuple(Format))
    return directory


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Counts elements and collects ids and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.slow
def test_every_format_is_written_and_is_what_it_says(written: Path) -> None:
    kinds = ("x86-64-m7i-large", "arm64-m7g-large")
    pictures = {
        f"{kind}-{name}.{suffix}"
        for kind in kinds for name in ("waterfall", "ecdf", "attempts") for suffix in ("svg", "png")
    }  # fmt: skip
    assert {path.name for path in written.iterdir()} == {"report.html", "report.md", *pictures}
    for name in pictures:
        content = (written / name).read_bytes()
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            texts = "".join(ET.fromstring(content).itertext())  # noqa: S314 - our own
            assert "not EC2" in texts  # a picture that goes out alone says what it is of
    markdown = (written / "report.md").read_text()
    for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown):
        assert (written / name).is_file()


def test_page_is_self_contained(page: str) -> None:
    tags = Tags(page)
    outside = [
        value for name, value in tags.attributes
        if name in ("href", "src", "xlink:href", "srcset", "data") and not value.startswith(("#", "data:"))
    ]  # fmt: skip
    assert outside == []
    assert "script" not in tags.names
    assert "@import" not in page
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", page))
    assert wanted <= set(ids)
    assert wanted


def test_text_from_outside_is_text(page: str, written: Path) -> None:
    assert "&lt;script&gt;" in page
    markdown = (written / "report.md").read_text()
    assert r"\<script\>" in markdown
    assert not re.search(r"(?<!\\)<", markdown)
    for path in written.glob("*.svg"):
        names = [element.tag for element in ET.fromstring(path.read_text()).iter()]  # noqa: S314
        assert f"{SVG}script" not in names


def test_kinds_of_machines_stay_apart(nasty: Report) -> None:
    first, second = nasty.sections
    assert (str(first.kind), str(second.kind)) == ("x86_64 m7i.large", "arm64 m7g.large")
    assert [technique.n for technique in second.summary.techniques] == [1, 1]
    assert [technique.n for technique in first.summary.techniques] == [11, 11, 10, 1]
    # One attempt of something else is enough not to know which is best.
    assert first.recommendation.reasons[-1] == f"Nothing here tells custom-init from {NASTY}."


def test_report_says_what_to_hold_against_it(tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "20260101T000000Z-x.csv", three(2), status="stopped", load_at_start=[1.9, 1, 1],
        git={"revision": "a" * 40, "dirty": True},
    )  # fmt: skip
    said = " ".join(make(read_results(path)).cautions)
    assert all(words in said for words in ("stopped", "differed", "load 1.9 on 2 cores"))
    path.with_suffix(".json").unlink()
    alone = make(read_results(path))
    assert "nobody can say on which host" in alone.cautions[0]
    assert alone.provenance == []
    assert "nobody can say" in alone.html()


def test_costs_and_other_columns_of_a_later_version(tmp_path: Path) -> None:
    path = write_run(tmp_path / "20260101T000000Z-x.csv", three(3))
    head, *lines = path.read_text().splitlines()
    costs = [f"{line},0.0{n},{n * 2**20},new" for n, line in enumerate(lines, 1)]
    path.write_text("\n".join([f"{head},cost_usd,root_read_bytes,mood", *costs]) + "\n")
    (section,) = make(read_results(path)).sections
    assert section.extras is not None
    assert section.extras.headings == ("technique", "cost, USD", "root read, MiB")
    assert section.extras.rows[0] == ("cold", "0.04000 (sum 0.1200)", "4.0 (sum 12)")


def test_an_experiment_with_warm_up_and_pools(tmp_path: Path) -> None:
    rows = [
        row("warm-stopped", 9_000.0 + limit + block, block=block, variant=f"hop_limit={limit}")
        for block in range(8) for limit in (1, 2)
    ]  # fmt: skip
    pools = {"warm-stopped": {"places": 16, "machines": 16, "seconds": 300.5}}
    found = make(read_results(write_run(tmp_path / "20260101T000000Z-x.csv", rows, pools=pools)))
    (section,) = found.sections
    assert [technique.n for technique in section.summary.techniques] == [7, 7]  # block 0 warmed up
    assert "2 attempts that warmed up" in found.html()
    assert "16 machines, 300.5 s" in found.markdown()
    assert section.recommendation.technique is None
    assert section.recommendation.reasons[1].startswith(
        "warm-stopped [hop_limit=2] against warm-stopped [hop_limit=1]: t2→t4 +0.00 [+0.00, +0.00] s"
    )


def test_an_older_version_without_most_columns(tmp_path: Path) -> None:
    path = tmp_path / "20200101T000000Z-old.csv"
    path.write_text(
        "technique,block,outcome,timeout_s,cloud,accelerator,arch,instance_type,t4_ms\n"
        "cold,1,ok,600,local,tcg,x86_64,m7i.large,40000\n"
        "custom-init,1,timeout,600,local,tcg,x86_64,m7i.large,\n"
    )
    found = make(read_results(path))
    found.write(tmp_path / "out", tuple(Format))
    assert "40.00" in found.html()


def test_nothing_logged_in_at_all(tmp_path: Path) -> None:
    rows = [row(technique, None, "capacity", t1_ms=None, t2_ms=None) for technique in ("cold", "custom-init")]
    found = make(read_results(write_run(tmp_path / "20260101T000000Z-x.csv", rows)))
    assert len(found.write(tmp_path / "out", tuple(Format))) == 2  # no pictures of nothing
    assert "2 of 2" not in found.html()
    assert "cold: 1 of 1 failed (1 capacity)" in found.html()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no column technique"),
        ("", "no column technique"),
        ("technique,block,outcome,timeout_s,cloud,accelerator,arch,instance_type\n", "no attempts"),
        ("technique,block,outcome,timeout_s,cloud,accelerator,arch,instance_type\ncold,1", "line 2"),
        (
            "technique,block,outcome,timeout_s,cloud,accelerator,arch,instance_type\nc,x,ok,1,l,t,x,m",
            "line 2",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_results(path)


def test_newest_and_formats(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results") as caught:
        newest(tmp_path)
    assert "invoke bench" in caught.value.hint
    for name in ("20260101T000000Z-b.csv", "20260102T000000Z-a.csv"):
        write_run(tmp_path / name, three(1))
    assert newest(tmp_path).name == "20260102T000000Z-a.csv"
    assert formats("html, md,html") == (Format.HTML, Format.MARKDOWN)
    with pytest.raises(UsageError, match="pdf"):
        formats("pdf")
    with pytest.raises(UsageError, match="no format"):
        formats(",")


def test_rows_of_a_run_and_of_its_csv_are_the_same_records(tmp_path: Path) -> None:
    rows = three(2)
    again = read_results(write_run(tmp_path / "20260101T000000Z-x.csv", rows)).records
    assert [record.numbers for record in again] == [record_of(one).numbers for one in rows]


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS = [path for path in PAGES if "<!-- report:" in path.read_text()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_figures_in_documents_are_those_of_their_csv(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert quote.filled(text) == text, f"run: invoke report --fill {path.relative_to(ROOT)}"


def test_findings_quote_a_run() -> None:
    findings = ROOT / "docs" / "findings.md"
    assert {findings, ROOT / "README.md"} <= set(DOCUMENTS)
    named = re.findall(r"--experiment (\S+)", findings.read_text(encoding="utf-8"))
    assert len(set(named)) == 6  # one for each open question, and those that compare all techniques
    assert all((ROOT / name).is_file() for name in named)


def test_filling_a_document(tmp_path: Path) -> None:
    write_run(tmp_path / "20260101T000000Z-x.csv", three())
    document = tmp_path / "doc.md"
    place = "before\n<!-- report: 20260101T000000Z-x.csv {} -->\nstale\n<!-- end of report -->\nafter\n"
    document.write_text(place.format("figures"))
    assert quote.fill(document, tmp_path)
    text = document.read_text()
    assert "| custom-init | 10/10 | t4 |" in text
    assert "stale" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert not quote.fill(document, tmp_path)
    for bad in (place.format("nonsense"), "<!-- report: x.csv figures -->\n", "plain\n"):
        document.write_text(bad)
        with pytest.raises(UsageError):
            quote.fill(document, tmp_path)
        assert document.read_text() == bad


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


#: What a person would stumble over, asked of the page as it was laid out.
LAYOUT = """
const visible = [...document.querySelectorAll('figure > div')].filter(e => e.offsetParent);
const sizes = visible.flatMap(div => [...div.querySelectorAll('svg text')].map(t => {
  const scale = t.ownerSVGElement.getScreenCTM().a;
  return parseFloat(getComputedStyle(t).fontSize) * scale;
}));
const clipped = visible.flatMap(div => [...div.querySelectorAll('svg text')].filter(t => {
  const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
  return box.left < frame.left - 2 || box.right > frame.right + 2;
}).map(t => t.textContent));
return {
  overflow: document.documentElement.scrollWidth - innerWidth,
  figures: visible.map(e => e.className),
  labels: visible.every(e => e.getAttribute('aria-label').length > 40),
  smallest: Math.min(...sizes),
  clipped,
  ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
  axis: getComputedStyle(visible[0].querySelector('svg text')).fill,
  requests: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
  title: document.title,
  cells: [...document.querySelectorAll('td')].every(e => e.dataset.heading),
};
"""


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "figure"), [(320, "narrow"), (390, "narrow"), (1280, "wide")])
def test_page_as_it_is_seen(window: Browser, written: Path, width: int, figure: str, dark: bool) -> None:
    window.look(written / "report.html", width, dark=dark)
    seen: dict[str, Any] = window.run(LAYOUT)
    assert seen["overflow"] <= 0
    assert seen["figures"] == [figure] * 6
    assert seen["labels"]
    assert seen["smallest"] >= (8 if width == 320 else 10)  # CSS pixels
    assert seen["clipped"] == []
    assert seen["requests"] == []
    assert seen["title"] == "instant-env: 20260101T000000Z-nasty"
    assert seen["cells"]
    lights = sorted((luminance(seen["ink"]), luminance(seen["paper"])))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 7  # WCAG's AAA
    assert (luminance(seen["paper"]) < 0.1) == dark
    assert seen["axis"] == seen["ink"]
    assert window.console() == []


@pytest.mark.parametrize(
    "sample", sorted((ROOT / "results" / "samples").glob("*.csv")), ids=lambda path: path.stem
)
def test_figures_are_not_cut_off(window: Browser, sample: Path, tmp_path: Path) -> None:
    """At 1280 pixels, a laptop's width, every column of the tables of figures is there without scrolling."""
    make(read_results(sample)).write(tmp_path, (Format.HTML,))
    window.look(tmp_path / "report.html", 1280)
    wide = """return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)
        .map(e => e.getAttribute('aria-label'));"""
    assert window.run(wide) == []


def test_metadata_that_are_no_metadata(tmp_path: Path) -> None:
    path = write_run(tmp_path / "20260101T000000Z-x.csv", three(1))
    for text in ("{", "[1]"):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(UsageError, match="json"):
            read_results(path)
    path.with_suffix(".json").write_text(json.dumps({"host": 1, "git": [], "techniques": {"cold": 3}}))
    make(read_results(path)).html()
