/* Reads the descriptor's bytes into C structures. Nothing in them is trusted: whatever the bytes, this returns. */
#include "descriptor.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK_LIMIT = 64, RECORD_LIMIT = 1 << 24 };

_Static_assert(sizeof(struct tc_descriptor) == 256, "the descriptor's head has no padding");
_Static_assert(sizeof(struct tc_extent_record) == 24, "records have no padding");
_Static_assert(sizeof(struct tc_term_record) == 16, "records have no padding");
_Static_assert(sizeof(struct tc_weight_record) == 24, "records have no padding");

/* Where parsing stands. The first failure stays; later checks see `failed` and give up. */
struct reader {
    const uint8_t *bytes;
    const struct tc_descriptor *head;
    tc_parsed *parsed;
    char *cursor; /* free space for parsed tables */
    char *error;
    size_t error_size;
    int failed;
};

static void fail(struct reader *reader, const char *format, ...) {
    va_list arguments;
    if (reader->failed) return;
    reader->failed = 1;
    va_start(arguments, format);
    vsnprintf(reader->error, reader->error_size, format, arguments);
    va_end(arguments);
}

static const void *records(struct reader *reader, struct tc_table table, size_t size, const char *what) {
    uint64_t end = (uint64_t)table.offset + (uint64_t)table.count * size;
    if (table.offset % 8 != 0 || table.offset < sizeof *reader->head || table.count > RECORD_LIMIT ||
        end > reader->head->size - TC_HASH_BYTES) {
        fail(reader, "damaged descriptor: the table of %s lies outside it", what);
        return NULL;
    }
    return reader->bytes + table.offset;
}

static const char *text(struct reader *reader, uint32_t name) {
    if (name >= reader->head->strings.count) {
        fail(reader, "damaged descriptor: a name lies outside the strings");
        return "";
    }
    return (const char *)reader->bytes + reader->head->strings.offset + name;
}

static void *take(struct reader *reader, size_t size) {
    void *block = reader->cursor;
    reader->cursor += (size + 7) / 8 * 8;
    return block;
}

/* Counts the operands of an expression: it must leave one value and never need one that is not there. */
static int expression_holds(const struct tc_term_record *terms, uint32_t count, uint32_t symbols) {
    int depth = 0;
    for (uint32_t i = 0; i < count; i++) {
        int push = terms[i].op <= TC_TERM_SYMBOL;
        if (terms[i].op > TC_TERM_BCAST) return 0;
        if (terms[i].op == TC_TERM_SYMBOL && (terms[i].value < 0 || terms[i].value >= symbols)) return 0;
        if (!push && depth < 2) return 0;
        depth += push ? 1 : -1;
        if (depth > TC_EXPRESSION_DEPTH) return 0;
    }
    return depth == 1;
}

static void read_extent(struct reader *reader, uint32_t index, tc_extent *extent) {
    const struct tc_descriptor *head = reader->head;
    *extent = (tc_extent){"", -1, TC_CONST, 0, 0};
    if (reader->failed) return;
    if (index >= head->extents.count) {
        fail(reader, "damaged descriptor: an extent lies outside its table");
        return;
    }
    const struct tc_extent_record *record = (const struct tc_extent_record *)(reader->bytes + head->extents.offset) + index;
    extent->kind = (int32_t)record->kind;
    extent->text = text(reader, record->text);
    if (record->kind == TC_CONST) {
        extent->value = record->value;
    } else if (record->kind == TC_SYMBOL) {
        if (record->value < 0 || record->value >= head->symbols.count) fail(reader, "damaged descriptor: a symbol that is not there");
        extent->value = record->value;
    } else if (record->kind == TC_EXPRESSION) {
        int inside = record->value >= 0 && (uint64_t)record->value + record->terms <= head->terms.count;
        if (!inside || !expression_holds(reader->parsed->terms + record->value, record->terms, head->symbols.count)) {
            fail(reader, "damaged descriptor: an expression that does not hold together");
            return;
        }
        extent->first_term = (int32_t)record->value;
        extent->term_count = (int32_t)record->terms;
    } else {
        fail(reader, "damaged descriptor: an extent of kind %u", record->kind);
    }
}

