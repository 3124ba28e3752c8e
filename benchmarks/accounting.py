"""Tightness and speed of accounting, ours beside that of others. `python -m benchmarks.accounting [--slow]`.

dp-accounting, prv-accountant and Opacus are optional: a column says "not installed" where one is missing. Every call runs in a
process of its own, forked after the imports, with a limit on time and memory. What takes less than a second runs three times
and the median counts; our caches are emptied before each. With --slow dp-accounting's numerical accountant also runs on a grid
ten times finer. Times are of the wall clock; where a ratio is of processor time, which other work on the machine disturbs less,
it says so.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import scipy.fft  # our accountants import both when they first need them; each call here is a process of its own
import scipy.special  # noqa: F401

import accountants
from accountants import (
    ComposedDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    PldAccountant,
    RdpAccountant,
    SelfComposedDpEvent,
    calibrate_noise_multiplier,
    dpsgd_event,
)
from accountants.pld import _epsilon_interval
from accountants.rdp import event_rdp

LIMIT = 120  # seconds, of one call
PEERS = {"dp_accounting": "dp-accounting", "prv_accountant": "prv-accountant", "opacus": "opacus"}
ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Poisson-sampled Gaussians, and Gaussian and Laplace releases of everything: each (scale, count), none by default."""

    name: str
    q: float
    sigma: float
    steps: int
    delta: float
    exact: str
    gaussian: tuple[float, int] | None = None
    laplace: tuple[float, int] | None = None


CONFIGURATIONS = [
    Configuration("Abadi MNIST", 0.01, 4, 10_000, 1e-5, "0.9468"),
    Configuration("MNIST batch 256", 256 / 60_000, 1.1, 14_062, 1e-5, "2.3816"),
    Configuration("De et al. CIFAR-10", 4096 / 50_000, 3, 2_468, 1e-5, "6.5292"),
    Configuration("language model", 0.005, 0.6, 2_000, 1e-6, "6.352"),
    Configuration("tiny epsilon", 1e-4, 10, 1_000, 1e-6, "7.484e-4"),
    Configuration("huge epsilon", 0.2, 0.5, 1_000, 1e-5, "281.97"),
    Configuration("delta 1e-10", 0.01, 1, 1_000, 1e-10, "3.2904"),
    Configuration("a million steps", 0.001, 1, 10**6, 1e-6, "6.6943"),
    Configuration("full batch", 1, 10, 100, 1e-5, "4.377178"),
    Configuration("low noise", 0.001, 0.3, 500, 1e-6, "18.3955"),
    Configuration("ImageNet", 16384 / 1281167, 2.5, 72_000, 8e-7, "7.46495"),
    Configuration("heterogeneous", 0.01, 1, 1_000, 1e-6, "≤ 2.43869", gaussian=(20, 10), laplace=(20, 20)),
]
CALIBRATIONS = [(0.01, 1_000), (256 / 60_000, 14_062), (4096 / 50_000, 2_468)]
CURVES = [(0.01, 4.0), (256 / 60_000, 1.1), (4096 / 50_000, 3.0), (0.001, 0.6)]


class CannotDoError(Exception):
    """The peer has no such mechanism."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a call returned and its milliseconds, of the wall clock and of processors, or why it has no answer."""

    value: Any = None
    ms: float = math.nan
    cpu_ms: float = math.nan
    why: str = ""


