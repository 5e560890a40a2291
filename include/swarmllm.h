/*
 * swarmllm: an LLM swarm that you can link.
 *
 * Generated from swarmllm-ffi; do not edit. `SWARMLLM_BLESS=1 cargo test -p swarmllm-ffi` regenerates it.
 *
 * Calls. Every call that can fail returns a `swarmllm_status`: SWARMLLM_OK, or the number of an error kind. The numbers
 * are stable. `swarmllm_last_error` copies the message of the calling thread's last failed call. A result that a
 * failing call did not write is empty: handle 0, or {NULL, 0}.
 *
 * Handles are numbers, not pointers. A handle that is 0, freed, or of another kind gives an error; it never crashes, and
 * never refers to a newer object. Free each handle once.
 *
 * Text. Arguments are UTF-8 with a closing NUL; the library does not keep them after the call. Results are
 * `swarmllm_string`: read-only, owned by the caller until `swarmllm_string_free`.
 *
 * Threads. Every call may be made from any thread, concurrently, on the same handles too. Calls that wait (start, connect,
 * import, examine, pull, pin, aliases, remove, make room, plan, embed, chat, generate, next, completion, shutdown) block
 * the calling thread; on a thread of an async runtime they fail with SWARMLLM_UNSUPPORTED. A progress function is called on
 * the thread that made the call, before the call returns. The last error is kept per thread. In a process forked after a
 * node had started, calls on that node fail with SWARMLLM_FORKED.
 *
 * The library starts its own threads with the first node. It installs no signal handler, allocator or logger.
 */

#ifndef SWARMLLM_H
#define SWARMLLM_H

#include <stddef.h>
#include <stdint.h>

/** Status codes: 1xx usage, 2xx models, 3xx swarm, 4xx ledger, 5xx host system, 9xx defects of the library. */
enum {
  SWARMLLM_OK = 0,
  SWARMLLM_INVALID_ARGUMENT = 100,
  SWARMLLM_INVALID_CONFIG = 101,
  SWARMLLM_CLOSED = 102,
  SWARMLLM_CONTEXT_OVERFLOW = 103,
  SWARMLLM_CANCELLED = 104,
  SWARMLLM_FORKED = 105,
  SWARMLLM_UNSUPPORTED = 106,
  SWARMLLM_MODEL_NOT_FOUND = 200,
  SWARMLLM_BAD_GGUF = 201,
  SWARMLLM_UNSUPPORTED_ARCHITECTURE = 202,
  SWARMLLM_SHARD_MISSING = 203,
  SWARMLLM_SHARD_CORRUPT = 204,
  SWARMLLM_BAD_MANIFEST = 205,
  SWARMLLM_BAD_TOKENIZER = 206,
  SWARMLLM_BAD_TEMPLATE = 207,
  SWARMLLM_SOURCE_UNREACHABLE = 208,
  SWARMLLM_BAD_SOURCE = 209,
  SWARMLLM_SOURCE_CHANGED = 210,
  SWARMLLM_ALIAS_TAKEN = 211,
  SWARMLLM_PEER_NOT_FOUND = 300,
  SWARMLLM_PEER_UNREACHABLE = 301,
  SWARMLLM_NO_PLAN = 302,
  SWARMLLM_PEER_LOST = 303,
  SWARMLLM_REFUSED = 304,
  SWARMLLM_BAD_FRAME = 305,
  SWARMLLM_TIMEOUT = 306,
  SWARMLLM_OVERLOADED = 307,
  SWARMLLM_NO_CREDIT = 400,
  SWARMLLM_LEDGER_CONFLICT = 401,
  SWARMLLM_IO = 500,
  SWARMLLM_DISK_FULL = 501,
  SWARMLLM_DATA_DIR_BUSY = 502,
  SWARMLLM_PORT_IN_USE = 503,
  SWARMLLM_STORE_DAMAGED = 504,
  SWARMLLM_OUT_OF_MEMORY = 505,
  SWARMLLM_DISK_BUDGET = 506,
  SWARMLLM_ENGINE_FAILED = 901,
  SWARMLLM_INTERNAL = 900,
};

/**
 * A `timeout_ms` without limit.
 */
#define SWARMLLM_FOREVER 4294967295

/**
 * How a node finds and reaches peers.
 */
typedef enum {
  /**
   * No network.
   */
  SWARMLLM_PRESET_OFFLINE = 0,
  /**
   * Finds peers on the LAN and listens on ephemeral ports. The default.
   */
  SWARMLLM_PRESET_LAN = 1,
  /**
   * Listens on the configured ports and computes for peers.
   */
  SWARMLLM_PRESET_PUBLIC = 2,
} swarmllm_preset;

