/* tcompile's native runtime: opens compiled models and runs them. C11, libc and threads only.
 *
 * Three parts: the ABI between the host and compiled code, the binary format of a model's descriptor, and the
 * functions that an application calls. Every integer of the descriptor is little-endian.
 */
#ifndef TCOMPILE_H
#define TCOMPILE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define TC_API __declspec(dllexport)
#else
#define TC_API __attribute__((visibility("default")))
#endif

#define TC_ABI_VERSION 2

/* Why a call did not succeed. 1 to 5 come from compiled code, the rest from the host. */
enum tc_status {
    TC_OK = 0,
    TC_INDEX = 1,       /* an index out of range */
    TC_DIMENSION = 2,   /* a dimension out of its declared range */
    TC_BROADCAST = 3,   /* extents that cannot be broadcast */
    TC_SHAPE = 4,       /* a shape that does not fit its tensor */
    TC_MEMORY = 5,      /* out of memory */
    TC_CANCELLED = 6,   /* tc_session_cancel */
    TC_INTERRUPTED = 7, /* the embedding language has an exception for its caller */
    TC_INPUT = 8,       /* a tensor that does not fit the signature */
    TC_ARTIFACT = 9,    /* a descriptor that is damaged or of another version */
    TC_MACHINE = 10,    /* a model compiled for another machine */
    TC_USAGE = 11,      /* functions called in the wrong order */
    TC_BOUNDS = 12      /* an access outside of its buffer, seen by code that was compiled to look (Options.bounds) */
};

/* ---- Between the host and compiled code ------------------------------------------------------------------ */

/* One kernel. args: one word per parameter (pointers), then one int64 per dim. Runs iterations [begin, end) of
 * a parallel kernel; any other is called with 0, 1. scratch: this thread's, 64-byte aligned. Returns a tc_status. */
typedef int32_t (*tc_kernel)(const uint64_t *args, int64_t begin, int64_t end, uint8_t *scratch);

/* What compiled code may call. It calls nothing else. */
struct tc_host {
    /* Runs fn over [0, extent), split at multiples of grain (>= 1) between threads. Returns 0, the status of the
     * lowest failing part, or TC_CANCELLED. */
    int32_t (*parallel_for)(void *session, tc_kernel fn, const uint64_t *args, int64_t extent, int64_t grain);
    /* A block of at least `bytes` for a growing buffer, 64-byte aligned, never null for 0 bytes; the first `keep`
     * bytes of the slot's block are preserved. An earlier pointer to the slot is dead. NULL: no memory.
     * Slots number the run's growing buffers from 0; a growing output's block must live until the run returns. */
    void *(*grow)(void *session, int64_t slot, int64_t bytes, int64_t keep);
    /* Nonzero: leave at once and return that status. Cheap; call it before each kernel call. On any thread of the run. */
    int32_t (*poll)(void *session);
    /* Only when frame->profile: before call k, which ends the thread's call before; with -1, or the number of calls, none begins. */
    void (*mark)(void *session, int64_t call);
};

/* What the two entries `int32_t tc_prepare(tc_frame *)` and `int32_t tc_run(tc_frame *)` read and write.
 *
 * tc_prepare reads dims of the entry symbols and writes arena_bytes, scratch_bytes (per thread) and output_shapes
 * (all outputs' extents in order; -1 where only the run knows). tc_run executes; it writes the dims of symbols that
 * the run binds, all output_shapes, and outputs[k] of growing outputs. The descriptor's symbol table gives the order
 * of dims: entry symbols first.
 *
 * On failure the entry returns the status with failed_call set: k >= 0 is call k of the descriptor (Call
 * instructions in program order, bodies included, depth first); -1 - r is requirement r (BindDim and Require
 * instructions, numbered alike); the host sets TC_NO_SITE before each run. failed_value: the offending value, if any.
 */
struct tc_frame {
    const struct tc_host *host;
    void *session;
    const uint8_t *weights;
    uint8_t *arena;
    void *const *inputs;
    void **outputs;
    int64_t *dims;
    int64_t *output_shapes;
    int64_t arena_bytes;
    int64_t scratch_bytes;
    uint8_t *scratch; /* of the calling thread */
    int64_t failed_call;
    int64_t failed_value;
    int64_t threads;
    int64_t profile;
};

typedef int32_t (*tc_entry)(struct tc_frame *);

#define TC_NO_SITE INT64_MIN

