"""Functions of the emitted CUDA C for the products of four warps (``ir/tileops_warpgroup.py``).

sm_90a has the instructions. For other devices (the PTX of an artifact) the same functions multiply at once by ``mma.sync``: a
warp's part of the sums has the same fragments, and reads the same swizzled memory.
"""

from __future__ import annotations

from tcompile.ir.tileops_warpgroup import WARPGROUP_SPECS, TileSpec

_MEMORY = """
#ifdef __CUDACC__
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// a matrix of rows of 128 swizzled bytes: 1024 from 8 rows to the next, 8192 from 64 neighbours to the next
DEVICE unsigned long long tc_wgmma_matrix(const void *p, unsigned next)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(p);
    return (unsigned long long)((address & 0x3ffffu) >> 4) | (unsigned long long)next << 16 | 64ull << 32 | 1ull << 62;
}
#else
DEVICE unsigned tc_wgmma_place(const void *p, int row, int byte)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(p) + row * 128 + byte;
    return address ^ (address >> 3 & 0x70u);
}
// two neighbouring terms of a position
template <bool BY_TERMS> DEVICE unsigned tc_wgmma_terms(const void *p, int position, int term)
{
    unsigned word, high;
    if (BY_TERMS) {
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(tc_wgmma_place(p, position, 2 * term)) : "memory");
        return word;
    }
    const int row = position / 64 * 64 + term, byte = position % 64 * 2;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(word) : "r"(tc_wgmma_place(p, row, byte)) : "memory");
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(high) : "r"(tc_wgmma_place(p, row + 1, byte)) : "memory");
    return word | high << 16;
}
#endif
#endif
"""
_NEXT = {"t": 1, "f": 8192 >> 4}  # 16-byte units from 64 neighbours to the next; not looked at where terms are neighbours


def _product(spec: TileSpec) -> str:
    sums, layouts = spec.fragments[0].bytes // 4, spec.name[-2:]
    registers = ", ".join(f"%{k}" for k in range(sums))
    in_out = ", ".join(f'"+f"(c[{k}])' for k in range(sums))
    dtype = spec.fragments[1].dtypes[0].name
    a, b = ("true" if letter == "t" else "false" for letter in layouts)
    turned = ", ".join("0" if letter == "t" else "1" for letter in layouts)
    return f"""
#ifdef __CUDACC__
template <typename T> DEVICE void tc_{spec.name}(float *c, const T *a, const T *b)
{{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("{spec.instruction} {{{registers}}}, %{sums}, %{sums + 1}, 1, 1, 1, {turned};"
        : {in_out}
        : "l"(tc_wgmma_matrix(a, {_NEXT[layouts[0]]})), "l"(tc_wgmma_matrix(b, {_NEXT[layouts[1]]})) : "memory");
#else
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4, term = lane % 4 * 2;
    const unsigned a0 = tc_wgmma_terms<{a}>(a, row, term), a1 = tc_wgmma_terms<{a}>(a, row + 8, term);
    const unsigned a2 = tc_wgmma_terms<{a}>(a, row, term + 8), a3 = tc_wgmma_terms<{a}>(a, row + 8, term + 8);
    #pragma unroll
    for (int j = 0; j < {sums // 4}; ++j) {{
        const unsigned b0 = tc_wgmma_terms<{b}>(b, 8 * j + lane / 4, term), b1 = tc_wgmma_terms<{b}>(b, 8 * j + lane / 4, term + 8);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
            "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
            : "+f"(c[4 * j]), "+f"(c[4 * j + 1]), "+f"(c[4 * j + 2]), "+f"(c[4 * j + 3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }}
#endif
}}
#endif
"""


def _order(spec: TileSpec) -> str:
    """An instruction that registers may not move across."""
    sums = spec.fragments[0].bytes // 4 if spec.fragments else 0
    argument = "float *c" if sums else ""
    held = ", ".join(f'"+f"(c[{k}])' for k in range(sums))
    always = spec.name.startswith("fence")
    guard, end = ("", "") if always else ("#ifdef __CUDA_ARCH_FEAT_SM90_ALL\n", "\n#endif")
    elsewhere = "" if not always else "#if __CUDA_ARCH__ >= 900\n"
    closing = "" if not always else "\n#endif"
    return f"""
#ifdef __CUDACC__
DEVICE void tc_{spec.name}({argument})
{{
{guard}{elsewhere}    asm volatile("{spec.instruction};" : {held} :: "memory");{closing}{end}
}}
#endif
"""


WARPGROUPS: dict[str, str] = {
    "tc_wgmma_matrix": _MEMORY,
    **{f"tc_{spec.name}": (_product if "m64" in spec.name else _order)(spec) for spec in WARPGROUP_SPECS},
}
