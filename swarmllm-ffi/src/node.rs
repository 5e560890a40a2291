//! Nodes: `Node` behind a handle.

use std::ffi::{c_char, c_void};
use std::future::Future;
use std::mem::MaybeUninit;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use swarmllm_core::base::{ErrorKind, Fault, Progress};
use swarmllm_core::node::{EmbedRequest, GenerateError, ImportOptions, Node, Pooling, ProgressFn, Prompt};
use tokio::runtime::Handle;
use tokio::sync::watch;

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

/// Told how far a long work has come, in bytes, on the thread that made the call. Answers 0 to go on; anything else
/// cancels the work. `user` is what was given with the call.
pub type swarmllm_progress = Option<extern "C" fn(user: *mut c_void, done: u64, total: u64) -> i32>;

/// The node behind a handle.
pub fn node(node: swarmllm_node) -> Result<Arc<Node>, Fault> {
    NODES.get(node.id)
}

/// Refuses to block where that would stall or panic an async runtime.
pub fn may_block() -> Result<(), Fault> {
    match Handle::try_current() {
        Err(_) => Ok(()),
        Ok(_) => Err(Fault::new(
            ErrorKind::Unsupported,
            "this call blocks and was made on a thread of an async runtime: make it on a thread of your own",
        )),
    }
}

/// Runs work of a node to its end on the calling thread.
pub fn wait<T>(runtime: &Handle, work: impl Future<Output = T>) -> Result<T, Fault> {
    may_block()?;
    Ok(runtime.block_on(work))
}

/// What a failed generation says.
pub fn fault(error: &GenerateError) -> Fault {
    error.fault().clone()
}

/// JSON text of what the core gave.
pub fn json(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|cause| Fault::new(ErrorKind::Internal, format_args!("no JSON: {cause}")))
}

/// Runs long work and reports its progress on the calling thread.
fn wait_reporting<T>(
    node: &Node,
    (progress, user): (swarmllm_progress, *mut c_void),
    work: impl AsyncFnOnce(Option<ProgressFn>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let Some(progress) = progress else { return wait(&node.runtime(), work(None))? };
    let (news, mut come) = watch::channel(Progress { done: 0, total: 0 });
    let tell: ProgressFn = Arc::new(move |progress| {
        news.send_replace(progress);
    });
    let report = |Progress { done, total }| match progress(user, done, total) {
        0 => Ok(()),
        _ => Err(Fault::new(ErrorKind::Cancelled, "the progress function cancelled the work")),
    };
    wait(&node.runtime(), async {
        let mut work = pin!(work(Some(tell)));
        loop {
            tokio::select! {
                biased;
                Ok(()) = come.changed() => {
                    let progress = *come.borrow_and_update();
                    report(progress)?;
                }
                result = &mut work => {
                    // What was reported as the work ended is told too. There is nothing left to cancel.
                    let newest = come.borrow_and_update();
                    if newest.has_changed() {
                        let _ = report(*newest);
                    }
                    return result;
                }
            }
        }
    })?
}

/// Starts a node and waits until it runs. The configuration stays the caller's.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_start(config: swarmllm_config, node: Option<&mut swarmllm_node>) -> swarmllm_status {
    guard(|| {
        let node = place(node, "node")?;
        node.id = 0;
        may_block()?;
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

/// The bound addresses with their `/p2p/`, to be given to others: a JSON list of texts.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_addresses_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.addresses()))
}

/// How the node is: a JSON object.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_status_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.status()))
}

/// The models it knows: a JSON list of objects. Of a model that cannot run here, or for which the memory within reach is too short
/// now (`subject` "memory"), `ready` is false, and `findings` and `warnings` say why.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_models_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.models()))
}

/// The peers it knows: a JSON list of objects.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_peers_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.peers()))
}

/// How it stands with each peer that has computed for it, or it for the peer: a JSON list of objects, amounts in credits.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_balances_json(
    node: swarmllm_node,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || json(&self::node(node)?.balances()))
}

/// An invite to the node's swarm, as one line of text, good for so many seconds: where this node may be dialled, and of a
/// private swarm its secret.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_invite(
    node: swarmllm_node,
    good_for_seconds: u64,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || self::node(node)?.invite(Duration::from_secs(good_for_seconds)))
}

/// Dials a peer (multiaddr) and waits until it has said hello; gives its id.
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

/// Cuts a local GGUF into shards and gives the model as a JSON object. Of a model in several files
/// (`NAME-00001-of-00003.gguf`) any part is given; the others lie beside it. `options` is NULL or a JSON object with `name`,
/// an alias that no other model has, `parts`, a list of what to keep, of one part at least: `"all"`, `"coordinator"`,
/// `{"start": 0, "end": 10, "head": false}` (layers of the model, the end excluded, or else SWARMLLM_INVALID_ARGUMENT), and
/// `anyway`, with which a model is kept for others that cannot run here and would else be refused before its weights are read.
/// `warnings` of the object given say what of the model cannot be used here, and `findings` as in `swarmllm_node_examine`.
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

