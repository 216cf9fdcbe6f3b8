/* What this CPU can do and how much of it this process may use. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "tcompile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

const char *tc_cpu_arch(void) {
#if defined(__x86_64__) || defined(_M_X64)
    return "x86_64";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "aarch64";
#else
    return "unknown";
#endif
}

#if defined(__x86_64__) || defined(_M_X64)

/* Bits of cpuid (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E), and the register state an OS must save. */
enum { EAX, EBX, ECX, EDX };
enum { SSE_STATE = 0, AVX_STATE = 0x6, AVX512_STATE = 0xE6, AMX_STATE = 0x60006 };

static const struct {
    const char *name;
    unsigned leaf, subleaf;
    int reg, bit;
    unsigned state;
} cpu_features[] = {
    {"sse", 1, 0, EDX, 25, 0},
    {"sse2", 1, 0, EDX, 26, 0},
    {"sse3", 1, 0, ECX, 0, 0},
    {"pclmul", 1, 0, ECX, 1, 0},
    {"ssse3", 1, 0, ECX, 9, 0},
    {"fma", 1, 0, ECX, 12, AVX_STATE},
    {"cx16", 1, 0, ECX, 13, 0},
    {"sse4.1", 1, 0, ECX, 19, 0},
    {"sse4.2", 1, 0, ECX, 20, 0},
    {"movbe", 1, 0, ECX, 22, 0},
    {"popcnt", 1, 0, ECX, 23, 0},
    {"aes", 1, 0, ECX, 25, 0},
    {"xsave", 1, 0, ECX, 26, 0},
    {"avx", 1, 0, ECX, 28, AVX_STATE},
    {"f16c", 1, 0, ECX, 29, AVX_STATE},
    {"cx8", 1, 0, EDX, 8, 0},
    {"cmov", 1, 0, EDX, 15, 0},
    {"mmx", 1, 0, EDX, 23, 0},
    {"fxsr", 1, 0, EDX, 24, 0},
    {"bmi", 7, 0, EBX, 3, 0},
    {"avx2", 7, 0, EBX, 5, AVX_STATE},
    {"bmi2", 7, 0, EBX, 8, 0},
    {"avx512f", 7, 0, EBX, 16, AVX512_STATE},
    {"avx512dq", 7, 0, EBX, 17, AVX512_STATE},
    {"adx", 7, 0, EBX, 19, 0},
    {"avx512ifma", 7, 0, EBX, 21, AVX512_STATE},
    {"avx512cd", 7, 0, EBX, 28, AVX512_STATE},
    {"avx512bw", 7, 0, EBX, 30, AVX512_STATE},
    {"avx512vl", 7, 0, EBX, 31, AVX512_STATE},
    {"avx512vbmi", 7, 0, ECX, 1, AVX512_STATE},
    {"avx512vbmi2", 7, 0, ECX, 6, AVX512_STATE},
    {"gfni", 7, 0, ECX, 8, 0},
    {"vaes", 7, 0, ECX, 9, AVX_STATE},
    {"vpclmulqdq", 7, 0, ECX, 10, AVX_STATE},
    {"avx512vnni", 7, 0, ECX, 11, AVX512_STATE},
    {"avx512bitalg", 7, 0, ECX, 12, AVX512_STATE},
    {"avx512vpopcntdq", 7, 0, ECX, 14, AVX512_STATE},
    {"avx512vp2intersect", 7, 0, EDX, 8, AVX512_STATE},
    {"amx-bf16", 7, 0, EDX, 22, AMX_STATE},
    {"avx512fp16", 7, 0, EDX, 23, AVX512_STATE},
    {"amx-tile", 7, 0, EDX, 24, AMX_STATE},
    {"amx-int8", 7, 0, EDX, 25, AMX_STATE},
    {"avxvnni", 7, 1, EAX, 4, AVX_STATE},
    {"avx512bf16", 7, 1, EAX, 5, AVX512_STATE},
    {"amx-fp16", 7, 1, EAX, 21, AMX_STATE},
    {"avxifma", 7, 1, EAX, 23, AVX_STATE},
    {"avxvnniint8", 7, 1, EDX, 4, AVX_STATE},
    {"avxneconvert", 7, 1, EDX, 5, AVX_STATE},
    {"avxvnniint16", 7, 1, EDX, 10, AVX_STATE},
    {"sahf", 0x80000001u, 0, ECX, 0, 0},
    {"lzcnt", 0x80000001u, 0, ECX, 5, 0},
};

static int read_cpuid(unsigned leaf, unsigned subleaf, unsigned regs[4]) {
#if defined(_MSC_VER)
    __cpuid((int *)regs, (int)(leaf & 0x80000000u));
    if (regs[0] < leaf) return 0;
    __cpuidex((int *)regs, (int)leaf, (int)subleaf);
    return 1;
#else
    return __get_cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]);
#endif
}

static int os_saves(unsigned state) {
    unsigned regs[4], low = 0;
    if (state == 0) return 1;
    if (!read_cpuid(1, 0, regs) || !(regs[ECX] >> 27 & 1)) return 0;
#if defined(_MSC_VER)
    low = (unsigned)_xgetbv(0);
#else
    unsigned high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#endif
    return (low & state) == state;
}

int32_t tc_cpu_has(const char *feature) {
    unsigned regs[4];
    for (size_t i = 0; i < sizeof cpu_features / sizeof cpu_features[0]; i++) {
        if (strcmp(cpu_features[i].name, feature) != 0) continue;
        if (!read_cpuid(cpu_features[i].leaf, cpu_features[i].subleaf, regs)) return 0;
        return (regs[cpu_features[i].reg] >> cpu_features[i].bit & 1) && os_saves(cpu_features[i].state);
    }
    return -1;
}

