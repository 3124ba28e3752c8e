r"""How fine a lattice has to be for an answer as narrow as asked for.

The step of the lattice follows from the width that is asked for:

  The discretised loss has a variance that is off by at most step²/6 to either side, which moves K(θ) by about
  θ(θ+1)/2 of that for each composition, so ε by (θ+1)/2 and log δ by θ(θ+1)/2. With T compositions an interval of ε as wide
  as `tolerance` takes step² = 6 · tolerance/(T(θ+1)).

What comes out is measured, not trusted: where the interval is wider than asked for, the step shrinks and it is done again.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accountants import convolution, jumps
from accountants.batches import MANY, Batches, grouped, rough_cumulants, stand_ins, steps
from accountants.convolution import Composition
from accountants.cumulants import Cumulants, Tilt, window
from accountants.errors import AccountingError
from accountants.grid import Fineness, TooLongError
from accountants.interval import Interval
from accountants.lattice import Lattice, moved, sandwich
from accountants.pairs import Pair
from accountants.single import curve, solve

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-7  # part of δ that may go to losses counted as infinite
_FIRST_TAIL = 1e-27  # probability beyond which losses are not seen in searches
_ROUNDS = 6
_PILOT = 0.02  # relative width of a first guess
_FAR = 0.6  # of a guess: if the answer is less, the tilt that suits the guess does not suit the answer
_STUCK = 0.9  # of a width before: it gets no narrower than that in reasonable time
_SPOILT = 0.1  # of a width, if that went to losses counted as infinite
_SPREAD = 0.45  # of a step that would do, where atoms are spread
_COARSE = 1.0  # squared steps by which atoms are spread, in all, from which they are not
_SAFETY = 0.82  # of the step that should just do
_LONG = 2**17  # points of a transform from which composition in two stages is faster
_MAX_CELLS, _MIN_CELLS = 2**23, 2**20  # of a lattice that is asked for, of one mechanism and of many
_THIN = 0.002  # tilted mass beyond which only every second lattice point is used, and so on with quarters of it
_LEVELS = 12
_WIDEST = 300.0  # distance of lattice points, so that e to its power fits
_MAX_EXPONENT = 1000.0  # of e^{θ · loss}, for one mechanism
_SMALL = 0.01  # an ε below this many standard deviations of the loss is found to an absolute width
_CUTOFF = 0.5  # of ε, from where a loss is a jump
_POINTS = 300  # lattice points to ε, to begin with, where jumps are composed apart
_LONGER = 2.5  # a step is taken instead where a transform would be too long
_FEW = 8  # of a batch that are composed with all others at once
_NOTHING = 1e-299  # δ
_LOW_TAIL = 1e-14  # probability of the lowest losses that may be moved, in all

Parts = list[tuple[Lattice, Array]]
Terms = Sequence[Composition]


class EpsilonQuestion:
    """ε at a given δ."""

    def __init__(self, delta: float):
        self.delta = delta

    def aim(self, rough: Cumulants) -> tuple[float, Tilt]:
        """About the answer, and the tilt that suits it."""
        tilt = rough.tilt_for_delta(self.delta)
        return max(rough.epsilon(tilt.best, self.delta), 0.0), tilt

    def tail(self, guess: float) -> float:
        """Probability that may be moved to infinite loss."""
        return NEGLIGIBLE * self.delta

    def width(self, guess: float, deviation: float, rtol: float) -> float:
        """How wide the interval may be."""
        return rtol * max(guess, _SMALL * deviation)

    def squared_step(self, width: float, guess: float, tilt: float) -> float:
        """Lattice step² for one composition with which the interval is about `width` wide."""
        return 6 * width / (tilt + 1)

    def answer(self, terms: Sequence[Composition]) -> float:
        """From a composition, or from several of which δ is the sum."""
        return convolution.epsilon(terms[0], self.delta) if len(terms) == 1 else convolution.epsilon_of_sum(terms, self.delta)

    def epsilon(self, guess: float) -> float:
        """The ε that is asked for or about."""
        return guess

    def exact(self, pair: Pair) -> Interval:
        """Where `pair` is all there is."""
        return solve(pair, self.delta)


class DeltaQuestion:
    """δ at a given ε."""

    def __init__(self, epsilon: float):
        self._epsilon = epsilon

    def aim(self, rough: Cumulants) -> tuple[float, Tilt]:
        tilt = rough.tilt_for_epsilon(self._epsilon)
        return math.exp(max(min(rough.log_delta(tilt.best, self._epsilon), 0.0), -690.0)), tilt

    def tail(self, guess: float) -> float:
        return NEGLIGIBLE * guess

    def width(self, guess: float, deviation: float, rtol: float) -> float:
        return rtol * guess

    def squared_step(self, width: float, guess: float, tilt: float) -> float:
        return 6 * width / guess / (tilt * (tilt + 1))

    def answer(self, terms: Sequence[Composition]) -> float:
        return float(sum(convolution.deltas(c, np.array([self._epsilon]))[0] for c in terms))

    def epsilon(self, guess: float) -> float:
        return self._epsilon

    def exact(self, pair: Pair) -> Interval:
        return curve(pair, self._epsilon)


Question = EpsilonQuestion | DeltaQuestion


class Search:
    """Finds a lattice on which one direction's question has a narrow enough answer."""

    def __init__(self, question: Question, mechanisms: Batches, rtol: float):
        self._question, self._rtol = question, rtol
        self._groups = grouped(mechanisms)
        self.compositions: tuple[Terms, Terms] | None = None
        self._total = float(sum(counts.sum() for _, counts in self._groups))
        # How often atoms are moved to the lattice: at each composition, or once if they lie on a lattice of their own.
        self._moved = sum(
            float(counts.sum()) if pair.spacing() is None else 1.0 for pair, counts in self._groups if pair.atoms() is not None
        )
        few = stand_ins(mechanisms)
        # Many families leave many, of which a pilot would be as dear.
        self._few = few if sum(map(len, few)) <= MANY < sum(map(len, mechanisms)) else None
        tail = _FIRST_TAIL
        while True:
            self._rough, self._range, self._farthest = rough_cumulants(grouped(few), tail)
            self.guess, tilt = question.aim(self._rough)
            if isinstance(question, EpsilonQuestion) or self.guess > tail or tail < 1e-250:
                break
            tail = tail**1.5  # what makes up so little may have been left out
        self._unit_step = self.last_unit_step = math.inf  # with which an interval would be 1 wide, as far as is known
        self._aim(tilt)

    def _aim(self, tilt: Tilt) -> None:
        """Sets the tilt and what follows from it."""
        rough = self._rough
        self._tilt, self._best_tilt = (min(t, _MAX_EXPONENT / self._range) for t in (tilt.used, tilt.best))
        self._deviation = math.sqrt(rough.derivatives(self._tilt)[2])
        low, high = window(rough, self._tilt)
        self._span = high - low
        self._fineness = [_fineness(*part, self._tilt) for part in rough.tilted(self._tilt)]
        # A lattice may have to reach from loss 0 to losses that are all nearly one.
        most = max(_MAX_CELLS // max(len(counts) for _, counts in self._groups), _MIN_CELLS)
        cells = max(self._range, self._farthest / 8) / most
        self._floor = max(self._span / convolution.MAX_POINTS, cells)
        self._measured: tuple[float, float] | None = None

    def _first_step(self, unless_below: float) -> float:
        """The step with which the interval should be narrow enough."""
        question, tilt = self._question, self._best_tilt
        width = max(question.width(self.guess, self._deviation, self._rtol), (unless_below - self.guess) / 2)
        step = _SAFETY * min(
            math.sqrt(question.squared_step(width, self.guess, tilt) / self._total), self._unit_step * math.sqrt(width)
        )
        gaps = [pair.spacing() for pair, _ in self._groups if pair.atoms() is not None]
        if len(gaps) == len(self._groups) and all(gap is not None for gap in gaps):
            # Each is exact on a lattice of its own, and moved to the common one once.
            widest = max(float(gap[0, 0]) for gap in gaps if gap is not None)
            step = widest if len(gaps) == 1 else _SPREAD * step * math.sqrt(self._total / len(gaps))
        else:
            step *= _SPREAD if self._moved else 1.0
            coarsest = min(max(0.7 * self._deviation / math.sqrt(self._total), self._range / 512), _WIDEST)
            step = min(step, coarsest) or coarsest  # 0 where the answer seems to be 0
        return step

    def run(self, unless_below: float) -> Interval:
        """The answer's interval, as narrow as asked for; wider if it turns out to lie below `unless_below`."""
        question = self._question
        if self._few and self.guess > unless_below and isinstance(question, EpsilonQuestion):
            # The Rényi bound may be far off, and a round of many mechanisms is dear: few of them tell where to aim.
            pilot = Search(question, self._few, _PILOT)
            if 0 < (found := pilot.run(0.0).upper) < self.guess:
                self.guess, self._unit_step = found, pilot.last_unit_step
                self._aim(self._rough.tilt_for_epsilon(found))
        step = self._first_step(unless_below)
        if isinstance(question, EpsilonQuestion) and self._variation() <= question.delta:
            return Interval(0.0, 0.0)
        if isinstance(question, EpsilonQuestion) and (largest := self._largest(question.delta)) <= unless_below:
            return Interval(0.0, largest)
        if isinstance(question, DeltaQuestion) and self._largest(_NOTHING) <= question.epsilon(0.0):
            return Interval(0.0, _NOTHING)
        best, before = Interval(0.0, math.inf), math.inf
        for _ in range(_ROUNDS):
            try:
                lower, upper = self._bounds(step)
            except TooLongError:
                if math.isfinite(best.upper) or isinstance(question, EpsilonQuestion):
                    break  # what is certain so far has to do
                step *= _LONGER
                continue
            best = _both(best, lower, upper)
            if 0 < upper - lower < math.inf:
                self.last_unit_step = step / math.sqrt(upper - lower)
            gap, allowed = best.upper - best.lower, question.width(best.upper, self._deviation, self._rtol)
            if gap <= allowed or best.upper <= unless_below or step <= self._floor or gap > _STUCK * before:
                break
            before = gap
            if isinstance(question, DeltaQuestion) and best.upper < _FAR * self.guess:
                spoilt = question.tail(self.guess) > _SPOILT * allowed
                self.guess, before = best.upper, math.inf  # less may be moved to infinite loss than of the guess
                if spoilt:
                    continue
            if isinstance(question, EpsilonQuestion) and best.upper < _FAR * self.guess:
                # The Rényi bound was far off, and so was the tilt that is best for it: aim at what was found.
                self.guess, before = best.upper, math.inf
                self._aim(self._rough.tilt_for_epsilon(best.upper))
                shrink = min(0.7, _SAFETY * math.sqrt(allowed / gap)) if gap < 0.1 * best.upper else 0.7
                step = min(shrink * step, self._first_step(unless_below))
                continue
            shrink = (
                min(0.7, max(0.05, _SAFETY * (allowed / gap) ** (1 / self._power(step, gap)))) if math.isfinite(gap) else 0.25
            )
            step *= shrink
            # Thinned parts converge as well, should they be what makes it wide.
            self._fineness = [dataclasses.replace(f, largest=f.largest * shrink) for f in self._fineness]
        best = best if self._narrow(best) or best.upper <= unless_below else self._apart(best)
        return best if isinstance(question, EpsilonQuestion) else Interval(best.lower, min(best.upper, self._variation()))

    def _variation(self) -> float:
        """At least the total variation of the composition, which is δ at ε = 0: it adds up."""
        total = 0.0
        for pair, counts in self._groups:
            cells = pair.cells(np.zeros((len(counts), 1)))
            total += float(counts @ (cells.excess[:, 1] + cells.error[:, 1]))
        return total * (1 + 1e-12)

    def _largest(self, delta: float) -> float:
        """At least ε at δ: but for δ in all, no loss is larger than its own quantile."""
        tail = np.full((1, 1), max(delta / self._total, 1e-300))
        return sum(float(np.sum(counts * pair.quantiles(tail, tail)[1][:, 0])) for pair, counts in self._groups) * (1 + 1e-12)

    def _power(self, step: float, gap: float) -> float:
        """With which power of the step the width falls: 2, but 1 where atoms lie off the lattice. Measured from round 2 on."""
        before, self._measured = self._measured, (step, gap)
        if before is None or not before[0] > step or not before[1] > gap:
            return 2.0
        return min(max(math.log(before[1] / gap) / math.log(before[0] / step), 0.8), 2.0)

    def _bounds(self, step: float) -> tuple[float, float]:
        step = max(step, self._floor)
        stages = self._stages(step)
        if stages > 1:
            step /= math.sqrt(2)  # both stages contribute to the width

        def compose(parts: Parts, step: float, sign: int) -> Terms:
            parts = self._staged(parts, stages, sign) if stages > 1 else parts
            return [convolution.compose(parts, self._tilt, sign=sign)]

        return self._answers(step, self._fineness, compose, spread=self._moved * step**2 < _COARSE)

    def _apart(self, best: Interval) -> Interval:
        """A narrower interval where a rare and large loss makes up all of δ, if that is what made it wide; see `jumps`."""
        question = self._question
        self.guess = min(self.guess, best.upper)
        tail = np.full((1, 1), self._tail())
        ends = [(*pair.quantiles(tail, tail), len(counts)) for pair, counts in self._groups]
        least = max(float(np.max(high - low)) * rows for low, high, rows in ends) / (jumps.MAX_POINTS // 2)
        step, before = question.epsilon(best.upper) / _POINTS, math.inf
        rounds = 0
        while rounds < _ROUNDS:
            epsilon = question.epsilon(best.upper)
            if not 0 < epsilon < _WIDEST or step < least:
                break

            def compose(parts: Parts, step: float, sign: int, epsilon: float = epsilon) -> Terms:
                return jumps.compose(parts, _CUTOFF * epsilon, epsilon, sign=sign)

            try:
                lower, upper = self._answers(step, [None] * len(self._groups), compose, spread=False)
            except jumps.NotRareError:
                break
            except TooLongError:
                rounds += 1
                if (step := _LONGER * step) >= before:
                    break
                continue
            best, before = _both(best, lower, upper), step
            if isinstance(question, DeltaQuestion) and best.upper < _FAR * self.guess:
                self.guess, rounds = best.upper, rounds + 1
                continue
            gap, allowed = best.upper - best.lower, question.width(best.upper, self._deviation, self._rtol)
            if gap <= allowed:
                break
            shrink = min(0.6, max(0.05, _SAFETY * math.sqrt(allowed / gap)))
            far_off = question.epsilon(best.upper) < _FAR * epsilon
            rounds += not far_off
            step = question.epsilon(best.upper) / _POINTS if far_off else shrink * step
        return best

    def _tail(self) -> float:
        """Probability of each mechanism's highest losses that may be counted as infinite."""
        return max(self._question.tail(self.guess) / self._total, 1e-300)

    def _narrow(self, found: Interval) -> bool:
        return found.upper - found.lower <= self._question.width(found.upper, self._deviation, self._rtol)

    def _answers(
        self, step: float, fineness: Sequence[Fineness | None], compose: Callable[[Parts, float, int], Terms], *, spread: bool
    ) -> tuple[float, float]:
        """From both sides, on lattices of a step, where atoms may be `spread` or not."""
        step, own = steps(self._groups, step)
        sandwiches = []
        tail = self._tail()
        for (pair, counts), own_step, fine in zip(self._groups, own, fineness, strict=True):
            low = np.full((len(counts), 1), _LOW_TAIL / self._total)
            high = np.full_like(low, tail)
            sandwiches.append(sandwich(pair, own_step, low_tail=low, high_tail=high, fineness=fine, spread=spread))
        both_terms = []
        for sign in (-1, 1):
            parts = []
            for both, (_, counts), own_step in zip(sandwiches, self._groups, own, strict=True):
                part = (both.upper if sign > 0 else both.lower, counts)
                if own_step != step or (len(self._groups) > 1 and len(counts) > _FEW):
                    part = (self._composed([part], step, sign, spread), np.ones(1))
                parts.append(part)
            both_terms.append(compose(parts, step, sign))
        self.compositions = both_terms[0], both_terms[1]
        return self._question.answer(both_terms[0]), self._question.answer(both_terms[1])

    def _stages(self, step: float) -> int:
        """Into how many equal compositions the whole is split, if composing in two stages takes far shorter transforms."""
        stages = math.isqrt(int(self._total))
        if (
            self._span / step < _LONG
            or self._total < 1e4
            or any(p.spacing() is not None or p.atoms() is not None for p, _ in self._groups)
        ):
            return 1
        low, high = window(self._rough, self._tilt, 1 / stages)
        length = math.sqrt(2) * ((high - low) / step + self._span / step * math.sqrt(stages / self._total))
        return stages if length < self._span / step / 2 else 1

    def _staged(self, parts: Parts, stages: int, sign: int) -> Parts:
        """The same composition as `stages` equal ones and a rest, each on a coarser lattice."""
        step = parts[0][0].step * math.sqrt(self._total / stages)
        each = [(lattice, np.floor(counts / stages)) for lattice, counts in parts]
        rest = [(lattice, counts - stages * few) for (lattice, counts), (_, few) in zip(parts, each, strict=True)]
        result = [(self._composed(each, step, sign, spread=False), np.full(1, float(stages)))]
        if any(counts.any() for _, counts in rest):
            result.append((self._composed(rest, step, sign, spread=False), np.ones(1)))
        return result

    def _composed(self, parts: Parts, step: float, sign: int, spread: bool) -> Lattice:
        (lattice, counts), *others = parts
        if not others and counts.tolist() == [1.0]:
            return moved(lattice, step, sign=sign, spread=spread)
        return convolution.as_lattice(convolution.compose(parts, self._tilt, sign=sign), step, spread=spread)


def _both(best: Interval, lower: float, upper: float) -> Interval:
    """What follows from bounds beside an interval.

    Raises:
      AccountingError: they contradict each other.
    """
    result = Interval(max(best.lower, lower), min(best.upper, upper))
    if result.lower > result.upper * (1 + 1e-9):
        raise AccountingError(f"bounds contradict each other ({result}): a bug, please report it; no figure was given out")
    return result


def _fineness(weights: Array, losses: Array, tilt: float) -> Fineness:
    """Where a lattice may be thinned out: where so little tilted mass lies that coarser cells add little to the variance.

    Args:
      weights: tilted mass of some of the batch, (k, n), each row sums to 1.
      losses: where it is, (k, n), ascending.
      tilt: θ.
    """
    allowed = _THIN / 4.0 ** np.arange(_LEVELS)
    above = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    below = np.cumsum(weights, axis=1)
    last = losses.shape[1] - 1
    high = np.minimum((above[:, :, None] > allowed).sum(axis=1), last)
    low = np.maximum(last - (below[:, :, None] > allowed).sum(axis=1), 0)
    rows = np.arange(len(losses))[:, None]
    return Fineness(losses[rows, low].min(axis=0), losses[rows, high].max(axis=0), min(0.5 / tilt, _WIDEST))
