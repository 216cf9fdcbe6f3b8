"""Functions of the emitted CUDA C for threads that work together: asynchronous copies, atomics, tile operations.

A tile operation's function is made from its declaration in ``ir/tileops.py``: fragments are pointers into register arrays,
which the compiler takes apart once it has inlined the call.
"""

from __future__ import annotations

from tcompile.ir.dtypes import F32
from tcompile.ir.tileops import LANES, TILE_OPS, Fragment, TileSpec

_COPY = """
#ifdef __CUDACC__
// asynchronous copies of 16, 8 or 4 bytes from global to shared memory; masked ones write zeros and read nothing
template <typename T> DEVICE void tc_copy_async16(T *to, const T *from, bool mask)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
                 "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(mask ? 16 : 0) : "memory");
}
template <typename T> DEVICE void tc_copy_async8(T *to, const T *from, bool mask)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::
                 "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(mask ? 8 : 0) : "memory");
}
template <typename T> DEVICE void tc_copy_async4(T *to, const T *from, bool mask)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::
                 "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(mask ? 4 : 0) : "memory");
}
DEVICE void tc_commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void tc_wait_async() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }
#endif
"""

_ATOMICS = """
#ifdef __CUDACC__
// an update of one element by compare-and-swap of the word around it
template <typename T, typename F> DEVICE void tc_atomic_update(T *p, F f)
{
    const int bytes = sizeof(T) < 4 ? 4 : (int)sizeof(T), place = (int)((unsigned long long)p % bytes) * 8;
    unsigned *const word = (unsigned *)((unsigned long long)p & ~3ull);
    const unsigned mask = (sizeof(T) == 1 ? 0xffu : 0xffffu) << place;
    unsigned old = *word, seen;
    do {
        seen = old;
        const T now = (T)((seen & mask) >> place);
        old = atomicCAS(word, seen, (seen & ~mask) | (((unsigned)f(now) << place) & mask));
    } while (old != seen);
}
DEVICE void tc_atomic_add(int *p, int v) { atomicAdd(p, v); }
DEVICE void tc_atomic_add(unsigned *p, unsigned v) { atomicAdd(p, v); }
DEVICE void tc_atomic_add(long long *p, long long v) { atomicAdd((unsigned long long *)p, (unsigned long long)v); }
DEVICE void tc_atomic_add(unsigned long long *p, unsigned long long v) { atomicAdd(p, v); }
template <typename T> DEVICE void tc_atomic_add(T *p, T v) { tc_atomic_update(p, [v](T x) { return (T)(x + v); }); }
DEVICE void tc_atomic_and(int *p, int v) { atomicAnd(p, v); }
DEVICE void tc_atomic_and(unsigned *p, unsigned v) { atomicAnd(p, v); }
DEVICE void tc_atomic_and(long long *p, long long v) { atomicAnd((unsigned long long *)p, (unsigned long long)v); }
DEVICE void tc_atomic_and(unsigned long long *p, unsigned long long v) { atomicAnd(p, v); }
template <typename T> DEVICE void tc_atomic_and(T *p, T v) { tc_atomic_update(p, [v](T x) { return (T)(x & v); }); }
DEVICE void tc_atomic_or(int *p, int v) { atomicOr(p, v); }
DEVICE void tc_atomic_or(unsigned *p, unsigned v) { atomicOr(p, v); }
DEVICE void tc_atomic_or(long long *p, long long v) { atomicOr((unsigned long long *)p, (unsigned long long)v); }
DEVICE void tc_atomic_or(unsigned long long *p, unsigned long long v) { atomicOr(p, v); }
template <typename T> DEVICE void tc_atomic_or(T *p, T v) { tc_atomic_update(p, [v](T x) { return (T)(x | v); }); }
DEVICE void tc_atomic_xor(int *p, int v) { atomicXor(p, v); }
DEVICE void tc_atomic_xor(unsigned *p, unsigned v) { atomicXor(p, v); }
DEVICE void tc_atomic_xor(long long *p, long long v) { atomicXor((unsigned long long *)p, (unsigned long long)v); }
DEVICE void tc_atomic_xor(unsigned long long *p, unsigned long long v) { atomicXor(p, v); }
template <typename T> DEVICE void tc_atomic_xor(T *p, T v) { tc_atomic_update(p, [v](T x) { return (T)(x ^ v); }); }
DEVICE void tc_atomic_min(int *p, int v) { atomicMin(p, v); }
DEVICE void tc_atomic_min(unsigned *p, unsigned v) { atomicMin(p, v); }
DEVICE void tc_atomic_min(long long *p, long long v) { atomicMin(p, v); }
DEVICE void tc_atomic_min(unsigned long long *p, unsigned long long v) { atomicMin(p, v); }
template <typename T> DEVICE void tc_atomic_min(T *p, T v) { tc_atomic_update(p, [v](T x) { return x < v ? x : v; }); }
DEVICE void tc_atomic_max(int *p, int v) { atomicMax(p, v); }
DEVICE void tc_atomic_max(unsigned *p, unsigned v) { atomicMax(p, v); }
DEVICE void tc_atomic_max(long long *p, long long v) { atomicMax(p, v); }
DEVICE void tc_atomic_max(unsigned long long *p, unsigned long long v) { atomicMax(p, v); }
template <typename T> DEVICE void tc_atomic_max(T *p, T v) { tc_atomic_update(p, [v](T x) { return x > v ? x : v; }); }
// floats as integers of the same order: -0.0 is below 0.0; NaN becomes the greatest or the least
DEVICE int tc_order(int bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; }
DEVICE long long tc_order(long long bits) { return bits < 0 ? bits ^ 0x7fffffffffffffffll : bits; }
DEVICE void tc_atomic_extreme(float *p, float v, bool largest)
{
    int *const word = (int *)p;
    int old = *word, seen;
    do {
        seen = old;
        const float x = __int_as_float(seen);
        if (x != x) return;
        const int a = tc_order(seen), b = tc_order(__float_as_int(v));
        if (v == v && (largest ? a >= b : a <= b)) return;
        old = atomicCAS(word, seen, v != v ? 0x7fc00000 : __float_as_int(v));
    } while (old != seen);
}
DEVICE void tc_atomic_extreme(double *p, double v, bool largest)
{
    unsigned long long *const word = (unsigned long long *)p;
    unsigned long long old = *word, seen;
    do {
        seen = old;
        const double x = __longlong_as_double((long long)seen);
        if (x != x) return;
        const long long a = tc_order((long long)seen), b = tc_order(__double_as_longlong(v));
        if (v == v && (largest ? a >= b : a <= b)) return;
        old = atomicCAS(word, seen, v != v ? 0x7ff8000000000000ull : (unsigned long long)__double_as_longlong(v));
    } while (old != seen);
}
DEVICE void tc_atomic_min(float *p, float v) { tc_atomic_extreme(p, v, false); }
DEVICE void tc_atomic_max(float *p, float v) { tc_atomic_extreme(p, v, true); }
DEVICE void tc_atomic_min(double *p, double v) { tc_atomic_extreme(p, v, false); }
DEVICE void tc_atomic_max(double *p, double v) { tc_atomic_extreme(p, v, true); }
#endif
"""

