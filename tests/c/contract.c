/* Contract test of the C ABI in C: misuse returns an error code, and the complete workflow succeeds.
 *
 * `contract [offline|full]`: `offline` skips the tests that need a model. The model is the file in SWARMLLM_TEST_SMOLLM2.
 * The last line is `N passed, N failed`; the exit status is 1 if any test failed. */

#define _XOPEN_SOURCE 700

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "swarmllm.h"

static int passed, failed;

/* Checks one statement of the contract. */
static void expect(int condition, const char *sentence) {
  char message[1100];
  if (condition) {
    passed++;
    printf("ok      %s\n", sentence);
  } else {
    failed++;
    swarmllm_last_error(message, sizeof message);
    printf("FAILED  %s (last error: %s)\n", sentence, message);
  }
  fflush(stdout);
}

static const swarmllm_string NO_STRING = {NULL, 0};

/* Whether the text contains the part. Frees the text. */
static int contains(swarmllm_string *text, const char *part) {
  int found = text->text != NULL && strlen(text->text) == text->length && strstr(text->text, part) != NULL;
  if (!found) printf("        no `%s` in %s\n", part, text->text ? text->text : "NULL");
  swarmllm_string_free(text);
  return found;
}

static char *new_directory(void) {
  static char paths[8][64];
  static int next;
  char *path = paths[next++];
  strcpy(path, "/tmp/swarmllm-c-XXXXXX");
  if (!mkdtemp(path)) perror("mkdtemp"), exit(2);
  return path;
}

static swarmllm_status start_in(const char *directory, swarmllm_node *node) {
  swarmllm_config config;
  swarmllm_status status = swarmllm_config_new(&config);
  if (!status) status = swarmllm_config_set_data_dir(config, directory);
  if (!status) status = swarmllm_config_set_preset(config, SWARMLLM_PRESET_OFFLINE);
  if (!status) status = swarmllm_config_set_threads(config, 2);
  if (!status) status = swarmllm_node_start(config, node);
  swarmllm_config_free(config);
  return status;
}

static void test_library(void) {
  char message[8];
  expect(strcmp(swarmllm_error_name(0), "Ok") == 0, "code 0 is Ok");
  expect(strcmp(swarmllm_error_name(SWARMLLM_MODEL_NOT_FOUND), "ModelNotFound") == 0, "a code has a name");
  expect(strcmp(swarmllm_error_name(-1), "Unknown") == 0, "an invalid code is Unknown");
  expect(strlen(swarmllm_version()) >= 5, "the library reports its version");
  expect(swarmllm_config_new(NULL) == SWARMLLM_INVALID_ARGUMENT, "NULL for a result is refused");
  expect(swarmllm_last_error(NULL, 0) > 8, "the last error reports its length");
  expect(swarmllm_last_error(message, sizeof message) > 8 && strlen(message) == 7, "a small buffer gets what fits");
}

static void test_configurations(void) {
  swarmllm_config config, zero = {0}, foreign;
  int i;
  expect(swarmllm_config_new(&config) == 0 && config.id != 0, "a configuration is created");
  expect(swarmllm_config_set_network(config, "c-test") == 0, "a setting is accepted");
  expect(swarmllm_config_set_network(config, NULL) == SWARMLLM_INVALID_ARGUMENT, "a NULL text is refused");
  expect(swarmllm_config_set_network(config, "\xff\xfe") == SWARMLLM_INVALID_ARGUMENT, "bad UTF-8 is refused");
  expect(swarmllm_config_set_private(config, 0) == 0, "an open swarm is accepted");
  expect(swarmllm_config_join(config, NULL) == SWARMLLM_INVALID_ARGUMENT, "a NULL invite is refused");
  expect(swarmllm_config_set_preset(config, 77) == SWARMLLM_INVALID_ARGUMENT, "an unknown preset is refused");
  expect(swarmllm_config_set_mdns(zero, 1) == SWARMLLM_INVALID_ARGUMENT, "handle 0 is refused");
  for (i = 0; i < 64; i++) swarmllm_config_add_listen(config, "/ip4/127.0.0.1/tcp/0");
  expect(swarmllm_config_add_listen(config, "/ip4/127.0.0.1/tcp/0") == SWARMLLM_INVALID_ARGUMENT,
         "the number of addresses is bounded");
  expect(swarmllm_config_free(config) == 0, "a configuration is freed");
  expect(swarmllm_config_free(config) == SWARMLLM_INVALID_ARGUMENT, "a double free is refused");
  expect(swarmllm_config_set_mdns(config, 1) == SWARMLLM_INVALID_ARGUMENT, "a freed handle is refused");
  expect(swarmllm_config_new(&foreign) == 0 && foreign.id != config.id &&
             swarmllm_config_set_mdns(config, 1) == SWARMLLM_INVALID_ARGUMENT,
         "a freed handle stays invalid when its slot is reused");
  swarmllm_config_free(foreign);
}

