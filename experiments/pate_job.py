"""From the flags of a PATE run to its job: data, partitions, plan of the votes, the compiled teachers."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.pate_settings import PateSettings

if TYPE_CHECKING:
    from marauder_dp.datasets import Dataset
    from marauder_dp.pate.partitions import Partitions
    from marauder_dp.pate.queries import Choice
    from marauder_dp.pate.session import Job
    from marauder_dp.pate.teachers import TeacherTraining
    from marauder_dp.pate.voting import VotingPlan

_ROUNDS = 5


class _Private(NamedTuple):
    """What the teachers learn from.

    Attributes:
      data: whose training examples are theirs.
      partitions: of those.
      units: of privacy, how many there are.
    """

    data: "Dataset"
    partitions: "Partitions"
    units: int


def prepare(settings: PateSettings, data_dir: str | None) -> "Job":
    """Loads the data, splits it, plans and compiles; nothing is trained or released yet.

    Raises:
      MarauderError: whatever is wrong with data, settings or model.
    """
    import jax

    from accountants.events import NeighbouringRelation
    from accountants.policy import ALL
    from marauder_dp.convolutions import as_products
    from marauder_dp.datasets import load_dataset
    from marauder_dp.datasets.scaling import standardised
    from marauder_dp.errors import PlanError
    from marauder_dp.models import make_model
    from marauder_dp.pate import calibration
    from marauder_dp.pate.session import Job, PublicExamples
    from marauder_dp.pate.student import StudentTraining
    from marauder_dp.pate.teachers import compile_ensemble
    from marauder_dp.plan import check_delta, default_delta
    from marauder_dp.policy import Permit

    _check_teachers(settings)
    data, permit = load_dataset(settings.dataset, data_dir), None
    if settings.policy is not None:
        if settings.owners is not None or (settings.unit is not None and settings.cohort not in (None, ALL)):
            raise PlanError(
                "under a policy there can be neither --owners nor --unit with a cohort: rows of cohorts are examples'"
            )
        permit = Permit.of(Path(settings.policy), release="labels", cohort=settings.cohort, purpose=settings.purpose)
        permit.check_terms(NeighbouringRelation.ADD_OR_REMOVE_ONE, "example")
        data, _ = permit.select(data)
    held_out = len(data.test_y)
    if not 1 <= settings.public < held_out:
        raise PlanError(
            f"--public must be from 1 to {held_out - 1:,}, so that examples are left to test on; got {settings.public}"
        )
    private = _private(settings, data)
    data = standardised(private.data, settings.public)
    teachers = private.partitions.teachers
    delta = default_delta(private.units) if settings.delta is None else check_delta(settings.delta)
    voting = calibration.plan_voting(
        teachers,
        data.num_classes,
        delta,
        epsilon=settings.epsilon,
        mechanism=settings.mechanism,
        threshold=settings.threshold,
        sigma_threshold=settings.sigma_threshold,
        sigma_votes=settings.sigma_votes,
    )
    shape = data.train_x.shape[1:]
    teacher = make_model(settings.teacher_model, shape, data.num_classes)
    updates = max(1, round(settings.teacher_epochs * private.data.num_examples / (teachers * settings.teacher_batch_size)))
    training = _teacher_training(settings, teacher, shape, updates)
    return Job(
        settings=dataclasses.asdict(settings),
        name=settings.dataset,
        note=data.note,
        data=(data.train_x, data.train_y),
        public=PublicExamples(
            x=data.test_x[: settings.public],
            y=data.test_y[: settings.public],
            test_x=data.test_x[settings.public :],
            test_y=data.test_y[settings.public :],
        ),
        ensemble=compile_ensemble(training, private.partitions, (data.train_x, data.train_y), chunk=settings.chunk),
        apply=jax.vmap(as_products(lambda params, x: teacher.apply({"params": params}, x)), (None, 0)),
        voting=voting,
        choice=_choice(settings, voting, delta, data.test_x[: settings.public]),
        student=StudentTraining(
            make_model(settings.student_model, shape, data.num_classes),
            steps=settings.student_steps,
            batch_size=settings.student_batch_size,
            unlabelled=settings.student_unlabelled,
            learning_rate=settings.student_learning_rate,
            penalty=settings.student_penalty,
            seed=settings.seed,
        ),
        epsilon_ceiling=math.inf if settings.epsilon is None else settings.epsilon,
        delta=delta,
        units=private.units,
        counts_public=settings.unit is None and settings.owners is None,
        reproducible_seed=settings.seed if settings.reproducible_noise else None,
        permit=permit,
    )


def _check_teachers(settings: PateSettings) -> None:
    from marauder_dp.errors import PlanError

    for name in ("teacher_epochs", "teacher_batch_size"):
        if getattr(settings, name) < 1:
            raise PlanError(f"--{name} must be at least 1; got {getattr(settings, name)}")
    if not 0 < settings.teacher_learning_rate < math.inf:
        raise PlanError(f"--teacher_learning_rate must be a finite number greater than 0; got {settings.teacher_learning_rate}")


def _private(settings: PateSettings, data: "Dataset") -> _Private:
    """The training examples and who sees them: teachers by a hash, or each owner's teacher."""
    import numpy as np

    from marauder_dp.errors import PlanError
    from marauder_dp.pate.owners import read_owners
    from marauder_dp.pate.partitions import partition, separately_held
    from marauder_dp.units import read_ids

    if settings.owners is not None:
        owners = read_owners(settings.owners, data)
        theirs = [owner.ids for owner in owners if owner.ids is not None]
        (x, y), partitions = separately_held([(owner.x, owner.y) for owner in owners], theirs or None)
        data = dataclasses.replace(data, train_x=x, train_y=y)
        units = len(np.unique(np.concatenate(theirs))) if theirs else len(y)
    else:
        assert settings.teachers is not None
        n = data.num_examples
        ids = np.arange(n) if settings.unit is None else read_ids(settings.unit)
        if len(ids) != n:
            raise PlanError(f"--unit has {len(ids):,} ids for {n:,} training examples")
        partitions = partition(ids, settings.teachers, seed=settings.seed)
        units = len(np.unique(ids))
    missing = sorted(set(range(data.num_classes)) - set(np.unique(data.train_y).tolist()))
    if missing:
        raise PlanError(
            f"no training example has class {missing[0]}, so no teacher can vote for it; leave it out of the labels"
        )
    return _Private(data, partitions, units)