static tc_symbol *read_symbols(struct reader *reader) {
    uint32_t count = reader->head->symbols.count;
    const struct tc_symbol_record *from = records(reader, reader->head->symbols, sizeof *from, "symbols");
    tc_symbol *to = take(reader, count * sizeof *to);
    for (uint32_t i = 0; i < count && !reader->failed; i++) {
        to[i].name = text(reader, from[i].name);
        read_extent(reader, from[i].lo, &to[i].lo);
        to[i].hi = (tc_extent){NULL, -1, TC_CONST, 0, 0};
        if (from[i].hi != TC_UNBOUNDED) read_extent(reader, from[i].hi, &to[i].hi);
    }
    return to;
}

static tc_tensor *read_tensors(struct reader *reader, struct tc_table table, const char *what, int64_t *total) {
    const struct tc_tensor_record *from = records(reader, table, sizeof *from, what);
    tc_tensor *to = take(reader, table.count * sizeof *to);
    *total = 0;
    for (uint32_t i = 0; i < table.count && !reader->failed; i++) {
        if (from[i].rank > RANK_LIMIT || from[i].dtype > INT32_MAX || from[i].element_bytes < 1 || from[i].element_bytes > 16)
            fail(reader, "damaged descriptor: a type among the %s is out of range", what);
        else if ((uint64_t)from[i].extents + from[i].rank > reader->head->extents.count)
            fail(reader, "damaged descriptor: a shape among the %s lies outside its table", what);
        if (reader->failed) break;
        int gaps = from[i].pitch_axis != TC_NO_PITCH;
        if (gaps && (from[i].pitch_axis >= from[i].rank || from[i].pitch_symbol >= reader->head->entry_symbols || from[i].growing)) {
            fail(reader, "damaged descriptor: a pitch among the %s that cannot be", what);
            break;
        }
        to[i] = (tc_tensor){text(reader, from[i].name), NULL, (int32_t)from[i].dtype, (int32_t)from[i].rank,
                            (int32_t)from[i].element_bytes, from[i].growing != 0, gaps ? (int32_t)from[i].pitch_axis : -1,
                            gaps ? (int32_t)from[i].pitch_symbol : -1};
        tc_extent *extents = take(reader, from[i].rank * sizeof *extents);
        for (uint32_t axis = 0; axis < from[i].rank; axis++) read_extent(reader, from[i].extents + axis, &extents[axis]);
        to[i].extents = extents;
        *total += from[i].rank;
    }
    return to;
}

static const char *const *read_names(struct reader *reader, struct tc_table table, const char *what) {
    const uint32_t *from = records(reader, table, sizeof *from, what);
    const char **to = take(reader, table.count * sizeof *to);
    for (uint32_t i = 0; i < table.count && !reader->failed; i++) to[i] = text(reader, from[i]);
    return to;
}

static tc_site read_site(struct reader *reader, const char *const *names, uint32_t name, uint32_t first, uint32_t count) {
    if ((uint64_t)first + count > reader->head->sources.count) fail(reader, "damaged descriptor: sources outside their table");
    const tc_extent none = {"", -1, TC_CONST, 0, 0};
    tc_site site = {text(reader, name), NULL, 0, none, none, none, ""};
    if (!reader->failed) {
        site.sources = names + first;
        site.source_count = count;
    }
    return site;
}

static tc_site *read_calls(struct reader *reader, const char *const *names) {
    const struct tc_call_record *from = records(reader, reader->head->calls, sizeof *from, "calls");
    tc_site *to = take(reader, reader->head->calls.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->calls.count && !reader->failed; i++) {
        to[i] = read_site(reader, names, from[i].kernel, from[i].sources, from[i].source_count);
        read_extent(reader, from[i].flops, &to[i].flops);
        read_extent(reader, from[i].bytes, &to[i].bytes);
        read_extent(reader, from[i].cycles, &to[i].cycles);
        to[i].record = text(reader, from[i].record);
    }
    return to;
}

