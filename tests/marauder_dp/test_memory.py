"""The memory limit: read from text, and kept by smaller micro-batches that change nothing else."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marauder_dp import DpSgd, PlanError, plan_dpsgd, secrets
from marauder_dp.memory import in_equal_groups, memory_limit
from marauder_dp.training import compile_program


@pytest.mark.parametrize(("text", "expected"), [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5kib", 1536), ("4096", 4096)])
def test_sizes(text, expected):
    assert memory_limit(text) == expected


@pytest.mark.parametrize("text", ["", "0", "GiB", "-1GiB", "2 parsecs", "nan", "1e400GiB"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(PlanError, match="2GiB"):
        memory_limit(text)


def test_the_default_is_less_than_the_machine_has():
    assert 2**28 < memory_limit() < 2**50


@pytest.fixture
def job():
    plan = plan_dpsgd(num_examples=512, batch_size=256, steps=2, clip_norm=1.0, epsilon=1.0)
    loss = lambda p, x: jnp.sum(jnp.tanh(jnp.outer(x, x) @ p["w"]))
    sgd = DpSgd(plan, loss, optax.sgd(0.1), 256)
    data = jnp.asarray(np.random.default_rng(0).normal(size=(512, 60)), jnp.float32)
    return sgd, sgd.init({"w": jnp.ones((60, 60))}), secrets.fresh_keys(), data


def test_the_micro_batch_shrinks_until_it_fits(job):
    sgd, state, keys, data = job
    free = compile_program(sgd, state, keys, data)
    limit = free.memory_bytes // 3
    bound = compile_program(sgd, state, keys, data, limit)
    assert free.sgd.micro_batch == 256
    assert bound.sgd.micro_batch < 256
    assert bound.memory_bytes <= limit
    results = [p.run(jax.tree.map(jnp.copy, state), keys, data, jnp.int32(2))[0].params["w"] for p in (free, bound)]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)


def test_a_limit_that_nothing_fits_is_refused(job):
    with pytest.raises(PlanError, match="one example at a time takes"):
        compile_program(*job, 1000)


def test_groups_are_equal_and_never_larger_than_asked_for():
    for size, most, group in ((2048, 1600, 1024), (256, 48, 43), (10, math.inf, 10), (5, 0.3, 1), (7, 7, 7)):
        assert in_equal_groups(size, most) == group
