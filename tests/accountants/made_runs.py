"""Folders as runs leave them, made without training."""

import json
from pathlib import Path

import numpy as np

import accountants as acc
from accountants.pate import Votes, record
from accountants.pate.replay import VOTES, analyse_run, figures
from accountants.report import privacy_document

FACTS = {
    "setting": "Central model, with `config.json`.",
    "released": "A <b>model</b> & its ledger.",
    "not_covered": ["Tuning.", "Logs."],
}


def dpsgd_run(folder: Path, *, sigma: float = 2.0, ceiling: float | None = 4.0) -> Path:
    """Two components, metrics of both kinds."""
    folder.mkdir(parents=True)
    public = {"delta": 1e-5, "num_examples": 6000}
    if ceiling is not None:
        public["ceiling"] = {"epsilon": ceiling, "delta": 1e-5}
    rows = []
    with acc.Ledger(folder / "ledger.jsonl", public=public) as ledger:
        ledger.charge("data/mean", acc.GaussianDpEvent(20.0))
        for step in (100, 200, 300, 400):
            ledger.charge("train/gradients", acc.dpsgd_event(sigma, 0.02, 1), 100)
            rows += [
                {"step": step, "split": "train", "name": "loss", "value": 2.0 - step / 400, "private": True},
                {"step": step, "split": "train", "name": "clipped", "value": 0.987654, "private": True},
                {"step": step, "split": "train", "name": "signal_to_noise", "value": 0.5, "private": True},
                {
                    "step": step,
                    "split": "train",
                    "name": "mystery",
                    "value": 0.123454321,
                },  # private too: nothing says otherwise
                {"step": step, "split": "train", "name": "epsilon", "value": step / 200, "private": False},
                {"step": step, "split": "test", "name": "accuracy", "value": 0.5 + step / 1000, "private": False},
            ]
        _write(folder, ledger.contents, rows)
    return folder


def pate_run(folder: Path, queries: int = 60) -> Path:
    """Confident-GNMax on made-up votes; every other query is answered."""
    (folder / "private").mkdir(parents=True)
    rng = np.random.default_rng(0)
    votes = Votes(np.array([rng.multinomial(50, np.roll([0.9, 0.06, 0.04], i)) for i in range(queries)]))
    np.save(folder / VOTES, votes.counts)
    voting = {
        "mechanism": "confident_gnmax",
        "classes": 3,
        "teachers": 50,
        "threshold": 30.0,
        "sigma_threshold": 20.0,
        "sigma_votes": 10.0,
    }
    public = {"delta": 1e-5, "num_examples": 5000, "voting": voting, "ceiling": {"epsilon": 20.0, "delta": 1e-5}}
    answers = [record.Answer(i, 0 if i % 2 else record.REFUSED) for i in range(queries)]
    (folder / "private" / "salt").write_bytes(b"s" * 32)
    with acc.Ledger(folder / "ledger.jsonl", public=public) as ledger:
        record.bind(ledger, votes, b"s" * 32)
        for start in range(0, queries, 20):
            some = answers[start : start + 20]
            ledger.charge(record.CHECKS, acc.GaussianDpEvent(20.0), len(some))
            ledger.charge(record.PLURALITIES, acc.GaussianDpEvent(10 / 2**0.5), sum(a.answered for a in some))
            ledger.commit_to(record.LABELS, record.line(some))
        analysis = analyse_run(ledger.contents, votes)
        assert analysis is not None
        rows = [
            {"step": 0, "split": "public", "name": "plurality_accuracy", "value": 0.876543, "private": True},
            {"step": queries, "split": "test", "name": "accuracy", "value": 0.75, "private": False},
        ]
        _write(folder, ledger.contents, rows, {"pate": figures(analysis)})
    return folder


def _write(folder: Path, contents, rows, more=None) -> None:
    document = privacy_document(contents, facts=FACTS) | (more or {})
    (folder / "privacy.json").write_text(json.dumps(document))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
