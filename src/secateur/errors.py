"""The one exception that means: the input was wrong, not the program."""


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence.

    The command line prints the sentence alone and exits with code 2.
    """
