"""The report: all that was measured is on it, and nothing else; it needs nothing but itself."""

import re
from xml.etree import ElementTree

import pytest

from pard2.bench.entries import entries, read_files
from pard2.bench.page import report_page
from pard2.bench.plots import draw
from pard2.errors import Pard2Error
from result_files import changed, suite, write_results

EVERYTHING = {"sizes": (1, 2), "ks": (2, 4), "heats": (0.0, 1.0), "trees": (0, 32)}
PICTURES = {
    "speed": "Speed-up and acceptance length",
    "positions": "Acceptance by position",
    "lengths": "Acceptance length against K",
    "times": "Where the time of a cycle goes",
    "throughput": "Throughput against latency",
}
LISTS = ["The same text", "All figures", "How it was measured"]
SVG = "{http://www.w3.org/2000/svg}"


def page(*paths):
    return report_page(read_files(paths))


def titles(html):
    return re.findall("<h2>(.*?)</h2>", html)


def pictures(*paths):
    return {one.title: one.panels for one in draw(entries(read_files(paths)))}


def bars(axes):
    """Lengths of the bars, from the top one down."""
    return [bar.get_width() for container in axes.containers for bar in container]


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if not line.get_label().startswith("_")}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return write_results(
        tmp_path_factory.mktemp("results") / "all.json", methods={"td": ["pard2-td"], "eagle": ["eagle3"], None: ["ngram"]}, under=EVERYTHING
    )


@pytest.fixture(scope="module")
def html(everything):
    return page(everything)


def test_a_configuration_is_missing(html):
    for name in ("PARD-2 TD of td", "EAGLE-3 of eagle"):
        for shape in ("", ", tree 32"):
            for k in (", K 2", ", K 4"):
                assert html.count(f"{name}{shape}{k}</text>") == 2 * 2 * 2 + 2 * 2  # panels of suite, batch size and temperature; of times
                assert html.count(f"<td>{name}{shape}{k}</td>") == 2 * 2 + 2 * 2 * 2  # equality; all figures
    assert titles(html) == [*PICTURES.values(), *LISTS]


def test_page_or_pictures_are_no_xml(html):
    """Of HTML that is well-formed XML, no browser has to guess anything; no part has the id of another."""
    root = ElementTree.fromstring(html)
    svgs = list(root.iter(f"{SVG}svg"))
    assert len(svgs) == 8 + 4 + 4 + 4 + 4
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(set(ids)) == len(ids)
    here = {f"#{one}" for one in ids}
    text = ElementTree.tostring(root, encoding="unicode")
    assert set(re.findall(r'href="([^"]*)"', text)) | set(re.findall(r"url\(([^)]*)\)", text)) <= here
    assert all(svg.get("viewBox") and svg.get("aria-label") and not svg.get("width") for svg in svgs)


