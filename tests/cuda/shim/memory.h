// Memory that is watched: bounds everywhere, alignment of wide accesses, races on shared memory between barriers.
#pragma once

namespace shim {

[[noreturn]] static __attribute__((noinline, cold)) void outside(const char *name, long long at, long long count) {
    fail("out of bounds: %s[%lld] of %lld elements", name, at, count);
}

[[noreturn]] static __attribute__((noinline, cold)) void misaligned(const char *name, long long at, int bytes) {
    fail("misaligned: %d bytes at %s[%lld]", bytes, name, at);
}

template <typename T> struct Bare { typedef T type; };
template <typename T> struct Bare<const T> { typedef T type; };

// A part of memory from one element on: what the address of an element becomes.
template <typename T> struct Slice {
    T *data;
    long long at, count;
    const char *name;
    T *take(long long elements, int alignment) const {
        if (at < 0 || at + elements > count) outside(name, at < 0 ? at : at + elements - 1, count);
        if ((uintptr_t)(data + at) % alignment) misaligned(name, at, alignment);
        return data + at;
    }
    const Slice &slice() const { return *this; }
};

// A buffer in global memory.
template <typename T> struct Global {
    T *data;
    long long count;
    const char *name;
    T &operator[](long long at) const {
        if (__builtin_expect((unsigned long long)at >= (unsigned long long)count, 0)) outside(name, at, count);
        return data[at];
    }
    Slice<T> operator+(long long at) const { return {data, at, count, name}; }
    Slice<T> slice() const { return {data, 0, count, name}; }
};

// An array of a thread.
template <typename T, int N> struct Local {
    T data[N];
    T &operator[](long long at) {
        if (__builtin_expect((unsigned long long)at >= (unsigned long long)N, 0)) outside("a local array", at, N);
        return data[at];
    }
    Slice<T> operator+(long long at) const { return {(T *)data, at, N, "a local array"}; }
    Slice<T> slice() const { return {(T *)data, 0, N, "a local array"}; }
};

// Races ------------------------------------------------------------------------------------------------------

// Who touched an element of shared memory since the last barrier.
struct Cell {
    unsigned write_epoch, read_epoch;
    unsigned write_warp_epoch, read_warp_epoch;
    short writer, reader;  // reader: a thread, or SEVERAL
    short read_warp;       // the warp of all readers, or SEVERAL
};
constexpr short SEVERAL = -1;
static Cell *cells;  // one for each byte of shared memory; an element uses that of its first byte

// Whether something another thread did in this epoch is ordered before now by a barrier of the warp.
static inline bool ordered(int warp, unsigned then) { return warp == current / 32 && then != warp_epoch[warp]; }

[[noreturn]] static __attribute__((noinline, cold)) void race(const char *name, long long at, const char *what, int other) {
    if (other < 0) fail("race on %s[%lld]: %s, which several threads read since the last barrier", name, at, what);
    fail("race on %s[%lld]: %s, since the last barrier touched by thread %d", name, at, what, other);
}

static inline void note_read(const char *name, long long at, Cell &cell) {
    if (cell.write_epoch == epoch() && cell.writer != current && !ordered(cell.writer / 32, cell.write_warp_epoch))
        race(name, at, "read what another wrote", cell.writer);
    const int warp = current / 32;
    if (cell.read_epoch != epoch()) {
        cell.read_epoch = epoch();
        cell.reader = (short)current;
        cell.read_warp = (short)warp;
    } else {
        if (cell.reader != current) cell.reader = SEVERAL;
        if (cell.read_warp != warp) cell.read_warp = SEVERAL;
    }
    cell.read_warp_epoch = warp_epoch[warp];
}

static inline void note_write(const char *name, long long at, Cell &cell) {
    if (cell.write_epoch == epoch() && cell.writer != current && !ordered(cell.writer / 32, cell.write_warp_epoch))
        race(name, at, "written", cell.writer);
    if (cell.read_epoch == epoch() && cell.reader != current && !(cell.read_warp != SEVERAL && ordered(cell.read_warp, cell.read_warp_epoch)))
        race(name, at, "written", cell.reader);
    cell.write_epoch = epoch();
    cell.writer = (short)current;
    cell.write_warp_epoch = warp_epoch[current / 32];
}

static inline Cell *cells_at(long long offset) {
    if (!cells) cells = (Cell *)mmap(nullptr, MOST_BLOCKS * SHARED * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return cells + current_block * (long long)SHARED + offset;
}

// A part of shared memory from one element on.
template <typename T> struct SharedSlice {
    T *data;
    Cell *cell;
    long long at, count;
    const char *name;
    const SharedSlice &slice() const { return *this; }
    T *take(long long elements, int alignment, bool write) const {
        if (at < 0 || at + elements > count) outside(name, at < 0 ? at : at + elements - 1, count);
        if ((uintptr_t)(data + at) % alignment) misaligned(name, at, alignment);
        if (current >= 0)
            for (long long k = at; k < at + elements; ++k)
                write ? note_write(name, k, cell[k * (long long)sizeof(T)]) : note_read(name, k, cell[k * (long long)sizeof(T)]);
        return data + at;
    }
};

// One element of shared memory: reading and writing it are noted.
template <typename T> struct SharedElement {
    T *data;
    Cell *cell;
    long long at;
    const char *name;
    operator T() const {
        if (current >= 0) note_read(name, at, *cell);
        return *data;
    }
    void operator=(T value) const {
        if (current >= 0) note_write(name, at, *cell);
        *data = value;
    }
    void operator=(const SharedElement &other) const { *this = (T)other; }
};

// A buffer in shared memory of the block that runs, ``offset`` bytes from its start.
template <typename T> struct Shared {
    T *data;
    Cell *cell;
    long long count;
    const char *name;
    Shared(long long offset, long long count, const char *name)
        : data((T *)(shared_bytes + current_block * SHARED + offset)), cell(cells_at(offset)), count(count), name(name) {}
    SharedElement<T> operator[](long long at) const {
        if (__builtin_expect((unsigned long long)at >= (unsigned long long)count, 0)) outside(name, at, count);
        return {data + at, cell + at * (long long)sizeof(T), at, name};
    }
    SharedSlice<T> operator+(long long at) const { return {data, cell, at, count, name}; }
    SharedSlice<T> slice() const { return {data, cell, 0, count, name}; }
};

// Reads of a slice, by the kind of memory.
template <typename T> static inline T *reading(const Slice<T> &x, long long elements, int alignment) { return x.take(elements, alignment); }
template <typename T> static inline T *reading(const SharedSlice<T> &x, long long elements, int alignment) { return x.take(elements, alignment, false); }
template <typename T> static inline T *writing(const Slice<T> &x, long long elements, int alignment) { return x.take(elements, alignment); }
template <typename T> static inline T *writing(const SharedSlice<T> &x, long long elements, int alignment) { return x.take(elements, alignment, true); }

template <typename Wide, typename P> static inline Wide load(const P &p) {
    const auto part = p.slice();
    Wide result;
    memcpy(&result, reading(part, sizeof(Wide) / sizeof(*part.data), sizeof(Wide)), sizeof(Wide));
    return result;
}

template <typename Wide, typename P> static inline void store(const P &p, Wide value) {
    const auto part = p.slice();
    memcpy(writing(part, sizeof(Wide) / sizeof(*part.data), sizeof(Wide)), &value, sizeof(Wide));
}

}  // namespace shim

template <typename P> static inline auto tc_load16(const P &p) -> decltype(p.slice(), uint4()) { return shim::load<uint4>(p); }
template <typename P> static inline auto tc_load8(const P &p) -> decltype(p.slice(), uint2()) { return shim::load<uint2>(p); }
template <typename P> static inline auto tc_load4(const P &p) -> decltype(p.slice(), 0u) { return shim::load<unsigned>(p); }
template <typename P> static inline auto tc_store16(const P &p, unsigned a, unsigned b, unsigned c, unsigned d) -> decltype(p.slice(), void()) {
    shim::store(p, make_uint4(a, b, c, d));
}
template <typename P> static inline auto tc_store8(const P &p, unsigned a, unsigned b) -> decltype(p.slice(), void()) { shim::store(p, make_uint2(a, b)); }
template <typename P> static inline auto tc_store4(const P &p, unsigned a) -> decltype(p.slice(), void()) { shim::store(p, a); }
template <typename P> static inline void tc_prefetch(const P &) {}
