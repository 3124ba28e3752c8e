"""Votes: what is taken, what is refused and how."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accountants.errors import AccountingError
from accountants.pate import Votes, VotesError, read_votes


def test_equal_histograms_are_kept_once():
    votes = Votes([[3, 0, 1], [0, 1, 3], [2, 2, 0]])
    assert (votes.teachers, len(votes), votes.classes) == (4, 3, 3)
    assert votes.distinct.tolist() == [[2, 2, 0], [3, 1, 0]]
    assert votes.inverse.tolist() == [1, 1, 0]
    assert votes.multiplicity.tolist() == [1, 2]
    assert votes.first(1).counts.tolist() == [[3, 0, 1]]


def test_immutable():
    given_counts = np.array([[3, 1]])
    votes = Votes(given_counts)
    given_counts[0, 0] = 9
    assert votes.counts.tolist() == [[3, 1]]
    with pytest.raises(ValueError, match="read-only"):
        votes.counts[0, 0] = 1
    with pytest.raises(AttributeError):
        votes.teachers = 5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1.5, 2.5]], "query 0 are not whole"),
        ([[1, 1], [3, -1]], "query 1 are negative"),
        ([[1.0, np.nan]], "not finite"),
        ([[1.0, np.inf]], "not finite"),
        ([[1, 1], [1, 2]], "query 1 sum to 3"),
        ([[0, 0]], "number of teachers"),
        ([[4]], "two classes"),
        (np.zeros((0, 3), int), "at least one query"),
        ([1, 2], "two dimensions"),
        (np.ones((1, 2, 2), int), "two dimensions"),
        ([[1, 2], [3]], "rectangular|whole numbers"),
        ([["a", "b"]], "whole numbers"),
        ([[True, False]], "whole numbers"),
        ([[1j, 1]], "whole numbers"),
        ([[10**8, 1]], "exceed"),
        (None, "whole numbers|two dimensions"),
    ],
)
def test_refused_by_name(counts, message):
    with pytest.raises(VotesError, match=message):
        Votes(counts)


def test_a_known_number_of_teachers_is_checked():
    assert Votes([[3, 1]], teachers=4).teachers == 4
    with pytest.raises(VotesError, match="number of teachers, 5"):
        Votes([[3, 1]], teachers=5)


def test_files(tmp_path):
    path = tmp_path / "votes.npy"
    np.save(path, np.array([[3.0, 1.0]]))
    assert read_votes(path).counts.tolist() == [[3, 1]]
    whole = path.read_bytes()
    for damage in (b"", whole[:40], whole[:-3], whole + b"x", b"PK\x03\x04", whole.replace(b"(1, 2)", b"(9, 2)")):
        path.write_bytes(damage)
        with pytest.raises(VotesError, match=r"votes\.npy"):
            read_votes(path)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(VotesError, match=r"votes\.npy"):
        read_votes(path)
    for missing in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(VotesError, match="can't read"):
            read_votes(missing)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.int8, np.int64, np.uint64, np.float64, np.float16, np.bool_, "U3"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_any_array_is_votes_or_a_named_error(array):
    try:
        votes = Votes(array)
    except AccountingError:
        pass
    else:
        assert (votes.counts.sum(axis=1) == votes.teachers).all()
        assert (votes.distinct[votes.inverse] == -np.sort(-votes.counts, axis=1)).all()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_file_is_votes_or_a_named_error(tmp_path_factory, content, header):
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" * header + content)
    with pytest.raises(VotesError):
        read_votes(path)
