"""Errors that are the user's to mend, as opposed to bugs, which keep their traceback."""


class UserError(Exception):
    """Bad input: the message is one clear line that says what is wrong, where, and how to mend it."""
