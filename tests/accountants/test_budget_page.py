"""The page of a shared budget: what is on it, what must not be, and how a real browser takes it."""

import re

import pytest

import accountants as acc
from accountants.__main__ import main
from accountants.budget_state import read_budget
from accountants.html import budget as pages
from accountants.html.budget import budget_page
from tests.accountants.test_shared_budget import COHORTS, PLAIN, PURPOSES, STEP, gaussian
from tests.browser import Browser, check_as_shown, needs_browser

MARKUP = "<b>made & up</b>"


def make(tmp_path, more=COHORTS + PURPOSES, text=PLAIN):
    policy = text.replace('"made up"', f'"{MARKUP}"').replace('"patients"', f'"pa{MARKUP}"') + more
    return acc.SharedBudget.create(tmp_path / "budget.jsonl", acc.parse_policy(policy.encode()))


def page_of(tmp_path):
    return budget_page(read_budget((tmp_path / "budget.jsonl").read_bytes())[0])


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", html, flags=re.DOTALL))


@pytest.fixture
def spent(tmp_path):
    """Two cohorts and two purposes; one release ended, one run stopped half way."""
    with make(tmp_path) as budget:
        mean = budget.reserve(
            [("tables/mean", gaussian(20.0), 1)], release="mean", cohort="donors", purpose="billing", draw=True
        )
        budget.commit(mean.id)
        half = budget.reserve([("train/gradients", STEP, 50)], release="model", purpose="research", run=f"runs/{MARKUP}")
        budget.draw(half.id, "train/gradients", 20)
    return tmp_path


def test_what_a_reviewer_looks_for(spent):
    html = page_of(spent)
    text = text_of(html)
    state, _ = read_budget((spent / "budget.jsonl").read_bytes())
    for scope in state.terms.scopes():
        spent_of = acc.report.upper(state.spent(scope))
        row = rf"{scope.name} {re.escape(spent_of)} {scope.ceiling.epsilon:g} {scope.ceiling.delta:g}"
        assert re.search(row, text), row
    assert "50 20 open: counts in full" in text
    assert "1 1 ended" in text
    assert "1 of them open" in text
    assert state.head in text
    assert "add_or_remove_one" in text
    for whom in ("anyone", "num_examples", "donors 100", "others 200"):
        assert whom in text, whom
    assert MARKUP not in html  # a name is not markup
    assert html.count("&lt;b&gt;made &amp; up&lt;/b&gt;") >= 3
    assert "<script" not in html


def test_the_fingerprint_is_not_on_it(tmp_path):
    """It confirms a guess of the data to whoever reads the page."""
    fingerprint = f"sha256:{'ab' * 32}"
    make(tmp_path, more="", text=PLAIN.replace('description = "made up"', f'fingerprint = "{fingerprint}"')).close()
    html = page_of(tmp_path)
    assert fingerprint.removeprefix("sha256:") not in html
    assert "stays beside them" in html


def test_empty_sealed_and_without_noise(tmp_path):
    with make(tmp_path, more="") as budget:
        assert "Nothing is reserved" in page_of(tmp_path)
        budget.seal()
    assert "sealed" in text_of(page_of(tmp_path))


def test_many_reservations(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_LISTED", 20)
    with make(tmp_path, more="") as budget:
        for i in range(60):
            budget.reserve([("tables/mean", gaussian(500.0), 1)], release="mean", run=f"run {i}")
    text = text_of(page_of(tmp_path))
    assert "40 earlier ones" in text
    assert "run 59" in text
    assert "run 39 " not in text


def test_on_the_command_line(spent, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["budget", "show", str(spent), "--html", str(target)]) == 0
    assert f"page: {target}" in capsys.readouterr().out
    assert target.read_text() == page_of(spent)
    assert main(["budget", "show", str(spent), "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_in_a_real_browser(spent, width, dark):
    target = spent / "budget.html"
    target.write_text(page_of(spent))
    with Browser(width=width, dark=dark) as browser:
        check_as_shown(browser, target, width)
