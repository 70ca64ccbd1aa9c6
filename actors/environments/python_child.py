"""Runs one program of the `python` tool: `python -I python_child.py PROGRAM SECONDS MEMORY_MIB`.

Limits itself before it runs anything of the policy's: processor time, memory, size of files, and by a filter
of system calls neither sockets nor further processes. A filter works without rights and in containers, where
namespaces often do not. It keeps accidents in; a policy that could be hostile belongs into a container or
virtual machine of its own. Imports the standard library alone."""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import runpy
import struct
import sys

MAX_FILE_BYTES = 10 << 20
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
"""See prctl(2) and seccomp(2)."""
ALLOW, DENY = 0x7FFF0000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
CLONE_THREAD, X32 = 0x10000, 0x40000000
ARCHITECTURES = {
    # machine: (AUDIT_ARCH, socket, socketpair, fork, vfork, execve, execveat, io_uring_setup, clone, clone3)
    "x86_64": (0xC000003E, 41, 53, 57, 58, 59, 322, 425, 56, 435),
    "aarch64": (0xC00000B7, 198, 199, 198, 198, 221, 281, 425, 220, 435),
}
"""Numbers of system calls, by asm/unistd.h; aarch64 has neither fork nor vfork."""


def forbid_sockets_and_processes() -> None:
    """Has the kernel refuse them to this process and its threads. Raises OSError if it cannot."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {sys.platform} on {machine}")
    program = _filter(ARCHITECTURES[machine])
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "the kernel does not take a filter of system calls")


def _filter(numbers: tuple[int, ...]) -> bytes:
    """A program of the kernel's packet filter over struct seccomp_data."""
    architecture, *refused, clone, clone3 = numbers
    refuse_all = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, DENY | errno.EPERM)]
    code = [*refuse_all, (LOAD, 0, 0, 0)]
    # Calls of the x32 interface have other numbers.
    code += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, DENY | errno.EPERM)]
    for number in refused:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY | errno.EPERM)]
    # The C library then starts threads by clone, whose flags can be read.
    code += [(EQUAL, 0, 1, clone3), (RETURN, 0, 0, DENY | errno.ENOSYS)]
    code += [(EQUAL, 1, 0, clone), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 16), (ANY_BIT, 1, 0, CLONE_THREAD)]
    code += [(RETURN, 0, 0, DENY | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def main() -> None:
    program, seconds, memory_mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    forbid_sockets_and_processes()
    sys.argv = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