static tc_site *read_requirements(struct reader *reader, const char *const *names) {
    const struct tc_requirement_record *from = records(reader, reader->head->requirements, sizeof *from, "requirements");
    tc_site *to = take(reader, reader->head->requirements.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->requirements.count && !reader->failed; i++)
        to[i] = read_site(reader, names, from[i].message, from[i].sources, from[i].source_count);
    return to;
}

static tc_weight *read_weights(struct reader *reader) {
    const struct tc_weight_record *from = records(reader, reader->head->weights, sizeof *from, "weights");
    tc_weight *to = take(reader, reader->head->weights.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->weights.count && !reader->failed; i++) {
        if (from[i].offset > reader->head->weights_size || from[i].bytes > reader->head->weights_size - from[i].offset)
            fail(reader, "damaged descriptor: a weight lies outside the weights");
        to[i] = (tc_weight){text(reader, from[i].name), (int64_t)from[i].offset, (int64_t)from[i].bytes, (int32_t)from[i].dtype};
    }
    return to;
}

static tc_note *read_notes(struct reader *reader) {
    const struct tc_note_record *from = records(reader, reader->head->notes, sizeof *from, "notes");
    tc_note *to = take(reader, reader->head->notes.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->notes.count && !reader->failed; i++)
        to[i] = (tc_note){text(reader, from[i].key), text(reader, from[i].value)};
    return to;
}

static tc_site *read_growing(struct reader *reader, const char *const *names) {
    const struct tc_growing_record *from = records(reader, reader->head->growing, sizeof *from, "growing buffers");
    tc_site *to = take(reader, reader->head->growing.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->growing.count && !reader->failed; i++)
        to[i] = read_site(reader, names, from[i].name, from[i].sources, from[i].source_count);
    return to;
}

static tc_share *read_shares(struct reader *reader) {
    const struct tc_share_record *from = records(reader, reader->head->shares, sizeof *from, "shares");
    tc_share *to = take(reader, reader->head->shares.count * sizeof *to);
    for (uint32_t i = 0; i < reader->head->shares.count && !reader->failed; i++) {
        if (from[i].output >= reader->head->outputs.count || from[i].input >= reader->head->inputs.count)
            fail(reader, "damaged descriptor: shared memory of a tensor that is not there");
        to[i] = (tc_share){(int32_t)from[i].output, (int32_t)from[i].input};
    }
    return to;
}

static void check_head(struct reader *reader, size_t size) {
    const struct tc_descriptor *head = reader->head;
    if (size < sizeof *head + TC_HASH_BYTES || memcmp(head->magic, "TCOMPILE", 8) != 0) {
        fail(reader, "not a model's descriptor");
    } else if (head->abi_version != TC_ABI_VERSION) {
        fail(reader, "the model has format version %u, this runtime reads version %d", head->abi_version, TC_ABI_VERSION);
    } else if (head->size < sizeof *head + TC_HASH_BYTES || head->size > size || head->size > INT32_MAX) {
        fail(reader, "damaged descriptor: %zu bytes of %u are there", size, head->size);
    } else if (head->code_size > INT64_MAX || head->weights_size > INT64_MAX || head->prepare_offset >= head->code_size ||
               head->run_offset >= head->code_size) {
        fail(reader, "damaged descriptor: an entry lies outside the code");
    } else if (head->entry_symbols > head->symbols.count) {
        fail(reader, "damaged descriptor: more entry symbols than symbols");
    } else if (head->strings.count == 0) {
        fail(reader, "damaged descriptor: no strings");
    }
}

