"""Who sees what: disjoint, complete, and one unit more or less is one teacher's business alone."""

import hashlib
import shutil
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp.errors import DatasetError, PlanError
from marauder_dp.pate.owners import read_owners
from marauder_dp.pate.partitions import partition, separately_held

LIKE = types.SimpleNamespace(train_x=np.zeros((5, 3), np.float32), num_classes=4)


def owned(partitions):
    """The rows of each teacher, as sets."""
    return [set(partitions.own(t).tolist()) for t in range(partitions.teachers)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.lists(st.integers(-5, 400), min_size=1, max_size=200))
def test_disjoint_complete_padded_and_units_together(teachers, seed, ids):
    try:
        found = partition(ids, teachers, seed=seed)
    except PlanError:
        return
    sets = owned(found)
    assert sum(map(len, sets)) == len(ids) == found.counts.sum()
    assert set().union(*sets) == set(range(len(ids)))
    teacher_of = {row: t for t, rows in enumerate(sets) for row in rows}
    for value in set(ids):
        assert len({teacher_of[row] for row, other in enumerate(ids) if other == value}) == 1
    for t in range(teachers):
        assert set(found.rows[t].tolist()) == sets[t]  # padding repeats the teacher's own


@pytest.mark.parametrize("seed", range(5))
def test_one_unit_less_changes_one_teacher_alone(seed):
    """Whatever unit goes, and wherever its examples stand."""
    ids = np.random.default_rng(seed).integers(0, 150, 600)
    before = partition(ids, 20, seed=seed)
    names = [set(ids[before.own(t)].tolist()) for t in range(20)]
    for unit in np.unique(ids)[::7]:
        kept = ids != unit
        after = partition(ids[kept], 20, seed=seed)
        position = np.flatnonzero(kept)
        changed = [t for t in range(20) if position[after.own(t)].tolist() != before.own(t).tolist()]
        assert changed == [t for t in range(20) if int(unit) in names[t]]
        assert len(changed) == 1


def test_the_hash_is_keyed_and_spreads_evenly():
    """Counts of 20,000 ids over 50 teachers: χ² with 49 degrees of freedom, false alarm 1e-6 for each of three seeds."""
    for seed in range(3):
        counts = partition(np.arange(20_000), 50, seed=seed).counts
        assert ((counts - 400) ** 2 / 400).sum() < 115
    a, b = (partition(np.arange(2000), 10, seed=seed) for seed in (0, 1))
    assert owned(a) != owned(b)
    assert owned(a) == owned(partition(np.arange(2000), 10, seed=0))


def test_types_of_ids():
    assert owned(partition(np.arange(60), 5)) == owned(partition([str(i) for i in range(60)], 5))
    for bad in (np.zeros(3), np.zeros((3, 2), int), np.array([], int), np.array([None, 1]), np.ma.masked):
        with pytest.raises(DatasetError, match="ids must be one integer or string"):
            partition(bad, 2)


def test_a_published_vector():
    """BLAKE2b of the id as decimal text, 8 bytes, big-endian, keyed by the seed as decimal text."""
    found = partition(np.arange(40), 3, seed=7)
    for row in range(40):
        digest = hashlib.blake2b(str(row).encode(), digest_size=8, key=b"7").digest()
        assert row in found.own(int.from_bytes(digest, "big") % 3)


@pytest.mark.parametrize(
    ("ids", "teachers", "message"),
    [
        (np.arange(5), 6, "6 teachers are more than there are ids"),
        (np.zeros(50, int), 2, "2 teachers are more than there are ids"),
        (np.arange(50), 49, r"teacher \d+ of 49 would have no example"),
        (np.arange(5), 0, "at least 1"),
        (np.arange(5), 2.0, "at least 1"),
    ],
)
def test_too_many_teachers_is_one_clear_line(ids, teachers, message):
    with pytest.raises(PlanError, match=message) as caught:
        partition(ids, teachers)
    assert "\n" not in str(caught.value)


def test_digests_depend_on_salt_data_and_split_alone():
    data = {"x": np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), "y": np.arange(60) % 3}
    split = partition(np.arange(60), 4)
    first = split.digests(data, b"s" * 16)
    assert first == split.digests({name: value.copy() for name, value in data.items()}, b"s" * 16)
    assert len(set(first)) == 4
    assert not set(first) & set(split.digests(data, b"t" * 16))
    row = int(split.own(2)[0])
    data["y"][row] += 1
    assert [a == b for a, b in zip(first, split.digests(data, b"s" * 16), strict=True)] == [True, True, False, True]
    data["y"][row] -= 1
    as_float64 = data | {"x": data["x"].astype(np.float64)}
    assert not set(first) & set(split.digests(as_float64, b"s" * 16))


def owners(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 4, n).astype(np.int32)) for n in sizes]


def test_each_owner_is_one_teacher():
    parts = owners(5, 1, 9)
    data, split = separately_held(parts)
    assert split.counts.tolist() == [5, 1, 9]
    for t, (x, y) in enumerate(parts):
        np.testing.assert_array_equal(data[0][split.own(t)], x)
        np.testing.assert_array_equal(data[1][split.own(t)], y)


def test_owners_may_repeat_their_own_examples_but_share_none():
    parts = owners(5, 4, 6)
    parts[0][0][1], parts[0][1][1] = parts[0][0][0], parts[0][1][0]
    separately_held(parts, [[1, 1, 2, 3, 4], [5, 6, 7, 8], [9] * 6])
    with pytest.raises(DatasetError, match=r"owners 0 and 2 hold an example with the same id .*Remove it"):
        separately_held(parts, [[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 3, 12, 13, 14]])
    with pytest.raises(DatasetError, match="owners 0 and 1 hold an example with the same id"):
        separately_held(parts, [[1, 2, 3, 4, 5], ["a", "b", "c", "5"], list("xyzuvw")])
    parts[1][0][2], parts[1][1][2] = parts[0][0][4], parts[0][1][4]
    with pytest.raises(DatasetError, match=r"owners 0 and 1 hold an example with the same content \(rows 4 and 7"):
        separately_held(parts)
    parts[1][1][2] += 1  # the same features with another label are another example
    separately_held(parts)


