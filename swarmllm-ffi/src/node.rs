//! Nodes: `Node` behind a handle.

use std::ffi::{c_char, c_void};
use std::future::Future;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarmllm_core::base::{ErrorKind, Fault, Progress};
use swarmllm_core::node::{
    EmbedRequest, GenerateError, ImportOptions, Node, Pooling, ProgressFn, Prompt, check_may_block, with_progress,
};
use tokio::runtime::Handle;

use crate::config::{builder, swarmllm_config};
use crate::handle::Registry;
use crate::options;
use crate::status::{guard, place, refuse, swarmllm_status};
use crate::text::{MAX_NAME, MAX_TEXT, answer, read, read_optional, swarmllm_string};

static NODES: Registry<Node> = Registry::new(2, "node");

/// A running node.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct swarmllm_node {
    /// Opaque; 0 is never a handle.
    pub id: u64,
}

/// Receives the progress of a long call, in bytes, on the thread that made the call. Returns 0 to continue; any other value
/// cancels the call. `user` is the pointer given with the call.
pub type swarmllm_progress = Option<extern "C" fn(user: *mut c_void, done: u64, total: u64) -> i32>;

/// The node behind a handle.
pub fn node(node: swarmllm_node) -> Result<Arc<Node>, Fault> {
    NODES.get(node.id)
}

/// Blocks the calling thread until `work` ends.
pub fn wait<T>(runtime: &Handle, work: impl Future<Output = T>) -> Result<T, Fault> {
    check_may_block()?;
    Ok(runtime.block_on(work))
}

/// The fault of a failed generation.
pub fn fault(error: &GenerateError) -> Fault {
    error.fault().clone()
}

/// The JSON text of a value of the core.
pub fn json(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|cause| Fault::new(ErrorKind::Internal, format_args!("no JSON: {cause}")))
}

/// Blocks the calling thread until `work` ends, and reports its progress there.
fn wait_reporting<T>(
    node: &Node,
    (progress, user): (swarmllm_progress, *mut c_void),
    work: impl AsyncFnOnce(Option<ProgressFn>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let Some(progress) = progress else { return wait(&node.runtime(), work(None))? };
    let report = |Progress { done, total }| match progress(user, done, total) {
        0 => Ok(()),
        _ => Err(Fault::new(ErrorKind::Cancelled, "the progress function cancelled the work")),
    };
    wait(&node.runtime(), with_progress(|tell| work(Some(tell)), report))?
}

/// Starts a node and waits until it runs. The caller keeps the configuration.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_start(config: swarmllm_config, node: Option<&mut swarmllm_node>) -> swarmllm_status {
    guard(|| {
        let node = place(node, "node")?;
        node.id = 0;
        check_may_block()?;
        node.id = NODES.insert(builder(config)?.start_blocking().map_err(|error| error.0)?)?;
        Ok(())
    })
}

/// The node's id, hexadecimal.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_id(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || Ok(self::node(node)?.id().to_string()))
}

/// The bound addresses with their `/p2p/`, for other nodes to dial: a JSON list of texts.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_addresses_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.addresses()))
}

/// The state of the node: a JSON object.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_status_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.status()))
}

/// The models that the node knows: a JSON list of objects. `ready` is false for a model that cannot run here, or for which
/// the reachable memory is too small now (`subject` "memory"); `findings` and `warnings` give the reasons.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_models_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.models()))
}

/// The peers that the node knows: a JSON list of objects.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_peers_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.peers()))
}

/// The balance with each peer that has computed for the node or for which the node has computed: a JSON list of objects,
/// amounts in credits.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_balances_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.balances()))
}

/// An invite to the node's swarm, one line of text, valid for `valid_seconds`. It contains the addresses of this node and,
/// for a private swarm, the secret.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_invite(
    node: swarmllm_node,
    valid_seconds: u64,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || self::node(node)?.invite(Duration::from_secs(valid_seconds)))
}

