"""Ways to clip in the update (per layer, automatic, adaptive), and losses that draw random numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accountants import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, break_down
from accountants.chain import Charge
from marauder_dp import DpSgd, DpSgdPlan, Keys, PlanError, clipped_grad, loss_of_unit, per_layer, plan_dpsgd
from marauder_dp.augmentation import flip_and_shift, loss_of_augmented, shift
from tests.marauder_dp.conftest import tree_norm
from tests.marauder_dp.test_dpsgd import KEYS, assert_close, run

pytestmark = pytest.mark.usefixtures("strict_rank")

PLAN = DpSgdPlan(num_examples=16, batch_size=8, steps=6, clip_norm=0.5, noise_multiplier=1e-6, delta=1e-3)


def step_by(plan, problem, micro_batch=16):
    """The first update's mean gradient: SGD with learning rate 1."""
    loss, params, data = problem
    state, seen = run(DpSgd(plan, loss, optax.sgd(1.0), micro_batch), params, data, 1)
    return jax.tree.map(jnp.subtract, params, state.params), state, seen


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "auto_s", "auto_v"])
def test_the_plan_says_how_gradients_are_clipped(problem, clipping):
    loss, params, data = problem
    plan = dataclasses.replace(PLAN, clipping=clipping)
    norms = per_layer(params, 0.5) if clipping == "per_layer" else 0.5
    rule = clipping if clipping.startswith("auto") else "clip"
    mask = plan.sampler.mask(KEYS.sampling, 0)
    expected = clipped_grad(loss, clip_norm=norms, rule=rule)(params, data, mask).sum
    assert_close(step_by(plan, problem)[0], jax.tree.map(lambda g: g / 8, expected), atol=1e-5)


@pytest.mark.parametrize("micro_batch", [3, 16])
def test_an_adaptive_clip_norm_follows_the_median(problem, micro_batch):
    """Against the paper's formula by hand, up to its noise, which is known from the key's distribution: |z| < 9.1."""
    loss, params, data = problem
    plan = dataclasses.replace(PLAN, clipping="adaptive")
    moved, state, seen = step_by(plan, problem, micro_batch)
    mask = plan.sampler.mask(KEYS.sampling, 0)
    clipped = clipped_grad(loss, clip_norm=0.5)(params, data, mask)
    assert_close(moved, jax.tree.map(lambda g: g / 8, clipped.sum), atol=1e-5)
    below = np.sum(np.asarray(clipped.norms)[np.asarray(mask)] <= 0.5)
    assert float(seen.clipped) == mask.sum() - below
    fraction = (below - mask.sum() / 2) / 8 + 0.5
    noise = -5 * np.log(float(state.clip_norm) / 0.5) + 0.5 - fraction  # of standard deviation 1/20
    assert 1e-4 < abs(noise) < 9.1 / 20


def test_the_noise_of_an_adaptive_clip_norm_is_the_planned_one():
    """No gradients: C moves by exp(-0.2 (z/20 ± …)) with fresh z each step; χ² with a fixed seed, false-alarm rate 1e-6."""
    from scipy import stats

    steps = 400
    plan = DpSgdPlan(1000, 1000, steps, 1.0, 1.0, 1e-4, clipping="adaptive")
    sgd = DpSgd(plan, lambda p, x: jnp.sum(p["w"] * x), optax.sgd(0.1), 1000)
    state = sgd.init({"w": jnp.zeros(2)})
    logs, program = [], sgd.train_steps()
    for _ in range(steps):
        state, _ = program(state, KEYS, jnp.zeros((1000, 2)), jnp.int32(1))
        logs.append(float(jnp.log(state.clip_norm)))
    # Every norm is 0, below C, so the fraction is 1 and log C falls by 0.1 a step, but for the noise.
    z = (np.diff([0.0, *logs]) + 0.1) / -0.2 * 20
    within = (np.array(logs) > np.log(2e-8))[:steps]
    z = z[within]
    assert len(z) > 100
    assert 5e-7 < stats.chi2.cdf(np.sum(z**2), len(z)) < 1 - 5e-7
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 5 / np.sqrt(len(z))


def test_the_clip_norm_is_charged_in_the_same_sampled_event():
    plan = plan_dpsgd(num_examples=1000, batch_size=100, steps=200, clip_norm=1.0, noise_multiplier=2.0, clipping="adaptive")
    assert plan.event == PoissonSampledDpEvent(0.1, ComposedDpEvent((GaussianDpEvent(2.0), GaussianDpEvent(10.0))))
    flat = dataclasses.replace(plan, clipping="flat")
    # Two Gaussians of one sample are one of multiplier (Σ σ⁻²)^-½.
    together = dataclasses.replace(flat, noise_multiplier=(2.0**-2 + 10.0**-2) ** -0.5)
    assert flat.epsilon() < plan.epsilon() == pytest.approx(together.epsilon(), rel=1e-6)
    gradients, clip_norm = break_down([Charge(plan.path, plan.event, 200)], plan.delta).components
    assert (gradients.path, clip_norm.path) == ("train/gradients", "train/clip_norm")
    assert gradients.epsilon_alone == clip_norm.epsilon_if_removed == pytest.approx(flat.epsilon(), rel=1e-6)
    assert clip_norm.epsilon_alone == gradients.epsilon_if_removed < 0.5 * flat.epsilon()
    assert gradients.share + clip_norm.share == pytest.approx(1)
    calibrated = plan_dpsgd(num_examples=1000, batch_size=100, steps=200, clip_norm=1.0, epsilon=2.0, clipping="adaptive")
    assert 0.995 * 2 <= calibrated.epsilon() <= 2


