"""Which queries come next: never one twice, never more than the limit, and by public things alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp.errors import PlanError
from marauder_dp.pate.queries import Choice, next_queries, typical


def all_rounds(choice, examples, probabilities=None):
    asked = []
    while new := next_queries(choice, asked, examples, probabilities):
        assert len(new) <= choice.round
        asked += new
    return asked


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_each_query_once_and_no_more_than_the_limit(examples, limit, each, seed, uncertain):
    probabilities = np.random.default_rng(seed).dirichlet([1, 1], examples)
    choice = Choice("uncertainty" if uncertain else "random", limit, each, seed)
    asked = all_rounds(choice, examples, probabilities)
    assert len(asked) == len(set(asked)) == min(limit, examples)
    assert set(asked) <= set(range(examples))


def test_rounds_do_not_change_a_random_order_and_the_seed_does():
    whole, parts = (all_rounds(Choice("random", 30, each, 1), 40) for each in (30, 7))
    assert whole == parts
    assert whole != all_rounds(Choice("random", 30, 30, 2), 40)


def test_the_least_certain_first():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.5, 0.5]])
    choice = Choice("uncertainty", 4, 2)
    assert next_queries(choice, [], 4, probabilities) == [1, 3]
    assert next_queries(choice, [3], 4, probabilities) == [1, 2]
    assert sorted(next_queries(Choice("uncertainty", 4, 4), [], 4)) == [0, 1, 2, 3]  # before there is a student: at random


def test_given_queries_in_their_order_and_each_once():
    assert all_rounds(Choice("given", 9, 2, given=(7, 3, 7, 0)), 10) == [7, 3, 0]
    assert all_rounds(Choice("given", 2, 9, given=(7, 3, 0)), 10) == [7, 3]


def test_typical_ones_first_and_then_the_others():
    asked = all_rounds(Choice("clusters", 9, 2, given=(7, 3, 7, 0)), 10)
    assert asked[:3] == [7, 3, 0]
    assert len(set(asked)) == 9


@pytest.mark.parametrize("shape", [(2,), (10, 10, 1)])
def test_typical_is_one_of_each_group_and_the_nearest_to_its_centre(shape):
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(6, *shape))
    groups = np.concatenate([np.repeat(np.arange(6), 20), np.arange(6)])
    x = centres[groups] + rng.uniform(-0.1, 0.1, (126, *shape))
    x[-6:] = [x[:-6][groups[:-6] == group].mean(axis=0) for group in range(6)]
    chosen = typical(x.astype(np.float32), 6, seed=3)
    assert sorted(chosen) == list(range(120, 126))
    assert chosen == typical(x.astype(np.float32), 6, seed=3)
    assert chosen != typical(x.astype(np.float32), 6, seed=4)


def test_typical_of_few_or_equal_examples():
    assert sorted(typical(np.eye(3), 9, seed=0)) == [0, 1, 2]
    assert typical(np.ones((5, 2)), 3, seed=0) in [(i,) for i in range(5)]
    assert typical(np.ones((60, 8, 8)), 3, seed=0) in [(i,) for i in range(60)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best", 3, 3), "one of random, clusters, uncertainty, given"),
        (("random", 0, 3), "limit of queries"),
        (("random", 3, 0), "round of queries"),
        (("random", 3, 1.5), "round of queries"),
        (("given", 3, 3), "given queries"),
        (("clusters", 3, 3), "clusters"),
        (("random", 3, 3, 0, (1, 2)), "given queries"),
    ],
)
def test_choices_that_make_no_sense(arguments, message):
    with pytest.raises(PlanError, match=message):
        Choice(*arguments)
