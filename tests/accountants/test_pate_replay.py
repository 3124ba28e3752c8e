"""Replay: from ledger and stored votes to the very figures that were written, and nothing else passes."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants import pate
from accountants.__main__ import main
from accountants.errors import AccountingError, LedgerError, VotesError
from accountants.pate import record, replay
from tests.accountants.pate_run import VOTINGS, some_votes, write_run
from tests.accountants.pate_run import voting as voting_of


@pytest.mark.parametrize("mechanism", VOTINGS)
def test_the_same_figures_digit_for_digit(tmp_path, mechanism, capsys):
    write_run(tmp_path / "run", mechanism)
    written = json.loads((tmp_path / "run" / "privacy.json").read_text())["pate"]
    assert replay.replay(tmp_path / "run") == written
    assert main(["replay", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] == written["epsilon"]


def test_figures_are_those_of_the_analysis(tmp_path):
    contents, votes = write_run(tmp_path / "run")
    figures = replay.replay(tmp_path / "run")
    answers = record.released(contents)
    direct = pate.analyse(
        pate.Votes(votes.counts[[a.query for a in answers]]),
        sigma_votes=8.0, threshold=15.0, sigma_threshold=12.0, delta=1e-5, answered=np.array([a.answered for a in answers]),
    )  # fmt: skip
    assert figures["epsilon"] == direct.data_dependent.epsilon
    assert figures["epsilon_independent"] == direct.data_independent.epsilon
    assert figures["answered"] == [a.answered for a in answers]
    for total, each in (("threshold_total", "threshold"), ("argmax_total", "argmax")):
        assert sum(figures[each]) == pytest.approx(figures[total], rel=1e-12)
    assert figures["threshold_total"] + figures["argmax_total"] + figures["conversion"] == pytest.approx(figures["epsilon"])
    assert figures["cumulative"][-1] == pytest.approx(figures["epsilon"], rel=1e-9)
    assert figures["cumulative_independent"] == sorted(figures["cumulative_independent"])


def test_public_figures_do_not_depend_on_the_votes(tmp_path):
    """What ends in _independent, and answered, is the same for any votes with the same answers."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", votes=pate.Votes(np.tile([30, 0, 0], (40, 1))))
    a, b = (replay.replay(tmp_path / name) for name in "ab")
    public = {key for key in a if key.endswith("_independent")} | {"answered", "delta"}
    public -= {"threshold_independent", "argmax_independent"}
    for key in public:
        assert a[key] == b[key], key
    assert a["epsilon"] != b["epsilon"]


def edit(path, change):
    array = np.load(path)
    change(array)
    np.save(path, array)


def move_a_vote(counts):
    counts[3, [0, 1]] += (-1, 1)


def raise_a_count(path):
    path.write_bytes(path.read_bytes().replace(b'"count":', b'"count":1', 1))


DAMAGES = [
    (lambda r: edit(r / replay.VOTES, move_a_vote), "not the votes, or the salt"),
    (lambda r: np.save(r / replay.VOTES, np.load(r / replay.VOTES)[:-1]), "not the votes, or the salt"),
    (lambda r: np.save(r / replay.VOTES, np.load(r / replay.VOTES) * 1.5), "votes of query"),
    (lambda r: (r / replay.VOTES).write_bytes(b"\x93NUMPY"), "not a NumPy .npy file"),
    (lambda r: (r / replay.VOTES).unlink(), "can't read"),
    (lambda r: (r / replay.SALT).write_bytes(b"f" * 32), "not the votes, or the salt"),
    (lambda r: (r / replay.SALT).write_bytes(b""), "at least 16 bytes"),
    (lambda r: (r / replay.SALT).unlink(), "can't read .*salt"),
    (lambda r: (r / "ledger.jsonl").unlink(), "can't read the ledger"),
    (lambda r: raise_a_count(r / "ledger.jsonl"), "line"),
    (lambda r: (r / "privacy.json").write_text("[]"), "holds no figures of PATE"),
    (lambda r: (r / "privacy.json").write_text("{"), "holds no figures of PATE"),
    (lambda r: (r / "privacy.json").write_text("{}"), "holds no figures of PATE"),
    (lambda r: (r / "privacy.json").write_text('{"pate": []}'), "can't be derived|holds no figures"),
    (lambda r: (r / "privacy.json").write_text('{"pate": 3}'), "holds no figures of PATE"),
    (lambda r: (r / "privacy.json").write_text('{"pate": ' + "[" * 10**5), "holds no figures of PATE"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_whatever_was_changed_is_noticed(tmp_path, damage, message):
    write_run(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises((LedgerError, VotesError), match=message) as caught:
        replay.replay(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_every_figure_is_compared(tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "privacy.json"
    whole = json.loads(path.read_text())
    for key, value in whole["pate"].items():
        if isinstance(value, list):
            other = [*value[:-1], not value[-1] if isinstance(value[-1], bool) else np.nextafter(value[-1], 9)]
        else:
            other = "x" if isinstance(value, str) else np.nextafter(value, 9)
        for changed in (whole["pate"] | {key: other}, {k: v for k, v in whole["pate"].items() if k != key}):
            path.write_text(json.dumps({"pate": changed}))
            with pytest.raises(LedgerError, match=f"{key} in .* can't be derived"):
                replay.replay(tmp_path / "run")
    path.write_text(json.dumps({"pate": whole["pate"] | {"epsilon_published": 0.1}}))
    with pytest.raises(LedgerError, match=r"epsilon_published in .* can't be derived"):
        replay.replay(tmp_path / "run")


@pytest.mark.parametrize(
    "voting",
    [
        None,
        [],
        {},
        {"mechanism": "gnmax"},
        {"sigma_votes": 9.0},
        {"sigma_threshold": 13.0},
        {"sigma_votes": "8"},
        {"sigma_votes": 0},
        {"sigma_votes": None},
        {"sigma_votes": True},
        {"threshold": 99.0},
        {"threshold": "a"},
        {"threshold": None},
        {"teachers": 29},
        {"teachers": None},
        {"mechanism": "interactive_gnmax"},
        {"mechanism": "lnmax"},
        {"mechanism": []},
        {"mechanism": "unheard_of"},
    ],
    ids=str,
)
def test_a_header_that_describes_something_else(tmp_path, voting):
    """Also other noise than was charged for: the figures would be of a run that wasn't."""
    changed = voting_of("confident_gnmax") | voting if isinstance(voting, dict) and voting else voting
    with pytest.raises(AccountingError) as caught:
        write_run(tmp_path / "run", header={"voting": changed})
    assert "\n" not in str(caught.value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["mechanism", "sigma_votes", "sigma_threshold", "threshold", "teachers"]), VALUES)
def test_any_header_is_read_or_refused_by_name(contents_and_votes, key, value):
    contents, votes = contents_and_votes
    public = dict(contents.public) | {"voting": dict(contents.public["voting"]) | {key: value}}
    with contextlib.suppress(AccountingError):
        replay.analyse_run(dataclasses.replace(contents, public=public), votes)


@pytest.fixture(scope="module")
def contents_and_votes(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run")


def test_nothing_was_answered(tmp_path):
    with pytest.raises(AttributeError):  # there are no figures to write
        write_run(tmp_path / "run", queries=0)
    with pytest.raises(VotesError, match="answered no query"):
        replay.replay(tmp_path / "run")


def test_queries_beyond_the_votes(tmp_path):
    contents, _ = write_run(tmp_path / "run")
    with pytest.raises(LedgerError, match="does not describe the voting"):
        replay.analyse_run(contents, pate.Votes(some_votes().counts[:5]))
