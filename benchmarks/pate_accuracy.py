"""What PATE presets reach, by the command a user runs. `python -m benchmarks.pate_accuracy [--seeds=3] [DATASET …]`.

Partitions, parameters and queries follow the seed; noise is fresh each time. Needs the data files in $MARAUDER_DATA_DIR.
Accuracies of teachers and labels are on the public examples, the student's on the held-out ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATASETS = ("digits", "adult", "mnist", "fashion_mnist")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="*", default=DATASETS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(
        "| data set | teachers | ε ≤, δ | ε of these votes (private) | asked, answered | teachers, plurality, labels right, % "
        "| student, % | mean ± standard deviation | seconds in all |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.datasets:
        print(row(name, [run(name, seed) for seed in range(options.seeds)]), flush=True)


def run(name: str, seed: int) -> dict[str, float]:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.pate", f"--dataset={name}", f"--seed={seed}", f"--workdir={folder}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        document = json.loads((Path(folder) / "privacy.json").read_text())
        metrics = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    events = {component["path"].rpartition("/")[2]: component["events"] for component in document["components"]}
    return {
        **{f"{metric['split']}/{metric['name']}": 100 * metric["value"] for metric in metrics},
        "teachers": document["ledger"]["public"]["voting"]["teachers"],
        "epsilon": document["epsilon"],
        "delta": document["delta"],
        "dependent": document["pate"]["epsilon"],
        "answered": events["argmax"],
        "asked": events.get("threshold_check", events["argmax"]),
        "seconds": seconds,
    }


def row(name: str, runs: list[dict[str, float]]) -> str:
    """Of the table."""

    def each(key: str, form: str = ".1f") -> str:
        return ", ".join(f"{one[key]:{form}}" for one in runs)

    def mean(key: str) -> float:
        return statistics.mean(one[key] for one in runs)

    student = [one["test/accuracy"] for one in runs]
    spread = statistics.stdev(student) if len(student) > 1 else float("nan")
    right = [mean(f"public/{what}_accuracy") for what in ("teacher", "plurality", "label")]
    cells = [
        name,
        f"{runs[0]['teachers']:,}",
        f"{max(one['epsilon'] for one in runs):.4g}, {runs[0]['delta']:g}",
        each("dependent", ".2f"),
        f"{mean('asked'):,.0f}, {mean('answered'):,.0f}",
        ", ".join(f"{value:.1f}" for value in right),
        each("test/accuracy", ".2f"),
        f"{statistics.mean(student):.2f} ± {spread:.2f}",
        each("seconds", ".0f"),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
