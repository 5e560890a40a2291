/* Starts a node, imports a model, asks it, prints the route, stops. `chat FILE.gguf|MODEL [QUESTION]`
 * (The question is put into JSON unescaped: it must have no quotes and backslashes.) */

#include <stdio.h>
#include <stdlib.h>

#include "swarmllm.h"

static void check(swarmllm_status status) {
  char message[1100];
  if (status == SWARMLLM_OK) return;
  swarmllm_last_error(message, sizeof message);
  fprintf(stderr, "chat: %s (%s)\n", message, swarmllm_error_name(status));
  exit(1);
}

int main(int argc, char **argv) {
  const char *question = argc > 2 ? argv[2] : "What is a swarm?";
  swarmllm_config config;
  swarmllm_node node;
  swarmllm_generation answer;
  swarmllm_delta delta;
  swarmllm_string text;
  char messages[4096];
  if (argc < 2) return fprintf(stderr, "usage: chat FILE.gguf|MODEL [QUESTION]\n"), 2;

  check(swarmllm_config_new(&config));
  check(swarmllm_node_start(config, &node));
  check(swarmllm_config_free(config));

  FILE *file = fopen(argv[1], "rb");
  if (file) {
    fclose(file);
    check(swarmllm_node_import(node, argv[1], "{\"name\":\"mine\"}", NULL, NULL, &text));
    swarmllm_string_free(&text);
  }
  snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"%s\"}]", question);
  check(swarmllm_node_chat(node, file ? "mine" : argv[1], messages, "{\"max_tokens\":64}", &answer));
  do {
    check(swarmllm_generation_next(answer, SWARMLLM_FOREVER, &delta));
    if (delta.kind == SWARMLLM_DELTA_TEXT) fputs(delta.text.text, stdout), fflush(stdout);
    swarmllm_string_free(&delta.text);
  } while (delta.kind != SWARMLLM_DELTA_DONE);
  check(swarmllm_generation_route_json(answer, &text));
  printf("\n%s\n", text.text);
  swarmllm_string_free(&text);

  check(swarmllm_generation_free(answer));
  check(swarmllm_node_shutdown(node, 5000));
  check(swarmllm_node_free(node));
  return 0;
}
