"""Names of the system calls that can change RSS by themselves, without a page fault."""

from __future__ import annotations

# arch/x86/entry/syscalls/syscall_64.tbl.
_NAMES = {
    10: "mprotect",
    29: "shmget",
    30: "shmat",
    56: "clone",
    57: "fork",
    58: "vfork",
    59: "execve",
    67: "shmdt",
    76: "truncate",
    77: "ftruncate",
    101: "ptrace",
    149: "mlock",
    151: "mlockall",
    216: "remap_file_pages",
    279: "move_pages",
    285: "fallocate",
    310: "process_vm_readv",
    311: "process_vm_writev",
    323: "userfaultfd",
    325: "mlock2",
    329: "pkey_mprotect",
    425: "io_uring_setup",
    435: "clone3",
    440: "process_madvise",
}


def call_name(number: int) -> str:
    """The name of a system call of x86-64, or ``system call 123``."""
    return _NAMES.get(number, f"system call {number}")
