"""Every error Dialoom raises on purpose, each also the standard error it refines.

    DialoomError
    |- ConfigError    (ValueError)       a flag, field or preset that cannot be meant
    |- DataError      (ValueError)       a row, file or tree that breaks its format; names file and line
    |- StoreError     (OSError)          a run folder or log that cannot be used
    |- ModelError     (RuntimeError)     a model that cannot do what was asked of it
    |  |- EndpointError (ConnectionError)  a server that did not answer usefully
    |  `- BudgetError                      what endpoints may cost is spent
    `- TrainingError  (RuntimeError)     a loss that is not a number, an empty training mask

A message says the value, what was expected, and the next step.
"""


class DialoomError(Exception):
    """Base of every error Dialoom raises on purpose; the CLI prints it as one line, without a traceback."""


class ConfigError(DialoomError, ValueError):
    """A flag, field or preset that cannot be meant."""


class DataError(DialoomError, ValueError):
    """A row, file or tree that breaks its format; the message names file and line where there is one."""


class StoreError(DialoomError, OSError):
    """A run folder or log that cannot be used (locked by another process, changed configuration, full disk)."""


class ModelError(DialoomError, RuntimeError):
    """A model that cannot do what was asked of it."""


class EndpointError(ModelError, ConnectionError):
    """An endpoint that does not answer after all retries, serves nobody, or never gave anything that can be used."""


class BudgetError(ModelError):
    """The next request to an endpoint might go over the run's budget; the run stops and can go on with a larger one."""


class TrainingError(DialoomError, RuntimeError):
    """Training that cannot go on: a loss that is not finite, nothing to train on."""