/**
 * The kind of a `swarmllm_delta`.
 */
typedef enum {
  /**
   * More text: whole characters, never empty.
   */
  SWARMLLM_DELTA_TEXT = 1,
  /**
   * The end of the answer; `swarmllm_generation_completion_json` returns the details.
   */
  SWARMLLM_DELTA_DONE = 2,
  /**
   * The timeout passed; call again.
   */
  SWARMLLM_DELTA_TIMEOUT = 3,
} swarmllm_delta_kind;

/**
 * How the hidden states of a text's tokens become one vector.
 */
typedef enum {
  /**
   * Their mean.
   */
  SWARMLLM_POOLING_MEAN = 0,
  /**
   * The state of the last token, the only one that depends on the whole text.
   */
  SWARMLLM_POOLING_LAST = 1,
} swarmllm_pooling;

/**
 * How a call ended: `SWARMLLM_OK`, or one of the other `SWARMLLM_` codes.
 */
typedef int32_t swarmllm_status;

/**
 * Text returned by the library: UTF-8 with a closing NUL. The caller owns it until `swarmllm_string_free`.
 */
typedef struct {
  /**
   * The text, or NULL.
   */
  const char * text;
  /**
   * Bytes before the closing NUL.
   */
  size_t length;
} swarmllm_string;

/**
 * A configuration to start nodes from. Settings that are not made have the library's defaults.
 */
typedef struct {
  /**
   * Opaque; 0 is never a handle.
   */
  uint64_t id;
} swarmllm_config;

/**
 * A running node.
 */
typedef struct {
  /**
   * Opaque; 0 is never a handle.
   */
  uint64_t id;
} swarmllm_node;

/**
 * Receives the progress of a long call, in bytes, on the thread that made the call. Returns 0 to continue; any other value
 * cancels the call. `user` is the pointer given with the call.
 */
typedef int32_t (*swarmllm_progress)(void *user, uint64_t done, uint64_t total);

/**
 * A running answer. Freeing it cancels the answer at every stage.
 */
typedef struct {
  /**
   * Opaque; 0 is never a handle.
   */
  uint64_t id;
} swarmllm_generation;

/**
 * A piece of an answer.
 */
typedef struct {
  /**
   * One of `swarmllm_delta_kind`.
   */
  int32_t kind;
  /**
   * The text of a `SWARMLLM_DELTA_TEXT`; free it with `swarmllm_string_free`.
   */
  swarmllm_string text;
} swarmllm_delta;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Copies the message of this thread's last failed call into `buffer` (at most `size` bytes with the closing NUL, truncated
 * between characters). Returns the whole length of the message in bytes without the NUL. `buffer` may be NULL: the call
 * then only returns the length.
 */
size_t swarmllm_last_error(char *buffer,
                           size_t size);

/**
 * The name of a status code, such as `ModelNotFound`; `Ok` for 0, `Unknown` for any other number. Never freed.
 */
const char *swarmllm_error_name(swarmllm_status code);

/**
 * The version of the library, such as `0.1.0`. Never freed.
 */
const char *swarmllm_version(void);

/**
 * Frees a string and empties it. NULL and an empty string are allowed.
 */
void swarmllm_string_free(swarmllm_string *string);

/**
 * Creates a configuration with the library's defaults.
 */
swarmllm_status swarmllm_config_new(swarmllm_config *config);

/**
 * Sets the directory of keys, models and the store.
 */
swarmllm_status swarmllm_config_set_data_dir(swarmllm_config config, const char *path);

/**
 * Sets the name of the swarm. Nodes of different swarms do not connect.
 */
swarmllm_status swarmllm_config_set_network(swarmllm_config config, const char *name);

/**
 * Makes the swarm private (0 = no): its nodes share a secret, and nodes without the secret cannot complete a handshake.
 * The first node creates the secret; other nodes join by `swarmllm_config_join`. A private swarm uses TCP only.
 */
swarmllm_status swarmllm_config_set_private(swarmllm_config config,
                                            int32_t on);

/**
 * Joins the swarm of an invite. The data directory stores the membership.
 */
swarmllm_status swarmllm_config_join(swarmllm_config config, const char *invite);

/**
 * Sets how the node finds and reaches peers: one of `swarmllm_preset`.
 */
