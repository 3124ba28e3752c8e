"""Run by `test_mesh` in a process of its own with four host devices: one device and a mesh give the same."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from marauder_dp import clipped_grad, standard_normal
from tests.marauder_dp.zoo import linen
from tests.marauder_dp.zoo import normal as draw


def losses():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x)))
            return nn.Dense(4)(nn.tanh(nn.Dense(16)(x.reshape(-1))))

    yield linen(Net(), draw(8, 6, 6, 4))

    class Up(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.ConvTranspose(6, (3, 3), strides=(2, 2))(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(3)(nn.max_pool(x, (2, 2), strides=(2, 2)).reshape(-1))

    yield linen(Up(), draw(8, 4, 4, 3))

    # XLA gets vmapped gradients of kernels wrong where a batch is sharded.
    layout = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w: jax.lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=layout)[0]
    custom = jax.custom_vjp(conv)
    custom.defvjp(lambda x, w: (conv(x, w), (x, w)), lambda saved, g: jax.vjp(conv, *saved)[1](g))
    yield lambda w, x: jnp.mean(custom(x, w) ** 2), draw(3, 3, 2, 4), draw(8, 5, 5, 2)

    def scanned(p, x):
        layer = lambda h, w: (jnp.tanh(h @ w), None)
        return jnp.sum(jax.lax.scan(layer, p["table"][x], p["stack"])[0] ** 2)

    yield scanned, {"table": draw(12, 8), "stack": 0.3 * draw(4, 8, 8)}, jnp.arange(48).reshape(8, 6) % 12


def main():
    assert jax.device_count() == 4
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def sharded(p):
        """As in fully sharded data parallelism: each device holds a part of what can be divided."""
        return rows if p.shape[0] % 4 == 0 else everywhere

    for loss, params, batch in losses():
        cuts, vmap = (clipped_grad(loss, clip_norm=0.5, method=method) for method in ("cuts", "vmap"))
        mask = jnp.arange(8) != 3
        alone = jax.jit(cuts)(params, batch, mask)
        each = [jax.grad(loss)(params, example) for example in batch]
        norms = [0 if i == 3 else np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(g))) for i, g in enumerate(each)]
        np.testing.assert_allclose(alone.norms, norms, rtol=1e-5)
        # XLA gets plain gradients of these losses wrong where parameters are sharded, so "vmap" is.
        for fn, place in ((cuts, lambda p: everywhere), (cuts, sharded), (vmap, lambda p: everywhere)):
            placed = jax.tree.map(lambda p, place=place: jax.device_put(p, place(p)), params)
            found = jax.jit(fn)(placed, jax.device_put(batch, rows), jax.device_put(mask, rows))
            np.testing.assert_allclose(found.norms, norms, rtol=1e-5)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.sum, alone.sum)
    noise = lambda key: standard_normal(key, (8, 12))
    spread = jax.jit(noise, out_shardings=rows)(jax.random.key(0))
    assert len(spread.sharding.device_set) == 4
    np.testing.assert_array_equal(spread, jax.jit(noise)(jax.random.key(0)))
    print("same")


if __name__ == "__main__":
    main()
