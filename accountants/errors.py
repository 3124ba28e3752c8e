"""Every way in which accounting can refuse, by name.

All of them derive from `AccountingError`, so a caller that must fail closed needs one `except`.
"""


class AccountingError(ValueError):
    """Base class: the request could not be answered with a valid bound, so it was not answered."""


class InvalidEventError(AccountingError):
    """An event, count, ε or δ lies outside its domain (the message names the field and the domain)."""


class UnsupportedEventError(AccountingError):
    """The accountant has no valid bound for this event under this neighbouring relation."""


class CalibrationError(AccountingError):
    """No parameter in the search range meets the target."""


class BudgetExceededError(AccountingError):
    """A charge would pass the ceiling. Nothing was recorded and nothing may be released."""


class LedgerError(AccountingError):
    """A ledger is damaged, locked, of the wrong kind, or could not be written.

    Attributes:
      line: 1-based number of the offending line, or None where no single line is to blame.
    """

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


class PolicyError(AccountingError):
    """A policy is not as it has to be.

    Attributes:
      line: 1-based number of the offending line, or None where the file could not be read at all.
    """

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


class SignatureError(AccountingError):
    """A key or a signature can't be read, made or written."""


class VotesError(AccountingError):
    """Recorded votes, or what goes with them, are not what they have to be (the message says which and where)."""


class NotPublishableError(AccountingError):
    """A data-dependent ε can't be sanitised with these parameters. The message says what would work."""