swarmllm_status swarmllm_config_set_preset(swarmllm_config config, int32_t preset);

/**
 * Adds an address to listen on (multiaddr; port 0 = any free port). The first address replaces the defaults.
 */
swarmllm_status swarmllm_config_add_listen(swarmllm_config config, const char *address);

/**
 * Adds a peer that the node dials at start, and redials when the connection is lost (multiaddr with `/p2p/`).
 */
swarmllm_status swarmllm_config_add_bootstrap(swarmllm_config config, const char *address);

/**
 * Sets whether the node finds peers on the LAN by mDNS (0 = no).
 */
swarmllm_status swarmllm_config_set_mdns(swarmllm_config config, int32_t on);

/**
 * Sets whether the node relays connections for peers behind NAT (0 = no). The relayed bytes are encrypted between the peers.
 */
swarmllm_status swarmllm_config_set_relay(swarmllm_config config,
                                          int32_t on);

/**
 * Adds an external address of the node, such as a forwarded port (multiaddr).
 */
swarmllm_status swarmllm_config_add_external(swarmllm_config config, const char *address);

/**
 * Sets whether the node asks the router to forward its ports by UPnP (0 = no).
 */
swarmllm_status swarmllm_config_set_upnp(swarmllm_config config, int32_t on);

/**
 * Sets the limit of network traffic, sent and received together (0 = no change; default: unlimited).
 */
swarmllm_status swarmllm_config_set_max_traffic(swarmllm_config config, uint64_t bytes_per_second);

/**
 * Sets whether the node computes stages for peers (0 = no).
 */
swarmllm_status swarmllm_config_set_serve(swarmllm_config config, int32_t on);

/**
 * Sets the number of compute threads.
 */
swarmllm_status swarmllm_config_set_threads(swarmllm_config config, uint32_t threads);

/**
 * Sets the number of layers on accelerators, summed over all stages of the node. It has no effect when the library was not
 * built for the machine's accelerator.
 */
swarmllm_status swarmllm_config_set_gpu_layers(swarmllm_config config,
                                               uint32_t layers);

/**
 * Sets whether the cores stay awake while the node computes steps for remote peers (0 = no, the default): lower token
 * latency at round trips of a few milliseconds, at the cost of power; Linux only.
 */
swarmllm_status swarmllm_config_set_keep_awake(swarmllm_config config,
                                               int32_t on);

/**
 * Sets the credits that a peer may owe before the node refuses to compute for it. Default: no limit. One credit is a
 * million parameters applied to one token.
 */
swarmllm_status swarmllm_config_set_credit_limit(swarmllm_config config,
                                                 uint64_t credits);

/**
 * Sets the memory budget for weights and KV cache, in bytes.
 */
swarmllm_status swarmllm_config_set_memory(swarmllm_config config, uint64_t bytes);

/**
 * Sets the disk budget for shards, in bytes. Default: no limit. An import or pull that would exceed it fails before it
 * begins.
 */
swarmllm_status swarmllm_config_set_max_disk_bytes(swarmllm_config config,
                                                   uint64_t bytes);

/**
 * Lets the node fetch shards that its swarm has too few copies of, while all its models together take at most `bytes` of
 * disk. Default: the node fetches nothing unasked.
 */
swarmllm_status swarmllm_config_set_place(swarmllm_config config,
                                          uint64_t bytes);

/**
 * Sets the limit of all downloads from the web together (0 = no change; default: unlimited).
 */
swarmllm_status swarmllm_config_set_download_rate(swarmllm_config config, uint64_t bytes_per_second);

/**
 * Sets the context length of a session in tokens, prompt and answer together. Default: the model's own context as far as
 * the memory allows, at least 512.
 */
swarmllm_status swarmllm_config_set_context(swarmllm_config config,
                                            uint32_t tokens);

/**
 * Sets the number of concurrent sessions per stage, 1 to 64. Each session reserves KV cache for a whole context.
 */
swarmllm_status swarmllm_config_set_sessions(swarmllm_config config,
                                             uint32_t sessions);

/**
 * Sets the format of the KV cache: `full` (the default), or `q8_0`, which takes about half of the memory and refuses
 * requests with `exact`.
 */
swarmllm_status swarmllm_config_set_kv(swarmllm_config config,
                                       const char *name);

/**
 * Sets the engine: `llama.cpp` or `candle`.
 */
swarmllm_status swarmllm_config_set_engine(swarmllm_config config, const char *name);

