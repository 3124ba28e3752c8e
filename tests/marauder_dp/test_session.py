"""A run in its folder: begun, stopped, resumed, tampered with. In one process; `tests/experiments` does it with real ones."""

import dataclasses
import errno
import json
import math
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accountants import Ledger, LedgerError, NoOpDpEvent, PldAccountant, read_ledger, report
from marauder_dp import Dataset, DpSgd, IntegrityError, MarauderError, PlanError, plan_dpsgd, preflight, secrets, session
from marauder_dp.checkpoints import Checkpoints
from marauder_dp.facts import public_header
from marauder_dp.models import cross_entropy, make_model
from marauder_dp.plan import GRADIENTS
from marauder_dp.run_directory import RunDirectory
from marauder_dp.training import Outcome, compile_program


@pytest.fixture(scope="module")
def job():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90).astype(np.int32)
    x = (rng.normal(size=(90, 6)) + np.eye(3, 6)[y] * 3).astype(np.float32)
    dataset = Dataset("toy", x[:60], y[:60], x[60:], y[60:], 3, "Made up.")
    plan = plan_dpsgd(num_examples=60, batch_size=20, steps=40, clip_norm=1.0, noise_multiplier=1.0)
    model = make_model("mlp", (6,), 3)
    params = preflight.initialise(model, (6,), 0)
    sgd = DpSgd(plan, cross_entropy(model), optax.sgd(0.3, momentum=0.9), 16)
    state = sgd.init(params)
    data = (jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y))
    program = compile_program(sgd, state, secrets.fresh_keys(), data)
    settings = {"steps": 40, "clip_norm": 1.0}
    return session.Job(settings, dataset, data, model, sgd, program, state, math.inf, reproducible_seed=3)


def run(job, path, **kwargs):
    return session.run(fresh(job), RunDirectory(path), say=lambda _: None, **kwargs)


def fresh(job):
    """Running gives up the buffers of the initial state."""
    return dataclasses.replace(job, initial=jax.tree.map(jnp.copy, job.initial))


def final_state(job, path):
    with Checkpoints(RunDirectory(path).checkpoints) as checkpoints:
        return checkpoints.restore(fresh(job).initial).state


def stop_after(chunks):
    calls = iter(range(10**9))
    return lambda: next(calls) >= chunks


def test_leaves_the_record_behind(job, tmp_path):
    result = run(job, tmp_path)
    assert result.outcome is Outcome.COMPLETE
    assert result.test_accuracy > 0.6
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    assert ledger.count(GRADIENTS) == result.steps == 40  # one event an update
    expected = PldAccountant().compose(job.sgd.plan.event, 40).get_epsilon(job.sgd.plan.delta)
    document = json.loads((tmp_path / "privacy.json").read_text())
    assert document["epsilon"] == result.breakdown.epsilon == pytest.approx(expected, rel=1e-12)
    assert report.verify(tmp_path / "privacy.json", result.head)["ok"]
    assert report.verify(tmp_path / "ledger.jsonl", result.head)["ok"]
    assert json.loads((tmp_path / "config.json").read_text())["settings"] == job.settings
    statement = (tmp_path / "privacy.md").read_text()
    assert "VOID" in statement.upper()  # reproducible keys
    assert "Not stated" not in statement
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["private"] for row in rows if row["name"] in ("loss", "clipped", "non_finite"))
    assert any(row["name"] == "accuracy" and row["split"] == "test" for row in rows)


def test_secrets_stay_where_they_belong(job, tmp_path):
    run(dataclasses.replace(job, reproducible_seed=None), tmp_path)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "private" / "run.json").stat().st_mode) == 0o600
    stored = json.loads((tmp_path / "private" / "run.json").read_text())
    words = [word for pair in stored["keys"].values() for word in pair]
    needles = [str(word).encode() for word in words] + [stored["begun_with"]["data"].encode()]
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name != "private":
            assert not any(needle in path.read_bytes() for needle in needles), path
    # Checkpoints are compressed: look at what they hold. Parameters are found so, the keys' words must not be.
    state = final_state(job, tmp_path)
    saved = {value for leaf in jax.tree.leaves(state) for value in np.asarray(leaf).ravel().tolist()}
    assert float(state.params["Dense_0"]["bias"][0]) in saved
    as_saved = np.array(words, np.uint32)
    assert not saved & {*words, *as_saved.view(np.float32).tolist(), *as_saved.view(np.int32).tolist()}


def test_fresh_keys_differ_and_reproducible_ones_do_not():
    words = lambda keys: [jax.random.key_data(key).tolist() for key in keys]
    assert words(secrets.fresh_keys()) != words(secrets.fresh_keys())
    assert words(secrets.reproducible_keys(1)) == words(secrets.reproducible_keys(1)) != words(secrets.reproducible_keys(2))


