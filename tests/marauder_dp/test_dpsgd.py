"""The update: limiting cases, and that it does what the plan says."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from accountants import NonPrivateDpEvent, PldAccountant
from marauder_dp import DpSgd, DpSgdPlan, Keys, PlanError, clipped_grad, default_delta, non_private_plan, plan_dpsgd
from marauder_dp.dpsgd import choose_micro_batch
from tests.marauder_dp.conftest import tree_norm

pytestmark = pytest.mark.usefixtures("strict_rank")

KEYS = Keys(jax.random.key(1), jax.random.key(2))


_program = functools.lru_cache(DpSgd.train_steps)


def run(sgd, params, data, n, keys=KEYS, start=None):
    state = sgd.init(params) if start is None else start
    return _program(sgd)(jax.tree.map(jnp.copy, state), keys, data, jnp.int32(n))


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.3, momentum=0.9), optax.adam(0.05)], ids=["sgd", "adam"])
def test_no_noise_no_clip_full_batch_is_plain_optax_step_for_step(problem, optimizer):
    loss, params, data = problem
    plan = non_private_plan(num_examples=16, batch_size=16, steps=5)
    sgd = DpSgd(plan, loss, optimizer, micro_batch=16)
    mean_loss = lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, data))
    plain, state = params, optimizer.init(params)
    for step in range(1, 6):
        updates, state = optimizer.update(jax.grad(mean_loss)(plain), state, plain)
        plain = optax.apply_updates(plain, updates)
        assert_close(run(sgd, params, data, step)[0].params, plain)


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 16, 50])
def test_micro_batches_change_nothing_but_rounding(problem, micro_batch):
    """Also where a draw overflows the micro-batch many times over: nothing is dropped."""
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=8, steps=4, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    reference, seen = run(DpSgd(plan, loss, optax.sgd(0.1), 16), params, data, 4)
    other, also_seen = run(DpSgd(plan, loss, optax.sgd(0.1), micro_batch), params, data, 4)
    assert_close(reference.params, other.params)
    assert float(seen.examples) == float(also_seen.examples) > 0


def test_sum_is_divided_by_the_expected_size_not_the_drawn_one(problem):
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=4, steps=1, clip_norm=1e-8, noise_multiplier=1e-9, delta=1e-3)
    tiny = dataclasses.replace(plan, clip_norm=0.25)
    mask = plan.sampler.mask(KEYS.sampling, 0)
    assert int(mask.sum()) != 4  # the seed was chosen so that the difference shows
    state, _ = run(DpSgd(tiny, loss, optax.sgd(1.0), 16), params, data, 1)
    total = clipped_grad(loss, clip_norm=0.25)(params, data, mask).sum
    assert_close(state.params, jax.tree.map(lambda p, g: p - g / 4, params, total))


def test_noise_has_the_planned_standard_deviation():
    """Examples with zero gradients leave nothing but noise: χ² with a fixed seed, false-alarm rate 1e-6."""
    plan = DpSgdPlan(num_examples=50, batch_size=10, steps=2, clip_norm=0.7, noise_multiplier=3.0, delta=1e-3)
    loss = lambda p, x: jnp.sum(p["w"] * x)
    params = {"w": jnp.zeros(200_000)}
    sgd = DpSgd(plan, loss, optax.sgd(1.0), 10)
    data = jnp.zeros((50, 200_000))
    state, _ = run(sgd, params, data, 1)
    z = np.asarray(state.params["w"], np.float64) * 10 / (3.0 * 0.7)
    assert 5e-7 < stats.chi2.cdf(np.sum(z**2), z.size) < 1 - 5e-7
    after_two = np.asarray(run(sgd, params, data, 2)[0].params["w"])
    second = after_two - np.asarray(state.params["w"])
    assert abs(np.corrcoef(z, second)[0, 1]) < 5 / math.sqrt(z.size)  # fresh noise in each step


def test_neighbouring_data_with_the_same_keys_differ_by_at_most_the_clip_norm(problem):
    """One update on data with and without an example: the same noise, so the sums differ by at most C."""
    loss, params, (x, y) = problem
    plan = DpSgdPlan(num_examples=16, batch_size=12, steps=1, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    sgd = DpSgd(plan, loss, optax.sgd(1.0), 16)
    mask = np.asarray(plan.sampler.mask(KEYS.sampling, 0))
    everyone = run(sgd, params, (x, y), 1)[0].params
    moved = 0
    for i in range(16):
        zeroed = run(sgd, params, (x.at[i].set(jnp.nan), y), 1)[0].params  # a NaN example contributes zero
        distance = tree_norm(jax.tree.map(jnp.subtract, everyone, zeroed)) * plan.batch_size
        assert distance <= plan.clip_norm * (1 + 1e-4)
        assert (distance > 1e-3) == bool(mask[i])
        moved += distance > 1e-3
    assert moved


def test_an_empty_batch_takes_a_noisy_step(problem):
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=1, steps=60, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    sgd = DpSgd(plan, loss, optax.sgd(0.1), 4)
    empty = next(t for t in range(60) if not plan.sampler.mask(KEYS.sampling, t).any())
    before, _ = run(sgd, params, data, empty)
    after, seen = run(sgd, params, data, 1, start=before)
    assert float(seen.examples) == 0
    assert int(after.step) == empty + 1
    assert all((a != b).all() for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True))


def test_any_split_into_dispatches_gives_the_same_bits(problem):
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=8, steps=9, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    sgd = DpSgd(plan, loss, optax.adam(0.1), 8)
    whole, _ = run(sgd, params, data, 9)
    state = None
    for n in (1, 4, 2, 2):
        state, _ = run(sgd, params, data, n, start=state)
    jax.tree.map(np.testing.assert_array_equal, whole, state)


def test_the_program_holds_no_key(problem):
    """Compiled programs are cached on disk: they must be the same whatever the keys."""
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=8, steps=9, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    sgd = DpSgd(plan, loss, optax.adam(0.1), 8)
    texts = {
        sgd.train_steps().lower(sgd.init(params), keys, data, jnp.int32(1)).as_text()
        for keys in (KEYS, Keys(jax.random.key(123456), jax.random.key(987654)))
    }
    assert len(texts) == 1


def test_the_program_never_runs_past_its_plan(problem):
    loss, params, data = problem
    plan = DpSgdPlan(num_examples=16, batch_size=8, steps=3, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    sgd = DpSgd(plan, loss, optax.sgd(0.1), 8)
    state, _ = run(sgd, params, data, 300)
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state, run(sgd, params, data, 5, start=state)[0])


@pytest.mark.parametrize("rows", [(10, 16), (16, 10), (17, 17)])
def test_data_of_another_length_than_planned_are_refused(problem, rows):
    loss, params, (x, y) = problem
    plan = DpSgdPlan(num_examples=16, batch_size=8, steps=3, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    data = (jnp.resize(x, (rows[0], 5)), jnp.resize(y, (rows[1],)))
    with pytest.raises(PlanError, match="for 16 examples"):
        run(DpSgd(plan, loss, optax.sgd(0.1), 8), params, data, 1)


def test_metrics_count_what_happened(problem):
    loss, params, (x, y) = problem
    plan = DpSgdPlan(num_examples=16, batch_size=16, steps=1, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3)
    data = (x.at[3].set(jnp.nan), y)
    _, seen = run(DpSgd(plan, loss, optax.sgd(0.1), 5), params, data, 1)
    norms = np.asarray(clipped_grad(loss, clip_norm=0.5)(params, data).norms)
    assert float(seen.examples) == 16
    assert float(seen.non_finite) == 1
    assert float(seen.clipped) == np.sum(norms[np.isfinite(norms)] > 0.5)
    assert float(seen.loss) == pytest.approx(float(jnp.nansum(jax.vmap(loss, (None, 0))(params, data))), rel=1e-5)


class TestPlan:
    def test_one_object_says_what_is_sampled_noised_and_charged(self):
        plan = plan_dpsgd(num_examples=1000, batch_size=50, steps=200, clip_norm=0.5, epsilon=2.0)
        assert plan.sampler.sampling_probability == 0.05
        assert plan.event.sampling_probability == 0.05
        assert plan.event.event.noise_multiplier == plan.noise_multiplier
        assert plan.noise_stddev == plan.noise_multiplier * 0.5
        assert 0.995 * 2 <= plan.epsilon() <= 2
        assert plan.epsilon() == PldAccountant().compose(plan.event, 200).get_epsilon(plan.delta)
        assert plan.delta == 1e-4

    def test_non_private_is_infinite(self):
        plan = non_private_plan(num_examples=100, batch_size=10, steps=5)
        assert plan.event == NonPrivateDpEvent()
        assert plan.epsilon() == math.inf
        assert plan.noise_stddev == 0

    def test_the_certified_accountant_asks_for_less_noise_than_the_renyi_one(self):
        plan = plan_dpsgd(num_examples=1000, batch_size=50, steps=200, clip_norm=0.5, epsilon=2.0)
        bound = plan.epsilon_bound()
        assert bound.accountant == "pld"
        assert 0.998 * bound.epsilon <= bound.lower <= bound.epsilon
        assert plan.rdp_noise_multiplier() > 1.05 * plan.noise_multiplier

    def test_replacing_costs_twice_the_sensitivity(self):
        arguments = {"num_examples": 100, "steps": 5, "clip_norm": 1.0, "neighbouring_relation": "replace_one"}
        full = plan_dpsgd(batch_size=100, noise_multiplier=8.0, **arguments)
        added = plan_dpsgd(batch_size=100, noise_multiplier=4.0, **arguments | {"neighbouring_relation": "zero_out"})
        assert full.epsilon() == pytest.approx(added.epsilon())
        sampled = plan_dpsgd(batch_size=10, noise_multiplier=8.0, **arguments)
        removed = plan_dpsgd(batch_size=10, noise_multiplier=8.0, **arguments | {"neighbouring_relation": "zero_out"})
        assert removed.epsilon() < sampled.epsilon() < full.epsilon()

    @pytest.mark.parametrize(("n", "delta"), [(1, 0.1), (10, 1e-2), (11, 1e-3), (1437, 1e-5), (10_000, 1e-5), (60_000, 1e-6)])
    def test_default_delta_is_the_largest_power_of_ten_up_to_a_tenth_of_one_in_n(self, n, delta):
        assert default_delta(n) == delta

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epsilon": 0.0}, "epsilon"),
            ({"epsilon": -1.0}, "epsilon"),
            ({"epsilon": math.nan}, "epsilon"),
            ({"epsilon": 1e-12, "delta": 1e-12, "steps": 10**9}, "can't be reached"),
            ({"epsilon": None}, "exactly one"),
            ({"noise_multiplier": 1.0}, "exactly one"),
            ({"epsilon": None, "noise_multiplier": 0.0}, "noise_multiplier"),
            ({"epsilon": None, "noise_multiplier": -1.0}, "noise_multiplier"),
            ({"epsilon": None, "noise_multiplier": math.nan}, "noise_multiplier"),
            ({"delta": 0.0}, "delta"),
            ({"delta": 1.0}, "delta"),
            ({"batch_size": 101}, "larger than the data"),
            ({"batch_size": 0}, "batch_size"),
            ({"steps": 0}, "steps"),
            ({"clip_norm": 0.0}, "clip_norm"),
            ({"clip_norm": math.inf}, "clip_norm"),
            ({"clip_norm": math.nan}, "clip_norm"),
        ],
    )
    def test_bad_input_is_named(self, change, message):
        arguments = {"num_examples": 100, "batch_size": 10, "steps": 10, "clip_norm": 1.0, "epsilon": 1.0} | change
        with pytest.raises(PlanError, match=message):
            plan_dpsgd(**arguments)


@pytest.mark.parametrize(("batch", "n"), [(256, 60_000), (1, 1), (1024, 2000), (100, 100)])
def test_micro_batch_is_no_smaller_than_the_batch_and_no_larger_than_the_data(batch, n):
    assert batch <= choose_micro_batch(batch, n) <= n
