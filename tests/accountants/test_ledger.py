"""The ledger: what it holds survives, and what was done to it shows."""

import dataclasses
import errno
import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants import chain, report

STEP = acc.PoissonSampledDpEvent(0.01, acc.GaussianDpEvent(1.1))


def write(path, charges=5):
    path.unlink(missing_ok=True)
    with acc.Ledger(path, public={"delta": 1e-5}) as ledger:
        for i in range(charges):
            ledger.charge("train/gradients", STEP, i + 1)
        return ledger.head


def test_round_trip(tmp_path):
    path = tmp_path / "ledger.jsonl"
    head = write(path)
    contents = acc.read_ledger(path)
    assert contents.head == head
    assert contents.count("train/gradients") == 15
    assert [c.event for c in contents.charges] == [STEP] * 5
    assert contents.public == {"delta": 1e-5}
    with acc.Ledger(path) as ledger:  # another process goes on
        ledger.charge("data/mean", acc.LaplaceDpEvent(3.0))
    assert acc.read_ledger(path).count("data/mean") == 1


def test_commitments_survive_and_cost_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    head = write(path)
    before = report.privacy_document(acc.read_ledger(path))
    with acc.Ledger(path) as ledger:
        ledger.commit_to("student/labels", {"digests": ["ab", "cd"], "answered": [True, False]})
        assert ledger.head != head
        for content in ({"a": float("nan")}, {"a": (1, 2)}, {1: 2}):
            with pytest.raises(acc.LedgerError, match="plain JSON"):
                ledger.commit_to("student/labels", content)
    contents = acc.read_ledger(path)
    (commitment,) = contents.commitments
    assert (commitment.path, commitment.content["digests"]) == ("student/labels", ["ab", "cd"])
    after = report.privacy_document(contents)
    assert {k: v for k, v in after.items() if k != "ledger"} == {k: v for k, v in before.items() if k != "ledger"}
    path.write_bytes(path.read_bytes().replace(b'"cd"', b'"ce"'))
    assert not report.verify(path)["ok"]


def test_each_line_is_on_disk_when_charge_returns(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with acc.Ledger(path) as ledger:
        for count in range(1, 4):
            ledger.charge("a", STEP)
            assert acc.read_ledger(path).count("a") == count


def test_every_single_byte_edit_is_detected(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write(path, 3)
    good = path.read_bytes()
    for position in range(len(good)):
        for replacement in (good[position] ^ 1, 0x20, 0x0A):
            if replacement == good[position]:
                continue
            path.write_bytes(good[:position] + bytes([replacement]) + good[position + 1 :])
            result = report.verify(path)
            assert not result["ok"], position
            assert result["line"] is not None


def long_ledger(path):
    """200 lines: two components in turn, and a commitment now and then."""
    with acc.Ledger(path, public={"delta": 1e-5}) as ledger:
        for i in range(199):
            if i % 50 == 49:
                ledger.commit_to("student/labels", {"digest": f"{i:064x}"})
            elif i % 3:
                ledger.charge("train/gradients", STEP, i % 7 + 1)
            else:
                ledger.charge("data/mean", acc.LaplaceDpEvent(3.0 + i))
        return ledger.head


@pytest.mark.parametrize("every", [301, pytest.param(1, marks=pytest.mark.slow)])
def test_every_single_byte_edit_of_200_lines_is_located(tmp_path, every):
    path = tmp_path / "ledger.jsonl"
    long_ledger(path)
    good = path.read_bytes()
    assert good.count(b"\n") == 200
    for position in range(0, len(good) - 1, every):
        news = (good[position] ^ 1, good[position] ^ 0x20, 0x0A) if position % 7 == 0 else (good[position] ^ 1,)
        for new in set(news) - {good[position]}:
            with pytest.raises(acc.LedgerError) as caught:
                chain.parse(good[:position] + bytes([new]) + good[position + 1 :])
            line = good.count(b"\n", 0, position) + 1
            assert caught.value.line in ({line, line + 1} if good[position] == 0x0A else {line})


def test_removed_swapped_and_repeated_lines_are_detected_and_located(tmp_path):
    path = tmp_path / "ledger.jsonl"
    head = long_ledger(path)
    lines = path.read_bytes().splitlines(keepends=True)

    def complaint(*edited):
        with pytest.raises(acc.LedgerError) as caught:
            chain.parse(b"".join(edited))
        return caught.value.line

    for i in range(len(lines) - 1):
        assert complaint(*lines[:i], *lines[i + 1 :]) == i + 1
        assert complaint(*lines[: i + 1], *lines[i:]) == i + 2
        assert complaint(*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]) == i + 1
    path.write_bytes(b"".join(lines[:-1]))
    assert report.verify(path)["ok"]  # truncation leaves a sound chain…
    assert not report.verify(path, head)["ok"]  # …which the head gives away


@pytest.mark.parametrize("cut", [1, 5, 50])
def test_a_torn_last_line_is_recovered_and_said(tmp_path, cut):
    path = tmp_path / "ledger.jsonl"
    write(path, 3)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[: -1 - cut])
    assert not report.verify(path)["ok"]
    with acc.Ledger(path) as ledger:
        assert ledger.recovered == last[: -1 - cut]
        assert ledger.contents.count("train/gradients") == 3
        ledger.charge("train/gradients", STEP)
    assert report.verify(path)["ok"]
    assert b'"recovered"' in path.read_bytes()


