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
        fn = clipped_grad(loss, clip_norm=0.5)
        mask = jnp.arange(8) != 3
        alone = jax.jit(fn)(params, batch, mask)
        for place in (lambda p: everywhere, sharded):
            placed = jax.tree.map(lambda p, place=place: jax.device_put(p, place(p)), params)
            found = jax.jit(fn)(placed, jax.device_put(batch, rows), jax.device_put(mask, rows))
            np.testing.assert_allclose(found.norms, alone.norms, rtol=1e-5)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.sum, alone.sum)
    noise = lambda key: standard_normal(key, (8, 12))
    spread = jax.jit(noise, out_shardings=rows)(jax.random.key(0))
    assert len(spread.sharding.device_set) == 4
    np.testing.assert_array_equal(spread, jax.jit(noise)(jax.random.key(0)))
    print("same")


if __name__ == "__main__":
    main()
