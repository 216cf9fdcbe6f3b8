/* A parsed descriptor: every offset and number in it has been checked. */
#ifndef TC_DESCRIPTOR_H
#define TC_DESCRIPTOR_H

#include "tcompile.h"

#define TC_HASH_BYTES 32
#define TC_EXPRESSION_DEPTH 64

typedef struct tc_parsed {
    tc_module_info info;
    uint64_t prepare_offset;
    uint64_t run_offset;
    const struct tc_term_record *terms;
    int64_t input_extents;  /* of all inputs together */
    int64_t output_extents; /* of all outputs together */
    void *bytes;            /* the copy that names point into */
    void *tables;
} tc_parsed;

/* Fills `parsed`. On failure writes a message and leaves nothing to free. */
int32_t tc_parse(const void *descriptor, size_t size, tc_parsed *parsed, char *error, size_t error_size);
void tc_parsed_free(tc_parsed *parsed);

/* The value of an extent under `dims`; 0 where it divides by zero or overflows, with *ok = 0. */
int64_t tc_evaluate(const tc_parsed *parsed, const tc_extent *extent, const int64_t *dims, int *ok);

#endif
