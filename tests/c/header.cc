// Compile-only test: the header is also valid C++.
#include "swarmllm.h"

static_assert(sizeof(swarmllm_node) == 8, "a handle is a 64-bit number");
static_assert(SWARMLLM_OK == 0, "success is 0");

swarmllm_status start(swarmllm_config config, swarmllm_node *node) { return swarmllm_node_start(config, node); }