def _teacher_training(settings: PateSettings, teacher: Any, shape: tuple[int, ...], updates: int) -> "TeacherTraining":
    import jax.numpy as jnp
    import optax

    from marauder_dp import augmentation
    from marauder_dp.errors import PlanError
    from marauder_dp.models import cross_entropy
    from marauder_dp.pate.distortions import affine
    from marauder_dp.pate.teachers import TeacherTraining

    loss = cross_entropy(teacher)
    if settings.teacher_augmentation:
        if len(shape) != 3:
            raise PlanError(
                f"--teacher_augmentation changes images, but an example of {settings.dataset} has the shape {shape}"
            )
        loss = augmentation.loss_of_augmented(loss, affine, 1)
    return TeacherTraining(
        init=lambda key: teacher.init(key, jnp.zeros(shape))["params"],
        loss_fn=loss,
        optimizer=optax.adam(settings.teacher_learning_rate),
        updates=updates,
        batch_size=settings.teacher_batch_size,
        seed=settings.seed,
        keyed=settings.teacher_augmentation,
    )


def _choice(settings: PateSettings, voting: "VotingPlan", delta: float, public: Any) -> "Choice":
    """Which queries are asked, and how many before the next student."""
    from accountants.calibration import calibrate_steps
    from accountants.errors import VotesError
    from accountants.pate.votes import read_npy
    from marauder_dp.errors import PlanError
    from marauder_dp.pate.queries import Choice, typical

    given: tuple[int, ...] = ()
    if settings.given is not None:
        try:
            numbers = read_npy(settings.given)
        except VotesError as error:
            raise PlanError(f"--given_queries is a .npy file of numbers of public examples: {error}") from error
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise PlanError(f"--given_queries must hold a list of whole numbers; got {numbers.dtype} of shape {numbers.shape}")
        if not 0 <= numbers.min() <= numbers.max() < settings.public:
            raise PlanError(f"--given_queries must be numbers of public examples, from 0 to {settings.public - 1}")
        given = tuple(numbers.tolist())
    limit = min(len(given) or settings.public, settings.queries or settings.public)
    affordable = limit
    if settings.epsilon is not None:
        affordable = min(limit, calibrate_steps(voting.query_event, epsilon=settings.epsilon, delta=delta))
        if not affordable:
            raise PlanError(
                f"not even one query fits below --epsilon={settings.epsilon:g} with noise of {voting.sigma_votes:g} votes: "
                "raise --epsilon, --sigma_votes or --teachers"
            )
    if settings.choice == "clusters":
        given = typical(public, affordable, settings.seed)
    # One round unless queries or checks depend on a student.
    several = settings.choice == "uncertainty" or settings.mechanism == "interactive_gnmax"
    usual = math.ceil(affordable / _ROUNDS) if several else limit
    each = usual if settings.round is None else settings.round
    return Choice(settings.choice, limit, each, settings.seed, given)
