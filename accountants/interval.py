"""What an accountant knows for certain: an interval that contains the exact figure."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """`lower` ≤ exact ≤ `upper`. The upper end is the one to report.

    `lower` is 0 where only an upper bound is known: by the Rényi accountant, and for mechanisms whose worst case is
    dominated by the pair of distributions that is accounted but need not be as bad (the exponential mechanism, composed;
    above-threshold; sampling under replace_one; truncated batches).

    Attributes:
      lower, upper: of ε, or of δ.
    """

    lower: float
    upper: float

    @property
    def relative_width(self) -> float:
        """(upper − lower)/upper; 0 if they are equal."""
        return 0.0 if self.lower == self.upper else (self.upper - self.lower) / self.upper
