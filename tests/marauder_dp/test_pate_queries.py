"""Which queries come next: never one twice, never more than the limit, and by public things alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp.errors import PlanError
from marauder_dp.pate.queries import Choice, next_queries


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best", 3, 3), "one of random, uncertainty, given"),
        (("random", 0, 3), "limit of queries"),
        (("random", 3, 0), "round of queries"),
        (("random", 3, 1.5), "round of queries"),
        (("given", 3, 3), "given queries"),
        (("random", 3, 3, 0, (1, 2)), "given queries"),
    ],
)
def test_choices_that_make_no_sense(arguments, message):
    with pytest.raises(PlanError, match=message):
        Choice(*arguments)
