"""bpf(2) and membarrier(2) by ctypes: what the tracker needs of them, no more. No libbpf, no compiler.

Called by ``tracker`` and ``pins``. Linux UAPI: include/uapi/linux/bpf.h, union bpf_attr. Every function returns a file
descriptor that the caller owns (close-on-exec), or raises OSError; ``load_program`` adds the verifier's last words.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from pathlib import Path
from typing import Final

from replication.errors import Refused, Unsupported

_SYSCALL_NUMBERS: Final = {"x86_64": (321, 324), "aarch64": (280, 283)}
"""machine → (bpf, membarrier)."""

_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _OBJ_PIN, _OBJ_GET = 0, 1, 5, 6, 7
_PROG_TEST_RUN, _RAW_TRACEPOINT_OPEN, _BTF_LOAD = 10, 17, 18
_MAP_TYPE_ARRAY: Final = 2
_FLAG_MMAPABLE: Final = 1 << 10
PROG_TYPE_RAW_TRACEPOINT: Final = 17
PROG_TYPE_TRACING: Final = 26
ATTACH_TRACE_RAW_TP: Final = 23
_ATTR_BYTES: Final = 144
_LOG_BYTES: Final = 1 << 20
_LOG_TAIL_CHARS: Final = 2000
_MEMBARRIER_CMD_GLOBAL: Final = 1
_MEMBARRIER_CMD_PRIVATE_EXPEDITED: Final = 1 << 3
_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: Final = 1 << 4
_OBJECT_NAME_CHARS: Final = 15

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _numbers() -> tuple[int, int]:
    try:
        return _SYSCALL_NUMBERS[platform.machine()]
    except KeyError:
        raise Unsupported(
            f"cannot use eBPF on {platform.machine()}: its system call numbers are not known to this version",
            hint=f"supported: {', '.join(sorted(_SYSCALL_NUMBERS))}; the tracker 'scan' works everywhere",
        ) from None


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    number, _ = _numbers()
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), _ATTR_BYTES))
    result = int(_libc.syscall(number, command, buffer, ctypes.c_ulong(_ATTR_BYTES)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result, buffer.raw


def _name(text: str) -> bytes:
    return text.encode()[:_OBJECT_NAME_CHARS]


def create_array(name: str, value_bytes: int, entries: int) -> int:
    """Create an array map that user space can map into its memory; zeroed."""
    attributes = struct.pack("<IIIIIII16s", _MAP_TYPE_ARRAY, 4, value_bytes, entries, _FLAG_MMAPABLE, 0, 0, _name(name))
    return _bpf(_MAP_CREATE, attributes)[0]


def load_btf(blob: bytes) -> int:
    """Load type information of our own (needed to call a function that the verifier checks on its own)."""
    buffer = ctypes.create_string_buffer(blob, len(blob))
    return _bpf(_BTF_LOAD, struct.pack("<QQIIII", ctypes.addressof(buffer), 0, len(blob), 0, 0, 0))[0]


def load_program(
    name: str,
    code: bytes,
    *,
    program_type: int,
    btf_descriptor: int,
    functions: list[tuple[int, int]],
    expected_attach: int = 0,
    attach_btf_id: int = 0,
) -> int:
    """Verify and load a program. ``functions``: (instruction index, BTF id) of each function in ``code``, ascending.

    :raises Refused: without CAP_BPF and CAP_PERFMON.
    :raises Unsupported: if the kernel's verifier refuses it; the hint carries the end of its log.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    gpl = ctypes.create_string_buffer(b"GPL")
    info = b"".join(struct.pack("<II", *function) for function in functions)
    info_buffer = ctypes.create_string_buffer(info, len(info))
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def attributes(log_level: int) -> bytes:
        return struct.pack(
            "<IIQQIIQII16sIIIIQIIQII",
            program_type,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(gpl),
            log_level,
            _LOG_BYTES if log_level else 0,
            ctypes.addressof(log) if log_level else 0,
            0,  # kern_version
            0,  # prog_flags
            _name(name),
            0,  # prog_ifindex
            expected_attach,
            btf_descriptor,
            8,  # func_info_rec_size
            ctypes.addressof(info_buffer),
            len(functions),
            0,  # line_info_rec_size
            0,  # line_info
            0,  # line_info_cnt
            attach_btf_id,
        )

    try:
        return _bpf(_PROG_LOAD, attributes(0))[0]
    except OSError as error:
        refuse_without_privilege(error, "load an eBPF program")
        reason = os.strerror(error.errno or 0)
    try:
        return _bpf(_PROG_LOAD, attributes(1))[0]
    except OSError as error:
        tail = log.value.decode(errors="replace").strip()[-_LOG_TAIL_CHARS:]
        raise Unsupported(
            f"cannot load the eBPF program {name}: {reason}",
            hint=f"this kernel ({platform.release()}) refuses it; use the tracker 'scan'. The verifier said: {tail}",
        ) from error


