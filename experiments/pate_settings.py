"""The resolved flags of a PATE run, and settings that work (BUILD_NOTES.md has the runs)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PateSettings:
    """The flags, resolved: all that determines the run. Saved in config.json and compared on resumption."""

    dataset: str
    public: int
    teachers: int
    teacher_model: str
    teacher_epochs: int
    teacher_batch_size: int
    teacher_learning_rate: float
    teacher_augmentation: bool
    chunk: int | None
    unit: str | None
    mechanism: str
    epsilon: float | None
    queries: int | None
    delta: float | None
    threshold: float | None
    sigma_threshold: float | None
    sigma_votes: float | None
    choice: str
    given: str | None
    round: int | None
    student_model: str
    student_steps: int
    student_batch_size: int
    student_unlabelled: int
    student_learning_rate: float
    seed: int
    reproducible_noise: bool


@dataclasses.dataclass(frozen=True)
class PatePreset:
    """Defaults of one data set; any flag overrides its part.

    Attributes:
      public: how many of the held-out examples, the first ones, are queries and the student's; it is tested on the others.
      teachers: how many.
      teacher_model, student_model: by name.
      teacher_epochs, teacher_batch_size, teacher_learning_rate: of Adam.
      teacher_augmentation: whether teachers see shifted, turned and scaled images.
      student_steps, student_batch_size, student_unlabelled, student_learning_rate: see `StudentTraining`.
      epsilon: the ceiling.
      expected: what to expect, for the plan.
    """

    public: int
    teachers: int
    teacher_model: str
    teacher_epochs: int
    student_model: str
    student_steps: int
    epsilon: float
    expected: str
    teacher_batch_size: int = 32
    teacher_learning_rate: float = 3e-3
    teacher_augmentation: bool = False
    student_batch_size: int = 64
    student_unlabelled: int = 4
    student_learning_rate: float = 2e-3


PRESETS = {
    "digits": PatePreset(260, 60, "logistic", 60, "mlp", 1000, 6.0, "", teacher_batch_size=16),
    "adult": PatePreset(8000, 250, "logistic", 20, "mlp", 1000, 1.9, ""),
    "mnist": PatePreset(9000, 250, "cnn", 30, "cnn", 3000, 3.2, "", teacher_augmentation=True),
    "fashion_mnist": PatePreset(9000, 250, "cnn", 30, "cnn", 3000, 3.2, "", teacher_augmentation=True),
}

OTHER = PatePreset(1000, 100, "mlp", 20, "mlp", 1000, 3.0, "no experience with this data set yet")


def preset(dataset: str) -> PatePreset:
    """The preset of a data set, or a general one."""
    return PRESETS.get(dataset, OTHER)
