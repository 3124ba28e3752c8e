"""Test accuracy of the presets over seeds, by the command a user runs. `python -m benchmarks.accuracy [--seeds=3] [DATASET …]`.

Each run draws fresh noise from the operating system, so the spread is over initial parameters, sampling and noise.
Needs the data files in $MARAUDER_DATA_DIR.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Data set → flags besides the preset: δ as the published figures have it.
RUNS = {
    "digits": (),
    "adult": ("--epsilon=1", "--delta=1e-5"),
    "mnist": ("--epsilon=3", "--delta=1e-5"),
    "fashion_mnist": ("--epsilon=3", "--delta=1e-5"),
}


def main(arguments: list[str]) -> None:
    """Prints the table."""
    seeds = next((int(a.removeprefix("--seeds=")) for a in arguments if a.startswith("--seeds=")), 3)
    names = [a for a in arguments if not a.startswith("--")] or list(RUNS)
    print("| data set | model | ε, δ | σ | updates | test accuracy, % | mean ± standard deviation | seconds in all |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        accuracies, seconds = [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "experiments.dpsgd",
                    f"--dataset={name}",
                    f"--seed={seed}",
                    f"--workdir={folder}",
                    *RUNS[name],
                ]
                start = time.perf_counter()
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds.append(time.perf_counter() - start)
                document = json.loads((Path(folder) / "privacy.json").read_text())
                settings = json.loads((Path(folder) / "config.json").read_text())["settings"]
            match = re.search(r"test accuracy\s+([\d.]+)%", out)
            assert match, out
            accuracies.append(float(match[1]))
        sigma = document["ledger"]["public"]["plan"]["noise_multiplier"]
        spread = statistics.stdev(accuracies) if seeds > 1 else float("nan")
        print(
            f"| {name} | {settings['model']} | {document['epsilon']:.4g}, {document['delta']:g} | {sigma:.4g} | "
            f"{document['components'][0]['events']:,} | {', '.join(f'{a:.2f}' for a in accuracies)} | "
            f"{statistics.mean(accuracies):.2f} ± {spread:.2f} | {', '.join(f'{s:.0f}' for s in seconds)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
