/*
 * swarmllm: an LLM swarm that you can link.
 *
 * Generated from swarmllm-ffi; do not edit. `SWARMLLM_BLESS=1 cargo test -p swarmllm-ffi` writes it anew.
 *
 * Calls. Every call that can fail returns a `swarmllm_status`: SWARMLLM_OK, or the number of an error kind; the number
 * never changes its meaning. `swarmllm_last_error` copies the message of the calling thread's last failed call. A result
 * that was not written is empty: handle 0, or {NULL, 0}.
 *
 * Handles are numbers, not pointers. One that is 0, freed, or of another kind is answered with an error; it never
 * crashes, and is never taken for a newer one. Free each handle once.
 *
 * Text that you give is UTF-8 with a closing NUL, and yours again when the call returns. Text that you get is a
 * `swarmllm_string`: read-only, yours until `swarmllm_string_free`.
 *
 * Threads. Every call may be made from any thread, several at once, on the same handles too. Calls that wait (start,
 * connect, import, examine, pull, pin, aliases, make room, plan, embed, chat, generate, next, completion, shutdown) block the calling thread; on a thread of an
 * async runtime of this library they are refused with SWARMLLM_UNSUPPORTED. A progress function is called on the thread
 * that made the call, before the call returns. The last error is kept per thread. A process that was forked after a node
 * had started gets SWARMLLM_FORKED from that node.
 *
 * The library starts its own threads with the first node, and installs no signal handler, allocator or logger.
 */

#ifndef SWARMLLM_H
#define SWARMLLM_H

#include <stddef.h>
#include <stdint.h>

/** Status codes: 1xx use, 2xx models, 3xx the swarm, 4xx the ledger, 5xx the ground, 9xx our own fault. */
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
 * A `timeout_ms` that never passes.
 */
#define SWARMLLM_FOREVER 4294967295

/**
 * How a node meets others.
 */
typedef enum {
  /**
   * No network at all.
   */
  SWARMLLM_PRESET_OFFLINE = 0,
  /**
   * LAN discovery, ephemeral ports. The default.
   */
  SWARMLLM_PRESET_LAN = 1,
  /**
   * Listens on the configured ports and serves others.
   */
  SWARMLLM_PRESET_PUBLIC = 2,
} swarmllm_preset;

/**
 * What came next of an answer.
 */
typedef enum {
  /**
   * More text, whole characters, never empty.
   */
  SWARMLLM_DELTA_TEXT = 1,
  /**
   * The end; `swarmllm_generation_completion_json` tells all about it.
   */
  SWARMLLM_DELTA_DONE = 2,
  /**
   * Nothing came in time; ask again.
   */
  SWARMLLM_DELTA_TIMEOUT = 3,
} swarmllm_delta_kind;

/**
 * What is taken of the states of a text's tokens.
 */
typedef enum {
  /**
   * Their mean.
   */
  SWARMLLM_POOLING_MEAN = 0,
  /**
   * The last token's, which is the only one that has seen the whole text.
   */
  SWARMLLM_POOLING_LAST = 1,
} swarmllm_pooling;

/**
 * How a call ended: `SWARMLLM_OK`, or one of the other `SWARMLLM_` codes.
 */
typedef int32_t swarmllm_status;

/**
 * Text that the library gives away: UTF-8 with a closing NUL. The caller owns it until `swarmllm_string_free`.
 */
typedef struct {
  /**
   * The text, or NULL where there is none.
   */
  const char * text;
  /**
   * Bytes before the closing NUL.
   */
  size_t length;
} swarmllm_string;

/**
 * A configuration that a node can be started from. What is not set has the library's default.
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
 * Told how far a long work has come, in bytes, on the thread that made the call. Answers 0 to go on; anything else
 * cancels the work. `user` is what was given with the call.
 */
typedef int32_t (*swarmllm_progress)(void *user, uint64_t done, uint64_t total);

/**
 * An answer that is being generated. Freeing it cancels it at every stage.
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
   * The text, where the kind is `SWARMLLM_DELTA_TEXT`; freed by `swarmllm_string_free`.
   */
  swarmllm_string text;
} swarmllm_delta;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Copies the message of this thread's last failed call into `buffer` (at most `size` bytes with the closing NUL, cut
 * between characters). Returns the message's whole length in bytes without the NUL; `buffer` may be NULL to ask for it.
 */
size_t swarmllm_last_error(char *buffer,
                           size_t size);

/**
 * The name of a status code, such as `ModelNotFound`; `Ok` for 0, `Unknown` for what is no code. Never freed.
 */
