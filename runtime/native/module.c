/* Opens a model's descriptor and code, and tells what is in it. */
#include "module.h"

#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t check_machine(const tc_module_info *info, char *error, size_t error_size) {
    if (strcmp(info->arch, tc_cpu_arch()) != 0) {
        snprintf(error, error_size, "the model is compiled for %s (target %s), this machine is %s", info->arch, info->target, tc_cpu_arch());
        return TC_MACHINE;
    }
    for (int64_t i = 0; i < info->feature_count; i++) {
        int32_t has = tc_cpu_has(info->features[i]);
        if (has == 1) continue;
        snprintf(error, error_size, "the model is compiled for target %s, whose CPU feature %s this %s", info->target, info->features[i],
                 has == 0 ? "machine does not have" : "runtime does not know");
        return TC_MACHINE;
    }
    return TC_OK;
}

static int32_t open_parts(tc_module *module, const void *code, size_t code_size, const void *weights, size_t weights_size, char *error,
                          size_t error_size) {
    const tc_module_info *info = &module->parsed.info;
    int32_t status = check_machine(info, error, error_size);
    if (status != TC_OK) return status;
    if (code_size != (size_t)info->code_bytes) {
        snprintf(error, error_size, "damaged model: its code has %zu bytes, expected %lld", code_size, (long long)info->code_bytes);
        return TC_ARTIFACT;
    }
    if (weights_size < (size_t)info->weights_bytes || (uintptr_t)weights % TC_ALIGN != 0) {
        snprintf(error, error_size, "the weights have %zu bytes at address %p, expected %lld at a multiple of %d", weights_size, weights,
                 (long long)info->weights_bytes, TC_ALIGN);
        return TC_ARTIFACT;
    }
    module->code = tc_map_code(code, code_size);
    if (module->code == NULL) {
        snprintf(error, error_size, "the system gives no executable memory for %zu bytes of code", code_size);
        return TC_MEMORY;
    }
    module->code_size = code_size;
    module->weights = weights;
    module->prepare = (tc_entry)(uintptr_t)((char *)module->code + module->parsed.prepare_offset);
    module->run = (tc_entry)(uintptr_t)((char *)module->code + module->parsed.run_offset);
    return TC_OK;
}

int32_t tc_open(const void *descriptor, size_t descriptor_size, const void *code, size_t code_size, const void *weights,
                size_t weights_size, tc_module **module, char *error, size_t error_size) {
    *module = NULL;
    tc_module *opened = calloc(1, sizeof *opened);
    if (opened == NULL) {
        snprintf(error, error_size, "no memory to open a model");
        return TC_MEMORY;
    }
    int32_t status = tc_parse(descriptor, descriptor_size, &opened->parsed, error, error_size);
    if (status == TC_OK) {
        status = open_parts(opened, code, code_size, weights, weights_size, error, error_size);
        if (status != TC_OK) tc_parsed_free(&opened->parsed);
    }
    if (status != TC_OK) {
        free(opened);
        return status;
    }
    atomic_store(&opened->holds, 1);
    *module = opened;
    return TC_OK;
}

tc_module *tc_module_share(tc_module *module) {
    atomic_fetch_add(&module->holds, 1);
    return module;
}

void tc_close(tc_module *module) {
    if (module == NULL || atomic_fetch_sub(&module->holds, 1) != 1) return;
    tc_unmap_code(module->code, module->code_size);
    tc_parsed_free(&module->parsed);
    free(module);
}

const tc_module_info *tc_module_describe(const tc_module *module) { return &module->parsed.info; }
