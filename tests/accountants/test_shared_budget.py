"""One budget for one data set: what fits, what is given back, and what was done to the file."""

import errno
import json
import multiprocessing
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants import LedgerError, SharedBudget, parse_policy
from accountants.budget_state import BudgetState, read_budget
from accountants.chained import canonical, digest_of

STEP = acc.PoissonSampledDpEvent(0.01, acc.GaussianDpEvent(1.1))
PLAIN = """
[data]
name = "patients"
description = "made up"
neighbouring_relation = "add_or_remove_one"
unit = "example"
public = ["num_examples"]
[ceiling]
epsilon = 2.0
delta = 1e-5
[release]
model = "anyone"
mean = "anyone"
"""
COHORTS = """
[cohort.donors]
rows = [[0, 100]]
epsilon = 2.0
delta = 1e-5
[cohort.others]
rows = [[100, 300]]
epsilon = 1.0
delta = 1e-5
"""
PURPOSES = """
[purpose.research]
release = ["model"]
epsilon = 1.0
delta = 1e-6
[purpose.billing]
release = ["mean"]
epsilon = 0.5
delta = 1e-6
"""


def gaussian(sigma):
    return acc.GaussianDpEvent(sigma)


def make(tmp_path, more="", name="budget.jsonl"):
    return SharedBudget.create(tmp_path / name, parse_policy((PLAIN + more).encode()))


def spent(budget):
    return {scope.name: budget.state.spent(scope) for scope in budget.state.terms.scopes()}


class TestWhatFits:
    def test_reserve_draw_commit(self, tmp_path):
        with make(tmp_path) as budget:
            one = budget.reserve([("train/gradients", STEP, 1000)], release="model", run="a")
            full = spent(budget)["all"]
            assert full == pytest.approx(acc.epsilon(acc.SelfComposedDpEvent(STEP, 1000), 1e-5).epsilon)
            budget.draw(one.id, "train/gradients", 400)
            assert spent(budget)["all"] == full  # never committed counts as spent
            budget.commit(one.id)
            assert spent(budget)["all"] == pytest.approx(acc.epsilon(acc.SelfComposedDpEvent(STEP, 400), 1e-5).epsilon)
            with pytest.raises(LedgerError, match="has ended"):
                budget.draw(one.id, "train/gradients", 1)
            budget.commit(one.id)  # harmless
        with SharedBudget(tmp_path / "budget.jsonl") as again:
            assert again.state.reservations[one.id].drawn == {"train/gradients": 400}

    def test_no_more_is_drawn_than_was_reserved(self, tmp_path):
        with make(tmp_path) as budget:
            name = budget.reserve([("a", STEP, 10)], release="model").id
            budget.draw(name, "a", 8)
            with pytest.raises(acc.BudgetExceededError, match="2 of 10 left at a, not 3"):
                budget.draw(name, "a", 3)
            for bad, path in ((name, "b"), ("0" * 32, "a"), (None, "a")):
                with pytest.raises(LedgerError):
                    budget.draw(bad, path, 1)
            with pytest.raises(acc.InvalidEventError):
                budget.draw(name, "a", 0)

    def test_a_calibrated_plan_fits_exactly_and_then_nothing_else_does(self, tmp_path):
        sigma = acc.calibrate_noise_multiplier(epsilon=2.0, delta=1e-5, sampling_probability=0.01, steps=2000)
        step = acc.dpsgd_event(sigma, 0.01, 1).event
        with make(tmp_path) as budget:
            name = budget.reserve([("a", step, 2000)], release="model").id
            budget.draw(name, "a", 10)
            budget.commit(name)
            assert 0 < spent(budget)["all"] <= 2.0
            # Had it stopped here for what it saw, two rules would be mixed: it stays counted in full.
            with pytest.raises(acc.BudgetExceededError):
                budget.reserve([("a", gaussian(1000.0), 1)], release="model")

    def test_what_was_never_drawn_is_as_if_it_had_never_been(self, tmp_path):
        sigma = acc.calibrate_noise_multiplier(epsilon=2.0, delta=1e-5, sampling_probability=0.01, steps=2000)
        step = acc.dpsgd_event(sigma, 0.01, 1).event
        with make(tmp_path) as budget:
            for _ in range(3):
                name = budget.reserve([("a", step, 2000)], release="model").id
                with pytest.raises(acc.BudgetExceededError, match="ceiling of all, ε = 2"):
                    budget.reserve([("a", STEP, 1)], release="model")
                budget.commit(name)
                assert spent(budget) == {"all": 0.0}

    def test_adaptive_use_is_filtered(self, tmp_path):
        """Whatever is reserved one after the other: the Rényi filter's sum stays below the ceiling, and comes near it."""
        with make(tmp_path) as budget:
            n = 0
            while budget.state.fits("all", "", {gaussian(5.0 + n % 3): 1}):
                budget.commit(budget.reserve([("a", gaussian(5.0 + n % 3), 1)], release="model", draw=True).id)
                n += 1
            with pytest.raises(acc.BudgetExceededError, match="nothing was reserved"):
                budget.reserve([("a", gaussian(5.0 + n % 3), 1)], release="model")
            assert 1.85 < spent(budget)["all"] <= 2.0
            exact = acc.PldAccountant()
            for reservation in budget.state.reservations.values():
                exact.compose(reservation.charges[0].event)
            assert exact.get_epsilon(1e-5) <= 2.0

    def test_without_a_guarantee_nothing_is_reserved(self, tmp_path):
        with make(tmp_path) as budget:
            for event in (acc.NonPrivateDpEvent(), gaussian(0.0), gaussian(0.1)):
                with pytest.raises(acc.BudgetExceededError):
                    budget.reserve([("a", event, 1)], release="model")
            assert len(budget.state.hashes) == 1

    def test_seal(self, tmp_path):
        with make(tmp_path) as budget:
            name = budget.reserve([("a", STEP, 10)], release="model").id
            budget.draw(name, "a", 3)
            budget.seal()
            budget.seal()
            with pytest.raises(acc.BudgetExceededError, match="sealed"):
                budget.reserve([("a", STEP, 1)], release="model")
            with pytest.raises(acc.BudgetExceededError, match="sealed"):
                budget.draw(name, "a", 1)
            budget.commit(name)
            assert budget.state.reservations[name].drawn == {"a": 3}

    def test_malformed_reservations_leave_nothing(self, tmp_path):
        with make(tmp_path) as budget:
            for charges, kwargs in [
                ([], {}),
                ([("a", STEP, 0)], {}),
                ([("A", STEP, 1)], {}),
                ([("a", STEP, 1), ("a", STEP, 2)], {}),
                ([("a", STEP, 1)], {"name": "x"}),
                ([("a", STEP, 1)], {"release": "votes"}),
                ([("a", STEP, 1)], {"cohort": "donors"}),
                ([("a", STEP, 1)], {"purpose": "research"}),
            ]:
                with pytest.raises(acc.AccountingError):
                    budget.reserve(charges, **{"release": "model"} | kwargs)
            assert len((tmp_path / "budget.jsonl").read_bytes().splitlines()) == 1


