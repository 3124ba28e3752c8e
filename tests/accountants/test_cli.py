"""`python -m accountants`, as a user or a script calls it."""

import json
import math

import pytest

import accountants as acc
from accountants.__main__ import main

SAMPLED = ["--sampling_probability", "0.01", "--steps", "1000", "--delta", "1e-5"]


def run_json(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with acc.Ledger(path, public={"delta": 1e-5}) as ledger:
        ledger.charge("train/gradients", acc.dpsgd_event(1.1, 0.01, 1), 100)
        ledger.charge("data/mean", acc.LaplaceDpEvent(20.0))
    return path


def test_epsilon(capsys):
    code, result = run_json(capsys, "epsilon", "--noise_multiplier", "1.1", *SAMPLED)
    assert code == 0
    interval = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 1000)).epsilon_interval(1e-5)
    assert (result["lower"], result["epsilon"]) == (interval.lower, interval.upper)
    assert (result["delta"], result["accountant"]) == (1e-5, "pld")
    _, rdp = run_json(capsys, "epsilon", "--noise_multiplier", "1.1", *SAMPLED, "--accountant", "rdp")
    assert (rdp["accountant"], rdp["lower"]) == ("rdp", 0)
    assert rdp["epsilon"] > result["epsilon"]
    _, narrow = run_json(capsys, "epsilon", "--noise_multiplier", "1.1", *SAMPLED, "--rtol", "1e-5")
    assert narrow["epsilon"] - narrow["lower"] <= 1e-5 * narrow["epsilon"]


def test_no_noise_is_infinite_and_still_json(capsys):
    _, result = run_json(capsys, "epsilon", "--noise_multiplier", "0", *SAMPLED)
    assert float(result["epsilon"]) == math.inf


def test_calibrate(capsys):
    code, result = run_json(capsys, "calibrate", "--epsilon", "2", *SAMPLED)
    assert code == 0
    assert 0.995 * 2 <= result["epsilon"] <= 2
    assert result["accountant"] == "pld"
    found = ["--noise_multiplier", str(result["noise_multiplier"]), "--sampling_probability", "0.01"]
    code, result = run_json(capsys, "calibrate", "--epsilon", "2", "--delta", "1e-5", *found)
    assert result["steps"] == pytest.approx(1000, rel=2e-3)
    code, result = run_json(capsys, "calibrate", "--advantage", "0.1", *SAMPLED[:4])
    assert 0.0995 <= result["advantage"] <= 0.1
    code, result = run_json(capsys, "calibrate", "--tpr", "0.05", "--fpr", "0.01", *SAMPLED[:4])
    assert 0.995 * 0.05 <= result["tpr"] <= 0.05


def test_profile_and_tradeoff(capsys):
    arguments = ["--noise_multiplier", "1.1", *SAMPLED[:4]]
    _, result = run_json(capsys, "profile", *arguments, "--epsilon", "0", "1", "2")
    accountant = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 1000))
    for row in result["profile"]:
        exact = accountant.delta_interval(row["epsilon"])
        assert row["lower"] <= exact.upper
        assert row["delta"] >= exact.lower
    assert result["advantage"] == accountant.get_delta(0.0)
    _, result = run_json(capsys, "tradeoff", *arguments, "--fpr", "0.01", "0.1")
    assert [row["fpr"] for row in result["tradeoff"]] == [0.01, 0.1]
    assert 0.01 < result["tradeoff"][0]["tpr"] < 0.05
    assert main(["profile", *arguments, "--points", "3"]) == 0
    assert main(["tradeoff", *arguments]) == 0
    assert "FPR" in capsys.readouterr().out


def test_report(capsys, ledger):
    code, result = run_json(capsys, "report", str(ledger))
    assert code == 0
    assert [c["path"] for c in result["components"]] == ["train/gradients", "data/mean"]
    assert set(result["components"][0]) == {"path", "events", "epsilon_alone", "epsilon_if_removed", "share"}
    assert main(["report", str(ledger)]) == 0
    assert "train/gradients" in capsys.readouterr().out
    assert main(["report", str(ledger), "--statement"]) == 0
    assert "Not stated by the program" in capsys.readouterr().out


