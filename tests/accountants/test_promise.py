"""What was fixed beforehand heads every report where what was charged depended on what had been released."""

import dataclasses
import json
import math

import mpmath
import pytest

from accountants import (
    GaussianDpEvent,
    InvalidEventError,
    LaplaceDpEvent,
    Ledger,
    LedgerError,
    NonPrivateDpEvent,
    PldAccountant,
    SelfComposedDpEvent,
    gaussian_ceiling,
    to_dict,
)
from accountants.__main__ import main
from accountants.chain import read_ledger
from accountants.merge import merged
from accountants.report import breakdown_of, privacy_document, text_table, verify
from accountants.runs import read_run
from accountants.statement import headline, statement

DELTA = 1e-5
QUERY = GaussianDpEvent(10.0)
PROMISE = SelfComposedDpEvent(QUERY, 100)


def epsilon(event):
    return PldAccountant().compose(event).get_epsilon(DELTA)


def ledger(path, promise=PROMISE, count=30, event=QUERY):
    public = {"delta": DELTA} | ({} if promise is None else {"promise": to_dict(promise)})
    with Ledger(path, public=public) as written:
        written.charge("student/labels", event, count)
    return read_ledger(path)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(6.0, 1e-5), (1e-3, 1e-10), (100.0, 1e-30), (0.5, 0.3), (1e4, 1e-6), (1e-4, 0.9), (3.0, 1e-300)]
)
def test_a_ceiling_of_gaussians_costs_at_least_that_much_and_hardly_more(epsilon, delta):
    event = gaussian_ceiling(epsilon, delta)
    with mpmath.workdps(400):
        mu, e = 1 / mpmath.mpf(event.noise_multiplier), mpmath.mpf(epsilon)
        exact = mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)  # Balle and Wang 2018, Theorem 8
        mu *= 1 - mpmath.mpf(10) ** -8
        less = mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)
    assert less < delta <= exact


@pytest.mark.parametrize("arguments", [(0.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.inf, 0.1)])
def test_a_ceiling_is_refused_out_of_range(arguments):
    with pytest.raises(InvalidEventError):
        gaussian_ceiling(*arguments)


def test_the_promise_is_the_guarantee_and_what_was_spent_a_reading(tmp_path):
    contents = ledger(tmp_path / "ledger.jsonl")
    breakdown = breakdown_of(contents)
    assert breakdown.guarantee == pytest.approx(epsilon(PROMISE), rel=1e-3)
    assert breakdown.epsilon == pytest.approx(epsilon(SelfComposedDpEvent(QUERY, 30)), rel=1e-3)
    first, second = text_table(breakdown).splitlines()[:2]
    assert "fixed beforehand" in first
    assert f"{breakdown.guarantee:.3f}"[:4] in first
    assert "no guarantee" in second
    assert f"{breakdown.epsilon:.3f}"[:4] in second

    document = privacy_document(contents)
    assert (document["epsilon"], document["spent"]) == (breakdown.guarantee, breakdown.epsilon)
    alone = privacy_document(ledger(tmp_path / "alone.jsonl", None, 100))
    for figure in ("profile", "gdp", "advantage", "worst_case_tpr_at_fpr_1_percent"):
        assert document[figure] == alone[figure]  # of all that was promised, not of what was charged
    assert headline(document).startswith(f"({document['epsilon']:.4g}"[:5])
    assert "a reading and no guarantee" in statement(document)
    assert "a reading" not in statement(alone)
    assert alone["spent"] == alone["epsilon"]
    assert alone["lower"] > 0


def test_other_deltas_have_a_promise_too(tmp_path):
    breakdown = breakdown_of(ledger(tmp_path / "ledger.jsonl"), 1e-8)
    assert breakdown.guarantee == pytest.approx(PldAccountant().compose(PROMISE).get_epsilon(1e-8), rel=1e-3)


