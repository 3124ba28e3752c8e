"""Teachers: each is what it would be alone, whatever trains beside it."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from marauder_dp.errors import ModelError, PlanError
from marauder_dp.pate.partitions import Partitions, partition
from marauder_dp.pate.predictions import compile_votes, histograms
from marauder_dp.pate.teachers import choose_chunk, compile_ensemble
from tests.marauder_dp.pate_problem import (
    CLASSES,
    FEATURES,
    TEACHERS,
    all_teachers,
    apply,
    examples,
    init,
    jittered_loss,
    trained,
    training,
)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def padded(ensemble):
    """Rows of a teacher in the program."""
    return ensemble.program.in_avals[0][2][0].shape[1]


def only(params, teachers):
    return jax.tree.map(lambda leaf: leaf[teachers], params)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def data():
    return examples(400)


@pytest.fixture(scope="module")
def ensemble(data):
    """(ensemble of 13 in waves of 3, all parameters)."""
    return trained(data, chunk=3, waves=5)


def plain_loop(how, split, data):
    """Each teacher on its own, example by example: no padding, no mask, no vectorisation; the documented order."""
    gradient = jax.jit(jax.grad(how.loss_fn))

    @jax.jit
    def step(params, state, total, count):
        mean = jax.tree.map(lambda leaf: leaf / count, total)
        updates, state = how.optimizer.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    everything = []
    for teacher in range(split.teachers):
        start, order, keys = jax.random.split(jax.random.fold_in(jax.random.key(how.seed), teacher), 3)
        params = how.init(start)
        state = how.optimizer.init(params)
        own = split.own(teacher)
        lines = jax.random.split(order, min(64, 1 + how.updates // 4))
        orders = [own[np.argsort(jax.random.uniform(line, (200,))[: len(own)], stable=True)] for line in lines]
        rows = itertools.chain.from_iterable(itertools.cycle(orders))
        for number in range(how.updates):
            batch = [tuple(leaf[row] for leaf in data) for row in itertools.islice(rows, how.batch_size)]
            assert len(batch) == how.batch_size
            if how.keyed:
                drawn = jax.random.split(jax.random.fold_in(keys, number), how.batch_size)
                batch = [(example, drawn[i]) for i, example in enumerate(batch)]
            parts = [gradient(params, example) for example in batch]
            params, state = step(params, state, jax.tree.map(lambda *leaves: sum(leaves), *parts), how.batch_size)
        everything.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *everything)


def test_agrees_with_a_plain_loop_over_teachers(data, ensemble):
    close(ensemble[1], plain_loop(training(), ensemble[0].partitions, data))


@pytest.mark.slow
def test_agrees_with_a_plain_loop_that_augments(data):
    how = training(keyed=True, batch_size=5)
    found, params = trained(data, how=how, chunk=13, waves=1)
    assert (found.wave, found.waves) == (13, 1)
    close(params, plain_loop(how, found.partitions, data))


def test_teachers_learn_and_differ(data, ensemble):
    x, y = examples(500, seed=9)
    classes = jax.vmap(apply, (0, None))(ensemble[1], x).argmax(axis=-1)
    assert (classes == y).mean() > 0.7
    assert len({leaf.tobytes() for leaf in ensemble[1]["w"]}) == TEACHERS


def test_any_chunk_and_wave_gives_the_same(data, ensemble):
    assert (ensemble[0].chunk, ensemble[0].wave, ensemble[0].waves) == (3, 3, 5)
    found, params = trained(data, chunk=100, waves=1)
    assert (found.chunk, found.wave) == (TEACHERS, TEACHERS)
    close(params, ensemble[1])


def test_several_devices_give_the_same():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-m", "tests.marauder_dp.pate_on_devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"


def with_partitions(ensemble, split):
    return dataclasses.replace(ensemble, partitions=split)


def test_padding_never_matters(data, ensemble):
    """Padding that points at other teachers' examples changes not a bit."""
    split = ensemble[0].partitions
    rows = split.rows.copy()
    for teacher, count in enumerate(split.counts):
        rows[teacher, count:] = split.own((teacher + 1) % TEACHERS)[0]
    same(all_teachers(with_partitions(ensemble[0], Partitions(rows, split.counts)), data)[1], ensemble[1])