const char *swarmllm_error_name(swarmllm_status code);

/**
 * The version of the library, such as `0.1.0`. Never freed.
 */
const char *swarmllm_version(void);

/**
 * Frees a string and empties it; one that is NULL or empty already is left alone.
 */
void swarmllm_string_free(swarmllm_string *string);

/**
 * Opens a configuration with the library's defaults.
 */
swarmllm_status swarmllm_config_new(swarmllm_config *config);

/**
 * Directory for keys, models and the store.
 */
swarmllm_status swarmllm_config_set_data_dir(swarmllm_config config, const char *path);

/**
 * Name of the swarm; nodes of different swarms cannot meet.
 */
swarmllm_status swarmllm_config_set_network(swarmllm_config config, const char *name);

/**
 * Whether the swarm is to be private (0 = no): its nodes share a secret, and who has not got it completes no handshake.
 * The first node founds it, others come in by `swarmllm_config_join`. Such a swarm speaks TCP only.
 */
swarmllm_status swarmllm_config_set_private(swarmllm_config config,
                                            int32_t on);

/**
 * Enters the swarm of an invite, and stays in it: the data directory remembers.
 */
swarmllm_status swarmllm_config_join(swarmllm_config config, const char *invite);

/**
 * How the node meets others: one of `swarmllm_preset`.
 */
swarmllm_status swarmllm_config_set_preset(swarmllm_config config, int32_t preset);

/**
 * Adds an address to listen on (multiaddr, port 0 = any free one). The first one replaces the defaults.
 */
swarmllm_status swarmllm_config_add_listen(swarmllm_config config, const char *address);

/**
 * Adds a peer to dial at start and to redial (multiaddr with `/p2p/`).
 */
swarmllm_status swarmllm_config_add_bootstrap(swarmllm_config config, const char *address);

/**
 * Whether to find peers on the LAN by mDNS (0 = no).
 */
swarmllm_status swarmllm_config_set_mdns(swarmllm_config config, int32_t on);

/**
 * Whether to carry circuits for peers that nobody can connect to, without being able to read them (0 = no).
 */
swarmllm_status swarmllm_config_set_relay(swarmllm_config config, int32_t on);

/**
 * Adds an address under which others reach this node although it does not listen there (multiaddr).
 */
swarmllm_status swarmllm_config_add_external(swarmllm_config config, const char *address);

/**
 * Whether to ask the router to forward the ports, by UPnP (0 = no).
 */
swarmllm_status swarmllm_config_set_upnp(swarmllm_config config, int32_t on);

/**
 * Most bytes a second that may go over the wire, both ways together (0 = no ceiling, as without a call).
 */
swarmllm_status swarmllm_config_set_max_traffic(swarmllm_config config, uint64_t bytes_a_second);

/**
 * Whether to compute stages for others (0 = no).
 */
swarmllm_status swarmllm_config_set_serve(swarmllm_config config, int32_t on);

/**
 * Compute threads.
 */
swarmllm_status swarmllm_config_set_threads(swarmllm_config config, uint32_t threads);

/**
 * Layers that accelerators compute, of all stages of the node together; without effect where the library was not built
 * for the machine's accelerator.
 */
swarmllm_status swarmllm_config_set_gpu_layers(swarmllm_config config,
                                               uint32_t layers);

/**
 * Whether to keep the cores awake while steps come from afar (0 = no, the default): tokens over ways of some milliseconds
 * then come sooner, for the price of power. Without effect but on Linux.
 */
swarmllm_status swarmllm_config_set_keep_awake(swarmllm_config config,
                                               int32_t on);

/**
 * Credits that a peer may owe before it is not computed for any more; without a call nobody is refused. One credit is a
 * million parameters applied to one token.
 */
swarmllm_status swarmllm_config_set_credit_limit(swarmllm_config config,
                                                 uint64_t credits);

/**
 * Bytes of memory for weights and KV.
 */
swarmllm_status swarmllm_config_set_memory(swarmllm_config config, uint64_t bytes);

/**
 * Most bytes that shards may take on the disk; without a call there is no bound. What would go beyond is refused before it
 * begins.
 */
swarmllm_status swarmllm_config_set_max_disk_bytes(swarmllm_config config,
                                                   uint64_t bytes);

/**
 * Lets the node fetch by itself what its swarm is short of, for as long as all models here take at most so many bytes of
 * disk; without a call nothing is fetched unasked.
 */
swarmllm_status swarmllm_config_set_place(swarmllm_config config,
                                          uint64_t bytes);