def _child(call: Callable[[], Any], pipe: Connection) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (memory * 3 // 4, resource.RLIM_INFINITY))
    logging.disable()
    warnings.simplefilter("ignore")
    try:
        times: list[float] = []
        busy: list[float] = []
        while not times or (len(times) < 3 and sum(times) < 1000):
            _epsilon_interval.cache_clear()
            event_rdp.cache_clear()
            start, busy_start = time.perf_counter(), time.process_time()
            value = call()
            times.append((time.perf_counter() - start) * 1e3)
            busy.append((time.process_time() - busy_start) * 1e3)
        pipe.send(Measured(value, statistics.median(times), statistics.median(busy)))
    except CannotDoError:
        pipe.send(Measured(why="can't"))
    except Exception as error:
        first = f": {str(error).splitlines()[0]:.90}" if str(error) else ""
        pipe.send(Measured(why=type(error).__name__ + first))


def measure(call: Callable[[], Any], *, needs: str = "") -> Measured:
    """Runs `call` in a process of its own; `needs` is a module without which it isn't run."""
    if needs and importlib.util.find_spec(needs) is None:
        return Measured(why="not installed")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(call, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(LIMIT) else Measured(why=f"over {LIMIT} s")
    except EOFError:
        return Measured(why="killed")
    finally:
        process.kill()
        process.join()


def our_event(c: Configuration) -> Any:
    """The configuration as an event of ours."""
    parts = [dpsgd_event(c.sigma, c.q, c.steps)]
    if c.gaussian:
        parts.append(SelfComposedDpEvent(GaussianDpEvent(c.gaussian[0]), c.gaussian[1]))
    if c.laplace:
        parts.append(SelfComposedDpEvent(LaplaceDpEvent(c.laplace[0]), c.laplace[1]))
    return ComposedDpEvent(tuple(parts))


def ours_pld(c: Configuration, rtol: float) -> tuple[float, float]:
    """Lower and upper bound of ε."""
    interval = PldAccountant(rtol=rtol).compose(our_event(c)).epsilon_interval(c.delta)
    return interval.lower, interval.upper


def ours_rdp(c: Configuration) -> float:
    """Upper bound of ε."""
    return RdpAccountant().compose(our_event(c)).get_epsilon(c.delta)


def _composed_by_dp_accounting(accountant: Any, c: Configuration) -> float:
    import dp_accounting as dp

    accountant.compose(dp.PoissonSampledDpEvent(c.q, dp.GaussianDpEvent(c.sigma)), c.steps)
    if c.gaussian:
        accountant.compose(dp.GaussianDpEvent(c.gaussian[0]), c.gaussian[1])
    if c.laplace:
        accountant.compose(dp.LaplaceDpEvent(c.laplace[0]), c.laplace[1])
    return float(accountant.get_epsilon(c.delta))


def dp_pld(c: Configuration, grid: float) -> float:
    """Upper bound of ε by dp-accounting's numerical accountant."""
    from dp_accounting.pld import PLDAccountant

    return _composed_by_dp_accounting(PLDAccountant(value_discretization_interval=grid), c)


def dp_rdp(c: Configuration) -> float:
    """Upper bound of ε by dp-accounting's Rényi accountant."""
    from dp_accounting.rdp import RdpAccountant as Peer

    return _composed_by_dp_accounting(Peer(), c)


def prv(c: Configuration) -> tuple[float, float]:
    """Lower and upper bound of ε by prv-accountant, to ±0.01."""
    import prv_accountant as peer

    sampled = peer.GaussianMechanism(c.sigma) if c.q == 1 else peer.PoissonSubsampledGaussianMechanism(c.q, c.sigma)
    variables, counts = [sampled], [c.steps]
    if c.gaussian:
        variables, counts = [*variables, peer.GaussianMechanism(c.gaussian[0])], [*counts, c.gaussian[1]]
    if c.laplace:
        variables, counts = [*variables, peer.LaplaceMechanism(1 / c.laplace[0])], [*counts, c.laplace[1]]
    accountant = peer.PRVAccountant(variables, max_self_compositions=counts, eps_error=0.01, delta_error=c.delta / 1000)
    lower, _, upper = accountant.compute_epsilon(c.delta, counts)
    return float(lower), float(upper)


def opacus(c: Configuration, name: str) -> float:
    """Upper bound of ε by an accountant of Opacus, "rdp" or "prv" (to ±0.01, its default)."""
    from opacus.accountants import create_accountant

    if c.laplace:
        raise CannotDoError
    accountant = create_accountant(name)
    accountant.history = [(c.sigma, c.q, c.steps)]
    return float(accountant.get_epsilon(c.delta))


def _cell(m: Measured, show: Callable[[Any], str]) -> str:
    return show(m.value) if not m.why else m.why.split(":")[0]


def _epsilon(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:.6g}"
    return " to ".join(f"{v:.7g}" for v in value)


def _ms(m: Measured) -> str:
    return "–" if m.why else (f"{m.ms:,.0f}" if m.ms >= 100 else f"{m.ms:.3g}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def _summary(results: list[dict[str, Measured]], ours: str, theirs: str) -> list[str]:
    """Sums over the configurations that both answered, and ratios: theirs to ours."""
    both = [(r[ours].ms, r[theirs].ms) for r in results if not r[ours].why and not r[theirs].why]
    if not both:
        return [ours, theirs, "0", *["–"] * 7]
    a, b = (sum(column) for column in zip(*both, strict=True))
    ratios = [theirs_ms / ours_ms for ours_ms, theirs_ms in both]
    answered = [r for r in results if not r[ours].why and not r[theirs].why]
    busy = sum(r[theirs].cpu_ms for r in answered) / sum(r[ours].cpu_ms for r in answered)
    figures = [f"{x:.3g}" for x in (b / a, busy, statistics.geometric_mean(ratios), statistics.median(ratios))]
    return [ours, theirs, str(len(both)), f"{a:,.0f}", f"{b:,.0f}", *figures, f"{min(ratios):.3g} to {max(ratios):.3g}"]


def known_configurations(slow: bool) -> None:
    """ε and time of each of the configurations."""
    columns: dict[str, tuple[Callable[[Configuration], Any], str]] = {
        "ours, 1e-3": (lambda c: ours_pld(c, 1e-3), ""),
        "ours, 1e-4": (lambda c: ours_pld(c, 1e-4), ""),
        "our RDP": (ours_rdp, ""),
        "dp PLD, 1e-4": (lambda c: dp_pld(c, 1e-4), "dp_accounting"),
        "dp RDP": (dp_rdp, "dp_accounting"),
        "PRV": (prv, "prv_accountant"),
        "Opacus RDP": (lambda c: opacus(c, "rdp"), "opacus"),
        "Opacus PRV": (lambda c: opacus(c, "prv"), "opacus"),
    }
    if slow:
        columns["dp PLD, 1e-5"] = (lambda c: dp_pld(c, 1e-5), "dp_accounting")
    results = []
    for c in CONFIGURATIONS:
        results.append({n: measure(functools.partial(f, c), needs=needs) for n, (f, needs) in columns.items()})
        print(c.name, *(f"{n}: {_ms(m)} ms" for n, m in results[-1].items()), sep="; ", file=sys.stderr, flush=True)
    print("## Known configurations\n")
    print("ours: relative width asked for; dp: dp-accounting, grid; PRV and Opacus PRV: ε ± 0.01.\n")
    print("ε, upper bounds or intervals:\n")
    rows = []
    for c, r in zip(CONFIGURATIONS, results, strict=True):
        extra = [("Gaussian", c.gaussian), ("Laplace", c.laplace)]
        more = "".join(f" + {kind} {part[0]:g} × {part[1]}" for kind, part in extra if part)
        setting = f"{c.q:.4g}, {c.sigma:g}, {c.steps:,}{more}"
        rows.append([c.name, setting, f"{c.delta:g}", c.exact, *(_cell(r[n], _epsilon) for n in columns)])
    _table(["configuration", "q, σ, T", "δ", "exact", *columns], rows)
    print("Milliseconds:\n")
    rows = [[c.name, *(_ms(r[n]) for n in columns)] for c, r in zip(CONFIGURATIONS, results, strict=True)]
    rows.append(["sum of those answered", *(f"{sum(r[n].ms for r in results if not r[n].why):,.0f}" for n in columns)])
    rows.append(["answered", *(str(sum(not r[n].why for r in results)) for n in columns)])
    _table(["configuration", *columns], rows)
    print("Sums of milliseconds over the configurations that both answer; ratios are theirs to ours:\n")
    pairs = [("ours, 1e-3", "dp PLD, 1e-4"), ("ours, 1e-4", "dp PLD, 1e-4")] + [("ours, 1e-4", "dp PLD, 1e-5")] * slow
    pairs += [("ours, 1e-3", "PRV"), ("ours, 1e-3", "Opacus PRV"), ("our RDP", "dp RDP"), ("our RDP", "Opacus RDP")]
    header = ["ours", "theirs", "configurations", "sum, ours", "sum, theirs", "ratio of sums", "of processor time"]
    _table([*header, "geometric mean of ratios", "median of ratios", "range of ratios"], [_summary(results, *p) for p in pairs])
    failures = [(c.name, n, m.why) for c, r in zip(CONFIGURATIONS, results, strict=True) for n, m in r.items() if m.why]
    for name, column, why in failures:
        if why not in ("not installed", "can't"):
            print(f"- {column} on {name}: {why}")
    print(flush=True)


def _our_calibration(q: float, steps: int) -> float:
    return calibrate_noise_multiplier(epsilon=3.0, delta=1e-5, sampling_probability=q, steps=steps)


def _dp_calibration(q: float, steps: int, tol: float | None) -> float:
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    return float(
        dp.calibrate_dp_mechanism(
            PLDAccountant,
            lambda sigma: dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), steps),
            3.0,
            1e-5,
            tol=tol,
        )
    )


def calibration() -> None:
    """σ for ε = 3, δ = 1e-5."""
    print("## Calibration: σ for ε = 3, δ = 1e-5\n")
    print("dp: `calibrate_dp_mechanism` with the PLD accountant, tolerance of σ 1e-6 (its default) and 1e-3.")
    print("[ε]: of the σ found, our upper bound at a width of 1e-5.\n")
    rows = []
    for q, steps in CALIBRATIONS:
        found = [
            measure(functools.partial(_our_calibration, q, steps)),
            measure(functools.partial(_dp_calibration, q, steps, None), needs="dp_accounting"),
            measure(functools.partial(_dp_calibration, q, steps, 1e-3), needs="dp_accounting"),
        ]

        def show(sigma: float, q: float = q, steps: int = steps) -> str:
            return f"{sigma:.6g} [{PldAccountant(rtol=1e-5).compose(dpsgd_event(sigma, q, steps)).get_epsilon(1e-5):.5f}]"

        ratios = [f"{m.ms / found[0].ms:.3g}" if not m.why else "–" for m in found[1:]]
        rows.append([f"{q:.4g}, {steps:,}", *(_cell(m, show) for m in found), *(_ms(m) for m in found), *ratios])
    names = ["ours", "dp, 1e-6", "dp, 1e-3"]
    header = ["q, T", *(f"σ [ε], {n}" for n in names), *(f"ms, {n}" for n in names), "ratio, 1e-6", "ratio, 1e-3"]
    _table(header, rows)


def _our_schedule(count: int, rtol: float) -> tuple[float, float]:
    accountant = PldAccountant(rtol=rtol)
    for i in range(count):
        accountant.compose(dpsgd_event(1 + i / 100, 0.01, 1))
    interval = accountant.epsilon_interval(1e-5)
    return interval.lower, interval.upper


def _dp_schedule(count: int) -> float:
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for i in range(count):
        accountant.compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1 + i / 100)))
    return float(accountant.get_epsilon(1e-5))