/* ---- The descriptor -------------------------------------------------------------------------------------- */

/* A struct tc_descriptor, its tables, then the SHA-256 of all before as the last 32 bytes of `size`. A name is an
 * offset into the strings, which are NUL-terminated UTF-8; the string table ends with a NUL. */

struct tc_table {
    uint32_t offset; /* bytes from the start of the descriptor, a multiple of 8 */
    uint32_t count;  /* records; of strings: bytes */
};

struct tc_descriptor {
    uint8_t magic[8]; /* "TCOMPILE" */
    uint32_t abi_version;
    uint32_t size; /* of the whole descriptor, hash included */
    uint32_t name; /* of the model */
    uint32_t target;
    uint32_t arch; /* "x86_64" or "aarch64": the code's instruction set */
    uint32_t entry_symbols;
    uint64_t prepare_offset; /* of tc_prepare in the code image */
    uint64_t run_offset;
    uint64_t code_size;
    uint64_t weights_size;
    int64_t arena_bytes; /* where the shapes are static, else the bound at the symbols' upper ends; -1 unbounded */
    int64_t scratch_bytes;
    uint8_t code_sha256[32];
    uint8_t weights_sha256[32];
    struct tc_table strings;
    struct tc_table features;     /* uint32: names of CPU features that the code needs, as LLVM spells them */
    struct tc_table symbols;      /* tc_symbol_record */
    struct tc_table extents;      /* tc_extent_record */
    struct tc_table terms;        /* tc_term_record */
    struct tc_table inputs;       /* tc_tensor_record */
    struct tc_table outputs;      /* tc_tensor_record */
    struct tc_table weights;      /* tc_weight_record */
    struct tc_table calls;        /* tc_call_record */
    struct tc_table requirements; /* tc_requirement_record */
    struct tc_table sources;      /* uint32: names of ONNX nodes */
    struct tc_table notes;        /* tc_note_record */
    struct tc_table growing;      /* tc_growing_record, in the order of the slots */
    struct tc_table shares;       /* tc_share_record */
};

struct tc_symbol_record {
    uint32_t name;
    uint32_t lo; /* extent: the least value */
    uint32_t hi; /* extent: the greatest value, or TC_UNBOUNDED */
    uint32_t reserved;
};
#define TC_UNBOUNDED UINT32_MAX

enum tc_extent_kind { TC_CONST = 0, TC_SYMBOL = 1, TC_EXPRESSION = 2 };

struct tc_extent_record {
    uint32_t kind;
    uint32_t text; /* how a person writes it */
    int64_t value; /* the constant; the symbol's number; the expression's first term */
    uint32_t terms; /* of an expression */
    uint32_t reserved;
};

/* An expression in postfix order. floordiv and mod round towards minus infinity; bcast(a, b) is b where a is 1, else a. */
enum tc_term_op {
    TC_TERM_CONST = 0,
    TC_TERM_SYMBOL = 1,
    TC_TERM_ADD = 2,
    TC_TERM_MUL = 3,
    TC_TERM_FLOORDIV = 4,
    TC_TERM_MOD = 5,
    TC_TERM_MIN = 6,
    TC_TERM_MAX = 7,
    TC_TERM_BCAST = 8
};

struct tc_term_record {
    uint32_t op;
    uint32_t reserved;
    int64_t value; /* of TC_TERM_CONST; symbol number of TC_TERM_SYMBOL */
};

struct tc_tensor_record {
    uint32_t name;
    uint32_t dtype; /* TensorProto.DataType */
    uint32_t element_bytes;
    uint32_t rank;
    uint32_t extents; /* the first of `rank` */
    uint32_t growing; /* an output whose shape only the run knows: the session owns its memory until the next run */
    uint32_t pitch_axis; /* TC_NO_PITCH: row-major memory. Else the axis whose extent is replaced in addresses by... */
    uint32_t pitch_symbol; /* ...the value of this entry symbol, so that a view of a larger array will do */
};
#define TC_NO_PITCH UINT32_MAX

struct tc_weight_record {
    uint32_t name;
    uint32_t dtype;
    uint64_t offset; /* in the weights, a multiple of 64 */
    uint64_t bytes;
};

struct tc_call_record {
    uint32_t kernel; /* name */
    uint32_t sources;
    uint32_t source_count;
    uint32_t flops;  /* extent: floating-point operations of one call */
    uint32_t bytes;  /* extent: bytes of its tensors, each counted once */
    uint32_t cycles; /* extent: what the cost model expects of one core; 0: nothing */
    uint32_t record; /* name: the schedule's choices, as `template=gemm tile=4x3x8` */
    uint32_t reserved;
};