/**
 * Sets a chat template (Jinja, at most 256 KiB) that replaces the models' own; a request's `chat_template` takes precedence.
 * The node does not start with a template that does not compile.
 */
swarmllm_status swarmllm_config_set_chat_template(swarmllm_config config,
                                                  const char *source);

/**
 * Frees a configuration. Nodes started from it keep running.
 */
swarmllm_status swarmllm_config_free(swarmllm_config config);

/**
 * Starts a node and waits until it runs. The caller keeps the configuration.
 */
swarmllm_status swarmllm_node_start(swarmllm_config config, swarmllm_node *node);

/**
 * The node's id, hexadecimal.
 */
swarmllm_status swarmllm_node_id(swarmllm_node node, swarmllm_string *out);

/**
 * The bound addresses with their `/p2p/`, for other nodes to dial: a JSON list of texts.
 */
swarmllm_status swarmllm_node_addresses_json(swarmllm_node node, swarmllm_string *out);

/**
 * The state of the node: a JSON object.
 */
swarmllm_status swarmllm_node_status_json(swarmllm_node node, swarmllm_string *out);

/**
 * The models that the node knows: a JSON list of objects. `ready` is false for a model that cannot run here, or for which
 * the reachable memory is too small now (`subject` "memory"); `findings` and `warnings` give the reasons.
 */
swarmllm_status swarmllm_node_models_json(swarmllm_node node,
                                          swarmllm_string *out);

/**
 * The peers that the node knows: a JSON list of objects.
 */
swarmllm_status swarmllm_node_peers_json(swarmllm_node node, swarmllm_string *out);

/**
 * The balance with each peer that has computed for the node or for which the node has computed: a JSON list of objects,
 * amounts in credits.
 */
swarmllm_status swarmllm_node_balances_json(swarmllm_node node,
                                            swarmllm_string *out);

/**
 * An invite to the node's swarm, one line of text, valid for `valid_seconds`. It contains the addresses of this node and,
 * for a private swarm, the secret.
 */
swarmllm_status swarmllm_node_invite(swarmllm_node node,
                                     uint64_t valid_seconds,
                                     swarmllm_string *out);

/**
 * Dials a peer (multiaddr), waits until the handshake is complete, and returns the peer's id.
 */
swarmllm_status swarmllm_node_connect(swarmllm_node node, const char *address, swarmllm_string *out);

/**
 * Splits a local GGUF into shards and returns the model as a JSON object. For a model in several files
 * (`NAME-00001-of-00003.gguf`) `path` is any of them; the others are beside it. `options` is NULL or a JSON object with any
 * of these keys:
 *
 * - `name`: an alias that no other model has;
 * - `parts`: a list of at least one part to keep: `"all"`, `"coordinator"`, or `{"start": 0, "end": 10, "head": false}`
 *   (layers of the model, the end excluded);
 * - `anyway`: keeps a model that cannot run here for other nodes. Without it, such a model is refused before its weights
 *   are read.
 *
 * `warnings` of the result describe what of the model cannot be used here; `findings` are those of `swarmllm_node_examine`.
 * Parts that the model does not have give SWARMLLM_INVALID_ARGUMENT.
 */
swarmllm_status swarmllm_node_import(swarmllm_node node,
                                     const char *path,
                                     const char *options,
                                     swarmllm_progress progress,
                                     void *user,
                                     swarmllm_string *out);

/**
 * Imports a GGUF from the web, with the result of `swarmllm_node_import`. `address` is an http or https address, or
 * `hf:owner/repo/path/file.gguf`, followed by `@revision` if it is not `main`. `options` also has `hub`, the address of a
 * mirror, and `token`, for files with restricted access. An import that ends early keeps the bytes that it has fetched; the
 * next import of the file continues from there.
 */
swarmllm_status swarmllm_node_import_url(swarmllm_node node,
                                         const char *address,
                                         const char *options,
                                         swarmllm_progress progress,
                                         void *user,
                                         swarmllm_string *out);

/**
 * Checks from the header of a local GGUF what of it cannot run here, as an import does, and keeps nothing. Returns a JSON
 * object: `architecture`, `refuses` (whether `swarmllm_node_import` refuses it without `anyway`), and `findings`, a list of
 * objects with `subject` ("engine", "tokenizer", "pre_tokenizer", "special_token" or "template"), `engine` (its name, or
 * null), `kind` (the name of a status code), `reason`, and `refuses`. `options` as in `swarmllm_node_import`; only `parts`
 * has an effect: a node that keeps no metadata needs no tokenizer.
 */