class TestScopes:
    def test_disjoint_cohorts_compose_in_parallel(self, tmp_path):
        with make(tmp_path, COHORTS) as budget:
            big, small = [("a", gaussian(2.7), 1)], [("a", gaussian(5.0), 1)]
            budget.reserve(big, release="model", cohort="donors", draw=True)
            assert spent(budget)["others"] == spent(budget)["rest"] == 0
            with pytest.raises(acc.BudgetExceededError, match="ceiling of others, ε = 1"):
                budget.reserve(big, release="model", cohort="others")
            budget.reserve(small, release="model", cohort="others", draw=True)
            # All data: in every class, so the fullest one decides.
            with pytest.raises(acc.BudgetExceededError, match=r"ceiling of (donors|others)"):
                budget.reserve(small, release="model", cohort="all")
            with pytest.raises(LedgerError, match="has all, donors, others"):
                budget.reserve(small, release="model", cohort="rest")

    def test_what_all_data_pay_counts_in_every_cohort(self, tmp_path):
        with make(tmp_path, COHORTS) as budget:
            budget.reserve([("a", gaussian(8.0), 1)], release="model")
            assert len(set(spent(budget).values())) == 1

    def test_purposes(self, tmp_path):
        with make(tmp_path, PURPOSES) as budget:
            with pytest.raises(LedgerError, match="which has billing, research"):
                budget.reserve([("a", gaussian(20.0), 1)], release="model")
            with pytest.raises(LedgerError, match="for billing it allows mean"):
                budget.reserve([("a", gaussian(20.0), 1)], release="model", purpose="billing")
            with pytest.raises(acc.BudgetExceededError, match="all/billing"):
                budget.reserve([("a", gaussian(5.0), 1)], release="mean", purpose="billing")
            budget.reserve([("a", gaussian(5.5), 1)], release="model", purpose="research")
            assert spent(budget)["all/billing"] == 0
            assert 0.7 < spent(budget)["all/research"] <= 1.0

    def test_another_policy_is_refused(self, tmp_path):
        make(tmp_path, COHORTS).close()
        for old, new, field in [
            ("epsilon = 2.0", "epsilon = 3.0", "ceiling"),
            ("[0, 100]", "[0, 99]", "cohorts"),
            ("up", "it", "description"),
        ]:
            other = parse_policy((PLAIN + COHORTS).replace(old, new, 1).encode())
            with pytest.raises(LedgerError, match=f"another {field}") as caught:
                SharedBudget(tmp_path / "budget.jsonl", other)
            assert caught.value.line == 1