def test_a_whole_line_without_its_newline_is_not_dropped(tmp_path):
    """It may be a charge whose release happened: an editor that strips newlines must not lower ε."""
    path = tmp_path / "ledger.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(acc.LedgerError, match="line 4: neither a whole line"):
        acc.Ledger(path)


def test_a_ledger_without_any_newline_is_not_taken_for_a_torn_header(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes().replace(b"\n", b""))
    with pytest.raises(acc.LedgerError, match="line 1"):
        acc.Ledger(path)


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path):
    path = tmp_path / "precious.bin"
    path.write_bytes(b"precious")
    with pytest.raises(acc.LedgerError, match="not a ledger"):
        acc.Ledger(path)
    assert path.read_bytes() == b"precious"


def test_refusing_other_terms_recovers_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write(path, 1)
    torn = path.read_bytes() + b'{"count":1,'
    path.write_bytes(torn)
    with pytest.raises(acc.LedgerError, match="unit"):
        acc.Ledger(path, unit="user")
    assert path.read_bytes() == torn


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    class Mine(acc.GaussianDpEvent):
        pass

    with acc.Ledger(tmp_path / "ledger.jsonl") as ledger:
        head = ledger.head
        with pytest.raises(acc.InvalidEventError):
            ledger.charge("a", Mine(1.0))
        assert ledger.head == head
    for public in ({"a": (1, 2)}, {"a": float("nan")}, {1: 2}, {"a": object()}):
        with pytest.raises(acc.LedgerError, match="plain JSON"):
            acc.Ledger(tmp_path / "other.jsonl", public=public)


