/* Packet sockets: bcc's helpers include this for socket filters, which memtrace has none of, hence empty. */
#pragma once
