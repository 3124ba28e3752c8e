"""The page of a sweep."""

import json
import re

import pytest

from accountants import GaussianDpEvent, Ledger, read_ledger, report
from experiments import summary, trials
from experiments.trials import Outcome, Trial
from tests.browser import Browser, check_as_shown, needs_browser


@pytest.fixture
def sweep(tmp_path):
    """(folder, privacy.json, outcomes): six trials, one refused for the budget; one has a report."""
    with Ledger(tmp_path / "ledger.jsonl", public={"delta": 1e-5}) as ledger:
        ledger.charge("trials/000/train/gradients", GaussianDpEvent(5.0), 3)
    document = report.privacy_document(read_ledger(tmp_path / "ledger.jsonl"))
    outcomes = []
    for i, (rate, model) in enumerate(
        [("0.01", "cnn"), ("0.1", "cnn"), ("1", "mlp"), ("10", "<b>"), ("0.3", "mlp"), ("3", "cnn")]
    ):
        trial = Trial(i, (("learning_rate", rate), ("model", model)), tmp_path / "trials" / f"{i:03d}")
        trial.folder.mkdir(parents=True)
        outcomes.append(Outcome(trial, 0, 0.5 + i / 20, 1.0 + i / 10) if i < 5 else Outcome(trial, 3, None, None))
    (tmp_path / "trials" / "002" / "report.html").touch()
    return tmp_path, document, outcomes


def test_all_trials(sweep):
    html = summary.page(*sweep, "accuracy", "all may be released")
    assert re.findall(r"<td>(0\.\d+)</td><td>[^<]*</td><td class=\"words\">done", html) == ["0.7", "0.65", "0.6", "0.55", "0.5"]
    assert html.count("<figure") == 3  # ε, learning rate, model
    assert '<a href="trials/002/report.html">002</a>' in html
    assert html.count("<a href=") == 1
    assert "exit code 3" in html
    assert "5 of 6" in html
    assert "<b></td>" not in html
    assert report.upper(sweep[1]["epsilon"]) in html


def test_the_best_alone(sweep):
    """Neither its number nor anything else of private selection's other trials."""
    folder, document, outcomes = sweep
    html = summary.page(folder, document, [outcomes[2]], "accuracy", "only the best may be released")
    assert "002" not in html
    assert "<figure" not in html
    assert "<a href=" not in html
    assert "Trials" not in html
    assert "ε alone" not in html  # less than what choosing it cost


def test_only_scores_that_are_marked_public_count(tmp_path):
    """As in report.html: a missing mark is a private one."""
    rows = [{"value": 0.7, "private": False}, {"value": 0.8, "private": True}, {"value": 0.9}]
    lines = [json.dumps({"step": i, "split": "test", "name": "accuracy", **row}) for i, row in enumerate(rows)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert trials._score(tmp_path, "accuracy") == 0.7


def test_without_the_extra_a_line_says_how_to_get_it(sweep, monkeypatch, capsys):
    monkeypatch.setattr(summary.render, "available", lambda: False)
    summary.write_summary(sweep[0] / "summary.html", *sweep[1:], "accuracy", "")
    assert "pip install" in capsys.readouterr().out
    assert not (sweep[0] / "summary.html").exists()


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, True), (390, False)])
def test_in_a_real_browser(sweep, width, dark):
    target = sweep[0] / "summary.html"
    summary.write_summary(target, *sweep[1:], "accuracy", "all may be released")
    with Browser(width=width, dark=dark) as browser:
        check_as_shown(browser, target, width)
