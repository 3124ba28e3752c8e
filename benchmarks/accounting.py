"""ε of known configurations: ours, dp-accounting's Rényi accountant, and the exact value. `python -m benchmarks.accounting`."""

import logging
import time

import dp_accounting
from dp_accounting.rdp import RdpAccountant as PeerAccountant

from accountants import RdpAccountant, dpsgd_event
from accountants.rdp import event_rdp
from tests.accountants.test_rdp import CONFIGURATIONS


def main() -> None:
    """Prints the table."""
    logging.disable()
    print("| configuration | q | σ | T | δ | exact | ours | dp-accounting RDP | seconds, ours | dp-accounting |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, q, sigma, steps, delta, exact, _ in CONFIGURATIONS:
        event_rdp.cache_clear()
        start = time.perf_counter()
        ours = RdpAccountant().compose(dpsgd_event(sigma, q, steps)).get_epsilon(delta)
        middle = time.perf_counter()
        theirs = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        peer = PeerAccountant().compose(theirs, steps).get_epsilon(delta)
        end = time.perf_counter()
        figures = f"{exact:.5g} | {ours:.5g} | {peer:.5g} | {middle - start:.3f} | {end - middle:.3f}"
        print(f"| {name} | {q:.4g} | {sigma:g} | {steps:,} | {delta:g} | {figures} |")


if __name__ == "__main__":
    main()