struct tc_requirement_record {
    uint32_t message;
    uint32_t sources;
    uint32_t source_count;
    uint32_t reserved;
};

struct tc_note_record {
    uint32_t key;
    uint32_t value;
};

/* A buffer whose size only the run knows: its tensor's name, and the nodes that write it. */
struct tc_growing_record {
    uint32_t name;
    uint32_t sources;
    uint32_t source_count;
    uint32_t reserved;
};

struct tc_share_record {
    uint32_t output;
    uint32_t input;
};

/* ---- The application's interface ------------------------------------------------------------------------- */

typedef struct tc_module tc_module;   /* an opened model: immutable, shared by sessions and threads */
typedef struct tc_pool tc_pool;       /* threads, which sessions may share */
typedef struct tc_session tc_session; /* the memory of one run at a time */

/* How an extent, or an end of a range, reads. */
typedef struct tc_extent {
    const char *text;
    int64_t value; /* of a constant; a symbol's number; else -1 */
    int32_t kind;
    int32_t first_term;
    int32_t term_count;
} tc_extent;

typedef struct tc_symbol {
    const char *name;
    tc_extent lo;
    tc_extent hi; /* text NULL: unbounded */
} tc_symbol;

typedef struct tc_tensor {
    const char *name;
    const tc_extent *extents;
    int32_t dtype;
    int32_t rank;
    int32_t element_bytes;
    int32_t growing;
    int32_t pitch_axis; /* -1: row-major; else memory is that of an array with `pitch` rows along this axis */
    int32_t pitch_symbol;
} tc_tensor;

typedef struct tc_site {
    const char *name; /* the kernel; the requirement's message */
    const char *const *sources;
    int64_t source_count;
    tc_extent flops; /* of a call, as are the following */
    tc_extent bytes;
    tc_extent cycles;
    const char *record;
} tc_site;

typedef struct tc_weight {
    const char *name;
    int64_t offset;
    int64_t bytes;
    int32_t dtype;
} tc_weight;

/* An output and an input that a run may be given as one memory, beginning at one address: no element of the input
 * is read after that element of the output is written. The memory has the size of the larger. Of two tensors with
 * pitches, these must be one. */
typedef struct tc_share {
    int32_t output;
    int32_t input;
} tc_share;

typedef struct tc_note {
    const char *key;
    const char *value;
} tc_note;

typedef struct tc_module_info {
    const char *name;
    const char *target;
    const char *arch;
    const uint8_t *code_sha256;
    const uint8_t *weights_sha256;
    int64_t code_bytes;
    int64_t weights_bytes;
    int64_t arena_bytes;
    int64_t scratch_bytes;
    int64_t symbol_count;
    int64_t entry_symbol_count;
    int64_t input_count;
    int64_t output_count;
    int64_t call_count;
    int64_t requirement_count;
    int64_t weight_count;
    int64_t note_count;
    int64_t feature_count;
    int64_t growing_count;
    int64_t share_count;
    const tc_symbol *symbols;
    const tc_tensor *inputs;
    const tc_tensor *outputs;
    const tc_site *calls;
    const tc_site *requirements;
    const tc_weight *weights;
    const tc_note *notes;
    const char *const *features;
    const tc_site *growing; /* buffers whose size only the run knows */
    const tc_share *shares;
} tc_module_info;

/* Opens a model: checks the descriptor (bounds, version), that this machine runs its code, and copies the code
 * into executable memory. The descriptor is copied; the weights (64-byte aligned) must outlive the module. The
 * hashes are the caller's to verify. On failure returns the status and writes a message. */
TC_API int32_t tc_open(const void *descriptor, size_t descriptor_size, const void *code, size_t code_size,
                       const void *weights, size_t weights_size, tc_module **module, char *error, size_t error_size);
/* Gives up the caller's hold; the module goes with its last session. */
TC_API void tc_close(tc_module *module);
TC_API const tc_module_info *tc_module_describe(const tc_module *module);

/* Threads that run kernels, the caller's included; 0: as many as this process has physical cores to use, by
 * affinity and cgroup quota. Workers start with the first parallel kernel, and anew after a fork. */