/// Dials a peer (multiaddr), waits until the handshake is complete, and returns the peer's id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_connect(
    node: swarmllm_node,
    address: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let address = unsafe { read(address, "address", MAX_NAME) }?;
        let peer = wait(&node.runtime(), node.connect(address))?.map_err(|error| error.0)?;
        Ok(peer.to_string())
    })
}

/// Splits a local GGUF into shards and returns the model as a JSON object. For a model in several files
/// (`NAME-00001-of-00003.gguf`) `path` is any of them; the others are beside it. `options` is NULL or a JSON object with any
/// of these keys:
///
/// - `name`: an alias that no other model has;
/// - `parts`: a list of at least one part to keep: `"all"`, `"coordinator"`, or `{"start": 0, "end": 10, "head": false}`
///   (layers of the model, the end excluded);
/// - `anyway`: keeps a model that cannot run here for other nodes. Without it, such a model is refused before its weights
///   are read.
///
/// `warnings` of the result describe what of the model cannot be used here; `findings` are those of `swarmllm_node_examine`.
/// Parts that the model does not have give SWARMLLM_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_import(
    node: swarmllm_node,
    path: *const c_char,
    options: *const c_char,
    progress: swarmllm_progress,
    user: *mut c_void,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let path = Path::new(unsafe { read(path, "path", MAX_NAME) }?);
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let options = options::import(unsafe { read_optional(options, "options", MAX_TEXT) }?)?;
        json(&wait_reporting(&node, (progress, user), async |progress| {
            let options = ImportOptions { progress, ..options };
            node.import(path, options).await.map_err(|error| error.0)
        })?)
    })
}

/// Imports a GGUF from the web, with the result of `swarmllm_node_import`. `address` is an http or https address, or
/// `hf:owner/repo/path/file.gguf`, followed by `@revision` if it is not `main`. `options` also has `hub`, the address of a
/// mirror, and `token`, for files with restricted access. An import that ends early keeps the bytes that it has fetched; the
/// next import of the file continues from there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_import_url(
    node: swarmllm_node,
    address: *const c_char,
    options: *const c_char,
    progress: swarmllm_progress,
    user: *mut c_void,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let address = unsafe { read(address, "address", MAX_NAME) }?;
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let options = unsafe { read_optional(options, "options", MAX_TEXT) }?;
        let (source, options) = options::import_url(address, options)?;
        json(&wait_reporting(&node, (progress, user), async |progress| {
            let options = ImportOptions { progress, ..options };
            node.import_url(source, options).await.map_err(|error| error.0)
        })?)
    })
}

/// Checks from the header of a local GGUF what of it cannot run here, as an import does, and keeps nothing. Returns a JSON
/// object: `architecture`, `refuses` (whether `swarmllm_node_import` refuses it without `anyway`), and `findings`, a list of
/// objects with `subject` ("engine", "tokenizer", "pre_tokenizer", "special_token" or "template"), `engine` (its name, or
/// null), `kind` (the name of a status code), `reason`, and `refuses`. `options` as in `swarmllm_node_import`; only `parts`
/// has an effect: a node that keeps no metadata needs no tokenizer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_examine(
    node: swarmllm_node,
    path: *const c_char,
    options: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let path = Path::new(unsafe { read(path, "path", MAX_NAME) }?);
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let options = options::import(unsafe { read_optional(options, "options", MAX_TEXT) }?)?;
        json(&wait(&node.runtime(), node.examine(path, options))?.map_err(|error| error.0)?)
    })
}

/// As `swarmllm_node_examine`, for a GGUF on the web. Only the header is fetched. `address` and `options` as in
/// `swarmllm_node_import_url`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_examine_url(
    node: swarmllm_node,
    address: *const c_char,
    options: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let address = unsafe { read(address, "address", MAX_NAME) }?;
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let options = unsafe { read_optional(options, "options", MAX_TEXT) }?;
        let (source, options) = options::import_url(address, options)?;
        json(&wait(&node.runtime(), node.examine_url(source, options))?.map_err(|error| error.0)?)
    })
}

