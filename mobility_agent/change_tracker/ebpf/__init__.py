"""The ``ebpf`` change tracker: programs in the kernel mark what is issued and completed in a memory-mapped bitmap."""