def schedules() -> None:
    """Every step with a σ of its own."""
    print("## Schedules: σ = 1 + i/100, q = 0.01, one step each, δ = 1e-5\n")
    few, peer = measure(lambda: _our_schedule(100, 1e-3)), measure(lambda: _dp_schedule(100), needs="dp_accounting")
    fine, many = measure(lambda: _our_schedule(100, 1e-4)), measure(lambda: _our_schedule(1000, 1e-3))
    rows = []
    for name, count, m in [
        ("ours, 1e-3", 100, few),
        ("ours, 1e-4", 100, fine),
        ("dp PLD, 1e-4", 100, peer),
        ("ours, 1e-3", 1000, many),
    ]:
        ratio = f"{m.ms / few.ms:.3g}" if not m.why else "–"
        rows.append([name, f"{count:,}", _cell(m, _epsilon), _ms(m), ratio])
    _table(["accountant", "distinct σ", "ε", "ms", "to ours, 1e-3, 100"], rows)


ORDERS = list(range(2, 257))


def _our_curve(q: float, sigma: float) -> np.ndarray:
    return RdpAccountant(ORDERS).compose(dpsgd_event(sigma, q, 1)).rdp


def _dp_curve(q: float, sigma: float) -> np.ndarray:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant as Peer

    return np.array(Peer(ORDERS).compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)))._rdp)


