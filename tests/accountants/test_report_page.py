"""report.html: what is on the page, what must not be, and how a real browser takes it."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import accountants as acc
from accountants.__main__ import main
from accountants.html import render
from accountants.html.page import page, write_page
from accountants.runs import read_run
from tests.accountants.made_runs import dpsgd_run, pate_run
from tests.browser import Browser, check_as_shown, needs_browser

COMMON = {"components", "spend", "attack", "profile"}
PRIVATE_DPSGD = {"clipped", "signal_to_noise", "loss"}
PRIVATE_PATE = {"votes", "each"}


class Page(HTMLParser):
    """What a page consists of; an unclosed or wrongly nested element is an error."""

    VOID = frozenset({"meta", "link", "br", "input", "img"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.charts: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.tables: list[str] = []
        self._figure = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "figure":
            self._figure = given["id"].split("-", 1)[1]
        if tag == "svg":
            assert given["role"] == "img"
            self.charts[self._figure] = given["aria-label"]
        if tag == "table" and self._figure:
            self.tables.append(self._figure)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag == "figure":
            self._figure = ""
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def dpsgd(tmp_path_factory):
    return read_run(dpsgd_run(tmp_path_factory.mktemp("runs") / "digits"))


@pytest.fixture(scope="module")
def pate(tmp_path_factory):
    return read_run(pate_run(tmp_path_factory.mktemp("runs") / "pate"))


def test_every_chart_is_there_with_a_text_and_a_table(dpsgd, pate):
    for run, more in [
        (dpsgd, {"stacked", "budget", "accuracy", *PRIVATE_DPSGD}),
        (pate, {"stacked", "budget", "queries", *PRIVATE_PATE}),
    ]:
        made = Page(page([run]))
        assert set(made.charts) == COMMON | more
        assert set(made.tables) == set(made.charts)
        assert all(len(alt) > 30 and alt.endswith(".") for alt in made.charts.values())
        assert len(made.ids) == len(set(made.ids))


def test_headline_statement_and_head_are_on_the_page(dpsgd):
    made = Page(page([dpsgd]))
    text = " ".join(made.text.split())
    assert f"ε ≤ {acc.report.upper(dpsgd.breakdown.epsilon)}" in text
    assert "one example" in text
    assert "add_or_remove_one" in text
    assert "Guessing finds 1 %" in text
    assert dpsgd.contents.head in text
    assert "A <b>model</b> & its ledger." in text  # facts are text, not markup
    assert "What is not covered" in text
    assert "Not stated by the program that made this" in text
    assert "3.1" not in made.open


@pytest.mark.parametrize("which", ["dpsgd", "pate"])
def test_a_page_refers_to_nothing_outside_itself(which, request):
    text = page([request.getfixturevalue(which)])
    made = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert "//" not in text
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for tag, name, value in made.attributes:
        if name in ("href", "src", "action", "data", "srcset", "xlink:href"):
            assert value.startswith(("#", "data:,")), (tag, name, value)
        assert not name.startswith("on")
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(targets) <= set(made.ids)


def test_public_leaves_out_what_is_private(dpsgd, pate):
    shown = page([dpsgd, pate])
    public = page([dpsgd, pate], public=True)
    made = Page(public)
    assert not set(made.charts) & (PRIVATE_DPSGD | PRIVATE_PATE)
    for secret in ("do not publish", "Training loss", "plurality_accuracy", "0.8765", "mystery", "0.1235", "98.77"):
        assert secret in shown, secret
        assert secret not in public, secret
    figures = pate.pate
    for value in (figures["epsilon"], figures["argmax_total"], figures["threshold_total"]):
        assert f"{value:.4g}" not in public
    assert f"{figures['threshold_total']:.4g}" in shown


def test_public_json_and_statement_too(pate, capsys, tmp_path):
    folder = pate_run(tmp_path / "run")
    assert main(["report", str(folder), "--json"]) == 0
    assert "pate" in json.loads(capsys.readouterr().out)
    assert main(["report", str(folder), "--json", "--public"]) == 0
    assert "pate" not in json.loads(capsys.readouterr().out)
    assert main(["report", str(folder), "--statement"]) == 0
    assert "Central model" in capsys.readouterr().out


def test_several_runs_on_one_page(dpsgd, pate):
    made = Page(page([dpsgd, dpsgd, pate]))
    assert {"accuracy", "spend", "attack", "profile", "components"} <= set(made.charts)
    assert "digits (1)" in made.text
    assert "digits (2)" in made.text
    assert "their ε must not be compared" not in made.text
    assert len(made.ids) == len(set(made.ids))


def test_runs_under_different_relations_are_not_comparable(dpsgd, tmp_path):
    with acc.Ledger(tmp_path / "l", neighbouring_relation="replace_one", public={"delta": 1e-5}) as ledger:
        ledger.charge("a", acc.GaussianDpEvent(3.0))
    assert "their ε must not be compared" in page([dpsgd, read_run(tmp_path / "l")])


@pytest.mark.parametrize(
    "events",
    [
        [],
        [acc.GaussianDpEvent(1.0)],
        [acc.NonPrivateDpEvent()],
        [acc.EpsilonDeltaDpEvent(1.0, 1e-6), acc.LaplaceDpEvent(3.0)],
        [acc.GaussianDpEvent(float(30 + i)) for i in range(12)],
    ],
    ids=["nothing", "one", "not private", "no Rényi bound", "many components"],
)
def test_any_ledger_has_a_page(events, tmp_path):
    with acc.Ledger(tmp_path / "l", public={"delta": 1e-5}) as ledger:
        for i, event in enumerate(events):
            ledger.charge(f"part_{i}", event)
    made = Page(page([read_run(tmp_path / "l")]))
    assert set(made.charts) >= COMMON


def test_histories_of_other_libraries(tmp_path, capsys):
    history = tmp_path / "history.json"
    for content in ([[1.1, 0.01, 500], [0.9, 0.02, 30]], {"history": [[1.1, 0.01, 500], [0.9, 0.02, 30]], "mechanism": "rdp"}):
        history.write_text(json.dumps(content))
        target = tmp_path / "page.html"
        assert main(["report", str(history), "--delta", "1e-5", "--html", str(target), "--json"]) == 0
        exact = acc.epsilon(acc.from_opacus_history([(1.1, 0.01, 500), (0.9, 0.02, 30)]), 1e-5).epsilon
        assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(exact)
        assert "another library" in Page(target.read_text()).text
    history.write_text(acc.to_json(acc.ComposedDpEvent((acc.GaussianDpEvent(2.0), acc.LaplaceDpEvent(5.0)))))
    assert main(["report", str(history), "--delta", "1e-5", "--json"]) == 0
    paths = [c["path"] for c in json.loads(capsys.readouterr().out)["components"]]
    assert paths == ["history/gaussian", "history/laplace"]
    for content in ("[1, 2]", '{"a": 1}', "nonsense", "[[1, 2, -3]]"):
        history.write_text(content)
        assert main(["report", str(history), "--delta", "1e-5"]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_dp_accounting_trees_have_a_page():
    dp_accounting = pytest.importorskip("dp_accounting")
    from accountants.histories import contents_of
    from accountants.runs import run_of

    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0)), 100
    )
    made = Page(page([run_of(contents_of(event), "theirs", delta=1e-5)]))
    assert "theirs" in made.text


def test_merging_adds_up(tmp_path, capsys, dpsgd):
    first, second = dpsgd_run(tmp_path / "Run 1"), dpsgd_run(tmp_path / "b", sigma=3.0)
    assert main(["merge", str(first), str(second / "ledger.jsonl"), "--json", "--html", str(tmp_path / "m.html")]) == 0
    result = json.loads(capsys.readouterr().out)
    both = acc.PldAccountant()
    for sigma in (2.0, 3.0):
        both.compose(acc.GaussianDpEvent(20.0)).compose(acc.dpsgd_event(sigma, 0.02, 400))
    assert result["epsilon"] == pytest.approx(both.get_epsilon(1e-5), rel=1e-3)
    assert [c["path"] for c in result["components"]][:2] == ["run_1/data/mean", "run_1/train/gradients"]
    text = Page((tmp_path / "m.html").read_text()).text
    assert read_run(first).contents.head in text
    assert main(["merge", str(first), str(first)]) == 2
    assert "leave it out" in capsys.readouterr().err
    with acc.Ledger(tmp_path / "other", unit="user", public={"delta": 1e-5}) as ledger:
        ledger.charge("a", acc.GaussianDpEvent(3.0))
    assert main(["merge", str(first), str(tmp_path / "other")]) == 2
    assert "units of privacy" in capsys.readouterr().err


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(render, "available", lambda: False)
    run = dpsgd_run(tmp_path / "run")
    assert main(["report", str(run), "--html", str(tmp_path / "x.html")]) == 2
    error = capsys.readouterr().err.strip()
    assert "pip install" in error
    assert "\n" not in error


def test_the_extra_is_imported_late():
    program = (
        "import sys, accountants.__main__, accountants.html.page\n"
        "print([name for name in ('jinja2', 'matplotlib') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_damaged_document_beside_the_ledger_is_an_error(tmp_path, capsys):
    run = dpsgd_run(tmp_path / "run")
    (run / "privacy.json").write_text("{")
    assert main(["report", str(run)]) == 2
    assert "privacy.json" in capsys.readouterr().err


def test_facts_of_another_state_of_the_ledger_are_not_shown(tmp_path):
    run = dpsgd_run(tmp_path / "run")
    with acc.Ledger(run / "ledger.jsonl", public=json.loads((run / "privacy.json").read_text())["ledger"]["public"]) as ledger:
        ledger.charge("late/addition", acc.GaussianDpEvent(9.0))
    assert "Central model" not in page([read_run(run)])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("epsilon_independent", lambda f: f.update(epsilon_independent=f["epsilon_independent"] / 2)),
        ("cumulative_independent", lambda f: f["cumulative_independent"].__setitem__(3, 0.0)),
        ("threshold_total", lambda f: f.update(threshold_total=0.0)),
        ("epsilon", lambda f: f.update(epsilon=0.1)),
        ("answered", lambda f: f["answered"].__setitem__(0, True)),
        ("epsilon_exact_independent", lambda f: f.update(epsilon_exact_independent=0.5)),
    ],
)
def test_verify_re_derives_the_figures_of_queries(tmp_path, name, change):
    path = pate_run(tmp_path / "run") / "privacy.json"
    assert acc.report.verify(path)["ok"]
    document = json.loads(path.read_text())
    change(document["pate"])
    path.write_text(json.dumps(document))
    result = acc.report.verify(path)
    assert not result["ok"]
    assert name in result["error"]


@pytest.mark.parametrize("key", ["advantage", "gdp", "profile", "worst_case_tpr_at_fpr_1_percent"])
def test_verify_re_derives_what_an_attacker_gains(tmp_path, key):
    path = dpsgd_run(tmp_path / "run") / "privacy.json"
    document = json.loads(path.read_text())
    if key == "gdp":
        document[key]["mu"] *= 0.99
    elif key == "profile":
        document[key][2]["delta"] *= 0.99
    else:
        document[key] *= 0.99
    path.write_text(json.dumps(document))
    assert key in acc.report.verify(path)["error"]


@pytest.fixture(scope="module")
def both(dpsgd, pate, tmp_path_factory):
    """The page of two runs, as a file."""
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_page(target, [dpsgd, pate])
    return target


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_in_a_real_browser(both, width, dark):
    with Browser(width=width, dark=dark) as browser:
        check_as_shown(browser, both, width)
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 23, 29)" if dark else "rgb(246, 245, 241)"
        )


@needs_browser
def test_contrast_and_keyboard(both):
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for lines and bars; tables are reached and opened by keyboard."""
    colour = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    for dark in (False, True):
        with Browser(dark=dark) as browser:
            browser.open(both)
            value = lambda name: browser.evaluate(colour.format(name))
            for back in ("paper", "page"):
                for name in ("ink", "muted", "accent"):
                    assert contrast(value(name), value(back)) >= 4.5, (name, back, dark)
            assert contrast(value("bad"), value("bad-soft")) >= 4.5
            assert contrast(value("ink"), value("bad-soft")) >= 4.5
            assert contrast(value("ink"), value("code")) >= 4.5
            for name in ("good", "bad", *(f"s{i}" for i in range(8))):
                assert contrast(value(name), value("paper")) >= 3, (name, dark)
            assert browser.evaluate("[...document.querySelectorAll('summary, .scroll, a[href]')].every(e => e.tabIndex >= 0)")
            assert browser.evaluate("document.documentElement.lang") == "en"


@needs_browser
@pytest.mark.parametrize("events", [1, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_one_event_and_a_million(events, tmp_path, capsys):
    """Lines of a ledger, an event each."""
    with acc.Ledger(tmp_path / "ledger.jsonl", public={"delta": 1e-6, "num_examples": 60_000}) as ledger:
        many = [("train/gradients", acc.dpsgd_event(4.0, 0.004, 1), 1)] * 9 + [
            ("eval/accuracy", acc.GaussianDpEvent(9000.0), 1)
        ]
        for start in range(0, events, 1000):
            ledger.charge_all((many * 100)[: min(1000, events - start)])
    target = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--html", str(target), "--json"]) == 0
    assert sum(c["events"] for c in json.loads(capsys.readouterr().out)["components"]) == events
    assert target.stat().st_size < 1_000_000
    assert set(Page(target.read_text()).charts) >= COMMON
    with Browser(width=390) as browser:
        check_as_shown(browser, target, 390)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)
