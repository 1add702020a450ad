/* The kernel's BPF interface: bcc brings its own copy and includes this one only by name, hence empty. */
#pragma once