def test_a_torn_header_starts_anew(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"hash":"e2')
    with acc.Ledger(path) as ledger:
        assert ledger.recovered
    assert report.verify(path)["ok"]


def _hold(path, ready, done):
    with acc.Ledger(path):
        ready.set()
        done.wait(30)


def test_two_processes_cannot_write_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(path, ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(acc.LedgerError, match="in use by another process") as caught:
            acc.Ledger(path)
        assert caught.value.line is None
    finally:
        done.set()
        holder.join()
    acc.Ledger(path).close()


def test_other_terms_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write(path)
    with pytest.raises(acc.LedgerError, match="zero_out"):
        acc.Ledger(path, neighbouring_relation="zero_out")
    with pytest.raises(acc.LedgerError, match="unit"):
        acc.Ledger(path, unit="user")
    with pytest.raises(acc.LedgerError, match="delta"):
        acc.Ledger(path, public={"delta": 1e-6})


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_failed_write_ends_the_writer_and_leaves_a_sound_ledger(tmp_path, monkeypatch, failing):
    path = tmp_path / "ledger.jsonl"
    ledger = acc.Ledger(path)
    ledger.charge("a", STEP)
    real = getattr(os, failing)
    calls = []

    def full(fd, *data):
        if failing == "write" and not calls:
            calls.append(1)
            return real(fd, bytes(data[0])[:20])  # the disk takes a little and is then full
        if failing == "fsync" and calls:
            return real(fd)
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(acc.LedgerError, match="nothing was released"):
        ledger.charge("a", STEP)
    monkeypatch.undo()
    with pytest.raises(acc.LedgerError, match="closed after a failed write"):
        ledger.charge("a", STEP)
    ledger.close()
    with acc.Ledger(path) as ledger:
        assert ledger.contents.count("a") == 1


@pytest.mark.parametrize("path", ["", "A", "a//b", "/a", "a b", "a\n", None])
def test_malformed_component_paths_are_refused(tmp_path, path):
    with acc.Ledger(tmp_path / "ledger.jsonl") as ledger, pytest.raises(acc.LedgerError, match="component path"):
        ledger.charge(path, STEP)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: t.encode() + b"\n")))
