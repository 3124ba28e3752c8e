"""`python -m accountants budget`."""

import json

import pytest

import accountants as acc
from accountants.__main__ import main
from accountants.shared_budget import SharedBudget
from tests.accountants.test_shared_budget import COHORTS, PLAIN

MEAN = ("--path=statistics/mean", "--release=mean")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "policy.toml").write_text(PLAIN + COHORTS)
    return tmp_path


def call(capsys, *arguments):
    code = main(["budget", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def answer(capsys, *arguments):
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_from_init_to_seal(folder, capsys):
    head = answer(capsys, "init", folder / "policy.toml")["head"]
    assert answer(capsys, "show", folder)["head"] == head
    first = answer(capsys, "reserve", folder, *MEAN, "--laplace=2", "--label=monday", "--cohort=donors")
    shown = answer(capsys, "show", folder)
    assert {scope["scope"]: scope["spent"] for scope in shown["scopes"]} == {
        "donors": pytest.approx(0.5, rel=1e-3),
        "others": 0,
        "rest": 0,
    }
    assert shown["reservations"][0] == {
        "name": first["name"],
        "run": "monday",
        "cohort": "donors",
        "purpose": "",
        "release": "mean",
        "committed": False,
        "charges": [{"path": "statistics/mean", "reserved": 1, "drawn": 1}],
    }
    answer(capsys, "commit", folder, first["name"])
    for more in (("--gaussian=30",), ("--gaussian=2", "--sampling_probability=0.001"), ('--event={"type":"NoOpDpEvent"}',)):
        answer(capsys, "reserve", folder, *MEAN, *more)
    answer(capsys, "seal", folder)
    code, out, _ = call(capsys, "show", folder)
    assert code == 0
    assert "SEALED" in out
    assert "monday" in out
    code, _, err = call(capsys, "reserve", folder, *MEAN, "--gaussian=30")
    assert (code, "sealed" in err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("reserve", "{}", *MEAN, "--laplace=0.4"), 3, "ceiling of"),
        (("reserve", "{}", *MEAN), 2, "--gaussian, --laplace"),
        (("reserve", "{}", *MEAN, "--laplace=1", "--gaussian=1"), 2, "--gaussian, --laplace"),
        (("reserve", "{}", *MEAN, "--event=x"), 2, "not JSON"),
        (("reserve", "{}", *MEAN, "--event=[]"), 2, "JSON object"),
        (("reserve", "{}", *MEAN, '--event={"schema": 2, "event": {"type": "NoOpDpEvent"}}'), 2, "schema 2"),
        (
            (
                "reserve",
                "{}",
                *MEAN,
                '--event={"type": "RandomizedResponseDpEvent", "noise_parameter": 1, "noise_parameter": 0.5}',
            ),
            2,
            "twice",
        ),
        (("reserve", "{}", *MEAN, "--laplace=9", "--count=0"), 2, "count"),
        (("reserve", "{}", *MEAN, "--laplace=9", "--cohort=x"), 2, "all, donors, others"),
        (("reserve", "{}", *MEAN, "--laplace=9", "--purpose=x"), 2, "purpose"),
        (("reserve", "{}", "--path=a", "--release=votes", "--laplace=9"), 2, "mean, model"),
        (("reserve", "{}", "--path=A", "--release=mean", "--laplace=9"), 2, "component path"),
        (("commit", "{}", "abc"), 2, "no reservation"),
        (("init", "{}/policy.toml"), 2, "already"),
        (("init", "{}/nothing.toml"), 2, "can't read"),
        (("show", "{}/nothing.jsonl"), 2, "no budget"),
        (("show", "{}/policy.toml"), 4, "line 1"),
    ],
)
def test_what_can_go_wrong(folder, capsys, arguments, code, message):
    answer(capsys, "init", folder / "policy.toml")
    before = (folder / "budget.jsonl").read_bytes()
    found, _, err = call(
        capsys, *(argument.replace("{}", str(folder), 1) if argument.startswith("{}") else argument for argument in arguments)
    )
    assert found == code, err
    assert message in err
    assert len(err.splitlines()) == 1
    assert (folder / "budget.jsonl").read_bytes() == before


def test_damage_is_an_integrity_failure(folder, capsys):
    answer(capsys, "init", folder / "policy.toml")
    answer(capsys, "reserve", folder, *MEAN, "--laplace=9")
    path = folder / "budget.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"count":1', b'"count":0', 1))
    code, _, err = call(capsys, "show", folder)
    assert (code, "line 2" in err) == (4, True)


def test_a_wrong_policy_names_its_line(folder, capsys):
    (folder / "policy.toml").write_text(PLAIN.replace("[ceiling]", "[cieling]"))
    code, _, err = call(capsys, "init", folder / "policy.toml")
    assert code == 2
    assert "policy.toml: line" in err
    assert not (folder / "budget.jsonl").exists()


def test_reading_needs_no_right_to_write(folder, capsys):
    answer(capsys, "init", folder / "policy.toml")
    (folder / "budget.jsonl").chmod(0o440)
    with SharedBudget(folder / "budget.jsonl", read_only=True) as budget, pytest.raises(ValueError, match="reading only"):
        budget.seal()
    answer(capsys, "show", folder)


def test_what_to_json_writes_is_taken_and_what_has_no_bound_is_said_to_have_none(folder, capsys):
    answer(capsys, "init", folder / "policy.toml")
    answer(capsys, "reserve", folder, *MEAN, f"--event={acc.to_json(acc.LaplaceDpEvent(20.0))}")
    unsupported = acc.PoissonSampledDpEvent(0.1, acc.ZCDpEvent(0.001))
    code, _, err = call(capsys, "reserve", folder, *MEAN, f"--event={acc.to_json(unsupported)}")
    assert code == 2
    assert "no bound" in err
    assert "ceiling" not in err


def test_a_policy_that_was_changed_is_named(folder, capsys):
    answer(capsys, "init", folder / "policy.toml")
    (folder / "policy.toml").write_text((PLAIN + COHORTS).replace("[0, 100]", "[0, 99]"))
    for arguments in (("show", folder), ("reserve", folder, *MEAN, "--laplace=2")):
        code, _, error = call(capsys, *arguments)
        assert code == 4
        assert "another cohorts." in error
    assert (folder / "budget.jsonl").read_bytes().count(b"\n") == 1