/// Fetches shards of a model from peers and returns the model as a JSON object. `parts` is NULL (all), or the JSON of one
/// part as in `swarmllm_node_import`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_pull(
    node: swarmllm_node,
    model: *const c_char,
    parts: *const c_char,
    progress: swarmllm_progress,
    user: *mut c_void,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let parts = options::parts(unsafe { read_optional(parts, "parts", MAX_TEXT) }?)?;
        json(&wait_reporting(&node, (progress, user), async |progress| {
            node.pull(model, parts, progress).await.map_err(|error| error.0)
        })?)
    })
}

/// As `swarmllm_node_pull`, with one more source: a GGUF of the same model on the web, `address` as in
/// `swarmllm_node_import_url`. `options` is NULL or a JSON object with `hub` and `token`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_pull_url(
    node: swarmllm_node,
    model: *const c_char,
    parts: *const c_char,
    address: *const c_char,
    options: *const c_char,
    progress: swarmllm_progress,
    user: *mut c_void,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let parts = options::parts(unsafe { read_optional(parts, "parts", MAX_TEXT) }?)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let address = unsafe { read(address, "address", MAX_NAME) }?;
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let source = options::web(address, unsafe { read_optional(options, "options", MAX_TEXT) }?)?;
        json(&wait_reporting(&node, (progress, user), async |progress| {
            node.pull_url(model, parts, source, progress).await.map_err(|error| error.0)
        })?)
    })
}

/// Sets whether a model is pinned (0 = no): `swarmllm_node_make_room` and `swarmllm_node_remove` keep a pinned model. Survives
/// a restart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_pin(node: swarmllm_node, model: *const c_char, on: i32) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        wait(&node.runtime(), node.pin(model, on != 0))?.map_err(|error| error.0)
    })
}

/// Adds an alias to a known model and returns the model as a JSON object. Fails with SWARMLLM_ALIAS_TAKEN if another model
/// has the alias (in any case), has it as its name in its file or at a peer, or has an id that begins with it;
/// `swarmllm_node_move_alias` takes the alias from another model. Fails with SWARMLLM_INVALID_ARGUMENT if the alias would be
/// read as an id, or contains an invisible character.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_add_alias(
    node: swarmllm_node,
    model: *const c_char,
    alias: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives NUL-terminated texts.
        let (model, alias) = unsafe { (read(model, "model", MAX_NAME)?, read(alias, "alias", MAX_NAME)?) };
        json(&wait(&node.runtime(), node.add_alias(model, alias))?.map_err(|error| error.0)?)
    })
}

/// As `swarmllm_node_add_alias`, and takes the alias or name from the model that had it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_move_alias(
    node: swarmllm_node,
    model: *const c_char,
    alias: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives NUL-terminated texts.
        let (model, alias) = unsafe { (read(model, "model", MAX_NAME)?, read(alias, "alias", MAX_NAME)?) };
        json(&wait(&node.runtime(), node.move_alias(model, alias))?.map_err(|error| error.0)?)
    })
}

/// Removes an alias from its model. Names of the model in files and at peers stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_remove_alias(node: swarmllm_node, alias: *const c_char) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let alias = unsafe { read(alias, "alias", MAX_NAME) }?;
        wait(&node.runtime(), node.remove_alias(alias))?.map_err(|error| error.0)
    })
}

/// Removes a model from this node: its aliases, its catalogue entry, and its shards except those that another model needs.
/// Returns a JSON object with `id`, `name` and the bytes freed (`freed`). The imported file and copies at peers stay. Fails
/// with SWARMLLM_INVALID_ARGUMENT if the model is pinned or `model` is only a prefix of its name, and with
/// SWARMLLM_OVERLOADED while the model is computed or fetched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_remove(
    node: swarmllm_node,
    model: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        json(&wait(&node.runtime(), node.remove(model))?.map_err(|error| error.0)?)
    })
}