def test_verify_derives_the_promise_again(tmp_path):
    contents = ledger(tmp_path / "ledger.jsonl")
    path = tmp_path / "privacy.json"
    document = privacy_document(contents)
    path.write_text(json.dumps(document))
    assert verify(path)["ok"]
    path.write_text(json.dumps(document | {"epsilon": document["spent"]}))
    assert "epsilon can't be re-derived" in verify(path)["error"]
    del document["ledger"]["public"]["promise"]
    path.write_text(json.dumps(document | {"epsilon": document["spent"]}))
    assert not verify(path)["ok"]


def test_more_than_was_promised_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="more was spent"):
        breakdown_of(ledger(tmp_path / "ledger.jsonl", count=101))
    breakdown_of(ledger(tmp_path / "whole.jsonl", count=100))
    with pytest.raises(LedgerError, match="more was spent"):
        breakdown_of(read_ledger(tmp_path / "ledger.jsonl"), accountant="rdp")
    breakdown_of(read_ledger(tmp_path / "whole.jsonl"), accountant="rdp")
    for event in (NonPrivateDpEvent(), LaplaceDpEvent(1 / 3)):  # infinite; less at the δ of the promise, more at others
        contents = ledger(tmp_path / f"{type(event).__name__}.jsonl", gaussian_ceiling(3.5, DELTA), 1, event)
        with pytest.raises(LedgerError, match="more was spent"):
            breakdown_of(contents)


def test_runs_are_merged_by_what_they_promise(tmp_path):
    for name, promise, event in (("a", PROMISE, QUERY), ("b", None, LaplaceDpEvent(5.0))):
        (tmp_path / name).mkdir()
        ledger(tmp_path / name / "ledger.jsonl", promise, 3, event)
    together = merged([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    expected = PldAccountant().compose(PROMISE).compose(LaplaceDpEvent(5.0), 3).get_epsilon(DELTA)
    assert together.document["epsilon"] == pytest.approx(expected, rel=2e-3)
    assert together.document["spent"] < 0.9 * together.document["epsilon"]


@pytest.mark.parametrize("promise", [3, {}, {"type": "Unheard"}, {"type": "GaussianDpEvent", "noise_multiplier": -1}])
def test_a_promise_that_is_no_event_is_refused(tmp_path, promise):
    with pytest.raises(InvalidEventError):
        Ledger(tmp_path / "ledger.jsonl", public={"delta": DELTA, "promise": promise})
    contents = dataclasses.replace(ledger(tmp_path / "other.jsonl"), public={"delta": DELTA, "promise": promise})
    with pytest.raises(InvalidEventError):
        breakdown_of(contents)


@pytest.mark.parametrize("fact", [{"unit": "person"}, {"neighbouring_relation": "replace_one"}])
def test_what_the_header_says_itself_is_no_fact(tmp_path, fact):
    with pytest.raises(LedgerError, match=next(iter(fact))):
        Ledger(tmp_path / "ledger.jsonl", public={"delta": DELTA} | fact)


def test_a_page_shows_both(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    contents = ledger(tmp_path / "ledger.jsonl")
    assert main(["report", str(tmp_path / "ledger.jsonl"), "--html", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    page = (tmp_path / "page.html").read_text()
    assert "A reading and no guarantee" in page
    assert headline(privacy_document(contents)) in page


def test_a_ceiling_is_promised_too(tmp_path):
    """To the last digit, where the mechanism that stands for it rounds."""
    public = {"delta": DELTA, "promise": to_dict(gaussian_ceiling(2.0, DELTA)), "ceiling": {"epsilon": 2.0, "delta": DELTA}}
    with Ledger(tmp_path / "ledger.jsonl", public=public) as written:
        written.charge("student/labels", QUERY, 3)
    contents = read_ledger(tmp_path / "ledger.jsonl")
    assert breakdown_of(contents).guarantee == 2.0
    assert breakdown_of(contents, 1e-6).guarantee > 2.0
    assert breakdown_of(contents, 1e-4).guarantee < 2.0
