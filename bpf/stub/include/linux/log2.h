/* roundup_pow_of_two(): bcc's BPF_STACK_TRACE sizes its maps with it. */
#pragma once

#define roundup_pow_of_two(n) ((n) <= 1 ? 1 : 1UL << (64 - __builtin_clzl((n) - 1)))