_WORDS = """
#ifdef __CUDACC__
// the 32-bit registers of a fragment
DEVICE unsigned tc_word(const float *x, int k) { return __float_as_uint(x[k]); }
DEVICE unsigned tc_word(const unsigned short *x, int k) { return x[2 * k] | (unsigned)x[2 * k + 1] << 16; }
DEVICE unsigned tc_word(const unsigned char *x, int k)
{
    return x[4 * k] | (unsigned)x[4 * k + 1] << 8 | (unsigned)x[4 * k + 2] << 16 | (unsigned)x[4 * k + 3] << 24;
}
DEVICE unsigned tc_word(const signed char *x, int k) { return tc_word((const unsigned char *)x, k); }
DEVICE void tc_unpack(unsigned word, float *x, int k) { x[k] = __uint_as_float(word); }
DEVICE void tc_unpack(unsigned word, unsigned short *x, int k)
{
    x[2 * k] = (unsigned short)word;
    x[2 * k + 1] = (unsigned short)(word >> 16);
}
DEVICE void tc_unpack(unsigned word, unsigned char *x, int k)
{
    x[4 * k] = (unsigned char)word;
    x[4 * k + 1] = (unsigned char)(word >> 8);
    x[4 * k + 2] = (unsigned char)(word >> 16);
    x[4 * k + 3] = (unsigned char)(word >> 24);
}
DEVICE void tc_unpack(unsigned word, signed char *x, int k) { tc_unpack(word, (unsigned char *)x, k); }
#endif
"""


