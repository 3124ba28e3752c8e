"""The resolved flags of a PATE run, and settings that work (BUILD_NOTES.md has the runs)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PateSettings:
    """The flags, resolved: all that determines the run. Saved in config.json and compared on resumption."""

    dataset: str
    public: int
    teachers: int | None
    teacher_model: str
    teacher_epochs: int
    teacher_batch_size: int
    teacher_learning_rate: float
    teacher_augmentation: bool
    chunk: int | None
    unit: str | None
    owners: str | None
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
    student_penalty: float
    seed: int
    reproducible_noise: bool
    policy: str | None = None
    cohort: str | None = None
    purpose: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatePreset:
    """Defaults of one data set; any flag overrides its part.

    Attributes:
      public: how many of the held-out examples, the first ones, are queries and the student's; it is tested on the others.
      teachers: how many.
      teacher_model, student_model: by name.
      teacher_epochs, teacher_batch_size, teacher_learning_rate: of Adam.
      teacher_augmentation: whether teachers see shifted, turned and scaled images.
      mechanism: of voting.
      epsilon: the ceiling.
      delta: at which it is meant, as published results have it; None: by the general rule.
      choice: of queries.
      student_steps, student_batch_size, student_unlabelled, student_learning_rate, student_penalty: see `StudentTraining`.
      expected: what to expect, for the plan.
    """

    public: int
    teachers: int
    teacher_model: str
    teacher_epochs: int
    teacher_batch_size: int = 32
    teacher_learning_rate: float = 3e-3
    teacher_augmentation: bool = False
    mechanism: str = "confident_gnmax"
    epsilon: float
    delta: float | None = None
    choice: str = "random"
    student_model: str
    student_steps: int
    student_batch_size: int = 64
    student_unlabelled: int = 4
    student_learning_rate: float = 2e-3
    student_penalty: float = 0.0
    expected: str


_MNIST = PatePreset(
    public=9000,
    teachers=250,
    teacher_model="cnn",
    teacher_epochs=40,
    teacher_augmentation=True,
    epsilon=3.2,
    delta=1e-5,
    choice="clusters",
    student_model="relu_cnn",
    student_steps=4500,
    expected="about 98 % test accuracy at epsilon 3.2",
)
PRESETS = {
    "digits": PatePreset(
        public=260,
        teachers=60,
        teacher_model="logistic",
        teacher_epochs=60,
        teacher_batch_size=16,
        teacher_learning_rate=1e-2,
        epsilon=6.0,
        student_model="relu_cnn",
        student_steps=1000,
        expected="about 87 % test accuracy at epsilon 6; 100 examples to test on, so give or take 5",
    ),
    "adult": PatePreset(
        public=8000,
        teachers=250,
        teacher_model="logistic",
        teacher_epochs=60,
        teacher_learning_rate=3e-2,
        mechanism="gnmax",
        epsilon=1.9,
        delta=1e-5,
        student_model="logistic",
        student_steps=400,
        student_batch_size=256,
        student_unlabelled=0,
        student_learning_rate=3e-2,
        student_penalty=4e-3,
        expected="about 83.9 % test accuracy at epsilon 1.9",
    ),
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(_MNIST, expected="no experience with this data set yet"),
}

OTHER = PatePreset(
    public=1000,
    teachers=100,
    teacher_model="mlp",
    teacher_epochs=20,
    epsilon=3.0,
    student_model="mlp",
    student_steps=1000,
    expected="no experience with this data set yet",
)


def preset(dataset: str) -> PatePreset:
    """The preset of a data set, or a general one."""
    return PRESETS.get(dataset, OTHER)