static void check_tables(struct reader *reader) {
    const struct tc_descriptor *head = reader->head;
    const uint8_t *strings = records(reader, head->strings, 1, "strings");
    if (!reader->failed && strings[head->strings.count - 1] != 0) fail(reader, "damaged descriptor: the strings do not end");
    records(reader, head->extents, sizeof(struct tc_extent_record), "extents");
    reader->parsed->terms = records(reader, head->terms, sizeof(struct tc_term_record), "terms");
    records(reader, head->symbols, sizeof(struct tc_symbol_record), "symbols");
    records(reader, head->inputs, sizeof(struct tc_tensor_record), "inputs");
    records(reader, head->outputs, sizeof(struct tc_tensor_record), "outputs");
    records(reader, head->weights, sizeof(struct tc_weight_record), "weights");
    records(reader, head->calls, sizeof(struct tc_call_record), "calls");
    records(reader, head->requirements, sizeof(struct tc_requirement_record), "requirements");
    records(reader, head->notes, sizeof(struct tc_note_record), "notes");
    records(reader, head->growing, sizeof(struct tc_growing_record), "growing buffers");
    records(reader, head->shares, sizeof(struct tc_share_record), "shares");
    records(reader, head->features, sizeof(uint32_t), "features");
    records(reader, head->sources, sizeof(uint32_t), "sources");
}

/* Memory that all parsed tables together need; a tensor may name more extents than there are records. */
static size_t space(struct reader *reader) {
    const struct tc_descriptor *head = reader->head;
    size_t bytes = 1024;
    bytes += head->symbols.count * (sizeof(tc_symbol) + 8) + head->features.count * sizeof(char *) + head->sources.count * sizeof(char *);
    bytes += (head->calls.count + head->requirements.count + head->growing.count) * (sizeof(tc_site) + 8);
    bytes += head->weights.count * (sizeof(tc_weight) + 8) + head->notes.count * sizeof(tc_note) + head->shares.count * sizeof(tc_share);
    const struct tc_table tables[2] = {head->inputs, head->outputs};
    for (int t = 0; t < 2; t++) {
        const struct tc_tensor_record *tensors = (const struct tc_tensor_record *)(reader->bytes + tables[t].offset);
        for (uint32_t i = 0; i < tables[t].count; i++) {
            size_t rank = tensors[i].rank < RANK_LIMIT ? tensors[i].rank : RANK_LIMIT;
            bytes += sizeof(tc_tensor) + 8 + rank * sizeof(tc_extent) + 8;
        }
    }
    return bytes;
}

static void check_entry_symbols(struct reader *reader) {
    const tc_module_info *info = &reader->parsed->info;
    for (int64_t symbol = 0; symbol < info->entry_symbol_count && !reader->failed; symbol++) {
        int bound = 0;
        for (int64_t k = 0; k < info->output_count; k++) bound |= info->outputs[k].pitch_symbol == symbol;
        for (int64_t i = 0; i < info->input_count; i++) bound |= info->inputs[i].pitch_symbol == symbol;
        for (int64_t i = 0; i < info->input_count; i++)
            for (int32_t axis = 0; axis < info->inputs[i].rank; axis++)
                bound |= info->inputs[i].extents[axis].kind == TC_SYMBOL && info->inputs[i].extents[axis].value == symbol;
        if (!bound) fail(reader, "damaged descriptor: no input gives the symbol %s", info->symbols[symbol].name);
    }
}