/* Whether this is the last error of this thread. */
static int last_error_is(const char *sentence) {
  char message[1100];
  swarmllm_last_error(message, sizeof message);
  if (strcmp(message, sentence)) printf("        `%s` instead of `%s`\n", message, sentence);
  return strcmp(message, sentence) == 0;
}

/* Errors about invalid options state the path, the expected type and the value found. */
static void test_options(swarmllm_node node) {
  static const char *const table[][2] = {
      {"[]", "`options` must be an object, not a list"},
      {"{", "`options` is not JSON: it ends too early, at line 1 column 1"},
      {"{\"max_token\":1}", "`max_token`: is not known; leave it out"},
      {"{\"max_tokens\":\"3\"}", "`max_tokens`: must be a whole number from 1 to 4294967295, not \"3\""},
      {"{\"max_tokens\":-1}", "`max_tokens`: must be a whole number from 1 to 4294967295, not -1"},
      {"{\"constraint\":{\"regex\":3}}", "`constraint.regex`: must be text, not 3"},
      {"{\"stop\":[\"a\",3]}", "`stop[1]`: must be text, not 3"},
  };
  const char *messages = "[{\"role\":\"user\",\"content\":\"x\"}]";
  swarmllm_generation generation = {0};
  swarmllm_string text = NO_STRING;
  size_t i;
  for (i = 0; i < sizeof table / sizeof table[0]; i++) {
    expect(swarmllm_node_chat(node, "m", messages, table[i][0], &generation) == SWARMLLM_INVALID_ARGUMENT &&
               last_error_is(table[i][1]),
           table[i][1]);
  }
  expect(swarmllm_node_chat(node, "m", "[{\"role\":\"user\"}]", NULL, &generation) == SWARMLLM_INVALID_ARGUMENT &&
             last_error_is("`messages[0].content`: is missing"),
         "a missing field of a message is named by its path");
  expect(swarmllm_node_import(node, "/no/such/file.gguf", "{\"parts\":[{\"start\":0}]}", NULL, NULL, &text) ==
                 SWARMLLM_INVALID_ARGUMENT &&
             last_error_is("`parts[0].end`: is missing"),
         "a missing field of a part is named by its path");
}