def test_reading_anything_raises_named_errors_only(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("fuzz") / "ledger.jsonl"
    path.write_bytes(raw)
    with pytest.raises(acc.LedgerError):
        acc.read_ledger(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(["kind", "count", "event", "path", "prev", "hash", "time", "schema", "extra"]), value=JSON)
def test_any_field_replaced_by_anything_is_a_named_error(tmp_path_factory, field, value):
    path = tmp_path_factory.mktemp("fuzz") / "ledger.jsonl"
    write(path, 1)
    header, charge = path.read_bytes().splitlines()
    record = json.loads(charge)
    if record.get(field) == value:
        return
    record[field] = value
    path.write_bytes(header + b"\n" + json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    assert report.verify(path)["line"] == 2


class TestBudget:
    def test_refuses_before_the_ceiling_is_passed(self, tmp_path):
        with acc.Ledger(tmp_path / "ledger.jsonl") as ledger:
            budget = acc.Budget(ledger, delta=1e-5, epsilon_ceiling=1.0)
            n = budget.affordable(STEP, 10**6)
            budget.charge("a", STEP, n)
            assert budget.epsilon <= 1.0
            assert budget.epsilon_after(STEP) > 1.0
            assert budget.affordable(STEP, 10) == 0
            head = ledger.head
            with pytest.raises(acc.BudgetExceededError, match="ceiling"):
                budget.charge("a", STEP)
            assert ledger.head == head  # nothing was recorded

    def test_remembers_what_earlier_processes_spent(self, tmp_path):
        path = tmp_path / "ledger.jsonl"
        with acc.Ledger(path) as ledger:
            acc.Budget(ledger, delta=1e-5).charge("a", STEP, 500)
        with acc.Ledger(path) as ledger:
            spent = acc.PldAccountant().compose(STEP, 500).get_epsilon(1e-5)
            assert acc.Budget(ledger, delta=1e-5).epsilon == pytest.approx(spent)

    def test_sees_what_others_charge_to_the_same_ledger(self, tmp_path):
        with acc.Ledger(tmp_path / "ledger.jsonl") as ledger:
            one, other = (acc.Budget(ledger, delta=1e-5, epsilon_ceiling=1.0) for _ in range(2))
            one.charge("a", STEP, one.affordable(STEP, 10**6))
            assert other.epsilon == one.epsilon
            assert other.affordable(STEP, 10) == 0
            ledger.charge("b", acc.LaplaceDpEvent(1.0))  # past every budget
            assert one.epsilon > 1.0
            with pytest.raises(acc.BudgetExceededError):
                one.charge("a", acc.NoOpDpEvent())

    def test_an_unaccountable_event_is_not_recorded(self, tmp_path):
        with acc.Ledger(tmp_path / "l", neighbouring_relation="replace_one") as ledger:
            with pytest.raises(acc.UnsupportedEventError):
                acc.Budget(ledger, delta=1e-5).charge("a", acc.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (0.5, 0.5)))
            assert ledger.contents.charges == ()

    def test_a_plan_that_fits_is_not_stopped_on_its_way(self, tmp_path):
        """Bounds at fewer steps may exceed those at more by the last digits."""
        sigma = acc.calibrate_noise_multiplier(epsilon=1.0, delta=1e-5, sampling_probability=0.01, steps=2000)
        step = acc.dpsgd_event(sigma, 0.01, 1)
        with acc.Ledger(tmp_path / "l") as ledger:
            budget = acc.Budget(ledger, delta=1e-5, epsilon_ceiling=1.0)
            assert budget.affordable(step, 2000) == 2000
            for _ in range(400):
                budget.charge("a", step, 5)
                assert budget.epsilon <= 1.0
            with pytest.raises(acc.BudgetExceededError):
                budget.charge("a", step, 20)

    def test_non_private_is_infinite(self, tmp_path):
        with acc.Ledger(tmp_path / "l") as ledger:
            budget = acc.Budget(ledger, delta=1e-5)
            budget.charge("a", acc.NonPrivateDpEvent())
            assert budget.epsilon == float("inf")


class TestPrivacyDocument:
    @pytest.fixture
    def document(self, tmp_path):
        write(tmp_path / "ledger.jsonl")
        return report.privacy_document(acc.read_ledger(tmp_path / "ledger.jsonl"), None, {"setting": "test"})

    def test_is_re_derived(self, tmp_path, document):
        path = tmp_path / "privacy.json"
        path.write_text(json.dumps(document, allow_nan=False))
        assert report.verify(path)["ok"]
        assert report.verify(path, "0" * 64)["ok"] is False

    def test_changed_declarations_are_detected_beside_the_ledger(self, tmp_path, document):
        for change in ({"public": {"delta": 1e-5, "num_examples": 10**9}}, {"lines": 3}):
            (tmp_path / "privacy.json").write_text(json.dumps(document | {"ledger": document["ledger"] | change}))
            assert not report.verify(tmp_path / "privacy.json")["ok"]
        for change in ({"bound": "exact"}, {"epsilon": 10**400}):
            (tmp_path / "privacy.json").write_text(json.dumps(document | change))
            assert not report.verify(tmp_path / "privacy.json")["ok"]

    @pytest.mark.parametrize("key", ["epsilon", "order", "conversion_term", "worst_case_tpr_at_fpr_1_percent", "delta"])
    def test_a_changed_figure_is_detected(self, tmp_path, document, key):
        path = tmp_path / "privacy.json"
        path.write_text(json.dumps(document | {key: document[key] * 0.9}))
        result = report.verify(path)
        assert not result["ok"]
        assert "re-derived" in result["error"]

    @pytest.mark.usefixtures("document")
    def test_fewer_events_than_the_ledger_beside_it_are_detected(self, tmp_path):
        contents = acc.read_ledger(tmp_path / "ledger.jsonl")
        forged = report.privacy_document(dataclasses.replace(contents, charges=contents.charges[:1]))
        (tmp_path / "privacy.json").write_text(json.dumps(forged))
        result = report.verify(tmp_path / "privacy.json")
        assert not result["ok"]
        assert "ledger beside it" in result["error"]

    @settings(max_examples=200, deadline=None)
    @given(key=st.sampled_from(["events", "ledger", "delta", "components", "schema", "neighbouring_relation"]), value=JSON)
    def test_any_field_replaced_by_anything_is_a_named_error(self, tmp_path_factory, key, value):
        folder = tmp_path_factory.mktemp("fuzz")
        write(folder / "other.jsonl", 1)
        document = report.privacy_document(acc.read_ledger(folder / "other.jsonl"))
        if document[key] == value:
            return
        (folder / "privacy.json").write_text(json.dumps(document | {key: value}))
        assert not report.verify(folder / "privacy.json")["ok"]
