"""Prints the fingerprint of a data set, for its policy.toml. Keep it with the data: it confirms a guess of them.

python -m experiments.fingerprint --dataset=mnist --data_dir=DIR
"""

from absl import flags

from experiments import launch

DATASET = flags.DEFINE_string("dataset", "digits", "digits, mnist, fashion_mnist, adult, or a tensorflow-datasets name.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data files; default: $MARAUDER_DATA_DIR.")


def main() -> int:
    """Returns the exit code."""
    from marauder_dp.datasets import load_dataset

    print(load_dataset(DATASET.value, DATA_DIR.value).fingerprint())
    return launch.DONE


if __name__ == "__main__":
    launch.run(main)