def test_another_number_teaches_otherwise_and_the_order_of_teachers_does_not_matter(data, ensemble):
    """Teacher i depends on i and on its own rows: swapping the rows of two changes those two alone."""
    split = ensemble[0].partitions
    order = [1, 0, *range(2, TEACHERS)]
    swapped = Partitions(split.rows[order], split.counts[order])
    _, params = all_teachers(with_partitions(ensemble[0], swapped), data)
    same(only(params, slice(2, None)), only(ensemble[1], slice(2, None)))
    assert not np.array_equal(params["w"][0], ensemble[1]["w"][0])
    assert not np.array_equal(params["w"][0], ensemble[1]["w"][1])


def length(n):
    return math.ceil(n / TEACHERS + 6 * math.sqrt(n / TEACHERS) + 6)


@pytest.mark.parametrize("change", ["replace", "remove where the padding grows"])
def test_one_example_changes_one_teacher_alone_bit_for_bit(data, ensemble, change):
    """Neighbouring data: a program compiled anew for them, and 12 of 13 teachers the same to the last bit."""
    n = 400
    if "padding" in change:
        n = next(n for n in range(400, 300, -1) if length(n) != length(n - 1))
    x, y = (leaf[:n] for leaf in data)
    found, before = (ensemble[0], ensemble[1]) if n == 400 else trained((x, y), chunk=3, waves=5)
    if change == "replace":
        x = x.copy()
        x[17] = 3.0
        neighbour, after = found, all_teachers(found, (x, y))[1]
    else:
        kept = np.arange(n) != 17
        neighbour, after = trained((x[kept], y[kept]), ids=np.arange(n)[kept], chunk=3, waves=5)
        lengths = [padded(p) for p in (found, neighbour)]
        assert (lengths[0] != lengths[1]) == ("padding" in change)
    assert (neighbour.chunk, neighbour.wave) == (found.chunk, found.wave)
    changed = [t for t in range(TEACHERS) if any((a[t] != b[t]).any() for a, b in zip(*map(jax.tree.leaves, (before, after))))]  # noqa: B905
    assert changed == [next(t for t in range(TEACHERS) if 17 in found.partitions.own(t))]


