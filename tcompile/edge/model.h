/* The model $name for $target, written by tcompile $version.
 *
 * Memory of a run: $memory.
 *
 * Inputs, in the order of tc_session_prepare and tc_session_run:
$inputs
 * Outputs:
$outputs
 */
#ifndef ${macro}_MODEL_H
#define ${macro}_MODEL_H

#include "tcompile.h"

#ifdef __cplusplus
extern "C" {
#endif

$positions

/* Opens the model that is linked into this library; tc_close gives it back. The code is copied into executable memory,
 * the weights stay where they are. On failure returns the status and writes a message. */
TC_API int32_t ${id}_open(tc_module **module, char *error, size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
