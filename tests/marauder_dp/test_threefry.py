"""The cipher is the published one, and a word is decided by key and position alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from marauder_dp.threefry import FIRST, encipher, words

pytestmark = pytest.mark.usefixtures("strict_rank")
U = jnp.uint32


@pytest.mark.parametrize(
    ("key", "block", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_answers_of_the_published_implementation(key, block, expected):
    """From Random123's file of known answers, for 20 rounds."""
    out = encipher(*(U(word) for word in key), *(jnp.array([word], U) for word in block))
    assert tuple(int(word[0]) for word in out) == expected


def test_is_the_cipher_of_jax():
    rng = np.random.default_rng(0)
    for _ in range(20):
        key, block = jnp.asarray(rng.integers(0, 2**32, 2), U), jnp.asarray(rng.integers(0, 2**32, (2, 50)), U)
        ours = jnp.concatenate(encipher(key[0], key[1], block[0], block[1]))
        np.testing.assert_array_equal(ours, threefry_2x32(key, block.reshape(-1)))


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (1, 24)])
def test_the_position_decides_and_not_the_shape(shape):
    key = jax.random.key(5)
    first, second = encipher(*jax.random.key_data(key), jnp.full(24, FIRST, U), jnp.arange(24, dtype=U))
    for ours, expected in zip(words(key, shape), (first, second), strict=True):
        assert ours.shape == shape
        np.testing.assert_array_equal(ours.reshape(-1), expected)


def test_a_single_one_and_none():
    assert [word.shape for word in words(jax.random.key(0), ())] == [(), ()]
    assert [word.shape for word in words(jax.random.key(0), (0, 3))] == [(0, 3), (0, 3)]


def test_each_key_of_many_has_its_own():
    keys = jax.random.split(jax.random.key(1), 5)
    first, _ = jax.vmap(lambda key: words(key, (100,)))(keys)
    np.testing.assert_array_equal(first[3], words(keys[3], (100,))[0])
    assert len(np.unique(first)) == 500


def test_what_is_drawn_is_no_key_that_jax_derives():
    key = jax.random.key(3)
    drawn = set(np.stack(words(key, (500,)), axis=1).reshape(-1).tolist())
    folded = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(jnp.arange(500))
    derived = {*np.asarray(jax.random.key_data(jax.random.split(key, 500))).reshape(-1).tolist(), *folded.reshape(-1).tolist()}
    assert not drawn & derived


def test_a_key_of_another_cipher_gives_its_own_words():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(jnp.stack(words(key, (7,))), jax.random.bits(key, (2, 7), U))


def test_more_entries_than_positions_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        jax.eval_shape(lambda key: words(key, (2**16, 2**16)), jax.random.key(0))