static void read_all(struct reader *reader) {
    const struct tc_descriptor *head = reader->head;
    tc_parsed *parsed = reader->parsed;
    tc_module_info *info = &parsed->info;
    info->name = text(reader, head->name);
    info->target = text(reader, head->target);
    info->arch = text(reader, head->arch);
    info->code_sha256 = head->code_sha256;
    info->weights_sha256 = head->weights_sha256;
    info->code_bytes = (int64_t)head->code_size;
    info->weights_bytes = (int64_t)head->weights_size;
    info->arena_bytes = head->arena_bytes;
    info->scratch_bytes = head->scratch_bytes;
    info->entry_symbol_count = head->entry_symbols;
    info->symbol_count = head->symbols.count;
    info->input_count = head->inputs.count;
    info->output_count = head->outputs.count;
    info->call_count = head->calls.count;
    info->requirement_count = head->requirements.count;
    info->weight_count = head->weights.count;
    info->note_count = head->notes.count;
    info->feature_count = head->features.count;
    info->growing_count = head->growing.count;
    info->share_count = head->shares.count;
    info->symbols = read_symbols(reader);
    info->inputs = read_tensors(reader, head->inputs, "inputs", &parsed->input_extents);
    info->outputs = read_tensors(reader, head->outputs, "outputs", &parsed->output_extents);
    info->features = read_names(reader, head->features, "features");
    const char *const *sources = read_names(reader, head->sources, "sources");
    info->calls = read_calls(reader, sources);
    info->requirements = read_requirements(reader, sources);
    info->weights = read_weights(reader);
    info->notes = read_notes(reader);
    info->growing = read_growing(reader, sources);
    info->shares = read_shares(reader);
    if (!reader->failed) check_entry_symbols(reader);
    parsed->prepare_offset = head->prepare_offset;
    parsed->run_offset = head->run_offset;
}

int32_t tc_parse(const void *descriptor, size_t size, tc_parsed *parsed, char *error, size_t error_size) {
    memset(parsed, 0, sizeof *parsed);
    uint8_t *bytes = malloc(size < sizeof(struct tc_descriptor) ? sizeof(struct tc_descriptor) : size);
    if (bytes == NULL) {
        snprintf(error, error_size, "no memory for a descriptor of %zu bytes", size);
        return TC_MEMORY;
    }
    memcpy(bytes, descriptor, size);
    struct reader reader = {bytes, (const struct tc_descriptor *)bytes, parsed, NULL, error, error_size, 0};
    parsed->bytes = bytes;
    check_head(&reader, size);
    if (!reader.failed) check_tables(&reader);
    if (!reader.failed) {
        parsed->tables = calloc(1, space(&reader));
        reader.cursor = parsed->tables;
        if (parsed->tables == NULL)
            fail(&reader, "no memory for the descriptor's tables");
        else
            read_all(&reader);
    }
    if (reader.failed) tc_parsed_free(parsed);
    return reader.failed ? TC_ARTIFACT : TC_OK;
}

void tc_parsed_free(tc_parsed *parsed) {
    free(parsed->bytes);
    free(parsed->tables);
    memset(parsed, 0, sizeof *parsed);
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static int64_t apply(uint32_t op, int64_t a, int64_t b, int *ok) {
    int64_t result = 0;
    switch (op) {
    case TC_TERM_ADD:
        if (__builtin_add_overflow(a, b, &result)) *ok = 0;
        return result;
    case TC_TERM_MUL:
        if (__builtin_mul_overflow(a, b, &result)) *ok = 0;
        return result;
    case TC_TERM_MIN: return a < b ? a : b;
    case TC_TERM_MAX: return a > b ? a : b;
    case TC_TERM_BCAST: return a == 1 ? b : a;
    }
    if (b == 0 || (b == -1 && a == INT64_MIN)) {
        *ok = 0;
        return 0;
    }
    return op == TC_TERM_FLOORDIV ? floor_div(a, b) : a - floor_div(a, b) * b;
}

int64_t tc_evaluate(const tc_parsed *parsed, const tc_extent *extent, const int64_t *dims, int *ok) {
    int64_t stack[TC_EXPRESSION_DEPTH];
    int depth = 0;
    *ok = 1;
    if (extent->kind == TC_CONST) return extent->value;
    if (extent->kind == TC_SYMBOL) return dims[extent->value];
    const struct tc_term_record *terms = parsed->terms + extent->first_term;
    for (int32_t i = 0; i < extent->term_count && *ok; i++) {
        if (terms[i].op == TC_TERM_CONST) {
            stack[depth++] = terms[i].value;
        } else if (terms[i].op == TC_TERM_SYMBOL) {
            stack[depth++] = dims[terms[i].value];
        } else {
            depth--;
            stack[depth - 1] = apply(terms[i].op, stack[depth - 1], stack[depth], ok);
        }
    }
    return *ok ? stack[0] : 0;
}