def test_the_same_content_is_found_whatever_the_type_it_is_held_in():
    """What teachers see are the numbers after joining."""
    parts = [(np.array([[0.5], [2.0]], np.float32), np.array([1, 2])), (np.array([[2], [3]]), np.array([2, 2]))]
    with pytest.raises(DatasetError, match="same content"):
        separately_held(parts)


@pytest.mark.parametrize("negative", [0, 1])
def test_minus_zero_is_zero(negative):
    a = np.array([[0.0, 1.0]], np.float32)
    parts = [(a, np.array([1])), (a * np.float32([1 - 2 * negative, 1]), np.array([1]))]
    with pytest.raises(DatasetError, match="same content"):
        separately_held(parts)


def test_no_owner_or_an_empty_one():
    with pytest.raises(DatasetError, match="no owners"):
        separately_held([])
    with pytest.raises(DatasetError, match="owner 1 has no examples"):
        separately_held(owners(3, 0, 2))


def test_ids_that_do_not_go_with_the_examples():
    with pytest.raises(DatasetError, match="owner 1 has 3 ids for 2 examples"):
        separately_held(owners(2, 2), [[1, 2], [3, 4, 5]])
    with pytest.raises(DatasetError, match="ids for 1 of 2 owners"):
        separately_held(owners(2, 2), [[1, 2]])


@pytest.fixture
def folder(tmp_path):
    """Three owners' folders, a file and a hidden folder beside them."""
    for i, (x, y) in enumerate(owners(6, 4, 5)):
        (tmp_path / f"owner{i}").mkdir()
        np.save(tmp_path / f"owner{i}" / "x.npy", x)
        np.save(tmp_path / f"owner{i}" / "y.npy", y)
        np.save(tmp_path / f"owner{i}" / "ids.npy", np.arange(len(y)) + 100 * i)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_reading_owners(folder):
    found = read_owners(folder, LIKE)
    assert [owner.name for owner in found] == ["owner0", "owner1", "owner2"]
    for owner, (x, y) in zip(found, owners(6, 4, 5), strict=True):
        np.testing.assert_array_equal(owner.x, x)
        np.testing.assert_array_equal(owner.y, y)
    _, split = separately_held([(o.x, o.y) for o in found], [o.ids for o in found])
    assert split.counts.tolist() == [6, 4, 5]


def spoil(folder, name, value):
    np.save(folder / name, value)


DAMAGES = [
    (lambda f: (f / "owner1/x.npy").unlink(), ".*owner1/x.npy"),
    (lambda f: (f / "owner1/y.npy").write_bytes(b""), ".*owner1/y.npy"),
    (lambda f: (f / "owner1/y.npy").write_bytes((f / "owner1/y.npy").read_bytes()[:-3]), ".*owner1/y.npy"),
    (lambda f: (f / "owner1/x.npy").write_bytes(b"\x93NUMPY\x01\x00\x06\x00{'a((\n"), ".*owner1/x.npy"),
    (lambda f: (f / "owner1/x.npy").write_bytes(b"\x93NUMPY\x01\x00\x06\x00\x00\xff\xfe(((("), ".*owner1/x.npy"),
    (lambda f: np.savez(open(f / "owner1/x.npy", "wb"), a=1), "owner1/x.npy"),  # noqa: SIM115
    (lambda f: np.save(f / "owner1/x.npy", np.array([{}, {}]), allow_pickle=True), ".*owner1/x.npy"),
    (lambda f: spoil(f, "owner1/x.npy", np.zeros((4, 2))), r"shape \(n, 3\); got float64 \(4, 2\)"),
    (lambda f: spoil(f, "owner1/x.npy", np.float32(3)), r"shape \(n, 3\)"),
    (lambda f: spoil(f, "owner1/x.npy", np.full((4, 3), "a")), "must hold numbers"),
    (lambda f: spoil(f, "owner1/x.npy", np.full((4, 3), np.nan)), "isn't finite"),
    (lambda f: spoil(f, "owner1/x.npy", np.full((4, 3), 1e300)), "isn't finite"),
    (lambda f: spoil(f, "owner1/x.npy", np.zeros((0, 3))), "a class for each of 0 examples"),
    (lambda f: spoil(f, "owner1/y.npy", np.arange(3)), "a class for each of 4 examples"),
    (lambda f: spoil(f, "owner1/y.npy", np.zeros(4)), "a class for each of 4 examples; got float64"),
    (lambda f: spoil(f, "owner1/y.npy", np.array([0, 1, 2, 4])), "classes outside 0 to 3"),
    (lambda f: spoil(f, "owner1/y.npy", np.array([0, 1, 2, -1])), "classes outside 0 to 3"),
    (lambda f: spoil(f, "owner1/ids.npy", np.arange(3)), "an id for each of 4 examples"),
    (lambda f: spoil(f, "owner1/ids.npy", np.zeros(4)), "an id for each of 4 examples"),
    (lambda f: (f / "owner1/ids.npy").unlink(), "owner owner1 has no ids.npy, but others have"),
    (lambda f: [shutil.rmtree(f / f"owner{i}") for i in range(3)], "has no folder of an owner"),
    (lambda f: shutil.rmtree(f), "can't read the folder of owners"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_files_of_an_owner_are_one_clear_line(folder, damage, message):
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        read_owners(folder, LIKE)
    assert "\n" not in str(caught.value)
