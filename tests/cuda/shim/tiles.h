// Tile operations by their meaning: the last lane to come does the work for all, on the fragments the others brought.
#pragma once

namespace shim {

// Rows and columns of the elements of fragments (ir/tileops.py): registers of PER elements.
template <int PER> struct A {
    static int row(int lane, int e) { return lane / 4 + 8 * (e / PER & 1); }
    static int column(int lane, int e) { return PER * (lane % 4) + e % PER + 4 * PER * (e / PER >> 1); }
};
template <int PER> struct B {
    static int row(int lane, int e) { return PER * (lane % 4) + e % PER + 4 * PER * (e / PER); }
    static int column(int lane, int) { return lane / 4; }
};

struct Tf32 { static float number(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); } };
struct F16 { static float number(f16 x) { return tc_from_f16(x); } };
struct Bf16 { static float number(bf16 x) { return __uint_as_float((unsigned)x << 16); } };
struct Int { template <typename T> static int number(T x) { return x; } };

// c (16 x 8) += a (16 x K) b (K x 8), K = 8 * PER; products are summed in Wide
template <int PER, typename Number, typename Wide, typename C, typename X, typename Y>
static void mma(const char *name, const C &c_part, const X &a_part, const Y &b_part, int line) {
    const auto c = c_part.slice();
    const auto a = a_part.slice();
    const auto b = b_part.slice();
    typedef typename Bare<std::remove_reference_t<decltype(*c.data)>>::type Sum;
    typedef typename Bare<std::remove_reference_t<decltype(*a.data)>>::type TA;
    typedef typename Bare<std::remove_reference_t<decltype(*b.data)>>::type TB;
    Fiber &me = fibers[current];
    me.parts[0] = (void *)c.take(4, sizeof(Sum));
    me.parts[1] = (void *)a.take(4 * PER, sizeof(TA));
    me.parts[2] = (void *)b.take(2 * PER, sizeof(TB));
    if (!meet(TILE, name, line)) return;
    const int first = current / 32 * 32;
    decltype(Number::number(TA())) x[16][8 * PER], y[8 * PER][8];
    for (int lane = 0; lane < 32; ++lane) {
        for (int e = 0; e < 4 * PER; ++e) x[A<PER>::row(lane, e)][A<PER>::column(lane, e)] = Number::number(((TA *)fibers[first + lane].parts[1])[e]);
        for (int e = 0; e < 2 * PER; ++e) y[B<PER>::row(lane, e)][B<PER>::column(lane, e)] = Number::number(((TB *)fibers[first + lane].parts[2])[e]);
    }
    Wide sums[16][8] = {};
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 8 * PER; ++k)
            for (int column = 0; column < 8; ++column) sums[row][column] += (Wide)x[row][k] * (Wide)y[k][column];
    for (int lane = 0; lane < 32; ++lane)
        for (int e = 0; e < 4; ++e) {
            Sum &place = ((Sum *)fibers[first + lane].parts[0])[e];
            place = (Sum)((Wide)place + sums[lane / 4 + 8 * (e >> 1)][2 * (lane % 4) + (e & 1)]);
        }
    release_warp();
}

template <int COUNT, bool TRANSPOSED, typename R, typename P> static void ldmatrix(const char *name, const R &result_part, const P &row_part, int line) {
    const auto result = result_part.slice();
    const auto row = row_part.slice();
    const int size = sizeof(*result.data);
    Fiber &me = fibers[current];
    me.parts[0] = (void *)result.take(4 * COUNT / size, size);
    // only the addresses of the first 8 * COUNT lanes count
    me.parts[1] = current % 32 < 8 * COUNT ? (void *)reading(row, 16 / size, 16) : nullptr;
    if (!meet(TILE, name, line)) return;
    const int first = current / 32 * 32;
    for (int lane = 0; lane < 32; ++lane)
        for (int m = 0; m < COUNT; ++m) {
            char *to = (char *)fibers[first + lane].parts[0] + 4 * m;
            if (!TRANSPOSED) {
                memcpy(to, (const char *)fibers[first + 8 * m + lane / 4].parts[1] + 4 * (lane % 4), 4);
            } else {
                for (int j = 0; j < 2; ++j)
                    memcpy(to + 2 * j, (const char *)fibers[first + 8 * m + 2 * (lane % 4) + j].parts[1] + 2 * (lane / 4), 2);
            }
        }
    release_warp();
}

template <typename C, typename X, typename Y> static void dot4(const C &c_part, const X &a_part, const Y &b_part) {
    int *c = c_part.slice().take(1, 4);
    const auto *a = a_part.slice().take(4, 1);
    const auto *b = b_part.slice().take(4, 1);
    unsigned sum = (unsigned)*c;
    for (int k = 0; k < 4; ++k) sum += (unsigned)((int)a[k] * (int)b[k]);
    *c = (int)sum;
}

}  // namespace shim

#define SHIM_TILE(name, ...) \
    template <typename C, typename X, typename Y> static void tc_##name(C &&c, X &&a, Y &&b, int line = __builtin_LINE()) { \
        shim::mma<__VA_ARGS__>(#name, c, a, b, line); \
    }
SHIM_TILE(mma_m16n8k8_tf32, 1, shim::Tf32, double)
SHIM_TILE(mma_m16n8k16_f16, 2, shim::F16, double)
SHIM_TILE(mma_m16n8k16_bf16, 2, shim::Bf16, double)
SHIM_TILE(mma_m16n8k32_s8, 4, shim::Int, unsigned)
SHIM_TILE(mma_m16n8k32_u8, 4, shim::Int, unsigned)
SHIM_TILE(mma_m16n8k32_u8s8, 4, shim::Int, unsigned)
SHIM_TILE(mma_m16n8k32_s8u8, 4, shim::Int, unsigned)

#define SHIM_LDMATRIX(name, count, transposed) \
    template <typename R, typename P> static void tc_##name(R &&result, const P &row, int line = __builtin_LINE()) { \
        shim::ldmatrix<count, transposed>(#name, result, row, line); \
    }
SHIM_LDMATRIX(ldmatrix_x1, 1, false)
SHIM_LDMATRIX(ldmatrix_x2, 2, false)
SHIM_LDMATRIX(ldmatrix_x4, 4, false)
SHIM_LDMATRIX(ldmatrix_x1_trans, 1, true)
SHIM_LDMATRIX(ldmatrix_x2_trans, 2, true)
SHIM_LDMATRIX(ldmatrix_x4_trans, 4, true)

template <typename C, typename X, typename Y> static void tc_dot4_s8(C &&c, X &&a, Y &&b) { shim::dot4(c, a, b); }
template <typename C, typename X, typename Y> static void tc_dot4_u8(C &&c, X &&a, Y &&b) { shim::dot4(c, a, b); }
template <typename C, typename X, typename Y> static void tc_dot4_u8s8(C &&c, X &&a, Y &&b) { shim::dot4(c, a, b); }
template <typename C, typename X, typename Y> static void tc_dot4_s8u8(C &&c, X &&a, Y &&b) { shim::dot4(c, a, b); }

// to the nearest tf32, away from zero from halfway
template <typename R, typename X> static void tc_round_tf32(R &&result, X &&x) {
    const float value = *x.slice().take(1, 4);
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    *result.slice().take(1, 4) = __uint_as_float(magnitude >= 0x7f800000u ? bits & 0xffffe000u : (bits + 0x1000u) & 0xffffe000u);
}