def _race(path, start, results):
    with SharedBudget(path) as budget:
        start.wait(60)
        try:
            name = budget.reserve([("a", gaussian(5.0), 1)], release="model").id
            budget.draw(name, "a", 1)
            budget.commit(name)
            results.put(True)
        except acc.BudgetExceededError:
            results.put(False)


class TestProcesses:
    def test_eight_race_for_a_budget_that_fits_five(self, tmp_path):
        with make(tmp_path, name="scratch") as budget:
            n = 0
            while budget.state.fits("all", "", {gaussian(5.0): 1}):
                budget.reserve([("a", gaussian(5.0), 1)], release="model")
                n += 1
        assert n >= 5
        with make(tmp_path) as budget:
            for _ in range(n - 5):
                budget.reserve([("a", gaussian(5.0), 1)], release="model")
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(8), context.Queue()
        processes = [context.Process(target=_race, args=(tmp_path / "budget.jsonl", barrier, results)) for _ in range(8)]
        for process in processes:
            process.start()
        ran = sum(results.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        assert ran == 5
        with SharedBudget(tmp_path / "budget.jsonl") as budget:
            assert not budget.state.fits("all", "", {gaussian(5.0): 1})

    def test_two_handles_see_each_other(self, tmp_path):
        with make(tmp_path) as one, SharedBudget(tmp_path / "budget.jsonl") as other:
            name = one.reserve([("a", STEP, 10)], release="model").id
            other.draw(name, "a", 4)
            one.draw(name, "a", 4)
            assert other.refresh().reservations[name].drawn == {"a": 8}
            assert one.head == other.head

    def test_a_held_lock_ends_in_an_error(self, tmp_path, monkeypatch):
        import fcntl

        from accountants import shared_budget

        budget = make(tmp_path)
        monkeypatch.setattr(shared_budget, "_LOCK_SECONDS", 0.05)
        with open(tmp_path / "budget.jsonl") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            with pytest.raises(LedgerError, match="held by another process"):
                budget.refresh()
        budget.refresh()


def written(tmp_path, lines):
    """A budget of so many lines."""
    with make(tmp_path) as budget:
        while len(budget.state.hashes) < lines:
            name = budget.reserve([("a", gaussian(40.0), 3)], release="model", run="r").id
            budget.draw(name, "a", 1)
            budget.draw(name, "a", 1)
            budget.commit(name)
    path = tmp_path / "budget.jsonl"
    content = b"".join(path.read_bytes().splitlines(keepends=True)[:lines])
    path.write_bytes(content)
    return path, content


def complaint(raw):
    """The line that is complained of."""
    with pytest.raises(LedgerError) as caught:
        read_budget(raw)
    return caught.value.line


class TestDamage:
    def test_every_line_removed_swapped_or_repeated_of_200_is_located(self, tmp_path):
        _, content = written(tmp_path, 200)
        state, lines = BudgetState(), content.splitlines()
        for number in range(1, 200):
            with pytest.raises(LedgerError) as caught:  # removed; or swapped with the next
                state.read(lines[number])
            assert caught.value.line == number
            state.read(lines[number - 1])
            with pytest.raises(LedgerError) as caught:  # repeated
                state.read(lines[number - 1])
            assert caught.value.line == number + 1
        path = tmp_path / "budget.jsonl"
        for changed in (lines[:7] + lines[8:], [*lines[:7], lines[8], lines[7], *lines[9:]], lines[:7] + lines[6:]):
            path.write_bytes(b"\n".join(changed) + b"\n")
            with pytest.raises(LedgerError) as caught:
                SharedBudget(path)
            assert caught.value.line == 8

    def test_every_single_byte_edit_of_200_lines_is_located(self, tmp_path):
        _, content = written(tmp_path, 200)
        state, lines = BudgetState(), content.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            head = state.head
            for position in range(len(line)):
                for new in (line[position] ^ 1, *((0x20, 0x0A) if number < 9 else ())):
                    edited = line[:position] + bytes([new]) + line[position + 1 :]
                    if edited == line:
                        continue
                    with pytest.raises(LedgerError) as caught:
                        state.read(edited.split(b"\n")[0])
                    assert (caught.value.line, state.head) == (number, head)
            joined = line + b"\x0b" + lines[number] if number < len(lines) else line + b" "
            with pytest.raises(LedgerError):
                state.read(joined)
            state.read(line)
        assert complaint(content[:-1] + b"\x0b") == 200  # not taken for torn
        assert len(state.reservations) == 50

    def test_a_torn_last_line_is_dropped_and_said(self, tmp_path):
        path, content = written(tmp_path, 9)
        for cut in (1, 30, 120):
            path.write_bytes(content[: -1 - cut])
            with SharedBudget(path, read_only=True) as reader:
                assert len(reader.state.hashes) == 8
            with SharedBudget(path) as budget:
                assert budget.recovered
                assert len(budget.state.hashes) == 9
            assert b'"recovered"' in path.read_bytes()
            SharedBudget(path).close()

    @pytest.mark.parametrize("failing", ["write", "fsync"])
    def test_a_full_disk_reserves_nothing(self, tmp_path, monkeypatch, failing):
        budget = make(tmp_path)
        name = budget.reserve([("a", STEP, 10)], release="model").id
        before = (tmp_path / "budget.jsonl").read_bytes()
        real, calls = getattr(os, failing), []

        def full(fd, *data):
            calls.append(1)
            if failing == "write" and len(calls) == 1:
                return real(fd, bytes(data[0])[:20])
            if failing == "fsync" and len(calls) > 1:
                return real(fd)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, failing, full)
        with pytest.raises(LedgerError, match="nothing was released"):
            budget.draw(name, "a", 1)
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="after a failed write"):
            budget.draw(name, "a", 1)
        assert (tmp_path / "budget.jsonl").read_bytes() == before

    def test_changed_while_in_use(self, tmp_path):
        path, content = written(tmp_path, 9)
        lines = content.splitlines(keepends=True)
        for changed in (b"".join(lines[:5]), content.replace(lines[-1], lines[-2])):
            path.write_bytes(content)
            with SharedBudget(path) as budget:
                path.write_bytes(changed)
                with pytest.raises(LedgerError, match="cut short or edited") as caught:
                    budget.refresh()
                assert caught.value.line == 9
        path.write_bytes(content)
        with SharedBudget(path) as budget:
            shutil.copy(path, tmp_path / "backup")
            os.replace(tmp_path / "backup", path)
            with pytest.raises(LedgerError, match="exchanged"):
                budget.refresh()

    def test_links_folders_and_absent_files(self, tmp_path):
        make(tmp_path).close()
        (tmp_path / "link").symlink_to(tmp_path / "budget.jsonl")
        (tmp_path / "folder").mkdir()
        for name, message in (("link", "symbolic link"), ("folder", "budget"), ("gone", "init")):
            with pytest.raises(LedgerError, match=message):
                SharedBudget(tmp_path / name)
        with pytest.raises(LedgerError, match="already"):
            make(tmp_path)
        with pytest.raises(LedgerError, match="can't write"):
            make(tmp_path, name="nowhere/budget.jsonl")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["budget.jsonl", "folder", "link"]


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=4)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)
KEYS = [
    "kind",
    "count",
    "charges",
    "path",
    "prev",
    "hash",
    "schema",
    "id",
    "run",
    "cohort",
    "purpose",
    "release",
    "filters",
    "policy",
    "salt",
    "x",
]