/**
 * Bytes a second at which all downloads from the web together come at most; 0, and without a call, as fast as they come.
 */
swarmllm_status swarmllm_config_set_download_rate(swarmllm_config config,
                                                  uint64_t bytes);

/**
 * Positions that a session may have, prompt and answer together. Default: the model's own as far as the memory allows,
 * 512 at least.
 */
swarmllm_status swarmllm_config_set_context(swarmllm_config config,
                                            uint32_t tokens);

/**
 * Sessions that a stage has room for at once, 1 to 64; each takes KV for a whole context.
 */
swarmllm_status swarmllm_config_set_sessions(swarmllm_config config, uint32_t sessions);

/**
 * How keys and values are kept: `full` (the default), or `q8_0`, which takes about half of the memory and refuses answers
 * that are to be exact.
 */
swarmllm_status swarmllm_config_set_kv(swarmllm_config config,
                                       const char *name);

/**
 * Engine to use: `llama.cpp` or `candle`.
 */
swarmllm_status swarmllm_config_set_engine(swarmllm_config config, const char *name);

/**
 * A chat template (Jinja) in the place of those that models have, unless a chat brings one of its own; at most 256 KiB. One
 * that cannot be compiled is refused when the node starts.
 */
swarmllm_status swarmllm_config_set_chat_template(swarmllm_config config,
                                                  const char *source);

/**
 * Frees a configuration. Nodes that were started from it are not touched.
 */
swarmllm_status swarmllm_config_free(swarmllm_config config);

/**
 * Starts a node and waits until it runs. The configuration stays the caller's.
 */
swarmllm_status swarmllm_node_start(swarmllm_config config, swarmllm_node *node);

/**
 * The node's id, hexadecimal.
 */
swarmllm_status swarmllm_node_id(swarmllm_node node, swarmllm_string *out);

/**
 * The bound addresses with their `/p2p/`, to be given to others: a JSON list of texts.
 */
swarmllm_status swarmllm_node_addresses_json(swarmllm_node node, swarmllm_string *out);

/**
 * How the node is: a JSON object.
 */
swarmllm_status swarmllm_node_status_json(swarmllm_node node, swarmllm_string *out);

/**
 * The models it knows: a JSON list of objects. Of a model that cannot run here, or for which the memory within reach is too short
 * now (`subject` "memory"), `ready` is false, and `findings` and `warnings` say why.
 */
swarmllm_status swarmllm_node_models_json(swarmllm_node node,
                                          swarmllm_string *out);

/**
 * The peers it knows: a JSON list of objects.
 */
swarmllm_status swarmllm_node_peers_json(swarmllm_node node, swarmllm_string *out);

/**
 * How it stands with each peer that has computed for it, or it for the peer: a JSON list of objects, amounts in credits.
 */
swarmllm_status swarmllm_node_balances_json(swarmllm_node node,
                                            swarmllm_string *out);

/**
 * An invite to the node's swarm, as one line of text, good for so many seconds: where this node may be dialled, and of a
 * private swarm its secret.
 */
swarmllm_status swarmllm_node_invite(swarmllm_node node,
                                     uint64_t good_for_seconds,
                                     swarmllm_string *out);

/**
 * Dials a peer (multiaddr) and waits until it has said hello; gives its id.
 */
swarmllm_status swarmllm_node_connect(swarmllm_node node, const char *address, swarmllm_string *out);

/**
 * Cuts a local GGUF into shards and gives the model as a JSON object. Of a model in several files
 * (`NAME-00001-of-00003.gguf`) any part is given; the others lie beside it. `options` is NULL or a JSON object with `name`,
 * an alias that no other model has, `parts`, a list of what to keep, of one part at least: `"all"`, `"coordinator"`,
 * `{"start": 0, "end": 10, "head": false}` (layers of the model, the end excluded, or else SWARMLLM_INVALID_ARGUMENT), and
 * `anyway`, with which a model is kept for others that cannot run here and would else be refused before its weights are read.
 * `warnings` of the object given say what of the model cannot be used here, and `findings` as in `swarmllm_node_examine`.
 */
swarmllm_status swarmllm_node_import(swarmllm_node node,
                                     const char *path,
                                     const char *options,
                                     swarmllm_progress progress,
                                     void *user,
                                     swarmllm_string *out);

