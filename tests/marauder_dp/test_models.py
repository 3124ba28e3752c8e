"""Models, optimizers by name, and the checks before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marauder_dp import ModelError, PlanError, preflight
from marauder_dp.models import accuracy, cross_entropy, make_model
from marauder_dp.optimizers import make_optimizer, parse_arguments


@pytest.mark.parametrize(
    ("name", "shape"), [("logistic", (104,)), ("mlp", (8, 8, 1)), ("cnn", (28, 28, 1)), ("cnn", (32, 32, 3))]
)
def test_a_batch_is_its_examples(name, shape):
    model = make_model(name, shape, 10)
    params = preflight.initialise(model, shape, seed=0)
    preflight.check_loss(cross_entropy(model), params, preflight.synthetic_examples(shape, 10))
    x = jax.random.uniform(jax.random.key(2), (3, *shape))
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    whole = apply(x)
    assert whole.shape == (3, 10)
    np.testing.assert_allclose(whole[1], apply(x[1]), rtol=1e-4, atol=1e-5)


def test_the_cnn_has_the_published_size():
    params = preflight.initialise(make_model("cnn", (28, 28, 1), 10), (28, 28, 1), seed=0)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 26_010


def test_loss_is_cross_entropy():
    model = make_model("mlp", (4,), 3)
    params = preflight.initialise(model, (4,), seed=1)
    x = jnp.arange(4.0)
    expected = optax.softmax_cross_entropy_with_integer_labels(model.apply({"params": params}, x), jnp.int32(2))
    assert cross_entropy(model)(params, (x, jnp.int32(2))) == pytest.approx(float(expected), rel=1e-6)


def test_accuracy_counts_every_example_once():
    model = make_model("logistic", (3,), 3)
    params = {"Dense_0": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
    y = np.arange(2500) % 3
    x = np.eye(3, dtype=np.float32)[np.where(np.arange(2500) < 500, (y + 1) % 3, y)]
    assert accuracy(model, params, x, y) == 0.8


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("resnet", (8, 8, 1), "logistic, mlp, cnn"), ("cnn", (104,), "--model=mlp"), ("cnn", (8, 8, 1), "too small")],
)
def test_models_that_cannot_be(name, shape, message):
    with pytest.raises(ModelError, match=message):
        preflight.initialise(make_model(name, shape, 10), shape, seed=0)


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True, name="norm")(x))


class MixesExamples(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x - jnp.mean(x, axis=0, keepdims=True) if x.ndim == 2 else x)


class Counts(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "seen", lambda: jnp.zeros(()))
        return nn.Dense(2)(x)


class Unused(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("forgotten", nn.initializers.ones, (3,))
        frozen = self.param("frozen", nn.initializers.ones, (2,))
        return nn.Dense(2)(x) + jax.lax.stop_gradient(frozen)


class StartsAtZero(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, kernel_init=nn.initializers.zeros)(jnp.tanh(nn.Dense(4)(x)))


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))


EXAMPLES = preflight.synthetic_examples((4,), 2)


class TestPreflight:
    def test_dropout_is_refused(self):
        with pytest.raises(ModelError, match="dropout"):
            preflight.initialise(Drops(), (4,), seed=0)

    def test_batch_statistics_are_refused_with_the_fix(self):
        with pytest.raises(ModelError, match=r"norm keeps batch statistics.*GroupNorm"):
            preflight.initialise(WithBatchNorm(), (4,), seed=0)

    def test_mixing_examples_is_refused(self):
        with pytest.raises(ModelError, match="mixes examples"):
            preflight.initialise(MixesExamples(), (4,), seed=0)

    def test_other_state_is_refused_by_name(self):
        with pytest.raises(ModelError, match="cache/seen"):
            preflight.initialise(Counts(), (4,), seed=0)

    def test_parameters_without_gradient_are_named_by_path(self):
        params = preflight.initialise(Unused(), (4,), seed=0)
        with pytest.raises(ModelError, match="no gradient reaches forgotten, frozen"):
            preflight.check_loss(cross_entropy(Unused()), params, EXAMPLES)

    def test_collectives_are_refused(self):
        def loss(params, example):
            return jax.lax.pmean(jnp.sum(params["w"] * example[0]), "batch")

        with pytest.raises(ModelError, match="across examples"):
            preflight.check_loss(loss, {"w": jnp.ones(4)}, EXAMPLES)

    def test_a_layer_that_starts_at_zero_passes(self):
        params = preflight.initialise(StartsAtZero(), (4,), seed=0)
        preflight.check_loss(cross_entropy(StartsAtZero()), params, EXAMPLES)


class TestOptimizers:
    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "rmsprop", "adagrad", "lion", "yogi"])
    def test_any_optax_optimizer(self, name):
        optimizer = make_optimizer(name, 0.1, "constant", 10)
        params = {"w": jnp.ones(3)}
        updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
        assert (updates["w"] < 0).all()

    def test_cosine_ends_at_zero(self):
        optimizer = make_optimizer("sgd", 1.0, "cosine", 4)
        state, steps = optimizer.init({"w": jnp.ones(())}), []
        for _ in range(5):
            updates, state = optimizer.update({"w": jnp.ones(())}, state)
            steps.append(-float(updates["w"]))
        assert steps[0] == 1
        assert steps[4] == pytest.approx(0, abs=1e-7)

    def test_arguments(self):
        assert parse_arguments("momentum=0.9, nesterov=True") == {"momentum": 0.9, "nesterov": True}
        assert parse_arguments("") == {}

    @pytest.mark.parametrize("text", ["momentum", "0.9", "momentum=open('x')", "a=1;b=2", "=", "**{}", "a=(" * 50])
    def test_nothing_but_literals(self, text):
        with pytest.raises(PlanError, match="optimizer_args"):
            parse_arguments(text)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("adm", 0.1, "constant", 10), "adm"),
            (("clip", 0.1, "constant", 10), "learning rate"),
            (("sgd", 0.0, "constant", 10), "learning_rate"),
            (("sgd", float("nan"), "constant", 10), "learning_rate"),
            (("sgd", 0.1, "linear", 10), "constant, cosine"),
            (("sgd", 0.1, "constant", 10, "momentm=0.9"), "momentm.*momentum"),
            (("sgd", 0.1, "constant", 10, "momentum='x'"), "can't be used"),
            (("adam", 0.1, "constant", 10, "b1=[1]"), "can't be used"),
            (("lbfgs", 0.1, "constant", 10), "can't be used"),
        ],
    )
    def test_bad_input_is_named(self, arguments, message):
        with pytest.raises(PlanError, match=message):
            make_optimizer(*arguments)