def refuse_without_privilege(error: OSError, what: str) -> None:
    """Raise Refused if ``error`` means that the privilege is missing; else return.

    :raises Refused:
    :raises Unsupported: if the kernel has no bpf(2) at all.
    """
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = "run the agent as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN (for the pins)"
        if os.geteuid() == 0:
            hint = "even root may not: kernel lockdown, or a container without CAP_BPF; the tracker 'scan' works"
        raise Refused(f"cannot {what}: {error.strerror}", hint=hint) from error
    if error.errno == errno.ENOSYS:
        raise Unsupported(f"cannot {what}: this kernel has no eBPF", hint="use the tracker 'scan'") from error


def attach_tracing(program: int) -> int:
    """Attach a ``tp_btf`` program to the tracepoint that it was loaded for; detached when the last reference goes."""
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QII", 0, program, 0))[0]


def pin(descriptor: int, path: Path) -> None:
    """Give the object a name in a bpf file system: it lives until the name is removed."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("<QII", ctypes.addressof(text), descriptor, 0))


def get_pinned(path: Path) -> int:
    text = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("<QII", ctypes.addressof(text), 0, 0))[0]


def test_run(program: int, context: bytes) -> int:
    """Run a raw tracepoint program once with ``context`` as its arguments; return what it returned. For tests."""
    buffer = ctypes.create_string_buffer(context, len(context))
    attributes = struct.pack(
        "<IIIIQQIIIIQQII", program, 0, 0, 0, 0, 0, 0, 0, len(context), 0, ctypes.addressof(buffer), 0, 0, 0
    )
    _, answer = _bpf(_PROG_TEST_RUN, attributes)
    return int(struct.unpack_from("<I", answer, 4)[0])


def wait_for_programs() -> None:
    """Return only when every program that was running has ended: a grace period of RCU (MEMBARRIER_CMD_GLOBAL)."""
    _membarrier(_MEMBARRIER_CMD_GLOBAL)


@functools.cache
def why_no_grace_period() -> str:
    """Why ``wait_for_programs`` or ``fence`` cannot work on this machine, or "". Tried once a process: a few milliseconds.

    Kernels that were booted with nohz_full= have no MEMBARRIER_CMD_GLOBAL, and container runtimes may forbid it. The expedited
    commands are no substitute: they interrupt CPUs for a memory barrier, in the midst of a program, and wait for none to end.
    """
    try:
        wait_for_programs()
        fence()
    except OSError as error:
        nohz_full = error.errno == errno.EINVAL
        return f"{error}" + (": the kernel was booted with nohz_full, or is too old" if nohz_full else "")
    return ""


def fence() -> None:
    """A full memory barrier: stores to shared maps before it are seen before those after it (matters on aarch64)."""
    try:
        _membarrier(_MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    except PermissionError:  # this process has not registered yet
        _membarrier(_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        _membarrier(_MEMBARRIER_CMD_PRIVATE_EXPEDITED)


def _membarrier(command: int) -> None:
    _, number = _numbers()
    if _libc.syscall(number, command, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot order memory with membarrier(2): {os.strerror(code)}")


def missed_runs(program: int) -> int:
    """How often the kernel skipped the program because it was running already on that CPU (0 if it does not say)."""
    for line in Path(f"/proc/self/fdinfo/{program}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "recursion_misses":
            return int(value)
    return 0
