/* Classic BPF's opcodes: included by bcc's copy of uapi/linux/bpf.h, used by nothing here, hence empty. */
#pragma once
