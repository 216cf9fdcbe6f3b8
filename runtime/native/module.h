/* An opened model. */
#ifndef TC_MODULE_H
#define TC_MODULE_H

#include "descriptor.h"

#include <stdatomic.h>

struct tc_module {
    tc_parsed parsed;
    void *code;
    size_t code_size;
    const uint8_t *weights;
    tc_entry prepare;
    tc_entry run;
    atomic_uint holds;
};

tc_module *tc_module_share(tc_module *module);

#endif