#elif defined(__aarch64__)

/* Bits of AT_HWCAP and AT_HWCAP2 (Linux arm64/elf_hwcaps.rst), and the names of Apple's sysctl. */
static const struct {
    const char *name;
    int second;
    int bit;
    const char *apple;
} cpu_features[] = {
    {"fp-armv8", 0, 0, "hw.optional.floatingpoint"},
    {"neon", 0, 1, "hw.optional.neon"},
    {"aes", 0, 3, "hw.optional.arm.FEAT_AES"},
    {"sha2", 0, 6, "hw.optional.arm.FEAT_SHA256"},
    {"crc", 0, 7, "hw.optional.armv8_crc32"},
    {"lse", 0, 8, "hw.optional.arm.FEAT_LSE"},
    {"fullfp16", 0, 10, "hw.optional.arm.FEAT_FP16"},
    {"rdm", 0, 12, "hw.optional.arm.FEAT_RDM"},
    {"dotprod", 0, 20, "hw.optional.arm.FEAT_DotProd"},
    {"sve", 0, 22, NULL},
    {"fp16fml", 0, 23, "hw.optional.arm.FEAT_FHM"},
    {"sve2", 1, 1, NULL},
    {"i8mm", 1, 13, "hw.optional.arm.FEAT_I8MM"},
    {"bf16", 1, 14, "hw.optional.arm.FEAT_BF16"},
};

int32_t tc_cpu_has(const char *feature) {
    for (size_t i = 0; i < sizeof cpu_features / sizeof cpu_features[0]; i++) {
        if (strcmp(cpu_features[i].name, feature) != 0) continue;
#if defined(__linux__)
        return getauxval(cpu_features[i].second ? AT_HWCAP2 : AT_HWCAP) >> cpu_features[i].bit & 1;
#elif defined(__APPLE__)
        int value = 0;
        size_t size = sizeof value;
        return cpu_features[i].apple != NULL && sysctlbyname(cpu_features[i].apple, &value, &size, NULL, 0) == 0 && value;
#else
        return strcmp(feature, "neon") == 0 || strcmp(feature, "fp-armv8") == 0;
#endif
    }
    return -1;
}

#else

int32_t tc_cpu_has(const char *feature) {
    (void)feature;
    return -1;
}

#endif

#if defined(__linux__)

static int read_text(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    size_t count = fread(text, 1, size - 1, file);
    fclose(file);
    text[count] = 0;
    return count > 0;
}

/* Whether this CPU is the first of its core's hardware threads that the process may use. */
static int leads_core(int cpu, const cpu_set_t *allowed) {
    char path[96], text[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    if (!read_text(path, text, sizeof text)) return 1;
    for (char *at = text; *at >= '0' && *at <= '9';) {
        long first = strtol(at, &at, 10), last = first;
        if (*at == '-') last = strtol(at + 1, &at, 10);
        for (long sibling = first; sibling <= last && sibling < (long)CPU_SETSIZE; sibling++)
            if (CPU_ISSET((size_t)sibling, allowed)) return sibling == cpu;
        if (*at == ',') at++;
    }
    return 1;
}

static int allowed_cores(void) {
    cpu_set_t allowed;
    int cores = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return (int)sysconf(_SC_NPROCESSORS_ONLN);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && leads_core(cpu, &allowed)) cores++;
    return cores;
}

static int quota_of(const char *folder, int most) {
    char path[600], text[64];
    long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (read_text(path, text, sizeof text)) {
        if (sscanf(text, "%lld %lld", &quota, &period) != 2) return most;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
        if (!read_text(path, text, sizeof text) || sscanf(text, "%lld", &quota) != 1) return most;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (!read_text(path, text, sizeof text) || sscanf(text, "%lld", &period) != 1) return most;
    }
    if (quota <= 0 || period <= 0) return most;
    long long whole = quota / period > 1 ? quota / period : 1; /* a thread that is throttled stalls all others */
    return whole < most ? (int)whole : most;
}

/* The least quota of this process' group and the groups around it, in both versions of cgroups. */
static int cgroup_quota(int most) {
    char groups[4096], folder[512];
    if (!read_text("/proc/self/cgroup", groups, sizeof groups)) return most;
    char *rest = groups;
    for (char *line; (line = strtok_r(rest, "\n", &rest)) != NULL;) {
        char *names = strchr(line, ':'), *path = names == NULL ? NULL : strchr(names + 1, ':');
        if (path == NULL) continue;
        *path++ = 0;
        int unified = names[1] == 0, cpu = strstr(names + 1, "cpu") != NULL && strstr(names + 1, "cpuset") == NULL;
        if (!unified && !cpu) continue;
        snprintf(folder, sizeof folder, "/sys/fs/cgroup%s%s", unified ? "" : "/cpu", strcmp(path, "/") == 0 ? "" : path);
        for (size_t root = strlen(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu"); strlen(folder) >= root;) {
            most = quota_of(folder, most);
            *strrchr(folder, '/') = 0;
        }
    }
    return most;
}

int32_t tc_default_threads(void) {
    int cores = cgroup_quota(allowed_cores());
    return cores > 1 ? cores : 1;
}

#elif defined(__APPLE__)

int32_t tc_default_threads(void) {
    int cores = 0;
    size_t size = sizeof cores;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, NULL, 0) != 0 || cores < 1) {
        size = sizeof cores;
        if (sysctlbyname("hw.physicalcpu", &cores, &size, NULL, 0) != 0) cores = 1;
    }
    return cores > 1 ? cores : 1;
}

#elif defined(_WIN32)

int32_t tc_default_threads(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int32_t)info.dwNumberOfProcessors;
}

#else

int32_t tc_default_threads(void) { return 1; }

#endif