/// Imports a GGUF from the web as `swarmllm_node_import` does a local one, with the same result. `address` is an http or
/// https address, or `hf:owner/repo/path/file.gguf`, with `@revision` behind it where it is not `main`. `options` has
/// further `hub`, the address of a mirror, and `token`, for files that not everybody may have. What came is kept when the
/// import ends early, and the next one of that file goes on from there.
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

/// What of a local GGUF cannot run here, asked of its header as an import does; nothing is kept. Gives a JSON object:
/// `architecture`, `refuses` (whether `swarmllm_node_import` would refuse it without `anyway`), and `findings`, a list of objects
/// with `subject` ("engine", "tokenizer", "pre_tokenizer", "special_token" or "template"), `engine` (its name, or null), `kind`
/// (the name of a status code), `reason`, and `refuses`. `options` as in `swarmllm_node_import`, of which `parts` counts: a node
/// that keeps no metadata needs no tokenizer.
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

/// The same of a GGUF on the web, of which only the header is fetched; `address` and `options` as in `swarmllm_node_import_url`.
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

/// Fetches shards of a model from peers and gives the model as a JSON object. `parts` is NULL (all) or JSON as one of
/// the parts of `swarmllm_node_import`.
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

/// The same with one source more: a GGUF of this very model on the web, `address` as in `swarmllm_node_import_url`.
/// `options` is NULL or a JSON object with `hub` and `token`.
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

/// Whether `swarmllm_node_make_room` leaves a model alone from now on, after a restart too (0 = no).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_pin(node: swarmllm_node, model: *const c_char, on: i32) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let model = unsafe { read(model, "model", MAX_NAME) }?;
        wait(&node.runtime(), node.pin(model, on != 0))?.map_err(|error| error.0)
    })
}

/// Gives a model that is known here an alias, beside those that it has, and gives the model as a JSON object. Fails with
/// SWARMLLM_ALIAS_TAKEN where another model has the alias, in whatever case, or is called so by its file or a peer;
/// `swarmllm_node_move_alias` takes it from that one. With the same where another model's id begins so, and with
/// SWARMLLM_INVALID_ARGUMENT where it would be read as an id, or has a character that nobody sees.
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

/// The same, and the model that had the alias, or was called so, has it no longer.
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

/// Takes an alias from the model that has it. What files and peers call the model stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_remove_alias(node: swarmllm_node, alias: *const c_char) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        // SAFETY: the caller gives a NUL-terminated text.
        let alias = unsafe { read(alias, "alias", MAX_NAME) }?;
        wait(&node.runtime(), node.remove_alias(alias))?.map_err(|error| error.0)
    })
}

/// Removes a model from here: its shards but for those that another model needs, its aliases, and what is known of it; gives
/// its `id`, its `name` and the bytes that went (`freed`) as a JSON object. The file that it was imported from stays, and
/// peers that hold it keep it. Fails with SWARMLLM_INVALID_ARGUMENT where it is pinned or `model` is only the beginning of a
/// name, and with SWARMLLM_OVERLOADED where something of it is computed or fetched now.
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

/// Removes the models that were used longest ago until so many bytes more have room within the bound on the disk; gives the
/// ids of those that went as a JSON array. Pinned ones stay, and those that are loaded here. Where the others would not make
/// enough room, none goes, and the call fails with SWARMLLM_DISK_BUDGET.
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

/// Which stages would answer for a model, without acting: a JSON object.
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

/// What is taken of the states of a text's tokens.
#[repr(C)]
pub enum swarmllm_pooling {
    /// Their mean.
    SWARMLLM_POOLING_MEAN = 0,
    /// The last token's, which is the only one that has seen the whole text.
    SWARMLLM_POOLING_LAST = 1,
}

/// Makes a vector of a text: writes its floats, of length 1 together, to `vector`, and their number to `length`. `pooling`
/// is one of `swarmllm_pooling`. `caller` names on whose behalf this is asked, and may be NULL: callers that wait for a place
/// take turns. Where the vector has more than `capacity` floats, nothing is written to `vector`,
/// `length` says how many there are, and the call fails with SWARMLLM_INVALID_ARGUMENT.
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
            _ => return Err(refuse(format_args!("{pooling} is no `swarmllm_pooling`"))),
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
            return Err(refuse(format_args!("the vector has {} floats, there is room for {capacity}", floats.len())));
        }
        // SAFETY: the caller gives `capacity` writable floats at `vector`, which are no fewer; `floats` is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(floats.as_ptr(), vector, floats.len()) };
        Ok(())
    })
}

/// Stops accepting, drains until the deadline, flushes and closes. May be called again; the handle stays open.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_shutdown(node: swarmllm_node, deadline_ms: u32) -> swarmllm_status {
    guard(|| {
        let node = self::node(node)?;
        wait(&node.runtime(), node.shutdown(Duration::from_millis(deadline_ms.into())))
    })
}

/// Frees a node. One that was not shut down, and whose generations are freed too, is shut down without waiting.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_node_free(node: swarmllm_node) -> swarmllm_status {
    guard(|| NODES.remove(node.id).map(drop))
}
