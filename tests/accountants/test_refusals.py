"""Malformed arguments are refused by name: nothing crashes, nothing passes in silence."""

import json
import math

import pytest

import accountants as acc
from accountants.__main__ import main
from accountants.events import MAX_DEPTH

STEP = acc.dpsgd_event(1.0, 0.01, 1)


def nested(levels):
    event = acc.GaussianDpEvent(1.0)
    for _ in range(levels):
        event = acc.PoissonSampledDpEvent(0.9, event)
    return event


def test_what_may_be_built_can_be_written_and_read():
    deepest = nested(MAX_DEPTH)
    assert deepest.nesting == MAX_DEPTH
    assert acc.from_json(acc.to_json(deepest)) == deepest
    with pytest.raises(acc.InvalidEventError, match="nested"):
        nested(MAX_DEPTH + 1)
    with pytest.raises(acc.InvalidEventError, match="nested"):
        acc.ComposedDpEvent((STEP, deepest))


def counted(levels):
    event = acc.LaplaceDpEvent(1.0)
    for _ in range(levels):
        event = acc.SelfComposedDpEvent(event, 10**15)
    return event


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: acc.from_opacus_history(None), "list of"),
        (lambda: acc.from_opacus_history({}), "list of"),
        (lambda: acc.from_opacus_history("[]"), "list of"),
        (lambda: acc.from_opacus_history([]), "without a step"),
        (lambda: acc.from_json(None), "not JSON"),
        (lambda: acc.from_json("[" * 10**5), "not JSON"),
        (lambda: acc.from_json('{"schema": true, "event": {"type": "NoOpDpEvent"}}'), "schema"),
        (lambda: acc.from_json('{"schema": 1, "schema": 1, "event": {"type": "NoOpDpEvent"}}'), "twice"),
        (lambda: acc.from_json('{"schema": 1, "event": {"type": "LaplaceDpEvent", "noise_multiplier": NaN}}'), "NaN"),
        (lambda: acc.to_json("x"), "str is not an event"),
        (lambda: acc.to_dict(None), "NoneType is not an event"),
        (lambda: acc.profile(acc.PldAccountant(), "x"), "epsilons"),
        (lambda: acc.profile(acc.PldAccountant(), ["x"]), "epsilons"),
        (lambda: acc.profile(acc.RdpAccountant(), 10**400), "epsilons"),
        (lambda: acc.PldAccountant().profile(1.0), "epsilons"),
        (lambda: acc.PldAccountant().profile([10**400]), "epsilons"),
        (lambda: acc.profile(acc.PldAccountant()).min_fnr("x"), "fpr"),
        (lambda: acc.profile(acc.PldAccountant()).min_fnr([0.1, 10**400]), "fpr"),
        (lambda: acc.profile(acc.PldAccountant()).min_fnr([[0.1], [0.2, 0.3]]), "fpr"),
        (lambda: acc.profile(acc.PldAccountant()).min_fnr(-0.1), "fpr"),
        (lambda: acc.break_down(3, 1e-5), "list of Charge"),
        (lambda: acc.break_down([STEP], 1e-5), "list of Charge"),
        (lambda: acc.Filter(epsilon=1, delta=1e-5, order=10**400), "orders"),
        (lambda: acc.dpsgd_event(1.0, 0.1, -3), "steps"),
        (lambda: acc.calibrate(acc.GaussianDpEvent, epsilon=1, delta=1e-5, bounds=(1,)), "bounds"),
        (lambda: acc.calibrate(acc.GaussianDpEvent, tpr=0.1, fpr=1e-31), "fpr"),
        (lambda: acc.calibrate(acc.GaussianDpEvent, epsilon=1, delta=1e-5, bounds=(10, 1)), "low first"),
        (lambda: acc.calibrate(acc.GaussianDpEvent, epsilon=1, delta=1e-5, rising=True), "rising=False"),
        (lambda: acc.calibrate(lambda x: acc.GaussianDpEvent(1 / x), epsilon=1, delta=1e-5), "rising=True"),
    ],
)
def test_refused_by_name(call, message):
    with pytest.raises(acc.InvalidEventError, match=message):
        call()


def test_too_many_runs_are_left_to_the_renyi_accountant():
    assert acc.epsilon(counted(25), 1e-5).epsilon == math.inf
    with pytest.raises(acc.UnsupportedEventError, match="10\\^15"):
        acc.PldAccountant().compose(counted(25))


def test_a_refusal_is_not_said_twice():
    with pytest.raises(acc.UnsupportedEventError) as caught:
        acc.epsilon(acc.RandomizedResponseDpEvent(0.1, 5), 1e-5)
    assert str(caught.value).count("randomised response") == 1


DPSGD = ["--noise_multiplier=1", "--sampling_probability=0.01", "--steps=10"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", *DPSGD, "--points=0"], "--points"),
        (["profile", *DPSGD, "--points=-1"], "--points"),
        (["calibrate", *DPSGD, "--epsilon=1", "--delta=1e-5"], "nothing to find"),
        (["calibrate", "--sampling_probability=0", "--steps=10", "--epsilon=1", "--delta=1e-5"], "--sampling_probability"),
        (["calibrate", "--sampling_probability=0.1", "--steps=0", "--epsilon=1", "--delta=1e-5"], "--steps"),
        (["epsilon", *DPSGD[:2], "--steps=-3", "--delta=1e-5"], "steps"),
    ],
)
def test_the_command_line_says_so_to_people_and_to_programs(capsys, arguments, message):
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert message in json.loads(out)["error"]


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"accountants {acc.__version__}"


def test_a_figure_that_can_be_read_in_two_ways_is_refused(tmp_path, capsys):
    path = tmp_path / "privacy.json"
    path.write_text('{"schema": 4, "epsilon": 0.1, "epsilon": 3.0}')
    assert main(["verify", str(path)]) == 4
    assert "twice" in capsys.readouterr().out
