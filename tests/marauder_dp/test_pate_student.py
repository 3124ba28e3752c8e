"""The student: learns what can be learnt, the same each time, and distortions leave what they should."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marauder_dp.errors import PlanError
from marauder_dp.pate.distortions import affine, slight, strong
from marauder_dp.pate.student import STEPS_BETWEEN_CALLS, StudentTraining, train_student
from tests.marauder_dp.pate_problem import CLASSES, examples

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = nn.Dense(CLASSES)


def training(**changes):
    return StudentTraining(MODEL, **({"steps": 150, "batch_size": 16, "unlabelled": 2, "learning_rate": 0.05} | changes))


@pytest.fixture(scope="module")
def public():
    x, y = examples(300, seed=4)
    return x * [1, 1, 1, 0.1], y


def right(params, public):
    x, y = public
    return float((np.asarray(MODEL.apply({"params": params}, x)).argmax(axis=1) == y).mean())


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("unlabelled", [0, 2])
def test_learns_a_separable_problem_from_few_labels(public, unlabelled):
    """60 labels of three blobs; the best line is right about 85 % of them."""
    params = train_student(training(unlabelled=unlabelled), public[0], range(60), public[1][:60])
    assert right(params, public) > 0.78
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_the_same_seed_is_the_same_student_and_another_is_not(public):
    how = [training(steps=20, unlabelled=0, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (train_student(one, public[0], range(60), public[1][:60]) for one in how)
    assert equal(first, again)
    assert not equal(first, other)


def test_without_unlabelled_examples_the_others_do_not_matter(public):
    """--student_unlabelled=0: it learns from labels alone."""
    how = training(steps=20, unlabelled=0)
    changed = public[0].copy()
    changed[60:] = 7
    params = [train_student(how, x, range(60), public[1][:60]) for x in (public[0], changed)]
    assert equal(*params)


def test_the_penalty_shrinks_weights_and_leaves_biases(public):
    sizes = []
    for penalty in (0.0, 1.0):
        params = train_student(training(unlabelled=0, penalty=penalty), public[0], range(60), public[1][:60])
        sizes.append(float(np.square(params["kernel"]).sum()))
    assert sizes[0] > 2 * sizes[1]
    assert np.abs(params["bias"]).max() > 1e-3


def test_one_label_is_enough_to_run_and_none_is_an_error(public):
    train_student(training(steps=3, unlabelled=0), public[0], [7], [2])
    with pytest.raises(PlanError, match="no query was answered"):
        train_student(training(), public[0], [], [])


@pytest.mark.parametrize(("queries", "labels"), [([300], [0]), ([-1], [0]), ([0, 1], [0])])
def test_labels_of_examples_that_are_not_there(public, queries, labels):
    """Inside a compiled program an index out of range would quietly be another example."""
    with pytest.raises(PlanError, match="labels"):
        train_student(training(steps=1), public[0], queries, labels)


def test_after_steps_may_stop(public):
    seen = []
    train_student(training(steps=120, unlabelled=0), public[0], range(9), public[1][:9], after_steps=seen.append)
    assert seen == list(range(STEPS_BETWEEN_CALLS, 121, STEPS_BETWEEN_CALLS))

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(training(unlabelled=0), public[0], range(9), public[1][:9], after_steps=stop)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps of the student"),
        ({"steps": 1.5}, "steps of the student"),
        ({"batch_size": 0}, "batch_size of the student"),
        ({"unlabelled": -1}, "unlabelled of the student"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": np.inf}, "learning rate"),
        ({"penalty": -1.0}, "penalty"),
        ({"penalty": np.nan}, "penalty"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(PlanError, match=message):
        training(**changes)


class TestDistortions:
    IMAGES = np.random.default_rng(0).random((5, 8, 9, 2)).astype(np.float32)

    @pytest.mark.parametrize("shape", [(8, 9, 2), (6,), (4, 3)])
    @pytest.mark.parametrize("kind", [slight, strong])
    def test_shapes_and_types_are_kept_and_values_stay_finite(self, kind, shape):
        x = np.random.default_rng(0).random((5, *shape)).astype(np.float32)
        changed = jax.jit(kind(shape))(jax.random.key(0), x)
        assert changed.shape == x.shape
        assert changed.dtype == x.dtype
        assert np.isfinite(changed).all()

    def test_no_turn_scale_or_shear_is_a_shift_alone(self):
        """At zero strength: zero but for the shift, and the image itself where that is zero."""
        image = jnp.ones((8, 8, 1))
        still = jax.jit(lambda key, image, shift: affine(key, image, turn=0.0, scale=0.0, shear=0.0, shift=shift))
        for seed in range(5):
            inside = np.asarray(still(jax.random.key(seed), image, 0.125))[2:6, 2:6]
            np.testing.assert_allclose(inside, 1, atol=1e-5)
        own = self.IMAGES[0, :8, :8, :1]
        np.testing.assert_allclose(still(jax.random.key(1), own, 0.0), own, atol=1e-5)

    def test_each_example_has_its_own_distortion_and_the_key_decides(self):
        same = np.repeat(self.IMAGES[:1], 4, axis=0)
        distort = jax.jit(strong((8, 9, 2)))
        changed = [np.asarray(distort(jax.random.key(k), same)) for k in (0, 0, 1)]
        np.testing.assert_array_equal(changed[0], changed[1])
        assert not np.array_equal(changed[0], changed[2])
        assert len({image.tobytes() for image in changed[0]}) == 4

    def test_features_are_kept_or_lost_and_slight_leaves_them(self):
        x = np.full((400, 10), 3.0, np.float32)
        changed = np.asarray(strong((10,))(jax.random.key(0), x))
        assert set(np.unique(changed)) == {0.0, 3.0}
        assert abs((changed > 0).mean() - 0.75) < 0.035  # 5 standard deviations
        np.testing.assert_array_equal(slight((10,))(jax.random.key(0), x), x)