swarmllm_status swarmllm_node_examine(swarmllm_node node,
                                      const char *path,
                                      const char *options,
                                      swarmllm_string *out);

/**
 * As `swarmllm_node_examine`, for a GGUF on the web. Only the header is fetched. `address` and `options` as in
 * `swarmllm_node_import_url`.
 */
swarmllm_status swarmllm_node_examine_url(swarmllm_node node,
                                          const char *address,
                                          const char *options,
                                          swarmllm_string *out);

/**
 * Fetches shards of a model from peers and returns the model as a JSON object. `parts` is NULL (all), or the JSON of one
 * part as in `swarmllm_node_import`.
 */
swarmllm_status swarmllm_node_pull(swarmllm_node node,
                                   const char *model,
                                   const char *parts,
                                   swarmllm_progress progress,
                                   void *user,
                                   swarmllm_string *out);

/**
 * As `swarmllm_node_pull`, with one more source: a GGUF of the same model on the web, `address` as in
 * `swarmllm_node_import_url`. `options` is NULL or a JSON object with `hub` and `token`.
 */
swarmllm_status swarmllm_node_pull_url(swarmllm_node node,
                                       const char *model,
                                       const char *parts,
                                       const char *address,
                                       const char *options,
                                       swarmllm_progress progress,
                                       void *user,
                                       swarmllm_string *out);

/**
 * Sets whether a model is pinned (0 = no): `swarmllm_node_make_room` and `swarmllm_node_remove` keep a pinned model. Survives
 * a restart.
 */
swarmllm_status swarmllm_node_pin(swarmllm_node node,
                                  const char *model,
                                  int32_t on);

/**
 * Adds an alias to a known model and returns the model as a JSON object. Fails with SWARMLLM_ALIAS_TAKEN if another model
 * has the alias (in any case), has it as its name in its file or at a peer, or has an id that begins with it;
 * `swarmllm_node_move_alias` takes the alias from another model. Fails with SWARMLLM_INVALID_ARGUMENT if the alias would be
 * read as an id, or contains an invisible character.
 */
swarmllm_status swarmllm_node_add_alias(swarmllm_node node,
                                        const char *model,
                                        const char *alias,
                                        swarmllm_string *out);

/**
 * As `swarmllm_node_add_alias`, and takes the alias or name from the model that had it.
 */
swarmllm_status swarmllm_node_move_alias(swarmllm_node node,
                                         const char *model,
                                         const char *alias,
                                         swarmllm_string *out);

/**
 * Removes an alias from its model. Names of the model in files and at peers stay.
 */
swarmllm_status swarmllm_node_remove_alias(swarmllm_node node, const char *alias);

/**
 * Removes a model from this node: its aliases, its catalogue entry, and its shards except those that another model needs.
 * Returns a JSON object with `id`, `name` and the bytes freed (`freed`). The imported file and copies at peers stay. Fails
 * with SWARMLLM_INVALID_ARGUMENT if the model is pinned or `model` is only a prefix of its name, and with
 * SWARMLLM_OVERLOADED while the model is computed or fetched.
 */
swarmllm_status swarmllm_node_remove(swarmllm_node node,
                                     const char *model,
                                     swarmllm_string *out);

/**
 * Removes the least recently used models until `bytes` more fit within the disk budget; returns the ids of the removed
 * models as a JSON list. Pinned and loaded models stay. If the other models do not free enough, none is removed, and the
 * call fails with SWARMLLM_DISK_BUDGET.
 */
swarmllm_status swarmllm_node_make_room(swarmllm_node node,
                                        uint64_t bytes,
                                        swarmllm_string *out);

/**
 * The stages that would answer for a model: a JSON object. Nothing is computed.
 */
swarmllm_status swarmllm_node_plan_json(swarmllm_node node, const char *model, swarmllm_string *out);

/**
 * Computes the embedding of a text: writes a vector of length 1 to `vector` and its number of floats to `length`. `pooling`
 * is one of `swarmllm_pooling`. `caller` is the name on whose behalf this is asked, or NULL; waiting callers take turns. If
 * the vector has more than `capacity` floats, the call writes their number to `length`, nothing to `vector`, and fails with
 * SWARMLLM_INVALID_ARGUMENT.
 */
swarmllm_status swarmllm_node_embed(swarmllm_node node,
                                    const char *model,
                                    const char *text,
                                    int32_t pooling,
                                    const char *caller,
                                    float *vector,
                                    size_t capacity,
                                    size_t *length);

