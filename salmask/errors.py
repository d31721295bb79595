"""The one exception that means: the user can fix this, and the message says how."""


class UserError(Exception):
    """A mistake in the input or the configuration. Shown without a traceback, exit code 2."""
