/* PAGE_SIZE: bcc's ring buffers are sized in pages. Where pages are not 4 KiB, the loader passes -DPAGE_SIZE=. */
#pragma once

#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
