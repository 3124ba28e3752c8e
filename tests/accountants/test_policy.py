"""Policies: what is not exactly right is refused, with its line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants import PolicyError, parse_policy, read_policy
from accountants.policy import Ceiling
from accountants.toml_lines import line_of

GOOD = """\
# What is allowed on these data.
[data]
name = "patients"
fingerprint = "sha256:{zeros}"
neighbouring_relation = "add_or_remove_one"
unit = "example"
public = [
  "num_examples",
  "the schema",
]

[ceiling]
epsilon = 3
delta = 1e-5

[release]
model = "anyone"
labels = "the research team"

[cohort.donors]
rows = [[0, 100], [300, 400]]
epsilon = 3.0
delta = 1e-5

[cohort.others]
rows = [[100, 300]]
epsilon = 1.0
delta = 1e-6

[purpose.research]
release = ["model"]
epsilon = 1.0
delta = 1e-6
""".format(zeros="0" * 64)


def lines_with(old: str, new: str) -> bytes:
    assert GOOD.count(old) >= 1, old
    return GOOD.replace(old, new, 1).encode()


def test_everything_is_read():
    policy = parse_policy(GOOD.encode())
    assert (policy.name, policy.unit, policy.neighbouring_relation) == ("patients", "example", "add_or_remove_one")
    assert policy.public == ("num_examples", "the schema")
    assert policy.ceiling == Ceiling(3.0, 1e-5)
    assert policy.cohorts["donors"].rows == ((0, 100), (300, 400))
    assert policy.cohorts["donors"].size == 200
    assert policy.purposes["research"].release == ("model",)
    assert parse_policy(GOOD.replace("\n", "\r\n").encode()) == policy


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('name = "patients"', "name = 3", 3, "data.name: must be the name"),
        ('name = "patients"\n', "", 2, "data: name is missing"),
        ('name = "patients"', 'nmae = "patients"\nname = "patients"', 3, "data.nmae: unknown"),
        ('name = "patients"', 'name = ""', 3, "printable"),
        ('name = "patients"', 'description = "x"\nname = "patients"', 2, "either fingerprint"),
        ("sha256:0", "sha256:g", 4, "64 hexadecimal"),
        ("add_or_remove_one", "swap", 5, "add_or_remove_one, replace_one, zero_out"),
        ('"the schema",', "4,", 7, "data.public: must be a list of texts"),
        ("epsilon = 3\n", "", 12, "ceiling: epsilon is missing"),
        ("epsilon = 3\n", 'epsilon = "3"\n', 13, "ceiling.epsilon: must be a finite number"),
        ("epsilon = 3\n", "epsilon = true\n", 13, "finite number"),
        ("epsilon = 3\n", "epsilon = inf\n", 13, "finite number"),
        ("epsilon = 3\n", "epsilon = nan\n", 13, "finite number"),
        ("epsilon = 3\n", "epsilon = 0\n", 13, "finite number"),
        ("epsilon = 3\n", f"epsilon = 0x{'f' * 9000}\n", 13, "very large number"),
        ("delta = 1e-5\n", "delta = 1\n", 14, "below 1"),
        ("delta = 1e-5\n", "delta = 1e-5\nmu = 1\n", 15, "ceiling.mu: unknown"),
        ("[ceiling]\nepsilon = 3\ndelta = 1e-5\n", "", 30, "ceiling is missing"),
        ('model = "anyone"\nlabels = "the research team"\n', "", 16, "nothing that may be released"),
        ('model = "anyone"', "model = true", 17, "release.model: must be a text that says to whom"),
        ('model = "anyone"', '"a model" = "anyone"', 17, "a name is made of"),
        ("[cohort.donors]", "[cohort.all]", 20, "all data"),
        ("[100, 300]", "[99, 300]", 25, "overlaps with cohort donors: both have row 99"),
        ("[300, 400]", "[99, 400]", 21, "row 99 is in two ranges"),
        ("[300, 400]", "[400, 400]", 21, "from < to"),
        ("[300, 400]", "[-1, 400]", 21, "from < to"),
        ("[300, 400]", "[300.0, 400]", 21, "list of ranges"),
        ("[300, 400]", "[true, 400]", 21, "list of ranges"),
        ("rows = [[100, 300]]\n", "", 25, "rows is missing"),
        ("rows = [[100, 300]]\n", "rows = []\n", 26, "no rows"),
        ("rows = [[100, 300]]\n", 'rows = "gone.npy"\n', 26, "can't read"),
        ("delta = 1e-5\n\n[cohort.others]", "delta = 1e-4\n\n[cohort.others]", 23, "above the ceiling of the whole"),
        ('release = ["model"]', 'release = ["votes"]', 31, "not in [release], which has model, labels"),
        ('release = ["model"]\n', "", 30, "release is missing"),
        ("[purpose.research]", "[purposes.research]", 30, "purposes: unknown"),
        ("[purpose.research]", "[[purpose]]", 30, "purpose: must be tables"),
        ("[purpose.research]", "[purpose.research", 30, "not TOML"),
        ("[purpose.research]", '[purpose."a\\nb"]', 30, r"'a\\nb'"),
        ("unit = ", "unit = 'x'\nunit = ", 7, "not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old, new, line, message):
    with pytest.raises(PolicyError) as caught:
        parse_policy(lines_with(old, new))
    text = str(caught.value)
    assert caught.value.line == line, text
    assert text.startswith(f"line {line}: ")
    assert message.replace("\\\\", "\\") in text
    assert "\n" not in text


def test_rows_from_a_file(tmp_path):
    np.save(tmp_path / "donors.npy", np.array([5, 3, 4, 9, 4]))
    raw = lines_with("[[0, 100], [300, 400]]", '"donors.npy"')
    assert parse_policy(raw, folder=tmp_path).cohorts["donors"].rows == ((3, 6), (9, 10))
    for bad in (np.array([0.5]), np.array([-1]), np.array([[1]]), np.array([], int), np.array([2**63], np.uint64)):
        np.save(tmp_path / "donors.npy", bad)
        with pytest.raises(PolicyError, match=r"line 21: cohort\.donors\.rows"):
            parse_policy(raw, folder=tmp_path)
    (tmp_path / "donors.npy").write_bytes(b"\x93NUMPY junk")
    with pytest.raises(PolicyError, match="can't read"):
        parse_policy(raw, folder=tmp_path)


def test_files(tmp_path):
    path = tmp_path / "policy.toml"
    with pytest.raises(PolicyError, match="can't read the policy"):
        read_policy(path)
    path.write_bytes(b'[data]\nname = "\xff"\n')
    with pytest.raises(PolicyError, match=r"policy.toml: line 2: not UTF-8"):
        read_policy(path)
    path.write_bytes(b"\n" * 300_000)
    with pytest.raises(PolicyError, match="at most"):
        read_policy(path)
    path.write_bytes(b"a = " + b"[" * 100_000)
    with pytest.raises(PolicyError, match="line 1"):
        read_policy(path)


def test_line_of_keys_in_tables_written_in_any_way():
    text = 'a.b = 1\n# c\n\nc = { d = 2, e = 3 }\n["f"]\ng = """\nh = 1\n"""\nh = [\n 1,\n]\n'
    keys = [("a", "b"), ("c", "d"), ("f",), ("f", "g"), ("f", "h"), ("f", "x"), ("y",)]
    assert [line_of(text, key) for key in keys] == [1, 4, 5, 6, 9, 5, 11]


VALUES = [
    "",
    "0",
    "1",
    "-1",
    "1e-9",
    "inf",
    "nan",
    "true",
    '"x"',
    "[]",
    "[[1, 2]]",
    "{}",
    '["model"]',
    "1979-05-27",
    '"all"',
    "'''\n'''",
]


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(GOOD.splitlines()) - 1),
            st.sampled_from(["drop", "twice", "swap", "value"]),
            st.sampled_from(VALUES),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_edited_policies_are_read_or_refused_by_name(edits):
    lines = GOOD.splitlines()
    for i, what, value in edits:
        if not i < len(lines):
            continue
        if what == "drop":
            del lines[i]
        elif what == "twice":
            lines.insert(i, lines[i])
        elif what == "swap":
            lines[i], lines[i - 1] = lines[i - 1], lines[i]
        else:
            lines[i] = f"{lines[i].split('=')[0]}= {value}"
    refused, policy = None, None
    try:
        policy = parse_policy("\n".join(lines).encode())
    except PolicyError as error:
        refused = error
    if policy is None:
        assert refused.line is not None
        assert "\n" not in str(refused)
    else:  # what is read obeys the rules
        assert policy.release
        for part in (*policy.cohorts.values(), *policy.purposes.values()):
            assert 0 < part.ceiling.epsilon <= policy.ceiling.epsilon
            assert 0 < part.ceiling.delta <= policy.ceiling.delta < 1


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_anything_else_is_refused_by_name(raw):
    with pytest.raises(PolicyError) as caught:
        parse_policy(raw)
    assert caught.value.line is not None
    assert "\n" not in str(caught.value)
