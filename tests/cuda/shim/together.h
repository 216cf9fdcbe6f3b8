// Barriers, shuffles, asynchronous copies and atomics.
#pragma once

namespace shim {

// Writes the oldest asynchronous copies of a thread, all but those of the newest ``pending`` groups.
static void finish_copies(Fiber &me, size_t pending) {
    if (me.groups.size() <= pending) return;
    const size_t end = me.groups[me.groups.size() - 1 - pending];
    for (size_t k = 0; k < end; ++k) {
        const Copy &copy = me.copies[k];
        if (copy.mask) memcpy(copy.to, copy.from, copy.bytes); else memset(copy.to, 0, copy.bytes);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + end);
    std::vector<size_t> left;
    for (size_t k = me.groups.size() - pending; k < me.groups.size(); ++k) left.push_back(me.groups[k] - end);
    me.groups = left;
}

// A copy is a write from when it starts; what it writes comes when it is awaited.
template <int BYTES, typename P, typename Q> static void copy_async(const P &to, const Q &from, bool mask) {
    const auto target = to.slice();
    const auto source = from.slice();
    const long long elements = BYTES / sizeof(*target.data);
    void *place = writing(target, elements, BYTES);
    const void *origin = mask ? reading(source, elements, BYTES) : nullptr;
    memset(place, 0xff, BYTES);
    fibers[current].copies.push_back({place, origin, BYTES, mask, 0, nullptr});
}

}  // namespace shim

static inline void shim_barrier(int line, shim::State state = shim::AT_BARRIER) {
    shim::Fiber &me = shim::fibers[shim::current];
    me.state = state;
    me.line = line;
    shim::pause();
}
#define __syncthreads() shim_barrier(__LINE__)
static inline void tc_cluster_sync(int line = __builtin_LINE()) { shim_barrier(line, shim::AT_CLUSTER); }

static inline void shim_warp_barrier(int line) {
    if (shim::meet(shim::SYNCWARP, nullptr, line)) {
        ++shim::warp_epoch[shim::current / 32];
        shim::release_warp();
    }
}
#define __syncwarp() shim_warp_barrier(__LINE__)

template <typename T> static T shim_shuffle(T value, int lane_mask, int line) {
    using namespace shim;
    T result = value;
    fibers[current].parts[0] = &value;
    fibers[current].parts[1] = &result;
    if (meet(SHUFFLE, (const void *)(intptr_t)lane_mask, line)) {
        const int first = current / 32 * 32;
        for (int k = 0; k < lanes_of(current / 32); ++k)
            *(T *)fibers[first + k].parts[1] = *(T *)fibers[first + (k ^ lane_mask)].parts[0];
        release_warp();
    }
    return result;
}
#define __shfl_xor_sync(mask, value, lane_mask) shim_shuffle(value, lane_mask, __LINE__)

template <typename P, typename Q> static void tc_copy_async16(const P &to, const Q &from, bool mask) { shim::copy_async<16>(to, from, mask); }
template <typename P, typename Q> static void tc_copy_async8(const P &to, const Q &from, bool mask) { shim::copy_async<8>(to, from, mask); }
template <typename P, typename Q> static void tc_copy_async4(const P &to, const Q &from, bool mask) { shim::copy_async<4>(to, from, mask); }
static inline void tc_commit_async() {
    shim::Fiber &me = shim::fibers[shim::current];
    me.groups.push_back(me.copies.size());
}
template <int PENDING> static inline void tc_wait_async() { shim::finish_copies(shim::fibers[shim::current], PENDING); }

// Atomics: threads run one at a time, so a plain update is one step.
namespace shim {
template <typename P> static auto *element(const P &p) { const auto part = p.slice(); return part.data + (part.at >= 0 && part.at < part.count ? part.at : (outside(part.name, part.at, part.count), 0)); }
template <typename T> static bool before(T a, T b) {
    if (a != a || b != b) return a == a ? false : b == b;  // only for max and min below: a NaN is kept
    if (a == b) return std::signbit((double)a) && !std::signbit((double)b);
    return a < b;
}
}  // namespace shim
template <typename P, typename T> static void tc_atomic_add(const P &p, T v) { auto *x = shim::element(p); *x = (T)(*x + v); }
template <typename P, typename T> static void tc_atomic_and(const P &p, T v) { auto *x = shim::element(p); *x = (T)(*x & v); }
template <typename P, typename T> static void tc_atomic_or(const P &p, T v) { auto *x = shim::element(p); *x = (T)(*x | v); }
template <typename P, typename T> static void tc_atomic_xor(const P &p, T v) { auto *x = shim::element(p); *x = (T)(*x ^ v); }
template <typename P, typename T> static void tc_atomic_min(const P &p, T v) {
    auto *x = shim::element(p);
    if (*x == *x && (v != v || shim::before(v, *x))) *x = v;
}
template <typename P, typename T> static void tc_atomic_max(const P &p, T v) {
    auto *x = shim::element(p);
    if (*x == *x && (v != v || shim::before(*x, v))) *x = v;
}
