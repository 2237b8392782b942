"""The one exception that means: the user's configuration or data is at fault (exit code 2, message without
traceback).
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of an OSError that means: there is no room for the file."""
NO_ACCESS = (errno.EROFS, errno.EACCES)
"""... and that the file may not be written, or read."""


class UserError(Exception):
    """Something the user can mend. The message names the place, what came, what was wanted and what to do."""


class Refusal(UserError):
    """A run is not gone on with as it was asked for: what stands in its folder stays as it is, status included."""


class Terminated(BaseException):
    """SIGTERM came where a run had nothing to save yet."""
