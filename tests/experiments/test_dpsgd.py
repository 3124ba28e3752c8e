"""`python -m experiments.dpsgd`: what people see, what is left behind, and what bad input says."""

import json
import math
import re
import signal
import struct
import time

import jax
import numpy as np
import pytest

from accountants import read_ledger, report
from accountants.__main__ import main as accountants_main
from experiments import dpsgd, presets
from experiments.settings import Settings
from marauder_dp.checkpoints import Checkpoints
from marauder_dp.plan import GRADIENTS, plan_dpsgd
from marauder_dp.progress import ProgressLine, format_progress
from marauder_dp.training import ChunkReport
from tests.experiments.conftest import start

QUICK = ("--steps=30",)


def test_running_with_no_flags_but_a_workdir(cli, tmp_path):
    """The main job on the embedded default, and everything it promises."""
    code, out, _ = cli(f"--workdir={tmp_path}/run")
    assert code == 0
    for word in (
        "σ =",
        "q = 0.178149",
        "561 updates",
        "ε ≤ 3",
        "δ = 1e-05",
        "power of ten",
        "add_or_remove_one",
        "memory",
        "time",
    ):
        assert word in out, word
    assert out.index("Plan:") < out.index("component")
    assert "train/gradients" in out
    accuracy = float(re.search(r"test accuracy\s+([\d.]+)%", out)[1])
    assert accuracy > 85  # 94 % usually; far above chance in any case
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.json", "ledger.jsonl", "metrics.jsonl", "privacy.json", "privacy.md", "checkpoints", "private"}
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").count(GRADIENTS) == 561
    head = re.search(r"ledger head\s+(\w+)", out)[1]
    assert report.verify(tmp_path / "run" / "ledger.jsonl", head)["ok"]
    assert accountants_main(["verify", f"{tmp_path}/run/privacy.json"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    for words in (head, "Accuracy against ε", "Remaining budget", "Signal to noise", "do not publish"):
        assert words in page, words


def test_dry_run_prints_the_plan_and_leaves_nothing(cli, tmp_path):
    code, out, _ = cli("--dry_run", f"--workdir={tmp_path}/run", *QUICK)
    assert code == 0
    assert "σ =" in out
    assert not (tmp_path / "run").exists()


def test_a_noise_multiplier_instead_of_epsilon(cli, tmp_path):
    code, out, _ = cli(f"--workdir={tmp_path}", "--noise_multiplier=8", *QUICK)
    assert code == 0
    assert "σ = 8, given" in out


def test_a_ceiling_stops_before_it_is_passed_with_its_own_exit_code(cli, tmp_path):
    code, out, _ = cli(f"--workdir={tmp_path}", "--noise_multiplier=4", "--epsilon_ceiling=0.6", *QUICK)
    assert code == 3
    assert "stopped before the update" in out
    document = json.loads((tmp_path / "privacy.json").read_text())
    assert 0.3 < document["epsilon"] <= 0.6
    assert read_ledger(tmp_path / "ledger.jsonl").count(GRADIENTS) < 30


def test_ways_to_clip_augment_and_protect_more_than_an_example(cli, tmp_path):
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(1437) // 5)
    unit = (f"--unit={ids}", "--examples_per_unit=4", "--batch_size=64", "--augmentations=2", "--model=mlp")
    code, out, _ = cli(f"--workdir={tmp_path}/run", "--clipping=adaptive", *unit, *QUICK)
    assert code == 0
    for word in ("unit of up to 4 examples, 288 of them", "follows their median", "2 copies", "from inner products"):
        assert word in out, word
    statement = (tmp_path / "run" / "privacy.md").read_text()
    assert "differential privacy for one unit of up to 4 examples" in statement
    assert "of one sample" in statement
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.count(GRADIENTS) == ledger.count("train/clip_norm") == 30
    assert ledger.public["num_examples"] == 288
    assert accountants_main(["verify", f"{tmp_path}/run/privacy.json"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--clipping=ghost",), "flat, per_layer"),
        (("--private=false", "--clipping=flat"), "--clipping means nothing"),
        (("--unit=ids.npy",), "go together"),
        (("--unit=no_such.npy", "--examples_per_unit=2"), "unit id for each training example"),
        (("--unit={short}", "--examples_per_unit=2"), "1,437 training|unit ids"),
        (("--dataset=adult", "--augmentations=2"), "images|adult"),
    ],
)
def test_bad_clipping_units_and_augmentations_say_what_to_do(cli, tmp_path, flags, message):
    np.save(tmp_path / "short.npy", np.arange(3))
    code, _, err = cli(f"--workdir={tmp_path}/run", *(flag.format(short=tmp_path / "short.npy") for flag in flags))
    assert code == 2
    assert re.search(message, err)
    assert "Traceback" not in err


def test_the_non_private_baseline_says_so(cli, tmp_path):
    code, out, _ = cli(f"--workdir={tmp_path}", "--private=false", "--steps=300", "--reproducible_noise")
    assert code == 0
    assert "NONE" in out
    assert "No privacy guarantee" in out
    document = json.loads((tmp_path / "privacy.json").read_text())
    assert float(document["epsilon"]) == math.inf
    statement = (tmp_path / "privacy.md").read_text()
    assert "No privacy guarantee" in statement
    assert "Nothing should leave the trusted side" in statement
    assert "\n- No noise is added.\n" in statement
    assert "may be given to anyone" not in statement
    assert report.verify(tmp_path / "privacy.json")["ok"]
    assert float(re.search(r"test accuracy\s+([\d.]+)%", out)[1]) > 90


def test_warns_loudly_of_a_large_delta_and_of_reproducible_noise(cli):
    code, out, _ = cli("--dry_run", "--delta=0.01", "--reproducible_noise", *QUICK)
    assert code == 0
    assert "WARNING: δ = 0.01 is not below 1/n" in out
    assert "WARNING: --reproducible_noise voids" in out


def test_reproducible_noise_heads_every_report(cli, tmp_path, capsys):
    code, out, _ = cli(f"--workdir={tmp_path}", "--reproducible_noise", *QUICK)
    assert code == 0
    assert "GUARANTEE VOID" in out
    assert "GUARANTEE VOID" in (tmp_path / "privacy.md").read_text().split("## 1.")[0]
    accountants_main(["report", f"{tmp_path}/ledger.jsonl"])
    assert "GUARANTEE VOID" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_any_optimizer_by_flag(cli, tmp_path, optimizer):
    code, out, _ = cli(f"--workdir={tmp_path}", f"--optimizer={optimizer}", "--learning_rate=0.01", *QUICK)
    assert code == 0
    assert f"{optimizer}()" in out


BAD = [
    (("--dataset=no_such_set",), 2, "digits, mnist, fashion_mnist, adult"),
    (("--dataset=mnist", "--data_dir=/nowhere"), 2, "looked in /nowhere"),
    (("--epsilon=0",), 2, "epsilon"),
    (("--epsilon=-1",), 2, "epsilon"),
    (("--epsilon=nan",), 2, "epsilon"),
    (("--epsilon=inf",), 2, "epsilon"),
    (("--epsilon=1e-12", "--delta=1e-12", "--steps=1000000000"), 2, "can't be reached"),
    (("--delta=0",), 2, "delta"),
    (("--delta=1",), 2, "delta"),
    (("--delta=nan",), 2, "delta"),
    (("--noise_multiplier=0",), 2, "noise_multiplier"),
    (("--noise_multiplier=-1",), 2, "noise_multiplier"),
    (("--noise_multiplier=1", "--epsilon=1"), 2, "not both"),
    (("--noise_multiplier=1", "--epsilon_ceiling=0"), 2, "epsilon_ceiling"),
    (("--noise_multiplier=1", "--epsilon_ceiling=-1"), 2, "epsilon_ceiling"),
    (("--noise_multiplier=1", "--epsilon_ceiling=inf"), 2, "epsilon_ceiling"),
    (("--epsilon=1", "--epsilon_ceiling=1"), 2, "epsilon_ceiling"),
    (("--checkpoint_seconds=0",), 2, "checkpoint_seconds"),
    (("--seed=-1",), 2, "seed"),
    (("--seed=99999999999999999999",), 2, "seed"),
    (("--steps=99999999999",), 2, "steps"),
    (("--optimizer=lbfgs",), 2, "lbfgs"),
    (("--optimizer_args=momentum='abc'",), 2, "momentum"),
    (("--private=false", "--epsilon=1"), 2, "--private=false"),
    (("--steps=10", "--epochs=1"), 2, "not both"),
    (("--clip_norm=0",), 2, "clip_norm"),
    (("--clip_norm=-1",), 2, "clip_norm"),
    (("--clip_norm=inf",), 2, "clip_norm"),
    (("--batch_size=1438",), 2, "larger than the data"),
    (("--batch_size=0",), 2, "batch_size"),
    (("--steps=0",), 2, "steps"),
    (("--steps=-5",), 2, "steps"),
    (("--epochs=0",), 2, "epochs"),
    (("--epochs=nan",), 2, "epochs"),
    (("--model=vit",), 2, "logistic, mlp, cnn"),
    (("--model=cnn",), 2, "too small"),
    (("--optimizer=adm",), 2, "adm"),
    (("--optimizer_args=momentum",), 2, "optimizer_args"),
    (("--learning_rate=0",), 2, "learning_rate"),
    (("--learning_rate_schedule=linear",), 2, "constant, cosine"),
    (("--neighbouring_relation=swap",), 2, "add_or_remove_one, replace_one, zero_out"),
    (("--workdir=/dev/null/run", *QUICK), 2, "--workdir"),
    (("--epsilonn=1",), 2, "epsilon"),
    (("--steps=many",), 2, "steps"),
    (("stray",), 2, "stray"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line_that_names_the_fix(cli, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, err = cli(*arguments)
    assert found == code
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob("ledger.jsonl"))


def test_extreme_noise_is_infinite_epsilon_and_no_traceback(cli):
    code, out, _ = cli("--dry_run", "--noise_multiplier=1e-200", *QUICK)
    assert code == 0
    assert "ε ≤ ∞" in out


def test_help(command):
    process = start(command, "--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "--epsilon" in out
    assert "resumes" in out


def test_a_misspelt_flag_gets_a_suggestion(cli):
    _, _, err = cli("--noise_multiplyer=1")
    assert "noise_multiplier" in err


def test_corrupt_files_are_named_before_anything_is_written(cli, tmp_path):
    for prefix, n in (("train", 4), ("t10k", 2)):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + bytes(n * 784 - 1))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + bytes(n))
    code, _, err = cli("--dataset=mnist", f"--data_dir={tmp_path}", f"--workdir={tmp_path}/run")
    assert code == 2
    assert "train-images-idx3-ubyte" in err
    assert not (tmp_path / "run").exists()


def test_tampering_is_an_integrity_failure(cli, tmp_path):
    assert cli(f"--workdir={tmp_path}", *QUICK)[0] == 0
    path = tmp_path / "ledger.jsonl"
    good = path.read_bytes()
    for bad in (good.replace(b'"count":1,', b'"count":0,', 1), good[: good.index(b"\n") + 1], good[:-1] + b" "):
        path.write_bytes(bad)
        code, _, err = cli(f"--workdir={tmp_path}", *QUICK)
        assert code == 4
        assert err.startswith("error: ")
        assert path.read_bytes() == bad  # nothing was added


def test_a_changed_flag_is_named(cli, tmp_path):
    assert cli(f"--workdir={tmp_path}", *QUICK)[0] == 0
    code, _, err = cli(f"--workdir={tmp_path}", "--clip_norm=2", *QUICK)
    assert code == 2
    assert "--clip_norm=0.5 (now 2.0)" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(command, tmp_path, number):
    arguments = (f"--workdir={tmp_path}", "--steps=200000", "--learning_rate=0.01")
    process = start(command, *arguments)
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, out
    stopped = int(re.search(r"stopped after update ([\d,]+)", out)[1].replace(",", ""))
    assert 0 < stopped < 200_000
    again = start(command, *arguments)
    seen = []
    for line in again.stdout:
        seen.append(line)
        if line.startswith("step "):
            break
    again.kill()
    again.communicate()
    assert any(f"resuming after update {stopped:,}" in line for line in seen)


def final_parameters(workdir, *arguments):
    from absl import flags
    from absl.testing import flagsaver

    from experiments import launch

    saved = flagsaver.save_flag_values()
    try:
        launch._parse(["dpsgd", *arguments])
        job = dpsgd.prepare(dpsgd.settings_from_flags())
    finally:
        flagsaver.restore_flag_values(saved)
    assert flags.FLAGS.is_parsed()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(job.initial).state


def test_killed_at_random_and_resumed_equals_uninterrupted(cli, command, tmp_path):
    """SIGKILL at random moments: every run resumes, the ledger never falls behind, and the end is bit for bit the same."""
    steps = 8_000
    arguments = (f"--steps={steps}", "--learning_rate=0.01", "--reproducible_noise", "--checkpoint_seconds=0.1")
    assert cli(f"--workdir={tmp_path}/whole", *arguments)[0] == 0
    parts = tmp_path / "parts"
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(2):
        process = start(command, f"--workdir={parts}", *arguments)
        for line in process.stdout:
            if line.startswith("step "):
                break
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        charged = read_ledger(parts / "ledger.jsonl").count(GRADIENTS)
        rows = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
        done = max(json.loads(row)["step"] for row in rows if row.endswith("\n"))
        assert done <= charged <= steps
    assert kills > 0
    assert cli(f"--workdir={parts}", *arguments)[0] == 0
    assert read_ledger(parts / "ledger.jsonl").count(GRADIENTS) == steps
    both = [final_parameters(tmp_path / name, *arguments) for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_two_runs_in_one_folder(command, cli, tmp_path):
    arguments = (f"--workdir={tmp_path}", "--steps=2000000", "--learning_rate=0.01")
    process = start(command, *arguments)
    try:
        for line in process.stdout:
            if line.startswith("step "):
                break
        code, _, err = cli(*arguments)
        assert code == 2
        assert "in use by another process" in err
    finally:
        process.kill()
        process.communicate()


class TestProgress:
    PLAN = plan_dpsgd(num_examples=100, batch_size=8, steps=200, clip_norm=1.0, noise_multiplier=1.0)

    @staticmethod
    def chunk(step, non_finite=0.0):
        from marauder_dp.dpsgd import PrivateMetrics

        return ChunkReport(step, 10, 2.0, PrivateMetrics(*map(np.float32, (100, 250, 3, non_finite, 5))), 1.234)

    def test_one_line_says_it_all(self):
        line = format_progress(self.chunk(50), self.PLAN, 3.0)
        assert line == "step 50/200 (25%)  loss 2.500 (private)  ε 1.234 / 3.000  40 examples/s  0:30 left"

    def test_non_finite_gradients_are_loud(self):
        assert "WARNING: 7 non-finite" in format_progress(self.chunk(50, 7.0), self.PLAN, 3.0)

    def test_plain_lines_where_there_is_no_terminal(self):
        import io

        stream = io.StringIO()
        progress = ProgressLine(self.PLAN, 3.0, every_seconds=1e9, stream=stream)
        for step in (50, 100, 200):
            progress.update(self.chunk(step))
        progress.finish()
        assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["50/200", "200/200"]  # the first and the last
        assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("name", [*presets.PRESETS, "unheard_of"])
def test_presets_are_plans(name):
    preset = presets.preset(name)
    settings = Settings(
        dataset=name, private=True, noise_multiplier=None, epsilon_ceiling=None, delta=None, steps=None, seed=0,
        neighbouring_relation="add_or_remove_one", reproducible_noise=False,
        **{k: getattr(preset, k) for k in preset.__dataclass_fields__ if k != "expected"},
    )  # fmt: skip
    assert dpsgd.make_plan(settings, 30_000).epsilon() <= preset.epsilon


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epsilon", "accuracy"), [("mnist", 3, 96.5), ("adult", 1, 84.0)])
def test_real_data_reach_the_promised_accuracy(cli, tmp_path, data_dir, name, epsilon, accuracy):
    arguments = (f"--dataset={name}", f"--epsilon={epsilon}", "--delta=1e-5", f"--data_dir={data_dir}")
    code, out, _ = cli(*arguments, f"--workdir={tmp_path}")
    assert code == 0
    assert float(re.search(r"test accuracy\s+([\d.]+)%", out)[1]) >= accuracy


def test_a_run_signs_its_ledger_when_it_ends(cli, tmp_path, capsys):
    """With a key that is looked at before anything else."""
    pytest.importorskip("cryptography")
    code, _, err = cli(f"--workdir={tmp_path}/run", f"--signing_key={tmp_path}/none", *QUICK)
    assert code == 2
    assert "none" in err
    assert not (tmp_path / "run").exists()
    assert accountants_main(["keygen", f"{tmp_path}/key"]) == 0
    capsys.readouterr()
    code, out, _ = cli(f"--workdir={tmp_path}/run", f"--signing_key={tmp_path}/key", *QUICK)
    assert code == 0
    (check,) = (line for line in out.splitlines() if "--key" in line)
    assert accountants_main(check.split(" -m accountants ")[1].split()) == 0
    ledger = tmp_path / "run/ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    assert accountants_main(["verify", str(ledger), "--key", f"{tmp_path}/key.pub"]) == 4