def test_neighbours_move_an_adaptive_update_by_at_most_its_sensitivity(problem):
    loss, params, (x, y) = problem
    plan = dataclasses.replace(PLAN, clipping="adaptive", noise_multiplier=1.0, batch_size=12)
    sgd = DpSgd(plan, loss, optax.sgd(1.0), micro_batch=16)
    with_all = run(sgd, params, (x, y), 1)[0]
    for i in range(16):
        state = run(sgd, params, (x.at[i].set(jnp.nan), y), 1)[0]
        distance = tree_norm(jax.tree.map(jnp.subtract, state.params, with_all.params)) * plan.batch_size
        assert distance <= plan.clip_norm * (1 + 1e-4)
        # A dropped example counts as one above C: as far as one that is replaced can move it, 1 in the count.
        count = abs(np.log(float(state.clip_norm) / float(with_all.clip_norm))) * plan.batch_size / 0.2
        assert count <= 1 + 1e-3


def test_bad_clipping_is_refused():
    with pytest.raises(PlanError, match="flat, per_layer"):
        dataclasses.replace(PLAN, clipping="none")
    with pytest.raises(PlanError, match="epsilon"):  # the count alone costs more
        plan_dpsgd(num_examples=100, batch_size=2, steps=1000, clip_norm=1.0, epsilon=0.5, clipping="adaptive")


def test_random_numbers_of_a_loss_are_of_step_and_example_alone():
    draws = lambda p, e: jnp.sum(p["w"]) * 0 + p["probe"][e[0][1]] * jax.random.uniform(e[1])
    plan = DpSgdPlan(4, 4, 3, 1e6, 1e-12, 1e-3)
    data, params = (jnp.zeros(4), jnp.arange(4)), {"w": jnp.zeros(2), "probe": jnp.zeros(4)}
    seen = []
    for micro_batch in (1, 3, 4):
        sgd = DpSgd(plan, draws, optax.sgd(1.0), micro_batch, keyed=True)
        steps = [np.asarray(run(sgd, params, data, n)[0].params["probe"]) for n in (1, 2)]
        seen.append([steps[0], steps[1] - steps[0]])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)
    np.testing.assert_allclose(seen[0], seen[2], atol=1e-5)
    assert len(np.unique(np.round(seen[0], 4))) == 8  # a draw of its own for each step and example
    other = run(sgd, params, data, 1, keys=Keys(jax.random.key(7), KEYS.noise))[0].params["probe"]
    assert not np.allclose(other, seen[0][0])


def test_copies_are_averaged_before_the_clipping():
    image = jnp.arange(64.0).reshape(8, 8, 1)
    loss = lambda p, e: jnp.sum(p["w"] * e[0]) * (1 + e[1])
    params = {"w": jnp.ones((8, 8, 1))}
    key = jax.random.key(0)
    copies = [shift(k, image) for k in jax.random.split(key, 5)]
    mean = sum(np.asarray(c, np.float64) for c in copies) / 5
    gradient = jax.grad(loss_of_augmented(loss, shift, 5))(params, ((image, jnp.float32(1.0)), key))
    np.testing.assert_allclose(gradient["w"], 2 * mean, rtol=1e-5)
    plan = DpSgdPlan(1, 1, 1, 0.1, 1e-9, 1e-3)
    sgd = DpSgd(plan, loss_of_augmented(loss, shift, 5), optax.sgd(1.0), 1, keyed=True)
    moved = run(sgd, params, (image[None], jnp.ones(1)), 1)[0].params["w"] - params["w"]
    assert tree_norm(moved) == pytest.approx(0.1, rel=1e-4)
    unit = loss_of_unit(loss_of_augmented(loss, shift, 2), keyed=True)
    row = ((jnp.stack([image, image]), jnp.ones(2)), jnp.array([True, False]))
    value = unit(params, (row, key))
    first = jax.random.split(key, 2)[0]
    assert float(value) == pytest.approx(float(loss_of_augmented(loss, shift, 2)(params, ((image, jnp.float32(1.0)), first))))


def test_shifts_keep_what_stays_inside_and_flips_mirror():
    image = jnp.zeros((16, 16, 3)).at[8, 5].set(1.0)
    places = set()
    for key in jax.random.split(jax.random.key(0), 200):
        moved = np.asarray(flip_and_shift(key, image))
        assert moved.shape == image.shape
        assert moved.sum() == 3
        row, column = np.argwhere(moved[..., 0])[0]
        places.add((int(row), int(column)))
    rows, columns = {r for r, _ in places}, {c for _, c in places}
    assert rows == set(range(6, 11))
    assert columns == set(range(3, 8)) | set(range(8, 13))
