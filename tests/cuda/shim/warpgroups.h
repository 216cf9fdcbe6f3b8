// Products of four warps: they read memory and write sums as late as they may, when their group is awaited.
#pragma once
#include <functional>

namespace shim {

struct Group {
    std::vector<std::function<void()>> open;                   // products that no commit has closed
    std::vector<std::vector<std::function<void()>>> closed;
};
static Group groups[MOST_FIBERS / 128];

static Group &group() { return groups[current / 128]; }

static void begin_products() { for (Group &one : groups) one = Group(); }
static bool products_left() { return !group().open.empty() || !group().closed.empty(); }

// The 2-byte element of an unswizzled place of rows of 64 elements.
template <typename P> static auto swizzled(const P &p, long long place) {
    typedef std::remove_cv_t<std::remove_reference_t<decltype(*p.data)>> T;
    if ((uintptr_t)p.data % 1024) misaligned(p.name, p.at, 1024);
    const long long at = (p.at + place) ^ ((p.at + place) / 64 % 8 * 8);
    if (at < 0 || at >= p.count) outside(p.name, at, p.count);
    note_read(p.name, at, p.cell[at * (long long)sizeof(T)]);
    return p.data[at];
}

// position, term of an operand; rows of 64 terms, or of 64 positions with 64 terms one below the other
template <bool BY_TERMS> static long long place(int position, int term) {
    return BY_TERMS ? position * 64 + term : (position / 64 * 64 + term) * 64 + position % 64;
}

template <int COLUMNS, typename Number, bool A_BY_TERMS, bool B_BY_TERMS, typename C, typename X, typename Y>
static void warpgroup_product(const char *name, const C &c_part, const X &a_part, const Y &b_part, int line) {
    const auto a = a_part.slice();
    const auto b = b_part.slice();
    Fiber &me = fibers[current];
    me.parts[0] = (void *)c_part.slice().take(COLUMNS / 2, 4);
    me.parts[1] = (void *)(a.data + a.at);
    me.parts[2] = (void *)(b.data + b.at);
    if (!meet(WARPGROUP, name, line, 128)) return;
    const int first = current / 128 * 128;
    float *sums[128];
    for (int lane = 0; lane < 128; ++lane) {
        const Fiber &other = fibers[first + lane];
        if (other.parts[1] != me.parts[1] || other.parts[2] != me.parts[2]) fail("%s: thread %d gives other addresses", name, first + lane);
        sums[lane] = (float *)other.parts[0];
    }
    std::vector<float *> held(sums, sums + 128);
    group().open.push_back([=] {
        static double x[64][16], y[COLUMNS][16];
        for (int k = 0; k < 16; ++k) {
            for (int row = 0; row < 64; ++row) x[row][k] = Number::number(swizzled(a, place<A_BY_TERMS>(row, k)));
            for (int column = 0; column < COLUMNS; ++column) y[column][k] = Number::number(swizzled(b, place<B_BY_TERMS>(column, k)));
        }
        for (int lane = 0; lane < 128; ++lane)
            for (int e = 0; e < COLUMNS / 2; ++e) {
                const int row = 16 * (lane / 32) + lane % 32 / 4 + 8 * (e >> 1 & 1), column = 8 * (e >> 2) + 2 * (lane % 4) + (e & 1);
                double sum = held[lane][e];
                for (int k = 0; k < 16; ++k) sum += x[row][k] * y[column][k];
                held[lane][e] = (float)sum;
            }
    });
    release_warp(128);
}

static void warpgroup_commit(int line) {
    if (!meet(WARPGROUP, "commit", line, 128)) return;
    group().closed.push_back(std::move(group().open));
    group().open.clear();
    release_warp(128);
}

static void warpgroup_wait(size_t left, int line) {
    if (!meet(WARPGROUP, "wait", line, 128)) return;
    auto &closed = group().closed;
    while (closed.size() > left) {
        for (const auto &run : closed.front()) run();
        closed.erase(closed.begin());
    }
    release_warp(128);
}

}  // namespace shim

#define SHIM_WARPGROUP(columns, kind, number, layouts, a, b) \
    template <typename C, typename X, typename Y> \
    static void tc_wgmma_m64n##columns##k16_##kind##_##layouts(C &&c, const X &x, const Y &y, int line = __builtin_LINE()) { \
        shim::warpgroup_product<columns, shim::number, a, b>("wgmma", c, x, y, line); \
    }
#define SHIM_LAYOUTS(columns, kind, number) \
    SHIM_WARPGROUP(columns, kind, number, tt, true, true) \
    SHIM_WARPGROUP(columns, kind, number, tf, true, false) \
    SHIM_WARPGROUP(columns, kind, number, ft, false, true) \
    SHIM_WARPGROUP(columns, kind, number, ff, false, false)
#define SHIM_WIDTH(columns) \
    SHIM_LAYOUTS(columns, f16, F16) \
    SHIM_LAYOUTS(columns, bf16, Bf16) \
    template <typename C> static void tc_wgmma_fence_n##columns(C &&) {} \
    template <typename C> static void tc_wgmma_wait0_n##columns(C &&, int line = __builtin_LINE()) { shim::warpgroup_wait(0, line); } \
    template <typename C> static void tc_wgmma_wait1_n##columns(C &&, int line = __builtin_LINE()) { shim::warpgroup_wait(1, line); }
SHIM_WIDTH(64)
SHIM_WIDTH(128)
SHIM_WIDTH(256)
static inline void tc_wgmma_commit(int line = __builtin_LINE()) { shim::warpgroup_commit(line); }
static inline void tc_fence_async() {}
