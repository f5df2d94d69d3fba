from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from synthetic_runs import audit_dict, make_run

from cli_calls import ok
from xtoken.errors import UsageError, XTokenError
from xtoken.evaluation.files import write_whole
from xtoken.report import (
    Block,
    alignment_page,
    audit_page,
    load_run,
    run_page,
    write_html,
    write_page,
)
from xtoken.report.plots import Chart, Curve, line_chart
from xtoken.report.run_data import Series

PAGES = ("one", "several", "audit", "alignment", "evaluated", "audit-verb", "align-verb")
VOID = {"meta", "link", "br", "img", "input", "hr"}
SHAPES = {"line", "path", "circle", "rect"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        assert len(found) == len(attrs)
        self.attributes.append((tag, found))
        if found.get("id"):
            self.ids.append(found["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, f"<{tag}/> is no void element"
        self.tags[tag] += 1
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


# Right-to-left letters, joined emoji, tabs, a long word and a second line.
HARD_TEXT = (
    "In 1984 there were 201 people.\n\tمرحبا بالعالم 👩‍👩‍👧 שלום 狐狸 "
    + "supercalifragilistic" * 12
    + " 3.14159"
)


def lm_eval_results(shift: float) -> dict[str, Any]:
    """Results of three tasks as lm-evaluation-harness writes them."""
    tasks: dict[str, Any] = {
        "piqa": {"acc,none": 0.62 + shift, "acc_stderr,none": 0.011, "alias": "piqa"},
        "gsm8k": {"exact_match,strict-match": shift, "exact_match_stderr,strict-match": 0.002},
        "lambada_openai": {"perplexity,none": 41.5 - 90 * shift, "perplexity_stderr,none": 1.6},
    }
    return {
        "results": tasks,
        "higher_is_better": {
            "piqa": {"acc": True},
            "gsm8k": {"exact_match": True},
            "lambada_openai": {"perplexity": False},
        },
        "n-samples": {task: {"original": 1838, "effective": 200} for task in tasks},
    }


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, tiny_pair: tuple[Path, Path], tiny_text: list[str]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    student, teacher = tiny_pair
    text = root / "text.txt"
    text.write_text("\n".join([*tiny_text, HARD_TEXT]), encoding="utf-8")

    # A run that `xtoken eval` measured: text by class, and tasks.
    evaluated = make_run(root / "runs", name="evaluated", steps=60)
    for name, shift in (("before", 0.0), ("after", 0.1), ("teacher", 0.2)):
        write_whole(evaluated / "lm_eval" / f"{name}.json", json.dumps(lm_eval_results(shift)))
    models = ("--before", teacher, "--teacher", teacher, "--output", evaluated)
    ok("eval", student, *models, "--text", text, "--by-class")
    verbs = {name: root / f"{name}.html" for name in ("audit-verb", "align-verb")}
    measured = ("--text", text, "--student-model", student, "--html", verbs["audit-verb"])
    ok("audit", student, teacher, *measured)
    ok("align", student, teacher, HARD_TEXT, "--html", verbs["align-verb"])
    one = make_run(root / "runs", name="one", steps=120)
    two = make_run(root / "runs", name="two", steps=90, loss="gold", seed=4, after=1.71)
    return {
        "one": write_html(one, root / "one.html"),
        "several": write_html([one, two], root / "several.html"),
        "audit": write_page(audit_page([audit_dict(), audit_dict()]), root / "audit.html"),
        "alignment": write_page(
            alignment_page(
                [Block(0, ("a",), ("a",)), Block(1, ("·201",), ("·", "2", "0", "1"))] * 30
                + [Block(-1, ("x" * 300,), ())],
                student="a/b",
                teacher="c",
                summary="61 chunks.",
            ),
            root / "alignment.html",
        ),
        "evaluated": write_html(evaluated, root / "evaluated.html"),
        **verbs,
    }


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_loads_nothing(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["h1"] == 1
    assert page.tags["main"] == 1
    levels = [int(tag[1]) for tag, _ in page.attributes if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.attributes:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    for link in page.with_tag("a"):
        assert link["href"][1:] in page.ids
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert not re.search(r"https?://", text.replace("http://www.w3.org", ""))


@pytest.mark.parametrize("name", ["one", "several"])
def test_charts_can_be_read_without_eyes(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    page = Page(text)
    drawn = [svg for svg in page.with_tag("svg") if svg.get("role") == "img"]
    assert len(drawn) >= 12
    for svg in drawn:
        for ident in svg["aria-labelledby"].split():
            assert ident in page.ids
    for svg in page.with_tag("svg"):
        assert svg.get("role") == "img" or svg.get("aria-hidden") == "true"
    assert page.tags["caption"] == page.tags["table"]
    assert text.count('<details class="values">') == len(drawn)


def test_one_run_shows_everything(pages: dict[str, Path]) -> None:
    text = pages["one"].read_text(encoding="utf-8")
    for part in (
        "fell from 2.913 to 1.604",
        "cross-entropy alone it reaches 1.668",
        "3-digit numerals (ASCII)",
        "decides",
        "Where a step",
        "charter of 1184",
        "scaling: dynamic",
        "2.13.0+cpu",
        "·extra",
        "7 min 1 s",
    ):
        assert part in text, part
    keys = re.findall(r'data-key="([^"]+)"', text)
    assert keys[:2] == ["ce", "kd"]
    assert {"scale", "agreement", "kept_mass", "grad_norm", "tokens_per_second", "bpb"} <= set(keys)
    data = re.search(r'id="evaluation-data">(.*?)</script>', text).group(1)
    assert json.loads(data)[0]["tables"][0]["name"] == "held-out text"


def test_several_runs_are_compared(pages: dict[str, Path]) -> None:
    text = pages["several"].read_text(encoding="utf-8")
    assert "2 runs compared" in text
    assert '<th scope="row">seed</th><td class="text">0</td><td class="text">4</td>' in text
    # Equal columns once, different ones for each run.
    assert text.count('<th scope="col">before</th>') == 2
    assert '<th scope="col">one, after</th><th scope="col">two, after</th>' in text


def test_evaluation_shows_tasks_and_classes(pages: dict[str, Path]) -> None:
    text = pages["evaluated"].read_text(encoding="utf-8")
    section = re.search(r'<section id="evaluation".*?</section>', text, re.DOTALL).group(0)
    rows = [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", section)
    ]
    assert ["piqa acc", "62.0 %", "72.0 %", "82.0 %", "+10.0 points"] in rows
    assert ["lambada_openai perplexity", "41.500", "32.500", "23.500", "−21.7 %"] in rows
    assert "piqa: 200 of 1,838 examples." in section
    # Classes of text have a table of their own, in the audit's order.
    (by_class,) = re.findall(r"<caption>Bits per byte by class: [^<]*text.txt.*?</table>", section)
    classes = re.findall(r'<th scope="row">([^<]*)</th>', by_class)
    assert classes[:3] == [f"{n}-digit numerals (ASCII)" for n in (1, 2, 3)]
    assert "letters: Arabic" in classes
    assert ["bits per byte", *("2.913", "1.604", "1.668", "1.106", "−44.9 %")] in rows


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path, name="<b>run", steps=3)
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    (folder / "run.yaml").write_text(f"student: {{model: '{evil}'}}\nnote: '{evil}'\n")
    (folder / "samples.json").write_text(
        json.dumps([{"prompt": evil, "outputs": {evil: evil}}]), encoding="utf-8"
    )
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, evil: 2.0, f"kd/{evil}": 1}))
    tables = {"tables": [{"name": evil, "rows": [{"metric": evil, "values": {evil: 1.0}}]}]}
    (folder / "evaluation.json").write_text(json.dumps(tables))
    text = run_page([load_run(folder)])
    page = Page(text)
    assert page.tags["img"] == 0
    assert page.tags["b"] == text.count("<b>")
    assert "alert(1)</script>" not in text
    assert all("onerror" not in attributes for _, attributes in page.attributes)


@pytest.mark.parametrize("content", ["", '{"step": 1}\n', '{"step": 1, "ce": NaN}\n{"step": 2,'])
def test_poor_runs_still_give_a_page(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    text = run_page([load_run(tmp_path)])
    Page(text)
    assert "Please note" in text
    assert 'class="chart"' not in text


def test_gaps_and_spikes_are_said() -> None:
    values = [2.0 + 0.01 * (i % 7) for i in range(200)]
    values[3], values[50], values[51] = 900.0, float("nan"), float("inf")
    series = Series(tuple(float(i) for i in range(200)), tuple(values))
    text = line_chart(Chart("grad_norm", "Gradient norm", (Curve("run", series),)), "c0")
    Page(text)
    assert "1 value lies outside the frame; 2 values are not finite." in text
    raw = re.search(r'class="raw s0" d="([^"]+)"', text).group(1)
    assert raw.count("M") == 2
    assert "nan" not in text.replace("not finite", "")
    one = line_chart(Chart("x", "X", (Curve("run", Series((5.0,), (1.0,))),)), "c1")
    assert "circle" in one
    assert line_chart(Chart("x", "X", (Curve("run", Series((5.0,), (float("nan"),))),)), "c") == ""


def test_wide_values_get_a_logarithmic_axis() -> None:
    series = Series(tuple(map(float, range(60))), tuple(10.0 ** (3 - i / 10) for i in range(60)))
    chart = Chart("x", "X", (Curve("x", series),))
    assert "Logarithmic axis." in line_chart(chart, "c")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path / part, name="same", steps=3)) for part in ("a", "b")]
    text = run_page(runs)
    assert "a/same" in text
    assert "b/same" in text