static void test_nodes(void) {
  char *directory = new_directory();
  swarmllm_config config;
  swarmllm_node node, second, foreign;
  swarmllm_generation none = {0}, generation = {7};
  swarmllm_delta delta;
  swarmllm_string text = NO_STRING;
  int started = start_in(directory, &node) == 0;

  expect(started && node.id != 0, "a node starts");
  if (!started) return;
  expect(swarmllm_node_id(node, &text) == 0 && text.length == 64, "a node has an id of 64 digits");
  swarmllm_string_free(&text);
  swarmllm_string_free(&text);
  expect(text.text == NULL && text.length == 0, "a string may be freed twice");
  swarmllm_string_free(NULL);
  expect(swarmllm_node_id(node, NULL) == SWARMLLM_INVALID_ARGUMENT, "NULL for a text is refused");
  expect(swarmllm_node_status_json(node, &text) == 0 && contains(&text, "\"data_dir\""), "a node reports its status");
  expect(swarmllm_node_models_json(node, &text) == 0 && contains(&text, "[]"), "a new node knows no models");
  expect(swarmllm_node_peers_json(node, &text) == 0 && contains(&text, "[]"), "an offline node knows no peers");
  expect(swarmllm_node_balances_json(node, &text) == 0 && contains(&text, "[]"), "a node without peers has no balances");
  expect(swarmllm_node_invite(node, 60, &text) == SWARMLLM_PEER_UNREACHABLE && text.text == NULL,
         "a node without listen addresses cannot invite");
  expect(swarmllm_node_addresses_json(node, &text) == 0 && contains(&text, "["), "a node reports its addresses");

  expect(start_in(directory, &second) == SWARMLLM_DATA_DIR_BUSY && second.id == 0,
         "a second node on one data directory is refused");
  expect(swarmllm_node_chat(node, "no-such-model", "[{\"role\":\"user\",\"content\":\"x\"}]", NULL, &generation) ==
                 SWARMLLM_MODEL_NOT_FOUND &&
             generation.id == 0,
         "an unknown model has its own error code");
  expect(swarmllm_node_pin(node, "no-such-model", 1) == SWARMLLM_MODEL_NOT_FOUND, "an unknown model cannot be pinned");
  expect(swarmllm_node_remove(node, "no-such-model", &text) == SWARMLLM_MODEL_NOT_FOUND, "an unknown model cannot be removed");
  expect(swarmllm_node_pin(node, NULL, 1) == SWARMLLM_INVALID_ARGUMENT, "NULL for a model is refused");
  expect(swarmllm_node_make_room(node, 1 << 30, &text) == 0 && contains(&text, "[]"),
         "without a disk budget no model is removed");
  expect(swarmllm_node_plan_json(node, "no-such-model", &text) == SWARMLLM_MODEL_NOT_FOUND && text.text == NULL,
         "a failed call leaves an empty text");
  expect(swarmllm_node_chat(node, "m", "not json", NULL, &generation) == SWARMLLM_INVALID_ARGUMENT,
         "messages that are not JSON are refused");
  expect(swarmllm_node_chat(node, "m", "[]", "{\"max_token\":1}", &generation) == SWARMLLM_INVALID_ARGUMENT,
         "an unknown option is refused");
  test_options(node);
  expect(swarmllm_node_chat(node, NULL, NULL, NULL, NULL) == SWARMLLM_INVALID_ARGUMENT, "NULLs everywhere are refused");
  expect(swarmllm_node_import(node, directory, NULL, NULL, NULL, &text) != 0, "a directory is not a model");
  expect(swarmllm_node_import_url(node, "ftp://example.org/a.gguf", NULL, NULL, NULL, &text) == SWARMLLM_INVALID_ARGUMENT,
         "addresses other than http and https are refused");
  expect(swarmllm_node_import(node, "/no/such/file.gguf", NULL, NULL, NULL, &text) == SWARMLLM_IO,
         "a missing file is an I/O error");
  expect(swarmllm_node_examine(node, "/no/such/file.gguf", NULL, &text) == SWARMLLM_IO && text.text == NULL,
         "a missing file is not examined");
  expect(swarmllm_node_examine_url(node, "ftp://example.org/a.gguf", NULL, &text) == SWARMLLM_INVALID_ARGUMENT,
         "an unsupported URL is not examined");
  expect(swarmllm_node_add_alias(node, "no-such-model", "x", &text) == SWARMLLM_MODEL_NOT_FOUND,
         "an unknown model gets no alias");
  expect(swarmllm_node_connect(node, "nonsense", &text) != 0, "an invalid address is refused");

  foreign.id = node.id;
  config.id = node.id;
  none.id = node.id;
  expect(swarmllm_config_set_mdns(config, 1) == SWARMLLM_INVALID_ARGUMENT, "a node handle is not accepted as a configuration");
  expect(swarmllm_generation_next(none, 0, &delta) == SWARMLLM_INVALID_ARGUMENT && delta.text.text == NULL,
         "a node handle is not accepted as a generation");

  expect(swarmllm_node_shutdown(node, 2000) == 0, "a node shuts down");
  expect(swarmllm_node_shutdown(node, 2000) == 0, "a node may be shut down twice");
  expect(swarmllm_node_plan_json(node, "m", &text) != 0, "a node that was shut down refuses work");
  expect(swarmllm_node_free(node) == 0, "a node is freed");
  expect(swarmllm_node_free(foreign) == SWARMLLM_INVALID_ARGUMENT, "a node is not freed twice");
  expect(start_in(directory, &node) == 0, "a data directory is free after its node is freed");
  expect(swarmllm_node_free(node) == 0, "a node that was not shut down may be freed");
}