/**
 * Imports a GGUF from the web as `swarmllm_node_import` does a local one, with the same result. `address` is an http or
 * https address, or `hf:owner/repo/path/file.gguf`, with `@revision` behind it where it is not `main`. `options` has
 * further `hub`, the address of a mirror, and `token`, for files that not everybody may have. What came is kept when the
 * import ends early, and the next one of that file goes on from there.
 */
swarmllm_status swarmllm_node_import_url(swarmllm_node node,
                                         const char *address,
                                         const char *options,
                                         swarmllm_progress progress,
                                         void *user,
                                         swarmllm_string *out);

/**
 * What of a local GGUF cannot run here, asked of its header as an import does; nothing is kept. Gives a JSON object:
 * `architecture`, `refuses` (whether `swarmllm_node_import` would refuse it without `anyway`), and `findings`, a list of objects
 * with `subject` ("engine", "tokenizer", "pre_tokenizer", "special_token" or "template"), `engine` (its name, or null), `kind`
 * (the name of a status code), `reason`, and `refuses`. `options` as in `swarmllm_node_import`, of which `parts` counts: a node
 * that keeps no metadata needs no tokenizer.
 */
swarmllm_status swarmllm_node_examine(swarmllm_node node,
                                      const char *path,
                                      const char *options,
                                      swarmllm_string *out);

/**
 * The same of a GGUF on the web, of which only the header is fetched; `address` and `options` as in `swarmllm_node_import_url`.
 */
swarmllm_status swarmllm_node_examine_url(swarmllm_node node,
                                          const char *address,
                                          const char *options,
                                          swarmllm_string *out);

/**
 * Fetches shards of a model from peers and gives the model as a JSON object. `parts` is NULL (all) or JSON as one of
 * the parts of `swarmllm_node_import`.
 */
swarmllm_status swarmllm_node_pull(swarmllm_node node,
                                   const char *model,
                                   const char *parts,
                                   swarmllm_progress progress,
                                   void *user,
                                   swarmllm_string *out);

/**
 * The same with one source more: a GGUF of this very model on the web, `address` as in `swarmllm_node_import_url`.
 * `options` is NULL or a JSON object with `hub` and `token`.
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
 * Whether `swarmllm_node_make_room` leaves a model alone from now on, after a restart too (0 = no).
 */
swarmllm_status swarmllm_node_pin(swarmllm_node node, const char *model, int32_t on);

/**
 * Gives a model that is known here an alias, beside those that it has, and gives the model as a JSON object. Fails with
 * SWARMLLM_ALIAS_TAKEN where another model has the alias, in whatever case, or is called so by its file or a peer;
 * `swarmllm_node_move_alias` takes it from that one. With the same where another model's id begins so, and with
 * SWARMLLM_INVALID_ARGUMENT where it would be read as an id, or has a character that nobody sees.
 */
swarmllm_status swarmllm_node_add_alias(swarmllm_node node,
                                        const char *model,
                                        const char *alias,
                                        swarmllm_string *out);

/**
 * The same, and the model that had the alias, or was called so, has it no longer.
 */
swarmllm_status swarmllm_node_move_alias(swarmllm_node node,
                                         const char *model,
                                         const char *alias,
                                         swarmllm_string *out);

/**
 * Takes an alias from the model that has it. What files and peers call the model stays.
 */
swarmllm_status swarmllm_node_remove_alias(swarmllm_node node, const char *alias);

/**
 * Removes a model from here: its shards but for those that another model needs, its aliases, and what is known of it; gives
 * its `id`, its `name` and the bytes that went (`freed`) as a JSON object. The file that it was imported from stays, and
 * peers that hold it keep it. Fails with SWARMLLM_INVALID_ARGUMENT where it is pinned or `model` is only the beginning of a
 * name, and with SWARMLLM_OVERLOADED where something of it is computed or fetched now.
 */
swarmllm_status swarmllm_node_remove(swarmllm_node node,
                                     const char *model,
                                     swarmllm_string *out);

/**
 * Removes the models that were used longest ago until so many bytes more have room within the bound on the disk; gives the
 * ids of those that went as a JSON array. Pinned ones stay, and those that are loaded here. Where the others would not make
 * enough room, none goes, and the call fails with SWARMLLM_DISK_BUDGET.
 */
swarmllm_status swarmllm_node_make_room(swarmllm_node node,
                                        uint64_t bytes,
                                        swarmllm_string *out);

/**
 * Which stages would answer for a model, without acting: a JSON object.
 */
swarmllm_status swarmllm_node_plan_json(swarmllm_node node, const char *model, swarmllm_string *out);

