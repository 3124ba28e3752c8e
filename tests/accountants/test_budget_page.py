"""The page of a shared budget: what is on it, what must not be, and how a real browser takes it."""

import json
import re
import warnings

import pytest

import accountants as acc
from accountants.__main__ import main
from accountants.budget_state import Reservation, read_budget
from accountants.chained import GENESIS, linked
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
    assert "open : counts in full model all research train/gradients 50 20" in text
    assert "– ended mean donors billing tables/mean 1 1" in text
    assert "1 of them open" in text
    assert state.head in text
    assert "add_or_remove_one" in text
    for whom in ("model anyone research", "num_examples", "donors 2 1e-05 100 rows", "purpose billing 0.5 1e-06 part"):
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


def test_empty_and_sealed(tmp_path):
    with make(tmp_path, more="") as budget:
        assert "Nothing is reserved" in page_of(tmp_path)
        budget.seal()
    assert "sealed" in text_of(page_of(tmp_path))


def test_shares_add_up_and_are_those_of_the_divergence(spent):
    state, _ = read_budget((spent / "budget.jsonl").read_bytes())
    for scope in state.terms.scopes():
        assert not state.shares(scope) or sum(state.shares(scope).values()) == pytest.approx(1.0)
    mean, run = state.reservations
    donors, others, rest, *_ = state.terms.scopes()
    assert state.shares(others) == state.shares(rest) == {run: 1.0}  # the mean was of donors
    order = state.reservations[mean].filters[donors.name].order
    costs = []
    for event, count in ((gaussian(20.0), 1), (STEP, 50)):
        accountant = acc.RdpAccountant((order,))
        costs.append(accountant.compose(event, count).rdp[0])
    assert state.shares(donors) == pytest.approx({mean: costs[0] / sum(costs), run: costs[1] / sum(costs)}, rel=1e-9)


def test_what_fitted_only_alone_counts_in_full(tmp_path):
    """It was admitted by the numerical accountant, so all of it counts though not all was drawn."""
    with make(tmp_path, more="") as budget:
        sigma = acc.calibrate_noise_multiplier(epsilon=2.0, delta=1e-5, sampling_probability=0.01, steps=2000)
        made = budget.reserve([("a", acc.dpsgd_event(sigma, 0.01, 1).event, 2000)], release="model")
        assert all(admission.exact for admission in made.filters.values())
        budget.draw(made.id, "a", 1)
        budget.commit(made.id)
    assert "ended, counts in full" in text_of(page_of(tmp_path))


def lines(policy, number, still_open):
    """A budget's file with so many reservations, of which some are open; without the file system's waits."""
    header = {"kind": "header", "schema": 1, "time": "", "salt": "", "policy": policy.to_dict()}
    content, head = linked([header], GENESIS)
    state, _ = read_budget(content)
    records = []
    for i in range(number):
        name = f"{i:032x}"
        charges = (acc.chain.Charge("tables/mean", gaussian(500.0), 1),)
        made = Reservation(name, f"run {i}.", "all", "", "mean", charges, {}, {})
        records.append(state.reserve_record(made))
        if i not in still_open:
            records += [{"kind": "draw", "id": name, "path": "tables/mean", "count": 1}, {"kind": "commit", "id": name}]
    return content + linked(records, head[-1])[0]


def test_two_thousand_reservations(tmp_path):
    """The page stays small; what is folded is added up, and what is open is there however old."""
    content = lines(acc.parse_policy(PLAIN.encode()), 2000, still_open={3, 700})
    html = budget_page(read_budget(content)[0])
    text = text_of(html)
    assert len(html) < 300_000
    assert "1,800 earlier ones ended 1,800 1,800" in text
    for i in (3, 700):
        assert f"run {i}. open : counts in full" in text
    assert "run 1999. ended" in text
    assert "run 1000." not in text
    assert "2 of them open" in text


def test_more_is_open_than_listed(monkeypatch):
    monkeypatch.setattr(pages, "_LISTED", 5)
    content = lines(acc.parse_policy(PLAIN.encode()), 12, still_open=set(range(12)))
    assert "7 earlier ones 7 open 7 0" in text_of(budget_page(read_budget(content)[0]))


def test_names_may_be_anything(tmp_path):
    """Formulas, letters of every script, what is no character, what matplotlib would leave out of a legend, and long ones."""
    names = ["$x^", "_hidden", "患者データ", "half \ud800", "a" * 5000, "<script>alert(1)</script>"]
    with make(tmp_path, more="") as budget:
        for name in names:
            budget.reserve([("tables/mean", gaussian(100.0), 1)], release="mean", run=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pages.write_budget_page(tmp_path / "page.html", budget.state)
    html = (tmp_path / "page.html").read_text()
    for name in ("$x^", "_hidden", "患者データ", "half ?", "&lt;script&gt;"):
        assert html.count(name) >= 3, name  # wide, narrow, table
    assert "<script" not in html
    assert "a" * 300 not in html


def test_on_the_command_line(spent, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["budget", "show", str(spent), "--html", str(target)]) == 0
    assert f"page: {target}" in capsys.readouterr().out
    assert target.read_text() == page_of(spent)
    (tmp_path / "folder.html").mkdir()
    for bad in (tmp_path / "none" / "page.html", tmp_path / "folder.html"):
        assert main(["budget", "show", str(spent), "--html", str(bad)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
        assert str(bad) in error
    assert not list(tmp_path.glob(".report-*"))


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_in_a_real_browser(spent, width, dark):
    target = spent / "budget.html"
    target.write_text(page_of(spent))
    with Browser(width=width, dark=dark) as browser:
        check_as_shown(browser, target, width)


@pytest.mark.parametrize(
    "forged", [{"public": 3}, {"cohorts": {"donors": {"ceiling": {"epsilon": 1.0, "delta": 1e-5}, "rows": 7}}}]
)
def test_a_forged_header_is_a_named_error(spent, forged):
    """With hashes that are right."""
    header = json.loads((spent / "budget.jsonl").read_bytes().split(b"\n")[0])
    header["policy"] |= forged
    del header["hash"], header["prev"]
    content, _ = linked([header], GENESIS)
    with pytest.raises(acc.LedgerError, match="policy in the header"):
        read_budget(content)
