/* Opens mutants of a model's descriptor: each is refused or holds together, which AddressSanitizer watches.
 *
 *     descriptors DESCRIPTOR CODE WEIGHTS SEED COUNT
 *
 * Nothing of the code runs: a descriptor and its code are one thing, and only the hashes, which are the caller's to verify, say
 * that they belong together. Prints how many mutants were opened and how many refused.
 */
#include "tcompile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bytes {
    uint8_t *data;
    size_t size;
};

static uint64_t state;

static uint64_t draw(uint64_t below) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 2685821657736338717ull >> 16) % below;
}

static struct bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) abort();
    fseek(file, 0, SEEK_END);
    struct bytes read = {NULL, (size_t)ftell(file)};
    rewind(file);
    read.data = aligned_alloc(64, (read.size / 64 + 1) * 64);
    if (read.data == NULL || fread(read.data, 1, read.size, file) != read.size) abort();
    fclose(file);
    return read;
}

/* What a count, an offset or a name may wrongly be. */
static uint32_t odd_number(uint32_t old, size_t size) {
    const uint32_t odd[] = {0, 1, old + 1, old - 1, old * 2, old + 8, old - 8, 1u << 24, INT32_MAX, UINT32_MAX, (uint32_t)size, (uint32_t)draw(size + 64)};
    return odd[draw(sizeof odd / sizeof *odd)];
}

static void mutate(struct bytes *mutant) {
    size_t region = draw(2) ? mutant->size : sizeof(struct tc_descriptor);
    size_t within = region < mutant->size ? region : mutant->size;
    uint32_t word;
    if (within < sizeof word) return;
    size_t place = draw(within / sizeof word) * sizeof word;
    switch (draw(4)) {
    case 0:
        mutant->data[place] ^= (uint8_t)(1u << draw(8));
        break;
    case 1:
        mutant->data[place + draw(sizeof word)] = (uint8_t)draw(256);
        break;
    case 2:
        memcpy(&word, mutant->data + place, sizeof word);
        word = odd_number(word, mutant->size);
        memcpy(mutant->data + place, &word, sizeof word);
        break;
    default: /* cut it, and sometimes say so */
        if (draw(4) != 0) break;
        mutant->size = draw(mutant->size + 1);
        word = (uint32_t)mutant->size;
        if (draw(2) && mutant->size >= sizeof(struct tc_descriptor)) memcpy(mutant->data + offsetof(struct tc_descriptor, size), &word, sizeof word);
    }
}

static size_t length(const char *text) { return text == NULL ? 0 : strlen(text); }

static size_t of_extent(const tc_session *session, const tc_extent *extent) {
    return length(extent->text) + (size_t)(tc_session_extent(session, extent) & 1);
}

static size_t of_tensors(const tc_session *session, const tc_tensor *tensors, int64_t count) {
    size_t total = 0;
    for (int64_t k = 0; k < count; k++) {
        total += length(tensors[k].name);
        for (int32_t axis = 0; axis < tensors[k].rank; axis++) total += of_extent(session, &tensors[k].extents[axis]);
    }
    return total;
}

static size_t of_sites(const tc_session *session, const tc_site *sites, int64_t count) {
    size_t total = 0;
    for (int64_t k = 0; k < count; k++) {
        total += length(sites[k].name) + length(sites[k].record);
        for (int64_t i = 0; i < sites[k].source_count; i++) total += length(sites[k].sources[i]);
        total += of_extent(session, &sites[k].flops) + of_extent(session, &sites[k].bytes) + of_extent(session, &sites[k].cycles);
    }
    return total;
}

/* Reads all that a module tells. */
static size_t read_all(const tc_module_info *info, const tc_session *session) {
    size_t total = length(info->name) + length(info->target) + length(info->arch) + info->code_sha256[31] + info->weights_sha256[31];
    for (int64_t k = 0; k < info->symbol_count; k++)
        total += length(info->symbols[k].name) + of_extent(session, &info->symbols[k].lo) + length(info->symbols[k].hi.text);
    total += of_tensors(session, info->inputs, info->input_count) + of_tensors(session, info->outputs, info->output_count);
    total += of_sites(session, info->calls, info->call_count) + of_sites(session, info->requirements, info->requirement_count);
    total += of_sites(session, info->growing, info->growing_count);
    for (int64_t k = 0; k < info->weight_count; k++) total += length(info->weights[k].name) + (size_t)(info->weights[k].offset & 1);
    for (int64_t k = 0; k < info->note_count; k++) total += length(info->notes[k].key) + length(info->notes[k].value);
    for (int64_t k = 0; k < info->feature_count; k++) total += length(info->features[k]);
    for (int64_t k = 0; k < info->share_count; k++) total += length(info->inputs[info->shares[k].input].name);
    return total;
}

/* A session of the module; shapes of no element type are refused before any code runs. */
static size_t use(tc_module *module) {
    const tc_module_info *info = tc_module_describe(module);
    tc_session *session = tc_session_new(module, NULL);
    if (session == NULL) return 0;
    size_t total = read_all(info, session);
    tc_shape *shapes = calloc((size_t)info->input_count + 1, sizeof *shapes);
    int64_t extents[64] = {0};
    for (int64_t k = 0; shapes != NULL && k < info->input_count; k++) shapes[k] = (tc_shape){extents, info->inputs[k].rank, -1};
    if (shapes != NULL && info->input_count > 0 && tc_session_prepare(session, shapes) == TC_OK) abort();
    total += length(tc_session_error(session)) + length(tc_session_hint(session));
    free(shapes);
    tc_session_free(session);
    return total;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    struct bytes descriptor = read_file(arguments[1]), code = read_file(arguments[2]), weights = read_file(arguments[3]);
    state = strtoull(arguments[4], NULL, 10) * 2654435761u + 1;
    int64_t mutants = strtoll(arguments[5], NULL, 10), opened = 0;
    size_t total = 0;
    for (int64_t k = 0; k < mutants; k++) {
        struct bytes mutant = {malloc(descriptor.size), descriptor.size};
        memcpy(mutant.data, descriptor.data, descriptor.size);
        for (uint64_t changes = draw(4) + (k > 0); changes > 0; changes--) mutate(&mutant);
        mutant.data = realloc(mutant.data, mutant.size ? mutant.size : 1); /* no byte more, so that reading on is seen */
        char error[256];
        tc_module *module;
        int32_t status = tc_open(mutant.data, mutant.size, code.data, code.size, weights.data, weights.size, &module, error, sizeof error);
        free(mutant.data);
        if (status == TC_OK) {
            opened++;
            total += use(module);
            tc_close(module);
        } else {
            total += strlen(error);
        }
    }
    free(descriptor.data);
    free(code.data);
    free(weights.data);
    printf("%lld opened, %lld refused%s\n", (long long)opened, (long long)(mutants - opened), total == 0 ? " without a word" : "");
    return 0;
}
