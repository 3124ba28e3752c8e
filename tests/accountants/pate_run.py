"""A run of PATE written by hand, as marauder_dp.pate would write it."""

import json

import numpy as np

from accountants.ledger import Ledger
from accountants.pate import record, replay
from accountants.pate.record import CHECKS, LABELS, PLURALITIES, Question
from accountants.pate.votes import Votes

SALT = b"0123456789abcdef"
VOTINGS = {
    "confident_gnmax": {"threshold": 15.0, "sigma_threshold": 12.0},
    "interactive_gnmax": {"threshold": 8.0, "sigma_threshold": 12.0},
    "gnmax": {"threshold": None, "sigma_threshold": None},
    "lnmax": {"threshold": None, "sigma_threshold": None},
}


def voting(mechanism):
    return {"mechanism": mechanism, "teachers": 30, "classes": 3, "sigma_votes": 8.0, **VOTINGS[mechanism]}


def some_votes(queries=40):
    return Votes(np.random.default_rng(0).multinomial(30, [0.5, 0.3, 0.2], queries))


def write_run(folder, mechanism="confident_gnmax", *, votes=None, queries=17, header=None):
    """A folder with ledger, private votes and salt, and the figures in privacy.json."""
    votes, how, rng = some_votes() if votes is None else votes, voting(mechanism), np.random.default_rng(1)
    check, plurality = record.events(mechanism, how["sigma_votes"], how["sigma_threshold"])
    (folder / "private").mkdir(parents=True)
    np.save(folder / replay.VOTES, votes.counts)
    (folder / replay.SALT).write_bytes(SALT)
    with Ledger(folder / "ledger.jsonl", public={"delta": 1e-5, "voting": how} | (header or {})) as ledger:
        record.bind(ledger, votes, SALT)
        order = rng.permutation(len(votes))[:queries].tolist()
        for start in range(0, queries, 5):
            some = order[start : start + 5]
            student = rng.dirichlet([1, 1, 1], len(some)).round(6)
            expected = tuple(map(tuple, student.tolist())) if mechanism == "interactive_gnmax" else None
            passed = rng.random(len(some)) < 0.6 if check else np.ones(len(some), bool)
            ledger.commit_to(LABELS, Question(tuple(some), expected).content)
            if check:
                ledger.charge(CHECKS, check, len(some))
            if passed.any():
                ledger.charge(PLURALITIES, plurality, int(passed.sum()))
            ledger.commit_to(LABELS, {"labels": np.where(passed, rng.integers(0, 3, len(some)), -1).tolist()})
        contents = ledger.contents
    analysis = replay.analyse_run(contents, votes)
    (folder / "privacy.json").write_text(json.dumps({"pate": replay.figures(analysis)}))
    return contents, votes