static void test_bad_file(void) {
  char *directory = new_directory(), path[128];
  swarmllm_node node;
  swarmllm_string text = NO_STRING;
  FILE *file;
  if (start_in(directory, &node)) {
    expect(0, "a node starts");
    return;
  }
  snprintf(path, sizeof path, "%s/bad.gguf", directory);
  file = fopen(path, "wb");
  fputs("GGUF\003this is not a model at all, whatever its first bytes say", file);
  fclose(file);
  expect(swarmllm_node_import(node, path, NULL, NULL, NULL, &text) == SWARMLLM_BAD_GGUF, "a bad GGUF is refused");
  expect(swarmllm_node_models_json(node, &text) == 0 && contains(&text, "[]"), "a bad GGUF leaves nothing behind");
  swarmllm_node_free(node);
}

/* Stores the remaining bytes of the last progress report. */
static int store_progress(void *user, uint64_t done, uint64_t total) {
  *(uint64_t *)user = total - done;
  return 0;
}

static int refuse_progress(void *user, uint64_t done, uint64_t total) {
  (void)user, (void)done, (void)total;
  return 1;
}

static const char MESSAGES[] = "[{\"role\":\"user\",\"content\":\"What is a swarm?\"}]";
static const char GREEDY[] = "{\"max_tokens\":16,\"temperature\":0}";
static const char DATE[] = "{\"constraint\":{\"regex\":\"[0-9]{4}-[0-9]{2}-[0-9]{2}\"},\"logprobs\":2}";

/* Reads an answer to its end; returns the number of text deltas, or -1. */
static int read_answer(swarmllm_generation answer, char *text, size_t size) {
  swarmllm_delta delta;
  int texts = 0;
  text[0] = 0;
  do {
    if (swarmllm_generation_next(answer, 60000, &delta)) return -1;
    if (delta.kind == SWARMLLM_DELTA_TEXT && strlen(text) + delta.text.length < size) strcat(text, delta.text.text);
    texts += delta.kind == SWARMLLM_DELTA_TEXT;
    swarmllm_string_free(&delta.text);
  } while (delta.kind != SWARMLLM_DELTA_DONE);
  return texts;
}