class TestParser:
    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode() + b"\n")))
    def test_anything_is_a_named_error(self, raw):
        try:
            state, _ = read_budget(raw)
        except LedgerError as error:
            assert error.line  # noqa: PT017
        else:
            assert not state.hashes

    @settings(max_examples=300, deadline=None)
    @given(number=st.integers(0, 4), key=st.sampled_from(KEYS), value=JSON, inside=st.booleans(), honest=st.booleans())
    def test_any_field_replaced_is_a_named_error_or_costs_as_much(self, tmp_path_factory, number, key, value, inside, honest):
        """`honest`: hashes are made anew, so that what the fields mean is checked and not only the chain."""
        global _written
        if _written is None:
            _written = written(tmp_path_factory.mktemp("fuzz"), 5)[1]
        content = _written
        records = [json.loads(line) for line in content.splitlines()]
        target = records[number]
        if inside:
            target = target["charges"][0] if "charges" in target else target.get("policy", target)
        target[key] = value
        lines, prev = [], "0" * 64
        for record in records:
            if honest:
                record = {k: v for k, v in record.items() if k != "hash"} | {"prev": prev}
                record["hash"] = prev = digest_of(record)
            lines.append(canonical(record))
        raw = b"\n".join(lines) + b"\n"
        try:
            state, _ = read_budget(raw)
        except LedgerError as error:
            assert error.line  # noqa: PT017
        else:
            assert raw == content or honest  # an edit alone is never accepted
            assert len(state.hashes) == 5
            json.dumps(spent_of(state))


_written = None


def spent_of(state):
    return [state.spent(scope) for scope in state.terms.scopes()]
