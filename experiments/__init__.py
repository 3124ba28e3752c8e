"""Programs launched with flags: `python -m experiments.dpsgd`."""
