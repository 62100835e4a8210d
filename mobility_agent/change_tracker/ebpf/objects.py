"""The kernel objects of one tracked disk: three maps in our memory, three programs, three links; made or found pinned.

Called by ``tracker``. Owns their descriptors; ``close`` lets go of them, and what is not pinned then ends.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mobility_agent.change_tracker.ebpf import bpf_syscall
from mobility_agent.change_tracker.ebpf.btf import Btf, function_types
from mobility_agent.change_tracker.ebpf.layout import (
    CONTROL_BYTES,
    COUNTER_WORDS,
    LAYOUT_VERSION,
    WORD_BYTES,
    BitmapLayout,
    ControlRecord,
    CpuCounters,
)
from mobility_agent.change_tracker.ebpf.pins import Pins
from mobility_agent.change_tracker.ebpf.programs import Event, RequestFields, tracing_program
from replication.errors import Unsupported

KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_POSSIBLE_CPUS: Final = Path("/sys/devices/system/cpu/possible")

Counts = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What pins belong to. ``number`` in the kernel's form, major << 20 | minor; see ``KernelCounters.incarnation``."""

    number: int
    incarnation: int
    size_bytes: int
    granularity_bytes: int

    @classmethod
    def recorded(cls, control: ControlRecord) -> DeviceIdentity:
        return cls(
            int(control.device_number),
            int(control.incarnation),
            int(control.size_bytes),
            int(control.granularity_bytes),
        )