@pytest.mark.slow
def test_a_huge_unit_changes_one_teacher_alone(data):
    """A unit of a third of all examples: the padding is its size, and without it the others are the same. All optimised."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        ids = np.where(np.arange(400) % 3 == 0, 999, np.arange(400))
        found, before = trained(data, ids=ids, chunk=3, waves=5)
        kept = ids != 999
        neighbour, after = trained(tuple(leaf[kept] for leaf in data), ids=ids[kept], chunk=3, waves=5)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    rows = [padded(e) for e in (found, neighbour)]
    assert rows[0] > rows[1]
    owner = int(np.argmax(found.partitions.counts))
    others = [t for t in range(TEACHERS) if t != owner]
    same(only(before, others), only(after, others))


def test_exactly_one_compilation(data, ensemble):
    """Partitions of all sizes and a short last wave run in the program that was compiled at first."""
    compiled, found = [], ensemble[0]
    listen = lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    assert found.waves * found.wave > TEACHERS
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        all_teachers(found, data)
        assert not compiled
        jax.jit(lambda x: x + 0.12345)(1.0)
        assert compiled  # the listener works
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_going_on_from_a_wave(data, ensemble):
    numbers, params = all_teachers(ensemble[0], data, start=3)
    assert numbers == list(range(9, 13))
    same(params, only(ensemble[1], slice(9, None)))
    assert not list(ensemble[0].train(data, start=5))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_ensemble(data, ensemble):
    """26 teachers in one wave need what 3 in one need, but for their parameters and rows."""
    split = partition(np.arange(400), 2 * TEACHERS)
    length = padded(ensemble[0])
    rows = np.pad(split.rows, [(0, 0), (0, length - split.rows.shape[1])], mode="edge")  # the same padding for both
    found = compile_ensemble(training(), Partitions(rows, split.counts), data, chunk=3, waves=1)
    assert (found.chunk, found.wave) == (3, 27)
    few, many = (e.program.memory_analysis().temp_size_in_bytes for e in (ensemble[0], found))
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(init(jax.random.key(0))))
    assert many - few <= 24 * 2 * (parameters + 4 * length * (FEATURES + 2))


def test_a_diverged_teacher_is_named(data, ensemble):
    x = data[0].copy()
    x[ensemble[0].partitions.own(7)[3]] = np.inf  # each teacher sees all of its examples
    found = ensemble[0].train((x, data[1]))
    next(found), next(found)
    with pytest.raises(ModelError, match=r"teacher 7 has parameters that aren't finite.*learning rate") as caught:
        next(found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [0, -3, 2.0, "2"])
def test_a_chunk_is_a_whole_number(data, chunk):
    with pytest.raises(PlanError, match="chunk"):
        compile_ensemble(training(), partition(np.arange(400), 5), data, chunk=chunk)


@pytest.mark.parametrize(("name", "value"), [("updates", 0), ("updates", 1.5), ("batch_size", -1)])
def test_updates_and_batches_are_whole_numbers(name, value):
    with pytest.raises(PlanError, match=f"{name} of teachers"):
        training(**{name: value})


def test_the_chunk_follows_from_public_numbers():
    """From shapes alone, never from more than one wave's teachers, at least 1."""
    example = (jax.ShapeDtypeStruct((4,), np.float32), jax.ShapeDtypeStruct((), np.int32))
    assert choose_chunk(training(), example, 7) == 7
    assert 1 <= choose_chunk(training(batch_size=10_000), example, 10**6) < choose_chunk(training(), example, 10**6)
    assert choose_chunk(dataclasses.replace(training(keyed=True), loss_fn=jittered_loss), example, 3) == 3


class TestVotes:
    def test_votes_are_those_of_each_teacher(self, ensemble):
        x, _ = examples(1100, seed=3)  # more than are voted on at a time
        first = only(ensemble[1], slice(0, 5))
        votes = compile_votes(apply, first, x)
        expected = np.stack([np.asarray(apply(only(ensemble[1], t), x)).argmax(axis=1) for t in range(5)])
        np.testing.assert_array_equal(votes(range(5), first), expected)
        np.testing.assert_array_equal(votes(range(2), only(first, slice(0, 2))), expected[:2])
        counts = histograms(expected, CLASSES)
        assert counts.dtype == np.int64
        assert (counts.sum(axis=1) == 5).all()
        assert counts[7].tolist() == np.bincount(expected[:, 7], minlength=CLASSES).tolist()

    def test_a_tie_of_logits_goes_to_the_first_class(self):
        votes = compile_votes(lambda params, x: params * x, np.ones((2, 1)), np.zeros((3, 4), np.float32))
        assert votes(range(2), np.ones((2, 1))).tolist() == [[0, 0, 0]] * 2

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_logits_that_are_not_finite_are_no_vote(self, bad):
        params = np.ones((3, 1), np.float32)
        x = np.ones((4, 2), np.float32)
        votes = compile_votes(lambda params, x: params * x, params, x)
        params[1] = bad
        with pytest.raises(ModelError, match="teacher 21 gives logits that aren't finite"):
            votes(range(20, 23), params)

    def test_votes_of_a_teacher_depend_on_it_alone(self, ensemble):
        x, _ = examples(50, seed=3)
        some = only(ensemble[1], slice(0, 4))
        votes = compile_votes(apply, some, x)
        before = votes(range(4), some)
        some["w"][2] *= -1
        after = votes(range(4), some)
        np.testing.assert_array_equal(before[[0, 1, 3]], after[[0, 1, 3]])