static void test_embedding(swarmllm_node node) {
  static float vector[576], same[576];
  static char long_name[258];
  size_t length = 0, index;
  double square = 0;
  memset(long_name, 'c', sizeof long_name - 1);
  expect(swarmllm_node_embed(node, "smol", "A text.", SWARMLLM_POOLING_MEAN, NULL, vector, 575, &length) ==
                 SWARMLLM_INVALID_ARGUMENT &&
             length == 576,
         "a vector that does not fit is not written, but its length is");
  expect(swarmllm_node_embed(node, "smol", "A text.", SWARMLLM_POOLING_MEAN, NULL, vector, 576, &length) == 0 && length == 576,
         "a text is embedded");
  for (index = 0; index < length; ++index) square += (double)vector[index] * vector[index];
  expect(square > 0.999 && square < 1.001, "a vector has length 1");
  expect(swarmllm_node_embed(node, "smol", "A text.", SWARMLLM_POOLING_MEAN, NULL, same, 576, &length) == 0 &&
             memcmp(vector, same, sizeof vector) == 0,
         "an embedding is deterministic");
  expect(swarmllm_node_embed(node, "smol", "A text.", 2, NULL, vector, 576, &length) == SWARMLLM_INVALID_ARGUMENT && length == 0,
         "an unknown pooling is refused");
  expect(swarmllm_node_embed(node, "smol", "A text.", SWARMLLM_POOLING_MEAN, long_name, vector, 576, &length) ==
                 SWARMLLM_INVALID_ARGUMENT &&
             length == 0,
         "a caller's name of more than 256 bytes is refused");
  expect(swarmllm_node_embed(node, "smol", "A text.", SWARMLLM_POOLING_MEAN, "somebody", same, 576, &length) == 0,
         "a caller's name is accepted");
  expect(swarmllm_node_embed(node, "smol", "", SWARMLLM_POOLING_LAST, NULL, vector, 576, NULL) == SWARMLLM_INVALID_ARGUMENT,
         "NULL for the length is refused");
}