def test_verify(capsys, ledger):
    head = acc.read_ledger(ledger).head
    code, result = run_json(capsys, "verify", str(ledger), "--head", head)
    assert (code, result["ok"], result["head"], result["events"]) == (0, True, head, 101)
    assert main(["verify", str(ledger)]) == 0
    assert "give --head" in capsys.readouterr().out
    ledger.write_bytes(ledger.read_bytes().replace(b"1.1", b"9.9"))
    code, result = run_json(capsys, "verify", str(ledger))
    assert code == 4
    assert (result["ok"], result["line"]) == (False, 2)
    assert main(["report", str(ledger)]) == 4
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["epsilon", "--noise_multiplier", "-1", *SAMPLED], 2, "noise_multiplier"),
        (["epsilon", "--noise_multiplier", "nan", *SAMPLED], 2, "noise_multiplier"),
        (["epsilon", "--noise_multiplier", "1", *SAMPLED[:4], "--delta", "2"], 2, "delta"),
        (["calibrate", "--epsilon", "0", *SAMPLED], 2, "epsilon"),
        (
            ["epsilon", "--noise_multiplier", "1", "--neighbouring_relation", "replace_one", "--accountant", "rdp", *SAMPLED],
            2,
            "replace_one",
        ),
        (["epsilon", "--noise_multiplier", "1", *SAMPLED, "--rtol", "0"], 2, "rtol"),
        (["epsilon", "--noise_multiplier", "1", *SAMPLED, "--conversion", "classic", "--accountant", "pld"], 2, "rdp"),
        (["calibrate", *SAMPLED], 2, "target"),
        (["calibrate", "--epsilon", "1", "--delta", "1e-5", "--steps", "10"], 2, "noise_multiplier"),
        (["report", "no/such/file"], 2, "no/such/file"),
        (["report", "privacy.json"], 2, "verify"),
        (["verify", "no/such/file"], 2, "no/such/file"),
        (["verify", __file__, "--head", "abc"], 2, "64 hexadecimal digits"),
    ],
)
def test_bad_input_is_one_line_that_names_it(capsys, arguments, code, message):
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_ledger_without_delta_asks_for_one(capsys, tmp_path):
    acc.Ledger(tmp_path / "l").close()
    assert main(["report", str(tmp_path / "l")]) == 2
    assert "--delta" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("epsilon", "--noise_multiplier=abc"), ("tradeoff", "--fpr", "x"), ("unheard",), ()])
def test_what_the_parser_refuses_is_one_line_and_json_too(capsys, arguments):
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert json.loads(captured.out)["error"] in captured.err


def test_verify_takes_a_folder(capsys, ledger):
    folder = ledger.parent
    named = folder / "ledger.jsonl"
    ledger.rename(named)
    assert main(["verify", str(folder)]) == 0
    assert "every line follows" in capsys.readouterr().out
    (folder / "privacy.json").write_text('{"a": 1}')
    assert main(["verify", str(folder)]) == 4
    assert "no privacy.json" in capsys.readouterr().out


def test_what_a_reader_should_know_of_a_figure(capsys):
    loose = ["--neighbouring_relation", "replace_one", "--noise_multiplier", "1", *SAMPLED]
    assert main(["epsilon", *loose]) == 0
    assert "an upper bound alone" in capsys.readouterr().out
    assert main(["epsilon", "--noise_multiplier", "1", *SAMPLED]) == 0
    assert "an upper bound alone" not in capsys.readouterr().out
    for epsilon, ended in (("1e9", True), ("2", False)):
        assert main(["calibrate", "--epsilon", epsilon, *SAMPLED]) == 0
        assert ("end of the range" in capsys.readouterr().out) == ended
