/* The kernel's type names and struct pt_regs, in place of kernel headers: all that bcc and our programs use of them. */
#pragma once

typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

typedef s8 __s8;
typedef u8 __u8;
typedef s16 __s16;
typedef u16 __u16;
typedef s32 __s32;
typedef u32 __u32;
typedef s64 __s64;
typedef u64 __u64;

/* bcc's copy of uapi/linux/bpf.h names these; no program of ours touches a packet. */
typedef u16 __le16;
typedef u16 __be16;
typedef u32 __le32;
typedef u32 __be32;
typedef u64 __le64;
typedef u64 __be64;
typedef u16 __sum16;
typedef u32 __wsum;
typedef u64 __aligned_u64 __attribute__((aligned(8)));

/* bcc turns the format files of tracepoints into structs that name these. */
typedef _Bool bool;
typedef int pid_t;
typedef unsigned int dev_t;
typedef unsigned int gfp_t;
typedef long long loff_t;
typedef unsigned long size_t;
typedef long ssize_t;
typedef unsigned long uintptr_t;

#define true 1
#define false 0
#define NULL ((void *)0)

/*
 * The registers at a probe: the context of uprobe programs, whose layout the kernel fixes for BPF
 * (bpf_user_pt_regs_t in the architecture's uapi/asm/bpf_perf_event.h).
 */
#if defined(__x86_64__)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax; /* the system call's number, in a system call */
	unsigned long ip, cs, flags, sp, ss;
};
#elif defined(__aarch64__)
struct pt_regs {
	u64 regs[31]; /* x0 to x30: x29 is the frame pointer, x30 the return address */
	u64 sp, pc, pstate;
};
#endif
