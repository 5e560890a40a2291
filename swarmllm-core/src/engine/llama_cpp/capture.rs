//! Takes the hidden states out of a stage without the head, and puts them in where llama.cpp would change what comes in:
//! llama.cpp asks about each node of its graph. At the last layer's output we copy it and stop the graph, so that norm
//! and output are never computed. At the node that stands for the first layer's input, once it is computed, we write the
//! hidden states over it. Of a stage with the head, a step that wants states takes those behind the output norm, and
//! stops there. Where weights are read while the graph computes ([`plain`](super::plain)), it pauses for that.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use llama_cpp_sys_2 as ll;

use super::plain::{Stream, is_product};

/// What llama.cpp calls the output norm's result.
const HEAD_NORM: &str = "result_norm";

/// A node of the graph, by its name.
struct Node {
    name: CString,
    /// How often it was met with the shape that the step needs.
    hits: u32,
}

/// What the callback reads and fills.
pub(super) struct Capture {
    width: usize,
    input: Option<Node>,
    output: Node,
    /// Whether the step takes the output.
    taken: bool,
    /// What is put over the input.
    hidden: Vec<f32>,
    /// Room for the rows of the step, set before it.
    pub rows: Vec<f32>,
    /// What the graph multiplies with, where that is asked for.
    pub factors: Option<Vec<NonNull<ll::ggml_tensor>>>,
    /// Weights that are read while the graph computes, where the step has them.
    pub stream: Option<Box<Stream>>,
}

impl Node {
    fn new(name: &str) -> Self {
        // Names of nodes have no zero byte, so the name is never the empty one.
        Self { name: CString::new(name).unwrap_or_default(), hits: 0 }
    }

    fn is(&self, name: &[c_char]) -> bool {
        let wanted = self.name.as_bytes_with_nul();
        name.len() >= wanted.len() && name.iter().zip(wanted).all(|(given, wanted)| *given as u8 == *wanted)
    }
}

impl Capture {
    /// A capture that puts hidden states over the node `input`, where there is one, and takes the output of the last of
    /// `layers` layers, or with the head the output norm's in steps that want it.
    pub fn new(input: Option<&str>, layers: u32, head: bool, width: u32) -> Box<Self> {
        let output = if head { HEAD_NORM.to_owned() } else { format!("l_out-{}", layers.saturating_sub(1)) };
        let (input, output, width) = (input.map(Node::new), Node::new(&output), width as usize);
        let (hidden, rows) = (Vec::new(), Vec::new());
        Box::new(Self { width, input, output, taken: false, hidden, rows, factors: None, stream: None })
    }

    /// Gets ready for a step of these hidden states, of which so many rows of output are wanted; of a stage with the head
    /// none are where it is to give logits.
    pub fn prepare(&mut self, hidden: &[f32], outputs: usize) {
        if let Some(input) = &mut self.input {
            input.hits = 0;
            self.hidden.clear();
            self.hidden.extend_from_slice(hidden);
        }
        self.output.hits = 0;
        self.taken = outputs > 0;
        self.rows.clear();
        self.rows.resize(outputs * self.width, 0.0);
    }

    /// Whether each node that is asked for was met once.
    pub fn is_complete(&self) -> bool {
        self.asked().all(|node| node.hits == 1)
    }

    /// The nodes that the step asks for.
    fn asked(&self) -> impl Iterator<Item = &Node> {
        self.input.iter().chain(self.taken.then_some(&self.output))
    }

    fn is_wanted(&self, tensor: &ll::ggml_tensor) -> bool {
        self.asked().any(|node| node.is(&tensor.name))
    }

    /// Handles a computed node; says whether the graph goes on.
    fn meet(&mut self, tensor: *mut ll::ggml_tensor) -> bool {
        // SAFETY: llama.cpp gives a computed node that lives as long as the call.
        let node = unsafe { &*tensor };
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.pauses(node)) {
            stream.go_on();
            if !self.is_wanted(node) {
                return true;
            }
        }
        if let Some(input) = self.input.as_mut().filter(|input| input.is(&node.name)) {
            if has_shape(node, self.width, self.hidden.len()) {
                let bytes = size_of_val(&*self.hidden);
                // SAFETY: the node is F32 with exactly as many floats as there are.
                unsafe { ll::ggml_backend_tensor_set(tensor, self.hidden.as_ptr().cast(), 0, bytes) };
                input.hits += 1;
            }
            return true;
        }
        if has_shape(node, self.width, self.rows.len()) {
            let bytes = size_of_val(&*self.rows);
            // SAFETY: the node is F32 with exactly as many floats as there is room for.
            unsafe { ll::ggml_backend_tensor_get(tensor, self.rows.as_mut_ptr().cast(), 0, bytes) };
            self.output.hits += 1;
        }
        false
    }

    /// llama.cpp's evaluation callback: `ask` is whether the node is wanted, otherwise it is computed; the answer then
    /// is whether to go on.
    pub unsafe extern "C" fn on_eval(tensor: *mut ll::ggml_tensor, ask: bool, capture: *mut c_void) -> bool {
        // SAFETY: `capture` is the boxed capture of the context that computes, which the stage does not touch meanwhile.
        let capture = unsafe { &mut *capture.cast::<Capture>() };
        let call = AssertUnwindSafe(|| {
            if ask {
                // SAFETY: llama.cpp gives a node that lives as long as the call.
                let node = unsafe { &*tensor };
                if let Some(factors) = &mut capture.factors
                    && is_product(node)
                {
                    factors.extend(NonNull::new(node.src[0]));
                }
                return capture.is_wanted(node) || capture.stream.as_ref().is_some_and(|stream| stream.pauses(node));
            }
            capture.meet(tensor)
        });
        catch_unwind(call).unwrap_or(false)
    }
}

/// Whether a node is F32, in rows of `width`, `floats` in all.
fn has_shape(node: &ll::ggml_tensor, width: usize, floats: usize) -> bool {
    let product = node.ne.iter().try_fold(1_i64, |product, dim| product.checked_mul(*dim));
    node.type_ == ll::GGML_TYPE_F32
        && usize::try_from(node.ne[0]) == Ok(width)
        && product.and_then(|product| usize::try_from(product).ok()) == Some(floats)
}