/// Removes the least recently used models until `bytes` more fit within the disk budget; returns the ids of the removed
/// models as a JSON list. Pinned and loaded models stay. If the other models do not free enough, none is removed, and the
/// call fails with SWARMLLM_DISK_BUDGET.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_make_room(
    node: swarmllm_node,
    bytes: u64,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        json(&wait(&node.runtime(), node.make_room(bytes))?.map_err(|error| error.0)?)
    })
}

/// The stages that would answer for a model: a JSON object. Nothing is computed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_plan_json(
    node: swarmllm_node,
    model: *const c_char,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        json(&wait(&node.runtime(), node.plan(model))?.map_err(|error| fault(&error))?)
    })
}

/// How the hidden states of a text's tokens become one vector.
#[repr(C)]
pub enum swarmllm_pooling {
    /// Their mean.
    SWARMLLM_POOLING_MEAN = 0,
    /// The state of the last token, the only one that depends on the whole text.
    SWARMLLM_POOLING_LAST = 1,
}

/// Computes the embedding of a text: writes a vector of length 1 to `vector` and its number of floats to `length`. `pooling`
/// is one of `swarmllm_pooling`. `caller` is the name on whose behalf this is asked, or NULL; waiting callers take turns. If
/// the vector has more than `capacity` floats, the call writes their number to `length`, nothing to `vector`, and fails with
/// SWARMLLM_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_embed(
    node: swarmllm_node,
    model: *const c_char,
    text: *const c_char,
    pooling: i32,
    caller: *const c_char,
    vector: *mut f32,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
) -> swarmllm_status {
    const MEAN: i32 = swarmllm_pooling::SWARMLLM_POOLING_MEAN as i32;
    const LAST: i32 = swarmllm_pooling::SWARMLLM_POOLING_LAST as i32;
    guard(|| {
        let length = place(length, "length")?.write(0);
        let pooling = match pooling {
            MEAN => Pooling::Mean,
            LAST => Pooling::Last,
            _ => return Err(refuse(format_args!("{pooling} is not a `swarmllm_pooling`"))),
        };
        let node = self::node(node)?;
        // SAFETY: the caller gives NUL-terminated texts.
        let (model, text) = unsafe { (read(model, "model", MAX_NAME)?, read(text, "text", MAX_TEXT)?) };
        // SAFETY: the caller gives a NUL-terminated text or NULL.
        let caller = unsafe { read_optional(caller, "caller", MAX_NAME) }?.unwrap_or_default().to_owned();
        let inputs = vec![Prompt::Text(text.to_owned())];
        let request = EmbedRequest { model: model.to_owned(), inputs, pooling, deadline: None, caller };
        let done = wait(&node.runtime(), node.embed(request))?.map_err(|error| error.0)?;
        let floats = done.vectors.first().map(Vec::as_slice).unwrap_or_default();
        *length = floats.len();
        if vector.is_null() || floats.len() > capacity {
            return Err(refuse(format_args!("the vector has {} floats, the capacity is {capacity}", floats.len())));
        }
        // SAFETY: the caller gives `capacity` writable floats at `vector`, at least `floats.len()`; `floats` is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(floats.as_ptr(), vector, floats.len()) };
        Ok(())
    })
}

/// Stops accepting work, drains until the deadline, flushes and closes. May be called again; the handle stays open.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_shutdown(node: swarmllm_node, deadline_ms: u32) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        wait(&node.runtime(), node.shutdown(Duration::from_millis(deadline_ms.into())))
    })
}

/// Frees a node. A node that was not shut down shuts down without waiting once its generations are freed too.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_free(node: swarmllm_node) -> swarmllm_status {
    guard(|| NODES.remove(node.id).map(drop))
}
