"""The resolved flags of a DP-SGD run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags, resolved: all that determines the run. Saved in config.json and compared on resumption."""

    dataset: str
    model: str
    private: bool
    epsilon: float | None
    noise_multiplier: float | None
    epsilon_ceiling: float | None
    delta: float | None
    neighbouring_relation: str
    clip_norm: float
    batch_size: int
    epochs: float | None
    steps: int | None
    optimizer: str
    optimizer_args: str
    learning_rate: float
    learning_rate_schedule: str
    seed: int
    reproducible_noise: bool
    clipping: str = "flat"
    augmentations: int = 0
    unit: str | None = None
    examples_per_unit: int | None = None
    policy: str | None = None
    cohort: str | None = None
    purpose: str | None = None
