// CUDA's functions of numbers, and those of the emitted prelude that are PTX there.
#pragma once
#ifdef __F16C__
#include <immintrin.h>
#endif

template <typename To, typename From> static inline To shim_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "bits of one width");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return shim_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
static inline float __int_as_float(int x) { return shim_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return shim_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return shim_bits<double>(x); }

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }

// cvt.rzi: towards zero, saturating; NaN gives 0, or for 64 bits what the hardware gives
template <typename I, typename F> static inline I shim_saturated(F x, I low, I high, I nan) {
    if (x != x) return nan;
    x = std::trunc(x);
    if (x <= (F)low) return low;
    if (x >= (F)high) return high;
    return (I)x;
}
static inline int __float2int_rz(float x) { return shim_saturated<int>(x, INT32_MIN, INT32_MAX, 0); }
static inline int __double2int_rz(double x) { return shim_saturated<int>(x, INT32_MIN, INT32_MAX, INT32_MIN); }
static inline unsigned __float2uint_rz(float x) { return shim_saturated<unsigned>(x, 0, UINT32_MAX, 0); }
static inline unsigned __double2uint_rz(double x) { return shim_saturated<unsigned>(x, 0, UINT32_MAX, 0x80000000u); }
static inline long long __float2ll_rz(float x) { return shim_saturated<long long>(x, INT64_MIN, INT64_MAX, INT64_MIN); }
static inline long long __double2ll_rz(double x) { return shim_saturated<long long>(x, INT64_MIN, INT64_MAX, INT64_MIN); }
static inline unsigned long long __float2ull_rz(float x) { return shim_saturated<unsigned long long>(x, 0, UINT64_MAX, 1ull << 63); }
static inline unsigned long long __double2ull_rz(double x) { return shim_saturated<unsigned long long>(x, 0, UINT64_MAX, 1ull << 63); }

static inline float tc_from_f16(f16 x) {
#ifdef __F16C__
    return _cvtsh_ss(x);
#else
    const unsigned magnitude = x & 0x7fffu, sign = (x & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) return __uint_as_float(sign | __float_as_uint((float)magnitude * 5.9604644775390625e-08f));
    return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
#endif
}
static inline f16 tc_to_f16(float x) {
#ifdef __F16C__
    return _cvtss_sh(x, 0);
#else
    const unsigned raw = __float_as_uint(x), magnitude = raw & 0x7fffffffu, sign = raw >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return (f16)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (f16)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) return (f16)(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u));
    return (f16)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - 0x1c000u);
#endif
}
static inline bf16 tc_to_bf16(float x) {
    const unsigned raw = __float_as_uint(x);
    if ((raw & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bf16)((raw + 0x7fffu + (raw >> 16 & 1u)) >> 16);
}

static inline int atomicCAS(int *p, int expected, int value) {
    const int old = *p;
    if (old == expected) *p = value;
    return old;
}