static void test_workflow(const char *model) {
  static char first[4096], second[4096];
  swarmllm_node node;
  swarmllm_generation answer;
  swarmllm_string text = NO_STRING;
  swarmllm_delta delta;
  uint64_t left = UINT64_MAX;
  if (start_in(new_directory(), &node)) {
    expect(0, "a node starts");
    return;
  }
  expect(swarmllm_node_import(node, model, NULL, refuse_progress, NULL, &text) == SWARMLLM_CANCELLED,
         "a progress function cancels an import");
  expect(swarmllm_node_import(node, model, "{\"name\":\"smol\"}", store_progress, &left, &text) == 0 &&
             contains(&text, "\"name\":\"smol\"") && left == 0,
         "a model is imported, with progress up to its end");
  expect(swarmllm_node_plan_json(node, "smol", &text) == 0 && contains(&text, "\"stages\":[{"), "a plan is reported");
  expect(swarmllm_node_pin(node, "smol", 1) == 0 && swarmllm_node_pin(node, "smol", 0) == 0,
         "a model is pinned and unpinned");
  expect(swarmllm_node_pin(node, "smol", 1) == 0 && swarmllm_node_remove(node, "smol", &text) == SWARMLLM_INVALID_ARGUMENT &&
             swarmllm_node_pin(node, "smol", 0) == 0,
         "a pinned model is not removed");
  expect(swarmllm_node_remove(node, "smol", &text) == 0 && contains(&text, "\"name\":\"smol\",\"freed\":"),
         "a model is removed and the freed bytes are reported");
  expect(swarmllm_node_import(node, model, "{\"name\":\"smol\"}", NULL, NULL, &text) == 0, "a removed model is imported again");
  expect(swarmllm_node_examine(node, model, NULL, &text) == 0 &&
             contains(&text, "\"architecture\":\"llama\",\"refuses\":false"),
         "the report of an import is JSON");
  expect(swarmllm_node_add_alias(node, "smol", "small", &text) == 0 && contains(&text, "\"aliases\":[\"small\",\"smol\"]"),
         "an alias is added");
  expect(swarmllm_node_move_alias(node, "small", "tiny", &text) == 0 && contains(&text, "\"tiny\""), "an alias is moved");
  expect(swarmllm_node_remove_alias(node, "tiny") == 0 && swarmllm_node_remove_alias(node, "tiny") == SWARMLLM_MODEL_NOT_FOUND,
         "an alias is removed");
  test_embedding(node);

  expect(swarmllm_node_chat(node, "smol", MESSAGES, GREEDY, &answer) == 0, "a chat begins");
  expect(read_answer(answer, first, sizeof first) > 1 && first[0], "an answer arrives in several deltas");
  expect(swarmllm_generation_next(answer, 0, &delta) == 0 && delta.kind == SWARMLLM_DELTA_DONE,
         "the end is reported again");
  expect(swarmllm_generation_route_json(answer, &text) == 0 && contains(&text, "\"layers\""), "the route is reported");
  expect(swarmllm_generation_completion_json(answer, &text) == 0 && contains(&text, "\"completion_tokens\":16"),
         "the completion has 16 tokens");
  expect(swarmllm_generation_free(answer) == 0, "a generation is freed");
  expect(swarmllm_generation_next(answer, 0, &delta) == SWARMLLM_INVALID_ARGUMENT, "a freed generation is refused");

  expect(swarmllm_node_chat(node, "smol", MESSAGES, GREEDY, &answer) == 0 && read_answer(answer, second, sizeof second) > 0 &&
             strcmp(first, second) == 0,
         "a greedy answer is deterministic");
  swarmllm_generation_free(answer);

  expect(swarmllm_node_generate(node, "smol", "One, two,", GREEDY, &answer) == 0 &&
             swarmllm_generation_completion_json(answer, &text) == 0 && contains(&text, "\"text\":"),
         "a text is continued without streaming");
  swarmllm_generation_free(answer);

  expect(swarmllm_node_generate(node, "smol", "One, two,", "{\"wire\":\"int8\",\"standby\":true,\"max_tokens\":4}",
                                &answer) == 0 &&
             swarmllm_generation_completion_json(answer, &text) == 0 && contains(&text, "\"text\":"),
         "rounded states and standbys are accepted");
  swarmllm_generation_free(answer);
  expect(swarmllm_node_generate(node, "smol", "One, two,", "{\"wire\":\"int9\"}", &answer) ==
             SWARMLLM_INVALID_ARGUMENT,
         "an unknown codec is refused");

  expect(swarmllm_node_generate(node, "smol", "Today is", DATE, &answer) == 0 &&
             swarmllm_generation_completion_json(answer, &text) == 0 && contains(&text, "\"finish\":\"stop\""),
         "an answer satisfies its constraint");
  expect(swarmllm_generation_completion_json(answer, &text) == 0 && contains(&text, "\"alternatives\":[{\"token\":"),
         "tokens have log-probabilities and alternatives");
  swarmllm_generation_free(answer);
  expect(swarmllm_node_chat(node, "smol", MESSAGES, "{\"constraint\":{\"regex\":\"(\"}}", &answer) ==
             SWARMLLM_INVALID_ARGUMENT,
         "an invalid constraint is refused");

  expect(swarmllm_node_chat(node, "smol", MESSAGES, "{\"max_tokens\":2000}", &answer) == 0 &&
             swarmllm_generation_next(answer, 60000, &delta) == 0 && delta.kind == SWARMLLM_DELTA_TEXT,
         "a long answer begins");
  swarmllm_string_free(&delta.text);
  expect(swarmllm_generation_cancel(answer) == 0 && swarmllm_generation_cancel(answer) == 0,
         "an answer may be cancelled twice");
  swarmllm_generation_completion_json(answer, &text);
  expect(contains(&text, "\"prompt_tokens\""), "the text before the cancel is kept");
  swarmllm_generation_free(answer);

  expect(swarmllm_node_chat(node, "smol", MESSAGES, NULL, &answer) == 0 && swarmllm_generation_free(answer) == 0,
         "a running answer may be freed");
  expect(swarmllm_node_shutdown(node, 5000) == 0 && swarmllm_node_free(node) == 0, "the node stops");
}

int main(int argc, char **argv) {
  const char *model = getenv("SWARMLLM_TEST_SMOLLM2");
  int offline = argc > 1 && strcmp(argv[1], "offline") == 0;
  test_library();
  test_configurations();
  test_nodes();
  test_bad_file();
  if (offline) {
    printf("skipped: tests that need a model\n");
  } else if (model) {
    test_workflow(model);
  } else {
    printf("SKIPPED: SWARMLLM_TEST_SMOLLM2 is not set, so the tests that need a model did not run\n");
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
