"""Settings that work, with the test accuracy they reached (BUILD_NOTES.md has the runs)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """Defaults of one data set; any flag overrides its part.

    Attributes:
      model: by name.
      batch_size: expected.
      epochs: passes over the data, on average.
      clip_norm: C.
      optimizer: an optax constructor.
      optimizer_args: its keyword arguments besides the learning rate.
      learning_rate: at its peak.
      learning_rate_schedule: constant or cosine.
      epsilon: target.
      expected: what to expect, for the plan.
    """

    model: str
    batch_size: int
    epochs: float
    clip_norm: float
    learning_rate: float
    epsilon: float
    expected: str
    optimizer: str = "sgd"
    optimizer_args: str = "momentum=0.9"
    learning_rate_schedule: str = "cosine"


PRESETS = {
    "digits": Preset("logistic", 256, 100, 0.5, 0.5, 3.0, "about 94 % test accuracy at epsilon 3"),
    "adult": Preset("logistic", 2048, 40, 0.5, 2.0, 1.0, "about 84.6 % test accuracy at epsilon 1"),
    "mnist": Preset("cnn", 1024, 20, 0.1, 2.0, 3.0, "about 98 % test accuracy at epsilon 3", learning_rate_schedule="constant"),
    "fashion_mnist": Preset("cnn", 1024, 20, 0.1, 4.0, 3.0, "about 85 % test accuracy at epsilon 3"),
}

OTHER = Preset("mlp", 256, 20, 1.0, 0.25, 3.0, "no experience with this data set yet")


def preset(dataset: str) -> Preset:
    """The preset of a data set, or a cautious general one."""
    return PRESETS.get(dataset, OTHER)