def test_pages_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_page("x", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(XTokenError, match="could not be written"):
        write_page("x", tmp_path / "file" / "page.html")
    with pytest.raises(UsageError, match="is not a run folder"):
        write_html(tmp_path, tmp_path / "page.html")
    with pytest.raises(UsageError, match="No run"):
        write_html([], tmp_path / "page.html")
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


# ---- In a browser ----------------------------------------------------------------------------

OVERFLOWING = """(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => {
    for (let p = e.parentElement; p; p = p.parentElement) {
      const flow = getComputedStyle(p).overflowX;
      if (flow === 'auto' || flow === 'scroll' || flow === 'hidden') return true;
    }
    return false;
  };
  return [...document.querySelectorAll('main *, .top *')].filter((e) => {
    const box = e.getBoundingClientRect();
    const hidden = e.closest('.hidden, .skip, svg, details:not([open]) > :not(summary)');
    return !hidden && box.width > 0 && (box.right > width + 1 || box.left < -1) && !scrolls(e);
  }).map((e) => e.outerHTML.slice(0, 120));
})()"""
CLIPPED_TEXT = """[...document.querySelectorAll('figure.chart svg text')].filter((t) => {
  const svg = t.ownerSVGElement.getBoundingClientRect();
  const box = t.getBoundingClientRect();
  return box.left < svg.left - 1 || box.right > svg.right + 1 ||
    box.top < svg.top - 1 || box.bottom > svg.bottom + 1;
}).map((t) => t.textContent)"""
CURVES = """[...document.querySelectorAll('figure.chart')].map((f) => {
  const svg = f.querySelector('.plot > svg').getBoundingClientRect();
  const lines = [...f.querySelectorAll('.plot path.line')];
  const colours = new Set(lines.map((l) => getComputedStyle(l).stroke));
  return [f.dataset.key, svg.width, svg.height, lines.length,
          Math.max(...lines.map((l) => l.getTotalLength())), !colours.has('none')];
})"""


# What a person has to see on the pages of the verbs: text that is drawn and not folded away.
DRAWN = {
    "evaluated": ("piqa acc", "72.0 %", "Standard errors", "3-digit numerals (ASCII)"),
    "audit-verb": (
        "P-KL",
        "3-digit numerals",
        "What a strict partition would suppress",
        "Special tokens by role",
    ),
    "align-verb": ("198", "<D9>", "⏎", "100.0 % of bytes aligned"),
}


@pytest.fixture(scope="module")
def browser():
    executable = find_browser()
    if executable is None:
        pytest.skip(
            "no Chromium here; install it (apt-get install chromium) or set XTOKEN_CHROMIUM"
        )
    with Browser(executable) as found:
        yield found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_drawn_in_a_browser(
    browser: Browser, pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    browser.errors.clear()
    browser.open(pages[name], width=width, theme=theme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(CLIPPED_TEXT) == []
    curves = browser.evaluate(CURVES)
    assert len(curves) == (0 if name.startswith("a") else 14)
    for key, wide, high, lines, length, coloured in curves:
        assert wide > 250, key
        assert high > 130, key
        assert lines >= 1, key
        assert length > 100, key
        assert coloured, key
    for text in DRAWN.get(name, ()):
        assert text in browser.evaluate("document.querySelector('main').innerText"), text
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)[:3])) > 380
    assert light == (theme == "light")
    assert browser.errors == []


def test_theme_button_and_keyboard_in_a_browser(browser: Browser, pages: dict[str, Path]) -> None:
    browser.errors.clear()
    browser.open(pages["one"], width=1280, theme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(colour)
    press = "document.querySelector('.theme').click()"
    browser.evaluate(press)
    assert browser.evaluate(colour) == light
    browser.evaluate(press)
    assert browser.evaluate(colour) != light
    assert browser.evaluate("document.querySelector('.theme').textContent") == "Dark"
    browser.evaluate(press)
    assert browser.evaluate(colour) == light

    browser.evaluate("document.querySelector('#c0 .plot').focus()")
    for key in ("ArrowLeft", "ArrowLeft", "Home"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)
    tip = browser.evaluate("document.querySelector('#c0 .tip').innerText")
    assert tip.startswith("step 1\n")
    assert "training 7." in tip
    assert browser.errors == []


def test_short_phases_are_read_without_exponents() -> None:
    from xtoken.report.sections import _moment

    written = [_moment(seconds) for seconds in (1.21e-05, 0.00132, 0.133, 0.9999, 1.808)]
    assert written == ["under 1 ms", "1 ms", "133 ms", "1 s", "1.81 s"]