class KernelObjects:
    """``words``, ``control`` are shared memory with the kernel; ``totals`` sums the counters of all CPUs."""

    def __init__(self, descriptors: dict[str, int], layout: BitmapLayout, cpus: int) -> None:
        self.descriptors = descriptors
        self._maps = [
            mmap.mmap(descriptors["control"], CONTROL_BYTES),
            mmap.mmap(descriptors["bitmap"], layout.total_words * WORD_BYTES),
            mmap.mmap(descriptors["counters"], _whole_pages(cpus * COUNTER_WORDS * WORD_BYTES)),
        ]
        self.control = ControlRecord.from_buffer(self._maps[0])
        self.words = np.frombuffer(self._maps[1], dtype=np.uint64)
        self._counters = np.frombuffer(self._maps[2], dtype=np.uint64)[: cpus * COUNTER_WORDS].reshape(
            cpus, COUNTER_WORDS
        )

    def totals(self) -> CpuCounters:
        return CpuCounters.from_buffer_copy(self._counters.sum(axis=0, dtype=np.uint64))

    def missed_runs(self) -> int:
        return sum(bpf_syscall.missed_runs(self.descriptors[f"program_{event.name.lower()}"]) for event in Event)

    def close(self) -> None:
        """Idempotent. The memory goes when the last view of it does."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}


def create(identity: DeviceIdentity, layout: BitmapLayout) -> KernelObjects:
    """Make maps, load the programs and attach them: tracking begins. Nothing is pinned yet.

    :raises Unsupported: if this kernel lacks what they need.
    :raises Refused: without the privilege.
    """
    types = kernel_types()
    cpus = _possible_cpus()
    descriptors: dict[str, int] = {}
    try:
        try:
            descriptors["control"] = bpf_syscall.create_array("bf_control", CONTROL_BYTES, 1)
            descriptors["counters"] = bpf_syscall.create_array("bf_counters", COUNTER_WORDS * WORD_BYTES, cpus)
            descriptors["bitmap"] = bpf_syscall.create_array("bf_bitmap", WORD_BYTES, layout.total_words)
        except OSError as error:
            bpf_syscall.refuse_without_privilege(error, "create an eBPF map")
            raise Unsupported(
                f"cannot create an eBPF map of {layout.total_words * WORD_BYTES} bytes: {error.strerror}",
                hint="a coarser granularity needs less kernel memory" if error.errno == errno.ENOMEM else None,
            ) from error
        objects = KernelObjects(descriptors, layout, cpus)
        control = objects.control
        control.layout_version = LAYOUT_VERSION
        control.device_number = identity.number
        control.incarnation = identity.incarnation
        control.size_bytes = identity.size_bytes
        control.granularity_bytes = identity.granularity_bytes
        _load_and_attach(descriptors, types, layout, identity.number)
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise
    return objects


def pinned_control(pins: Pins) -> ControlRecord | None:
    """What the pinned control page says, whichever device's it is; None if it is of another version. Neither locked nor changed.

    :raises OSError: if there is none, or it cannot be read.
    """
    descriptor = pins.open("control")
    try:
        with mmap.mmap(descriptor, CONTROL_BYTES, prot=mmap.PROT_READ) as memory:
            control = ControlRecord.from_buffer_copy(memory)
    finally:
        os.close(descriptor)
    return control if control.layout_version == LAYOUT_VERSION else None


def open_pinned(pins: Pins, identity: DeviceIdentity, layout: BitmapLayout) -> KernelObjects | None:
    """The objects pinned for exactly this device, or None if the pins are of another one or incomplete."""
    names = ["control", "counters", "bitmap"]
    names += [f"{kind}_{event.name.lower()}" for event in Event for kind in ("program", "link")]
    descriptors: dict[str, int] = {}
    try:
        descriptors["control"] = pins.open("control")
        with mmap.mmap(descriptors["control"], CONTROL_BYTES, prot=mmap.PROT_READ) as memory:
            control = ControlRecord.from_buffer_copy(memory)
        if control.layout_version == LAYOUT_VERSION and DeviceIdentity.recorded(control) == identity:
            for name in names[1:]:
                descriptors[name] = pins.open(name)
            return KernelObjects(descriptors, layout, _possible_cpus())
    except FileNotFoundError:
        pass
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise
    for descriptor in descriptors.values():
        os.close(descriptor)
    return None


def _load_and_attach(
    descriptors: dict[str, int], kernel: KernelTypes, layout: BitmapLayout, device_number: int
) -> None:
    types = bpf_syscall.load_btf(function_types())
    maps = dict(descriptors)

    def load(event: Event) -> None:
        program = tracing_program(event, kernel.fields, layout, device_number)
        name = event.name.lower()
        descriptors[f"program_{name}"] = bpf_syscall.load_program(
            f"bf_{name}",
            program.text.assemble(maps),
            program_type=bpf_syscall.PROG_TYPE_TRACING,
            btf_descriptor=types,
            functions=program.functions,
            expected_attach=bpf_syscall.ATTACH_TRACE_RAW_TP,
            attach_btf_id=kernel.tracepoints[event],
        )

    try:
        # The verifier takes its time on the caller's processor, 0.05 s for each: side by side. All have ended when the pool is left.
        with ThreadPoolExecutor(len(Event), thread_name_prefix="load-bpf") as loading:
            loaded = [loading.submit(load, event) for event in Event]
        for each in loaded:
            each.result()
    finally:
        os.close(types)
    for event in Event:
        name = event.name.lower()
        descriptors[f"link_{name}"] = bpf_syscall.attach_tracing(descriptors[f"program_{name}"])


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """What the programs are made of besides the layout: as long as this kernel runs, the same."""

    fields: RequestFields
    tracepoints: Mapping[Event, int]


@functools.cache
def kernel_types() -> KernelTypes:
    """Read once a process: it takes an eighth of a second of processor time.

    :raises Unsupported: if the kernel does not describe its types, or lacks what is needed.
    """
    try:
        btf = Btf(KERNEL_BTF.read_bytes())
    except OSError as error:
        raise Unsupported(
            f"cannot read {KERNEL_BTF}: {error.strerror}",
            hint=f"kernel {platform.release()} was built without CONFIG_DEBUG_INFO_BTF; use the tracker 'scan'",
        ) from error
    return KernelTypes(RequestFields.of(btf), {event: btf.tracepoint_id(event.value) for event in Event})


def _possible_cpus() -> int:
    """One more than the highest CPU number that can ever appear ("0-3", "0,2-7")."""
    return int(_POSSIBLE_CPUS.read_text().strip().replace(",", "-").split("-")[-1]) + 1


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


assert ctypes.sizeof(ControlRecord) <= CONTROL_BYTES  # noqa: S101 - a layout that cannot be, checked at import