def test_page_asks_for_something_else(html):
    assert not re.findall(r"""<script|<link|<img|<iframe|@import|\bsrc=|href=["'](?!#)|url\((?!#)""", html)
    # Names of XML, which nobody fetches.
    assert set(re.findall(r"https?://[^\"' ]*", html)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_dark_page_has_black_letters_or_lines(html):
    """What matplotlib draws takes its colours from the page, which knows light and dark."""
    body, style = html[html.index("<body>") :], html[: html.index("<body>")]
    assert not re.findall(r"#[0-9a-f]{6}\b", body) and "DejaVu" not in body
    assert all("fill: var(--ink)" in tag for tag in re.findall("<text[^>]*>", body))
    used, light, _, dark = set(re.findall(r"var\((--[\w-]+)\)", html)), *style.partition("prefers-color-scheme: dark")
    assert used <= set(re.findall(r"(--[\w-]+):", light)) and used <= set(re.findall(r"(--[\w-]+):", dark))


def test_names_are_taken_for_html_or_mathematics(tmp_path):
    evil = "<script>alert('$x^2$ & more')</script>"
    path = write_results(tmp_path / "r.json", [suite(evil)], {evil: ["pard2-td"], "b": ["pard2-td"]})
    changed(path, lambda held: held["meta"].update(argv=["pard2", evil, "a b"]) or held["meta"]["hardware"].update(cpu=evil))
    html = page(path)
    assert "<script" not in html and "&lt;script&gt;" in html
    root = ElementTree.fromstring(html)
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert evil in texts and any(text.startswith("PARD-2 TD of <script>") for text in texts)
    assert any(one.text and "$x^2$" in one.text for one in root.iter("td")) and "'a b'" in next(root.iter("pre")).text


def test_control_characters_break_the_page(tmp_path):
    ElementTree.fromstring(page(write_results(tmp_path / "r.json", [suite("a\x1b[31mb\x00")])))


def test_section_without_data(tmp_path):
    assert titles(page(write_results(tmp_path / "one.json"))) == [PICTURES["speed"], PICTURES["positions"], PICTURES["times"], *LISTS]
    assert titles(page(write_results(tmp_path / "ar.json", methods=["ar"]))) == [PICTURES["times"], *LISTS[1:]]
    assert PICTURES["lengths"] in titles(page(write_results(tmp_path / "ks.json", under={"ks": (2, 4)})))
    # One fixed K and the one that finds its own are no curve.
    assert PICTURES["lengths"] not in titles(page(write_results(tmp_path / "k.json", under={"ks": (2, "auto")})))
    assert PICTURES["throughput"] in titles(page(write_results(tmp_path / "sizes.json", under={"sizes": (1, 2)})))
    assert 'class="notes"' not in page(tmp_path / "one.json")


def test_bars_are_not_the_results(tmp_path):
    path = write_results(tmp_path / "r.json")
    first, second = pictures(path)[PICTURES["speed"]]
    assert (first.title, second.title) == ("gsm8k", "humaneval")
    speed, length = first.figure.axes
    assert bars(speed) == pytest.approx([2.0, 2.0]) and bars(length) == pytest.approx([2.03, 2.53])  # plain decoding has no bar
    result = read_files([path])[0].results[1]
    drawn = [list(line.get_xdata()) for line in length.lines]
    assert drawn[0] == result["acceptance_length_interval"] and len(drawn) == 2
    assert [text.get_text().strip() for text in length.texts] == ["2.03", "2.53"]


def test_times_are_not_of_a_cycle(tmp_path):
    """200 s of plain decoding and 100 s of a method go into 100 cycles for each of 8 prompts."""
    (panel,) = pictures(write_results(tmp_path / "r.json"))[PICTURES["times"]]
    (axes,) = panel.figure.axes
    assert bars(axes) == pytest.approx([5, 10, 5, 2.5, 5, 2.5, 2.5, 5, 2.5])  # draft, verify and other of ar, TI, TD
    assert [text.get_text() for text in axes.texts if "ms" in text.get_text()] == [" 20.0 ms", " 10.0 ms", " 10.0 ms"]


def test_lines_are_not_the_results(everything):
    found = pictures(everything)
    by_k = lines(found[PICTURES["lengths"]][0].figure.axes[0])
    assert by_k["PARD-2 TD of td, tree 32"] == ([2, 4], pytest.approx([2.53, 2.53]))
    assert "plain decoding" not in by_k and len(by_k) == 5
    rates = lines(found[PICTURES["throughput"]][0].figure.axes[0])
    assert rates["plain decoding"] == (pytest.approx([20, 40]), pytest.approx([50, 50]))  # ms a token, tokens/s
    assert rates["PARD-2 TD of td"] == (pytest.approx([10, 20]), pytest.approx([100, 100]))


def test_share_of_a_handful_of_cycles_is_drawn(everything):
    """Twelve cycles at the third position say nothing."""
    by_position = lines(pictures(everything)[PICTURES["positions"]][0].figure.axes[0])
    assert by_position["PARD-2 TD of td"] == ([1, 2], [0.5, 0.25])


def test_ways_share_a_look(tmp_path):
    drafts = {f"d{i}": ["pard2-td"] for i in range(10)}
    (panel,) = pictures(write_results(tmp_path / "r.json", [suite("gsm8k")], drafts))[PICTURES["positions"]]
    seen = {(line.get_color(), line.get_linestyle()) for line in panel.figure.axes[0].lines}
    assert len(seen) == 10


def test_unequal_answers_go_unseen(tmp_path):
    html = page(write_results(tmp_path / "r.json"))
    assert html.count('<td class="number bad">3 of 4</td>') == 2 and html.count('<td class="number">4 of 4</td>') == 2


def test_files_side_by_side(tmp_path):
    """Who is from where is said where two files have the same; nobody is called what another is."""
    first = write_results(tmp_path / "old.json", methods=["pard2-td", "pard2-ti"])
    second = write_results(tmp_path / "new.json", [suite("gsm8k")], methods=["pard2-td"])
    names = [entry.name for entry in entries(read_files([first, second]))]
    assert names[:5] == ["plain decoding (old.json)", "plain decoding (new.json)", "PARD-2 TD (old.json)", "PARD-2 TD (new.json)", "PARD-2 TI"]
    assert "not the same" not in page(first, second)
    (tmp_path / "a").mkdir()
    twin = write_results(tmp_path / "a/old.json")
    assert {entry.result["file"] for entry in entries(read_files([first, twin]))} == {str(first), str(twin)}


def test_other_machine_or_precision_goes_unsaid(tmp_path):
    first, second = (write_results(tmp_path / name) for name in ("a.json", "b.json"))
    changed(second, lambda held: held["meta"]["hardware"].update(cpu="Abacus") or held["plan"].update(dtype="bfloat16"))
    html = page(first, second)
    assert re.search(r"<li>not the same machine: .*\(a.json\); Abacus, .*\(b.json\)</li>", html)
    assert "<li>not the same dtype: float32 (a.json); bfloat16 (b.json)</li>" in html


def test_other_prompts_or_the_same_file_are_put_side_by_side(tmp_path):
    first = write_results(tmp_path / "a.json")
    second = write_results(tmp_path / "b.json", [suite("mine"), suite("gsm8k", words="tell")])
    with pytest.raises(Pard2Error, match=r"b.json has other prompts under the name of suite 'gsm8k' than a.json; .* each alone"):
        read_files([first, second])
    with pytest.raises(Pard2Error, match="named twice"):
        read_files([first, tmp_path / ".." / tmp_path.name / "a.json"])


def test_half_a_run_is_taken_for_a_whole_one(tmp_path):
    html = page(write_results(tmp_path / "r.json", unfinished=5))
    assert "r.json was stopped before its end: 3 of 4 prompts of gsm8k, 0 of 4 prompts of humaneval" in html


def test_how_it_was_measured_is_missing(tmp_path):
    again = {"argv": ["pard2", "bench", "--html", "x y"], "commit": "abc", "date": "2026-02-03"}
    path = changed(write_results(tmp_path / "r.json"), lambda held: held["meta"].update(argv=["pard2", "bench"], commit="def", resumed=[again]))
    root = ElementTree.fromstring(page(path))
    facts = dict(zip((one.text for one in root.iter("dt")), (one.text for one in root.iter("dd")), strict=True))
    assert facts["commit"] == "def" and facts["resumed"] == "2026-02-03 at abc" and "torch" in facts["versions"]
    assert (facts["draft"], facts["temperature"], facts["K"], facts["precision"]) == ("draft", "0", "auto", "float32 on cpu")
    assert next(root.iter("pre")).text == "pard2 bench\npard2 bench --html 'x y'"
