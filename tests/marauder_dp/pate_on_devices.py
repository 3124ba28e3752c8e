"""Run by `test_pate_teachers` in a process of its own with four host devices: teachers don't depend on how many there are."""

import jax
import numpy as np

from tests.marauder_dp.pate_problem import examples, trained, training


def main():
    assert jax.device_count() == 4
    data = examples(400)
    how = training(keyed=True)
    _, alone = trained(data, how=how, devices=jax.devices()[:1], chunk=13, waves=1)
    spread, params = trained(data, how=how, chunk=2, waves=2)
    assert (spread.mesh.size, spread.wave, spread.waves) == (4, 8, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, alone)
    print("same")


if __name__ == "__main__":
    main()
