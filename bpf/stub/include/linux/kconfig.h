/* Kernel configuration: bcc force-includes this file into every program; two options are all it is asked for. */
#pragma once

#define CONFIG_BPF_SYSCALL 1
#if defined(__x86_64__)
#define CONFIG_X86_64 1
#elif defined(__aarch64__)
#define CONFIG_ARM64 1
#else
#error "memtrace traces x86-64 and aarch64 only: bpf/stub/include/linux/types.h knows no other registers"
#endif
