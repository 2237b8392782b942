"""A filter of system calls: what a worker never needs, and what a program may not do.

    worker     no network, no mounts, no namespaces, no look into another process, no shared memory, no kernel keys
    program    besides: no new processes (threads are), no other program in its place, no signals, no group of its own,
               no rights, owners or times of files (which Landlock leaves alone)

A filter is inherited and cannot be taken off; it needs no rights. Forbidden calls fail as if rights were missing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from lifecycle.rewards.sandbox import kernel

# Numbers of x86_64 and aarch64; None: the machine has no such call.
WORKER = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "userfaultfd": (323, 282), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "sethostname": (170, 161), "setdomainname": (171, 162),
    "acct": (163, 89), "quotactl": (179, 60), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262), "personality": (135, 92), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "kcmp": (312, 272), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "vmsplice": (278, 75),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip
PROGRAM = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "setsid": (112, 157), "setpgid": (109, 154),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
CLONE, CLONE3, PRLIMIT, PRCTL = (56, 220), 435, (302, 261), (157, 167)
CLONE_THREAD = 0x00010000
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By name of the machine: column above, and what the kernel calls it."""
X32 = 0x40000000
"""Numbers from here on are another way into the same calls."""
NUMBER_AT, MACHINE_AT, FIRST_AT = 0, 4, 16
"""Places in what a filter is shown: the number, the machine, the low half of the first argument."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def forbid(*, program: bool) -> bool:
    """Set the filter of a worker, or the one of a program; whether the kernel did."""
    lines = _filter(program=program)
    if not lines:
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))

    class _Code(ctypes.Structure):
        _fields_ = [("lines", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    whole = _Code(len(lines), ctypes.cast(code, ctypes.c_void_p))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    return (
        kernel.LIBC.prctl(kernel.PR_SET_SECCOMP, ctypes.c_ulong(kernel.SECCOMP_MODE_FILTER), ctypes.byref(whole), 0, 0)
        == 0
    )


def _filter(*, program: bool) -> list[tuple[int, int, int, int]]:
    """Lines of (operation, lines to skip where it holds, ... where not, value); none for another kind of machine."""
    if os.uname().machine not in MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return []
    column, machine = MACHINES[os.uname().machine]
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    lines = [(LOAD, 0, 0, MACHINE_AT), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    lines += [(AT_LEAST, 0, 1, X32), refuse]
    for numbers in [*WORKER.values(), *(PROGRAM.values() if program else ())]:
        if numbers[column] is not None:
            lines += [(EQUAL, 0, 1, numbers[column] or 0), refuse]
    # The C library goes on with clone, whose flags a filter can see.
    lines += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    lines += [(EQUAL, 0, 4, PRLIMIT[column]), (LOAD, 0, 0, FIRST_AT), (EQUAL, 1, 0, 0), refuse, (RETURN, 0, 0, ALLOW)]
    if program:
        own_end = (EQUAL, 0, 1, kernel.PR_SET_PDEATHSIG)  # it ends with its parent
        lines += [(EQUAL, 0, 4, PRCTL[column]), (LOAD, 0, 0, FIRST_AT), own_end, refuse, (RETURN, 0, 0, ALLOW)]
        lines += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, FIRST_AT), (ANY_BIT, 1, 0, CLONE_THREAD), refuse]
    return [*lines, (RETURN, 0, 0, ALLOW)]
