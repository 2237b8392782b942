"""The one exception that means: the user's configuration or data is at fault (exit code 2, message without
traceback).
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of an OSError that means: there is no room for the file."""
TOO_LARGE = (
    "the system lets this process write no file so large: see `ulimit -f`, in blocks, and raise it (ulimit -f "
    "unlimited; of a service or a job, its limit of file sizes), or take a file system that holds larger files"
)
"""What EFBIG means, which is no want of room."""
NO_ACCESS = (errno.EROFS, errno.EACCES)
"""... and that the file may not be written, or read."""


class UserError(Exception):
    """A fault that the user can correct. The message names the place, what came, what was wanted and what to do."""


class Refusal(UserError):
    """A run cannot be resumed with these settings; its folder stays as it is, with its status."""


class FolderLost(Exception):
    """Another process has taken over the run's folder: this one writes nothing more there."""


class Terminated(BaseException):
    """SIGTERM came where a run had nothing to save yet."""
