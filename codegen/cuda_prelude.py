"""The helper functions that emitted CUDA C calls: a module holds those it uses, in the order of this table.

What needs an instruction that C++ has no word for (conversions of f16 and bf16, asynchronous copies, tile operations) stands
between ``#ifdef __CUDACC__`` and ``#endif``: another compiler brings its own functions of the same names and meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tcompile.codegen.cuda_prelude_async import ASYNC
from tcompile.codegen.cuda_prelude_narrow import NARROW
from tcompile.codegen.cuda_prelude_warpgroup import WARPGROUPS

_DEVICE = "static __device__ __forceinline__"

_INTEGERS = {
    "tc_floordiv": """
// a / b rounded down; a / 0 is 0
template <typename T> DEVICE T tc_floordiv(T a, T b)
{
    if (b == 0) return 0;
    const T q = a / b;
    return q - (T)(a % b != 0 && ((a < 0) != (b < 0)));
}
DEVICE long long tc_floordiv(long long a, int b) { return tc_floordiv(a, (long long)b); }
DEVICE long long tc_floordiv(int a, long long b) { return tc_floordiv((long long)a, b); }
""",
    "tc_mod": """
// a % b with the sign of b; a % 0 is 0
template <typename T> DEVICE T tc_mod(T a, T b)
{
    if (b == 0) return 0;
    const T r = a % b;
    return r + (r != 0 && ((r < 0) != (b < 0)) ? b : (T)0);
}
""",
    "tc_div": """
// integer division towards zero; by 0 it gives 0, and the least integer by -1 itself
template <typename T> DEVICE T tc_div(T a, T b)
{
    if (b == 0) return 0;
    if ((T)-1 < (T)0 && b == (T)-1) return (T)(0 - (unsigned long long)a);
    return (T)(a / b);
}
""",
    "tc_rem": """
// the remainder of tc_div, with the sign of a; by 0 it gives 0
template <typename T> DEVICE T tc_rem(T a, T b)
{
    if (b == 0 || ((T)-1 < (T)0 && b == (T)-1)) return 0;
    return (T)(a % b);
}
""",
    "tc_imod": """
// the remainder with the sign of b; by 0 it gives 0
template <typename T> DEVICE T tc_imod(T a, T b)
{
    const T r = tc_rem(a, b);
    return r != 0 && ((r < 0) != (b < 0)) ? (T)(r + b) : r;
}
""",
    "tc_shl": """
// shifts by an amount outside of the type's width give 0
template <typename T> DEVICE T tc_shl(T a, T b, int bits)
{
    return b >= 0 && b < bits ? (T)((unsigned long long)a << b) : (T)0;
}
""",
    "tc_shr": """
template <typename T> DEVICE T tc_shr(T a, T b, int bits)
{
    return b >= 0 && b < bits ? (T)(a >> b) : (T)0;
}
""",
    "tc_dot2": """
// c and the products of the signed 16-bit parts of a and b; wraps
DEVICE int tc_dot2(int a, int b, int c)
{
    const int low = (short)a * (short)b, high = (short)(a >> 16) * (short)(b >> 16);
    return (int)((unsigned)c + (unsigned)low + (unsigned)high);
}
""",
    "tc_add2": """
// the sums of the 16-bit parts of a and b; each wraps
DEVICE int tc_add2(int a, int b)
{
    const unsigned low = ((unsigned)a + (unsigned)b) & 0xffffu;
    return (int)((((unsigned)a & 0xffff0000u) + ((unsigned)b & 0xffff0000u)) | low);
}
""",
    "tc_pairs4": """
// the products of the unsigned bytes of a and the signed ones of b, two and two added into 16 bits, which saturate
DEVICE int tc_pairs4(int a, int b)
{
    unsigned result = 0;
    for (int k = 0; k < 32; k += 16) {
        const int low = (unsigned char)(a >> k) * (signed char)(b >> k);
        const int sum = low + (unsigned char)(a >> (k + 8)) * (signed char)(b >> (k + 8));
        result |= ((unsigned)(sum < -32768 ? -32768 : sum > 32767 ? 32767 : sum) & 0xffffu) << k;
    }
    return (int)result;
}
""",
    "tc_dot4": """
// c and the products of the unsigned bytes of a and the signed ones of b; wraps
DEVICE int tc_dot4(int a, int b, int c)
{
    int sum = 0;
    for (int k = 0; k < 32; k += 8) sum += (unsigned char)(a >> k) * (signed char)(b >> k);
    return (int)((unsigned)c + (unsigned)sum);
}
""",
}

_MEMORY = {
    "tc_load": """
// aligned accesses of 16, 8 and 4 bytes
template <typename T> DEVICE uint4 tc_load16(const T *p) { return *(const uint4 *)p; }
template <typename T> DEVICE uint2 tc_load8(const T *p) { return *(const uint2 *)p; }
template <typename T> DEVICE unsigned tc_load4(const T *p) { return *(const unsigned *)p; }
""",
    "tc_store": """
template <typename T> DEVICE void tc_store16(T *p, unsigned a, unsigned b, unsigned c, unsigned d)
{
    *(uint4 *)p = make_uint4(a, b, c, d);
}
template <typename T> DEVICE void tc_store8(T *p, unsigned a, unsigned b) { *(uint2 *)p = make_uint2(a, b); }
template <typename T> DEVICE void tc_store4(T *p, unsigned a) { *(unsigned *)p = a; }
""",
    "tc_pack2": """
DEVICE unsigned tc_pack2(unsigned a, unsigned b) { return (a & 0xffffu) | b << 16; }
""",
    "tc_pack4": """
DEVICE unsigned tc_pack4(unsigned a, unsigned b, unsigned c, unsigned d)
{
    return (a & 0xffu) | (b & 0xffu) << 8 | (c & 0xffu) << 16 | d << 24;
}
""",
    "tc_words64": """
// the halves of 64 bits, and 64 bits of halves
DEVICE unsigned tc_low(unsigned long long x) { return (unsigned)x; }
DEVICE unsigned tc_high(unsigned long long x) { return (unsigned)(x >> 32); }
DEVICE unsigned long long tc_join(unsigned low, unsigned high) { return low | (unsigned long long)high << 32; }
""",
    "tc_prefetch": """
#ifdef __CUDACC__
template <typename T> DEVICE void tc_prefetch(const T *p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
#endif
""",
}

_TABLE: dict[str, str] = {**_INTEGERS, **NARROW, **_MEMORY, **ASYNC, **WARPGROUPS}
_DEFINED = {name: frozenset(re.findall(r"\b(tc_\w+)\(", text)) for name, text in _TABLE.items()}

TYPES = """\
typedef unsigned short f16;
typedef unsigned short bf16;
typedef unsigned char f8e4m3fn;
typedef unsigned char f8e4m3fnuz;
typedef unsigned char f8e5m2;
typedef unsigned char f8e5m2fnuz;
typedef unsigned char f8e8m0;
typedef unsigned char f4e2m1;
"""


def prelude(used: Iterable[str]) -> str:
    """The text before the kernels of a module: types, and the functions of ``used`` with those they call."""
    wanted: set[str] = set()
    stack = sorted(used)
    while stack:
        name = stack.pop()
        if name in wanted:
            continue
        wanted.add(name)
        stack += [other for other in _TABLE if other not in wanted and other in _calls(name)]
    texts = [text.strip("\n").replace("DEVICE", _DEVICE) for name, text in _TABLE.items() if name in wanted]
    return "\n\n".join([TYPES.rstrip("\n"), *texts]) + "\n"


def _calls(name: str) -> frozenset[str]:
    return _DEFINED[name]