TC_API tc_pool *tc_pool_new(int32_t threads);
TC_API void tc_pool_free(tc_pool *pool);
TC_API int32_t tc_pool_threads(const tc_pool *pool);
TC_API int32_t tc_default_threads(void);

/* NULL pool: the session runs on the calling thread alone. NULL result: no memory. */
TC_API tc_session *tc_session_new(tc_module *module, tc_pool *pool);
TC_API void tc_session_free(tc_session *session);

typedef struct tc_shape {
    const int64_t *extents;
    int32_t rank;
    int32_t dtype; /* TensorProto.DataType */
} tc_shape;

/* From the next prepare on, tensors with this pitch symbol are views of arrays with `rows` rows along their pitch
 * axis; 0: they have no gaps. */
TC_API int32_t tc_session_set_pitch(tc_session *session, int32_t symbol, int64_t rows);

/* Checks the inputs' types and shapes, binds symbols, and reserves memory. Runs keep the shapes until the next
 * prepare, whose failure leaves the session unprepared. */
TC_API int32_t tc_session_prepare(tc_session *session, const tc_shape *inputs);

/* Every output's extents in order; -1 where only the run knows. Changes with prepare and run. */
TC_API const int64_t *tc_session_output_shapes(const tc_session *session);

/* One run over row-major tensors (element-aligned). outputs[k] is the caller's memory; NULL leaves the output in
 * the session's; of a growing output it is always set to the session's memory, good until the next run or free.
 * Outputs overlap neither each other nor inputs, but for the pairs that `shares` lists.
 * After the first run with given shapes it allocates nothing, unless a growing buffer grows. */
TC_API int32_t tc_session_run(tc_session *session, const void *const *inputs, void **outputs);

/* Stops the run in progress at its next kernel. Any thread may call it. */
TC_API void tc_session_cancel(tc_session *session);

/* The message of the last failure, and what to try; never NULL. */
TC_API const char *tc_session_error(const tc_session *session);
TC_API const char *tc_session_hint(const tc_session *session);

/* How an interpreter embeds runs: it holds a lock that the run gives back and takes again, and looks for signals.
 * check() runs with the lock held; nonzero stops the run with TC_INTERRUPTED. Where data_offset >= 0, tensors are given
 * to tc_session_run as the addresses of objects that hold their data's address at this offset. */
typedef struct tc_hooks {
    void *(*release)(void);
    void (*acquire)(void *state);
    int (*check)(void);
    int64_t data_offset;
} tc_hooks;
TC_API void tc_session_set_hooks(tc_session *session, const tc_hooks *hooks);

/* What time is measured by. TC_CLOCK_CPU is a thread's own time of work: that of the calling thread for calls, of each
 * thread for what it does of them. It says the same on a busy machine; some systems count it in milliseconds. */
enum tc_clock { TC_CLOCK_NONE, TC_CLOCK_WALL, TC_CLOCK_CPU };

/* Measures each call from the next run on; nanoseconds and numbers of calls add up per call, until the next
 * tc_session_profile. TC_CLOCK_NONE ends that. Returns TC_MEMORY where there is none. */
TC_API int32_t tc_session_profile(tc_session *session, int32_t clock);
TC_API const int64_t *tc_session_times(const tc_session *session);
TC_API const int64_t *tc_session_counts(const tc_session *session);
/* Nanoseconds that the parts of a call took that threads shared: in all, and on the thread with the most to do if parts are
 * taken in turn and nothing else disturbs it. 0 where the calling thread did all. */
TC_API int64_t tc_session_busy(const tc_session *session, int64_t call);
TC_API int64_t tc_session_span(const tc_session *session, int64_t call);
/* What an extent of the session's module (say a call's flops) comes to under the last run's dims; -1 where unknown. */
TC_API int64_t tc_session_extent(const tc_session *session, const tc_extent *extent);

typedef struct tc_memory {
    int64_t arena_bytes;
    int64_t scratch_bytes; /* all threads */
    int64_t growing_bytes;
    int64_t spare_bytes; /* outputs nobody asked for */
    int64_t peak_bytes;  /* the largest sum so far */
    int64_t allocations; /* so far */
} tc_memory;
TC_API void tc_session_memory(const tc_session *session, tc_memory *memory);

/* 1: this CPU and its OS have the feature; 0: they do not; -1: a name this runtime does not know. */
TC_API int32_t tc_cpu_has(const char *feature);
TC_API const char *tc_cpu_arch(void);

#ifdef __cplusplus
}
#endif
#endif
