"""The one exception that means: the user's configuration or data is at fault (exit code 2, message without
traceback).
"""


class UserError(Exception):
    """Something the user can mend. The message names the place, what came, what was wanted and what to do."""