def curves() -> None:
    """Rényi divergences at integer orders."""
    print("## Rényi curve: one Poisson-sampled Gaussian step at the 255 orders 2 to 256\n")
    rows = []
    for q, sigma in CURVES:
        ours = measure(functools.partial(_our_curve, q, sigma))
        peer = measure(functools.partial(_dp_curve, q, sigma), needs="dp_accounting")
        both = not ours.why and not peer.why
        ratio = f"{peer.ms / ours.ms:.3g}" if both else "–"
        difference = f"{np.max(np.abs(ours.value / peer.value - 1)):.2g}" if both else _cell(peer if peer.why else ours, str)
        rows.append([f"{q:.4g}, {sigma:g}", _ms(ours), _ms(peer), ratio, difference])
    _table(["q, σ", "ms, ours", "ms, dp RDP", "ratio", "largest relative difference"], rows)


def imports() -> None:
    """Time of importing each in a fresh process."""
    print("## Import, in a fresh process, best of 5\n")
    rows = []
    for what in ("numpy, scipy.special, scipy.fft", "accountants", "accountants, scipy.special, scipy.fft", *PEERS):
        module = what.split(",")[0]
        if importlib.util.find_spec(module) is None:
            rows.append([what, "not installed", "–"])
            continue
        code = f"import time; start = time.perf_counter(); import {what}; print(time.perf_counter() - start)"
        times = []
        for _ in range(5):
            command = [sys.executable, "-W", "ignore", "-c", code]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            times.append(float(done.stdout.split()[-1]) * 1e3 if done.returncode == 0 else math.nan)
        rows.append([what, f"{min(times):,.0f}", f"{max(times):,.0f}"])
    _table(["module", "ms", "slowest of the 5"], rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="also dp-accounting's numerical accountant on a grid of 1e-5")
    slow = parser.parse_args().slow
    logging.disable()
    warnings.simplefilter("ignore")
    print(f"# `python -m benchmarks.accounting{' --slow' * slow}`\n")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, {_cpu()}, load {os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()};")
    packages = ("numpy", "scipy", *PEERS.values())
    print(f"accountants {accountants.__version__}, " + ", ".join(f"{p} {_version(p)}" for p in packages) + ".\n", flush=True)
    # Imports and first calls, so that no process measures them.
    for module in PEERS:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    for extra in ("dp_accounting.pld", "dp_accounting.rdp", "opacus.accountants"):
        if importlib.util.find_spec(extra.split(".")[0]) is not None:
            importlib.import_module(extra)
    ours_pld(CONFIGURATIONS[0], 1e-2)
    ours_rdp(CONFIGURATIONS[0])
    known_configurations(slow)
    calibration()
    schedules()
    curves()
    imports()


if __name__ == "__main__":
    main()
