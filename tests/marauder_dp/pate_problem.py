"""A small ensemble for tests of PATE: four features, three classes, a model of two layers in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from marauder_dp.pate.partitions import partition
from marauder_dp.pate.teachers import TeacherTraining, compile_ensemble

CLASSES, FEATURES, TEACHERS = 3, 4, 13


def examples(n, seed=0):
    """(x, y), three overlapping blobs."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n).astype(np.int32)
    x = (rng.normal(size=(n, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]).astype(np.float32)
    return x, y


def init(key):
    """Parameters of one teacher."""
    first, second = jax.random.split(key)
    return {
        "w": 0.5 * jax.random.normal(first, (FEATURES, 6)),
        "v": 0.5 * jax.random.normal(second, (6, CLASSES)),
        "b": jnp.zeros(CLASSES),
    }


def apply(params, x):
    """Logits."""
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]


def loss(params, example):
    """Cross-entropy of one example."""
    x, y = example
    logits = apply(params, x)
    return jax.nn.logsumexp(logits) - logits[y]


def jittered_loss(params, example):
    """The same of features with noise."""
    (x, y), key = example
    return loss(params, (x + 0.1 * jax.random.normal(key, x.shape), y))


def training(*, keyed=False, **changes):
    """How teachers train here."""
    how = {"updates": 12, "batch_size": 8, "seed": 5} | changes
    return TeacherTraining(init, jittered_loss if keyed else loss, optax.adam(0.05), keyed=keyed, **how)


def all_teachers(ensemble, data, start=0):
    """Parameters of all teachers, with a leading dimension, and their numbers."""
    waves = list(ensemble.train(data, start=start))
    numbers = [number for numbers, _ in waves for number in numbers]
    return numbers, jax.tree.map(lambda *parts: np.concatenate(parts), *[params for _, params in waves])


def trained(data, *, teachers=TEACHERS, how=None, ids=None, **options):
    """(ensemble, parameters of all its teachers)."""
    split = partition(np.arange(len(data[1])) if ids is None else ids, teachers, seed=1)
    ensemble = compile_ensemble(training() if how is None else how, split, data, **options)
    numbers, params = all_teachers(ensemble, data)
    assert numbers == list(range(teachers))
    return ensemble, params
