"""The one exception that users see as a single line."""


class UserError(Exception):
    """Bad input: one line that names the thing, the value and the remedy.

    The command line prints it as `jaxvid: error: ...` and exits with code 2; a notebook shows it as it is.
    Raise it before anything is written.
    """