/**
 * Stops accepting work, drains until the deadline, flushes and closes. May be called again; the handle stays open.
 */
swarmllm_status swarmllm_node_shutdown(swarmllm_node node,
                                       uint32_t deadline_ms);

/**
 * Frees a node. A node that was not shut down shuts down without waiting once its generations are freed too.
 */
swarmllm_status swarmllm_node_free(swarmllm_node node);

/**
 * Starts an answer to a chat. `messages` is a JSON list such as `[{"role": "user", "content": "Hello"}]`. `options` is NULL
 * or a JSON object with any of these keys:
 *
 * - `max_tokens`, `temperature` (0 = greedy), `top_k`, `typical_p`, `top_p`, `min_p`, `repeat_penalty`, `repeat_last_n`,
 *   `presence_penalty`, `frequency_penalty`, `seed`;
 * - `logit_bias`: an object from token to bias; -100 bans a token;
 * - `stop`: a text or a list of texts that end the answer;
 * - `deadline_ms`: time limit of the whole answer;
 * - `exact`: the answer is that of a plain run of the whole model, token for token;
 * - `speculate`: whether to compute draft tokens ahead;
 * - `draft`: a smaller model with the same vocabulary, held here as a whole, that proposes draft tokens;
 * - `standby`: whether hot standbys replicate the stages, to take over from a lost host;
 * - `wire`: format of hidden states on the wire: `"f32"`, or rounded and shorter `"bf16"` or `"int8"`, not with `exact`;
 * - `logprobs`: number of alternatives, 0 to 20, that the completion lists for each token whose text is in the answer; under
 *   a constraint, probabilities among the tokens that it admits;
 * - `constraint`: the form of the answer: `"json_object"`, `{"json_schema": {...}}` (objects have no keys beside those that
 *   the schema names, unless it has `additionalProperties`), `{"lark": "..."}` or `{"regex": "..."}`;
 * - `caller`: the name on whose behalf this is asked; waiting callers take turns.
 *
 * Keys for the chat template:
 *
 * - `tools`, `documents`: lists. A tool call is part of the answer's text;
 * - `chat_template_kwargs`: an object of further variables; `enable_thinking`: one of them;
 * - `chat_template`: a template that replaces the model's own;
 * - `parse_content`: whether control tokens are parsed in messages and inputs. A text can then forge turns.
 *
 * Returns when the answer has a slot. While all slots are in use the call waits, until `deadline_ms` or without limit.
 */
swarmllm_status swarmllm_node_chat(swarmllm_node node,
                                   const char *model,
                                   const char *messages,
                                   const char *options,
                                   swarmllm_generation *generation);

/**
 * Starts the continuation of a plain text. `options` as in `swarmllm_node_chat`, without the keys for the chat template.
 */
swarmllm_status swarmllm_node_generate(swarmllm_node node,
                                       const char *model,
                                       const char *prompt,
                                       const char *options,
                                       swarmllm_generation *generation);

/**
 * The stages that compute the answer: a JSON object as from `swarmllm_node_plan_json`.
 */
swarmllm_status swarmllm_generation_route_json(swarmllm_generation generation, swarmllm_string *out);

/**
 * Waits for the next piece, at most `timeout_ms` (0 = no wait, `SWARMLLM_FOREVER` = no limit). After the end, every call
 * returns the end again. After an error, `swarmllm_generation_completion_json` returns the text so far.
 */
swarmllm_status swarmllm_generation_next(swarmllm_generation generation,
                                         uint32_t timeout_ms,
                                         swarmllm_delta *delta);

/**
 * Waits for the end and returns the whole answer as a JSON object: text, tokens, `logprobs` if requested (`token`, `text`,
 * `bytes`, `logprob` and `alternatives` of each token), the reason of the end, the route with timings. Pieces that were not
 * pulled are skipped. An interrupted answer returns the error and also writes the JSON of the partial answer.
 */
swarmllm_status swarmllm_generation_completion_json(swarmllm_generation generation,
                                                    swarmllm_string *out);

/**
 * Ends the answer early, at every stage; text that is on its way may still come before the end. May be called from any
 * thread, also while another thread waits in `swarmllm_generation_next`.
 */
swarmllm_status swarmllm_generation_cancel(swarmllm_generation generation);

/**
 * Frees a generation and cancels it if it has not ended. A call that waits in another thread ends as cancelled.
 */
swarmllm_status swarmllm_generation_free(swarmllm_generation generation);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SWARMLLM_H */
