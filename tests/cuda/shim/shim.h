// CUDA C for the CPU: what the emitted text of kernels needs to be compiled as C++ and watched while it runs.
//
// Blocks run in turn, those of a cluster together. The threads of a block that meet (barriers, shuffles, tile operations) are fibers, switched by hand; others
// run one after the other. The first access out of bounds, race on shared memory or divergence stops the launch with a message.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx (shim::thread_index)
#define blockIdx (shim::block_index)

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

typedef unsigned short f16;
typedef unsigned short bf16;

#include "fibers.h"
#include "memory.h"
#include "numbers.h"
#include "together.h"
#include "tiles.h"
#include "warpgroups.h"
