/* The parts of the model $name as read-only data of the library. Written by tcompile. */
#include "${id}_model.h"

#if !defined(__ELF__) || !(defined(__GNUC__) || defined(__clang__))
#error "the model is embedded with .incbin: build with GCC or Clang for an ELF platform"
#endif
#ifndef MODEL_DIR
#define MODEL_DIR "model"
#endif

/* A file as 64-byte aligned bytes between NAME and NAME_end. */
#define EMBED(name, file)                             \
    __asm__(".pushsection .rodata\n"                  \
            ".hidden " #name "\n.hidden " #name "_end\n" \
            ".global " #name "\n.global " #name "_end\n" \
            ".balign 64\n" #name ":\n"                \
            ".incbin \"" MODEL_DIR "/" file "\"\n"    \
            #name "_end:\n"                           \
            ".byte 0\n.popsection\n");                \
    extern const unsigned char name[], name##_end[]

EMBED(${id}_descriptor, "descriptor.bin");
EMBED(${id}_code, "code.bin");
EMBED(${id}_weights, "weights.bin");

int32_t ${id}_open(tc_module **module, char *error, size_t error_size) {
    return tc_open(${id}_descriptor, (size_t)(${id}_descriptor_end - ${id}_descriptor), ${id}_code,
                   (size_t)(${id}_code_end - ${id}_code), ${id}_weights, (size_t)(${id}_weights_end - ${id}_weights), module, error,
                   error_size);
}