/**
 * Makes a vector of a text: writes its floats, of length 1 together, to `vector`, and their number to `length`. `pooling`
 * is one of `swarmllm_pooling`. `caller` names on whose behalf this is asked, and may be NULL: callers that wait for a place
 * take turns. Where the vector has more than `capacity` floats, nothing is written to `vector`,
 * `length` says how many there are, and the call fails with SWARMLLM_INVALID_ARGUMENT.
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
 * Stops accepting, drains until the deadline, flushes and closes. May be called again; the handle stays open.
 */
swarmllm_status swarmllm_node_shutdown(swarmllm_node node, uint32_t deadline_ms);

/**
 * Frees a node. One that was not shut down, and whose generations are freed too, is shut down without waiting.
 */
swarmllm_status swarmllm_node_free(swarmllm_node node);

/**
 * Asks a model. `messages` is a JSON list such as `[{"role": "user", "content": "Hello"}]`; `options` is NULL or a JSON
 * object of `max_tokens`, `temperature` (0 = greedy), `top_k`, `typical_p`, `top_p`, `min_p`, `repeat_penalty`,
 * `repeat_last_n`, `presence_penalty`, `frequency_penalty`, `logit_bias` (an object of tokens, -100 bans), `seed`, `stop`
 * (a text or a list), `deadline_ms`, `exact`, `guess`, `draft` (a smaller model with the same vocabulary, held here as a
 * whole, which guesses), `stand_by` (whether other hosts follow, to take over where one is lost), `wire` (how hidden states
 * travel: `"f32"`, or rounded and shorter `"bf16"` or `"int8"`, not with `exact`), `logprobs` (how many alternatives the
 * completion tells beside each token whose text is in the answer, 0 to 20; under a constraint they are probabilities among
 * the tokens that it admits) and `constraint` (the answer's form: `"json_object"`, `{"json_schema": {...}}` (objects whose
 * keys it names have no others, unless it says `additionalProperties`), `{"lark": "..."}` or `{"regex": "..."}`). What the
 * chat template is given stands there too: `tools` and `documents` (lists), `chat_template_kwargs` (an object of further
 * variables), `enable_thinking` (one of those), `chat_template` (a template in the place of the model's own) and
 * `parse_content` (whether control tokens are read in messages and inputs too, where a text can then forge turns). What the
 * model writes to call a tool is text of the answer.
 * `caller` names on whose behalf this is asked: callers that wait for a place take turns.
 * Returns when the answer has its place; where all are in use it waits until `deadline_ms` has passed, or for as long as it takes.
 */
swarmllm_status swarmllm_node_chat(swarmllm_node node,
                                   const char *model,
                                   const char *messages,
                                   const char *options,
                                   swarmllm_generation *generation);

/**
 * Continues a plain text. `options` as in `swarmllm_node_chat`, but for those of the chat template.
 */
swarmllm_status swarmllm_node_generate(swarmllm_node node,
                                       const char *model,
                                       const char *prompt,
                                       const char *options,
                                       swarmllm_generation *generation);

/**
 * Which stages answer: a JSON object as `swarmllm_node_plan_json` gives.
 */
swarmllm_status swarmllm_generation_route_json(swarmllm_generation generation, swarmllm_string *out);

/**
 * Waits for the next piece, at most `timeout_ms` (0 = do not wait, `SWARMLLM_FOREVER` = as long as it takes). After the
 * end it tells the end again. On an error the text so far is in `swarmllm_generation_completion_json`.
 */
swarmllm_status swarmllm_generation_next(swarmllm_generation generation,
                                         uint32_t timeout_ms,
                                         swarmllm_delta *delta);

/**
 * Waits for the end and gives the whole answer as a JSON object: text, tokens, `logprobs` where they were asked for (of
 * each token `token`, `text`, `bytes`, `logprob` and `alternatives`), why it ended, its route with timings.
 * Pieces that nobody has pulled are passed over. Where the answer was interrupted, the error is returned, and the JSON of
 * what was generated is given all the same.
 */
swarmllm_status swarmllm_generation_completion_json(swarmllm_generation generation,
                                                    swarmllm_string *out);

/**
 * Ends the answer early, at every stage. The next piece is then the end. May be called from any thread, also while
 * another one waits in `swarmllm_generation_next`.
 */
swarmllm_status swarmllm_generation_cancel(swarmllm_generation generation);

/**
 * Frees a generation; one that has not ended is cancelled. A call that waits in another thread ends as cancelled.
 */
swarmllm_status swarmllm_generation_free(swarmllm_generation generation);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SWARMLLM_H */
