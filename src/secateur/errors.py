"""What is said to users: the input was wrong, or something is worth knowing."""


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence.

    The command line prints the sentence alone and exits with code 2.
    """


class OutOfReach(UserError):
    """A budget that no choice of sizes meets; the sentence names the smallest reachable one."""


class Advice(UserWarning):
    """Something worth knowing before long work goes on; the command line shows it as a note."""
