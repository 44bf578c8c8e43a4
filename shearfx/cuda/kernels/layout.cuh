// Sizes that host and device have to agree on; shearfx/cuda/tables.py reads them from here.
#pragma once

#define THREADS 256
#define CHUNK 1024         // along, per block: 8 bytes of partial sums for 2 KiB of 16-bit weights
#define ROW_STRIP 256      // rows per block on tensor cores: 8 warps of 32
#define COLUMN_STRIP 512   // columns per block on tensor cores: 8 warps of 64
#define PLAIN_STRIP 16     // lines per block without tensor cores
#define DENSE_ROWS 64      // rows per block where there is no product: 8 warps of 8
#define DENSE_COLUMNS 256  // columns per block where there is no product
#define FINISH_STRIP 32    // lines per block that adds up
#define GRAM_TILE 16
#define MOST_RANKS 128
#define FAST_TILE 128  // of the step: in the stored order
#define SLOW_TILE 64
#define CLEAR_CHUNK 1024   // numbers of a factor per block that sets it to zero
#define UPDATE_CHUNK 8192  // numbers per block of an optimiser's step
