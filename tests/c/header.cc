// The header is C++ too: compiled, not run.
#include "swarmllm.h"

static_assert(sizeof(swarmllm_node) == 8, "a handle is a number of 64 bits");
static_assert(SWARMLLM_OK == 0, "success is 0");

swarmllm_status start(swarmllm_config config, swarmllm_node *node) { return swarmllm_node_start(config, node); }