def test_an_adaptive_clip_norm_is_resumed_and_released_as_paid(job, tmp_path):
    sgd = dataclasses.replace(job.sgd, plan=dataclasses.replace(job.sgd.plan, clipping="adaptive"))
    initial = sgd.init(job.initial.params)
    program = compile_program(sgd, initial, secrets.fresh_keys(), job.data)
    job = dataclasses.replace(job, sgd=sgd, program=dataclasses.replace(program, update_seconds=0.1), initial=initial)
    run(job, tmp_path / "whole")
    assert run(job, tmp_path / "parts", should_stop=stop_after(2)).outcome is Outcome.INTERRUPTED
    result = run(job, tmp_path / "parts")
    whole, parts = final_state(job, tmp_path / "whole"), final_state(job, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert float(whole.clip_norm) != 1.0
    assert [c.path for c in result.breakdown.components] == ["train/gradients", "train/clip_norm"]
    assert report.verify(tmp_path / "parts" / "privacy.json", result.head)["ok"]
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["private"] for row in rows if row["name"] == "clip_norm"]
    assert not any(row["private"] for row in rows if row["name"] == "clip_norm")
    assert "median of gradient norms" in (tmp_path / "parts" / "privacy.md").read_text()


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_resumed_is_uninterrupted_bit_for_bit(job, tmp_path, chunks):
    run(job, tmp_path / "whole")
    first = run(job, tmp_path / "parts", should_stop=stop_after(chunks))
    assert first.outcome is Outcome.INTERRUPTED
    assert first.steps < 40
    assert run(job, tmp_path / "parts").outcome is Outcome.COMPLETE
    whole, parts = final_state(job, tmp_path / "whole"), final_state(job, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert read_ledger(tmp_path / "parts" / "ledger.jsonl").count(GRADIENTS) == 40


def test_a_crash_between_charge_and_update_costs_nothing_twice(job, tmp_path, monkeypatch):
    """The chunk after the crash repeats what was charged: the same bits, so no second charge."""
    run(job, tmp_path / "whole")
    crashes = iter([False, False, True])

    class Crash(Exception):
        pass

    def program_that_crashes(state, keys, data, n):
        if next(crashes, False):
            raise Crash
        return job.program.run(state, keys, data, n)

    broken = dataclasses.replace(job, program=dataclasses.replace(job.program, run=program_that_crashes))
    with pytest.raises(Crash):
        run(broken, tmp_path / "parts")
    charged = read_ledger(tmp_path / "parts" / "ledger.jsonl").count(GRADIENTS)
    assert charged > 0
    assert run(job, tmp_path / "parts").outcome is Outcome.COMPLETE
    assert read_ledger(tmp_path / "parts" / "ledger.jsonl").count(GRADIENTS) == 40
    jax.tree.map(np.testing.assert_array_equal, final_state(job, tmp_path / "whole"), final_state(job, tmp_path / "parts"))


def test_a_finished_run_is_only_reported_again(job, tmp_path):
    first, again = run(job, tmp_path), run(job, tmp_path)
    assert (first.head, first.test_accuracy) == (again.head, again.test_accuracy)


def test_stops_before_the_update_that_would_pass_the_ceiling(job, tmp_path):
    plan = job.sgd.plan
    ceiling = plan.epsilon(25) * 1.0001
    result = run(dataclasses.replace(job, epsilon_ceiling=ceiling), tmp_path)
    assert result.outcome is Outcome.CEILING
    assert result.steps == 25
    assert result.breakdown.epsilon <= ceiling < plan.epsilon(26)
    assert read_ledger(tmp_path / "ledger.jsonl").count(GRADIENTS) == 25


def test_changed_settings_are_named(job, tmp_path):
    run(job, tmp_path)
    changed = dataclasses.replace(job, settings={**job.settings, "clip_norm": 2.0})
    with pytest.raises(PlanError, match=r"--clip_norm=1\.0 \(now 2\.0\)"):
        run(changed, tmp_path)


def test_changed_data_are_refused(job, tmp_path):
    run(job, tmp_path)
    x, y = job.data
    for other in ((x.at[50, 3].add(1e-3), y), (x, y.at[7].set((y[7] + 1) % 3))):
        with pytest.raises(IntegrityError, match="the data are not what"):
            run(dataclasses.replace(job, data=other), tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "checkpoints"])
