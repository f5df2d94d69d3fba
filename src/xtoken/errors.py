"""Every error that `xtoken` raises for a user's mistake.

A message says what was given, what was expected and what to do next. The command line prints
the message alone (no traceback) and exits with the class's `exit_code`: 2 for what the user
typed or wrote in a run file, 1 for what went wrong with files, data or training.
"""

from __future__ import annotations


class XTokenError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code = 1


class UsageError(XTokenError):
    """An argument or option is wrong, or names something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """The run file (or an override) is wrong: unknown key, wrong type, impossible combination."""


class ModelNotFoundError(UsageError):
    """A model or tokenizer name or directory can't be resolved."""


class VocabularyError(XTokenError):
    """A tokenizer can't be read as bytes, or an id lies outside it."""


class AlignmentError(XTokenError):
    """Two encodings can't be aligned as asked (mismatched lengths, spans out of order)."""


class ProjectionError(XTokenError):
    """A projection is damaged, or was built for other tokenizers."""


class ProjectionNotFoundError(ProjectionError):
    """A projection that was named is not there: a mistake in an argument or the run file."""

    exit_code = 2


class LossError(XTokenError):
    """A loss was given shapes, signals or settings that it can't use."""


class DataError(XTokenError):
    """A data file is missing rows, columns or valid text."""


class DataNotFoundError(DataError):
    """What a run file names as data is neither here nor on the hub: a mistake in the run file."""

    exit_code = 2


class TrainingError(XTokenError):
    """Training can't go on: no support, NaN loss, unusable checkpoint, full disk."""


class EvaluationError(XTokenError):
    """An evaluation can't be computed on what was given."""
