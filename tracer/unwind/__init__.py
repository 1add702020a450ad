"""Call stacks without frame pointers: .eh_frame as tables for the unwinder in bpf/unwind.bpf.c."""