def test_the_same_keys_never_serve_another_program(job, tmp_path, lost):
    """Whatever else is gone: two models trained with the same noise would give each other away."""
    run(job, tmp_path)
    shutil.rmtree(tmp_path / lost) if (tmp_path / lost).is_dir() else (tmp_path / lost).unlink()
    (tmp_path / "config.json").unlink(missing_ok=True)
    ledger = (tmp_path / "ledger.jsonl").read_bytes()
    other = dataclasses.replace(job.program, digest="0" * 64)
    with pytest.raises(IntegrityError, match="program"):
        run(dataclasses.replace(job, program=other), tmp_path)
    shifted = dataclasses.replace(job, initial=jax.tree.map(lambda leaf: leaf + 1, fresh(job).initial))
    with pytest.raises(IntegrityError, match="initial parameters"):
        run(shifted, tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == ledger


def test_digest_tells_programs_apart(job):
    state, data = fresh(job).initial, job.data
    program = lambda sgd: compile_program(sgd, state, secrets.fresh_keys(), data).digest
    assert program(job.sgd) == job.program.digest
    for change in ({"micro_batch": 8}, {"optimizer": optax.sgd(0.31, momentum=0.9)}):
        assert program(dataclasses.replace(job.sgd, **change)) != job.program.digest
    louder = dataclasses.replace(job.sgd.plan, noise_multiplier=1.1)
    assert program(dataclasses.replace(job.sgd, plan=louder)) != job.program.digest


def test_updates_paid_with_another_event_are_refused(job, tmp_path):
    """A charge of nothing under the gradients' name must not count as paid."""
    run(job, tmp_path, should_stop=stop_after(0))
    public = public_header(job.sgd.plan, reproducible_noise=True)
    with Ledger(tmp_path / "ledger.jsonl", public=public) as ledger:
        ledger.charge(GRADIENTS, NoOpDpEvent(), 40)
    with pytest.raises(IntegrityError, match="not this plan's"):
        run(job, tmp_path)


def test_checkpoints_that_cannot_be_written_stop_the_run_before_any_charge(job, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises((MarauderError, OSError)):
        run(job, tmp_path)
    assert read_ledger(tmp_path / "ledger.jsonl").charges == ()


def test_a_ledger_cut_behind_the_checkpoint_is_refused(job, tmp_path):
    run(job, tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(IntegrityError, match="cut short or exchanged"):
        run(job, tmp_path)


def test_an_edited_ledger_is_refused(job, tmp_path):
    run(job, tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":1.0,"type"', b'"noise_multiplier":9.0,"type"'))
    with pytest.raises(LedgerError, match="line 2"):
        run(job, tmp_path)


def test_lost_keys_are_refused(job, tmp_path):
    run(job, tmp_path, should_stop=stop_after(2))
    (tmp_path / "private" / "run.json").unlink()
    with pytest.raises(IntegrityError, match="holds no keys"):
        run(job, tmp_path)


@pytest.mark.parametrize("name", ["private/run.json", "config.json"])
def test_damaged_files_are_named(job, tmp_path, name):
    run(job, tmp_path)
    (tmp_path / name).write_text('{"keys"')
    with pytest.raises(IntegrityError, match="damaged"):
        run(job, tmp_path)


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file() and "state" in path.parts:
            path.write_bytes(b"junk")


def test_a_damaged_checkpoint_costs_time_only(job, tmp_path):
    run(job, tmp_path / "whole")
    run(job, tmp_path / "parts")
    steps = sorted(int(path.name) for path in (tmp_path / "parts" / "checkpoints").iterdir() if path.name.isdigit())
    assert len(steps) == 2
    damage(tmp_path / "parts" / "checkpoints" / str(steps[-1]))
    said = []
    result = session.run(fresh(job), RunDirectory(tmp_path / "parts"), say=said.append)
    assert result.outcome is Outcome.COMPLETE
    assert any("could not be read" in line for line in said)
    assert read_ledger(tmp_path / "parts" / "ledger.jsonl").count(GRADIENTS) == 40
    jax.tree.map(np.testing.assert_array_equal, final_state(job, tmp_path / "whole"), final_state(job, tmp_path / "parts"))


def test_when_no_checkpoint_can_be_read_it_is_named(job, tmp_path):
    run(job, tmp_path)
    damage(tmp_path / "checkpoints")
    with pytest.raises(IntegrityError, match="no checkpoint"):
        run(job, tmp_path)


def test_a_full_disk_stops_before_anything_is_released(job, tmp_path, monkeypatch):
    """The ledger can't be written: no update is run, and the run resumes when there is room again."""
    run(job, tmp_path, should_stop=stop_after(2))
    before = read_ledger(tmp_path / "ledger.jsonl").count(GRADIENTS)
    ran = []
    watched = dataclasses.replace(job, program=dataclasses.replace(job.program, run=lambda *a: ran.append(1)))

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LedgerError, match="No space left"):
            run(watched, tmp_path)
    assert not ran
    assert read_ledger(tmp_path / "ledger.jsonl").count(GRADIENTS) == before
    assert run(job, tmp_path).outcome is Outcome.COMPLETE


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MarauderError, match="--workdir"):
        RunDirectory(tmp_path / "file" / "run")