def _words(fragment: Fragment, name: str) -> list[str]:
    return [f'"r"(tc_word({name}, {k}))' for k in range(fragment.bytes // 4)]


def _registers(first: int, fragment: Fragment) -> str:
    return "{" + ", ".join(f"%{first + k}" for k in range(fragment.bytes // 4)) + "}"


def _mma(spec: TileSpec) -> str:
    c, a, b = spec.fragments
    kind, letter = ("float", "f") if c.dtypes == (F32,) else ("int", "r")
    sums = ", ".join(f'"+{letter}"(c[{k}])' for k in range(4))
    text = f"{_registers(0, c)}, {_registers(4, a)}, {_registers(8, b)}, {_registers(0, c)};"
    types = [_c_type(fragment) for fragment in (a, b)]
    return f"""
DEVICE void tc_{spec.name}({kind} *c, const {types[0]} *a, const {types[1]} *b)
{{
    asm("{spec.instruction} {text}"
        : {sums}
        : {", ".join(_words(a, "a") + _words(b, "b"))});
}}"""


_CLUSTER = """
#ifdef __CUDACC__
// all threads of the cluster's blocks; what they stored before, all see after
DEVICE void tc_cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
#endif
"""


def _dot4(spec: TileSpec) -> str:
    types = [_c_type(fragment) for fragment in spec.fragments[1:]]
    return f"""
DEVICE void tc_{spec.name}(int *c, const {types[0]} *a, const {types[1]} *b)
{{
    asm("{spec.instruction} %0, %1, %2, %0;" : "+r"(c[0]) : "r"(tc_word(a, 0)), "r"(tc_word(b, 0)));
}}"""


def _ldmatrix(spec: TileSpec) -> str:
    count = spec.fragments[0].bytes // 4
    words = ", ".join(f"w{k}" for k in range(count))
    outputs = ", ".join(f'"=r"(w{k})' for k in range(count))
    return f"""
template <typename T> DEVICE void tc_{spec.name}(T *result, const T *row)
{{
    unsigned {words};
    asm volatile("{spec.instruction} {_registers(0, spec.fragments[0])}, [%{count}];"
                 : {outputs} : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
    {" ".join(f"tc_unpack(w{k}, result, {k});" for k in range(count))}
}}"""


def _convert(spec: TileSpec) -> str:
    return f"""
DEVICE void tc_{spec.name}(float *result, const float *x)
{{
    unsigned word;
    asm("{spec.instruction} %0, %1;" : "=r"(word) : "f"(x[0]));
    result[0] = __uint_as_float(word);
}}"""


def _c_type(fragment: Fragment) -> str:
    (dtype,) = fragment.dtypes
    return {"f32": "float", "i32": "int", "i8": "signed char", "u8": "unsigned char"}.get(dtype.name, dtype.name)


def _tile(spec: TileSpec) -> str:
    if spec.name.startswith("mma"):
        text = _mma(spec)
    elif spec.name.startswith("dot4"):
        text = _dot4(spec)
    elif spec.name.startswith("ldmatrix"):
        text = _ldmatrix(spec)
    else:
        text = _convert(spec)
    return f"#ifdef __CUDACC__{text}\n#endif\n"


ASYNC: dict[str, str] = {
    "tc_copy_async": _COPY,
    "tc_atomic": _ATOMICS,
    "tc_cluster_sync": _CLUSTER,
    "tc_word": _WORDS,
    **{f"tc_{name}": _tile(spec) for name, spec in TILE_OPS.items() if spec.lanes == LANES},
}
