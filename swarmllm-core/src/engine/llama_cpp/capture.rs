//! Captures and injects hidden states through llama.cpp's evaluation callback, which is called for each node of the graph.
//! Without the head, the callback copies the last layer's output and stops the graph, so that norm and output are never
//! computed. With the head, a step for states copies the output norm's result and stops there. If llama.cpp would change
//! the input, the callback overwrites the node of the first layer's input with the hidden states once it is computed. The
//! graph also pauses in the callback to read unpacked weights ([`unpacked_weights`](super::unpacked_weights)).

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use llama_cpp_sys_2 as ll;

use super::unpacked_weights::{WeightStream, is_product};

/// llama.cpp's name of the output norm's result.
const HEAD_NORM: &str = "result_norm";

/// A node of the graph.
struct Node {
    name: CString,
    /// Number of computed nodes of this name with the step's shape.
    computed: u32,
}

/// State of the callback.
pub(super) struct Capture {
    width: usize,
    input: Option<Node>,
    output: Node,
    /// Whether the step captures the output.
    captures_output: bool,
    /// Hidden states that overwrite the input.
    hidden: Vec<f32>,
    /// Captured rows; sized before the step.
    pub rows: Vec<f32>,
    /// Collects the left factors of the graph's products, if set.
    pub factors: Option<Vec<NonNull<ll::ggml_tensor>>>,
    /// Unpacked weights of the step.
    pub stream: Option<Box<WeightStream>>,
}

impl Node {
    fn new(name: &str) -> Self {
        // Node names have no zero byte, so the default is never used.
        Self { name: CString::new(name).unwrap_or_default(), computed: 0 }
    }

    fn is(&self, name: &[c_char]) -> bool {
        let wanted = self.name.as_bytes_with_nul();
        name.len() >= wanted.len() && name.iter().zip(wanted).all(|(given, wanted)| *given as u8 == *wanted)
    }
}

impl Capture {
    /// Overwrites the node `input`, if given, and captures the output of the last of `layers` layers; with the head that of
    /// the output norm in steps for states.
    pub fn new(input: Option<&str>, layers: u32, head: bool, width: u32) -> Box<Self> {
        let output = if head { HEAD_NORM.to_owned() } else { format!("l_out-{}", layers.saturating_sub(1)) };
        let (input, output, width) = (input.map(Node::new), Node::new(&output), width as usize);
        let (hidden, rows) = (Vec::new(), Vec::new());
        Box::new(Self { width, input, output, captures_output: false, hidden, rows, factors: None, stream: None })
    }

    /// Prepares a step of these hidden states that captures `outputs` rows; 0 for a step with logits.
    pub fn prepare(&mut self, hidden: &[f32], outputs: usize) {
        if let Some(input) = &mut self.input {
            input.computed = 0;
            self.hidden.clear();
            self.hidden.extend_from_slice(hidden);
        }
        self.output.computed = 0;
        self.captures_output = outputs > 0;
        self.rows.clear();
        self.rows.resize(outputs * self.width, 0.0);
    }

    /// Whether each requested node was computed once.
    pub fn is_complete(&self) -> bool {
        self.requested().all(|node| node.computed == 1)
    }

    /// The nodes that the step needs.
    fn requested(&self) -> impl Iterator<Item = &Node> {
        self.input.iter().chain(self.captures_output.then_some(&self.output))
    }

    fn is_requested(&self, tensor: &ll::ggml_tensor) -> bool {
        self.requested().any(|node| node.is(&tensor.name))
    }

    /// Handles a computed node; returns whether the graph continues.
    fn on_computed(&mut self, tensor: *mut ll::ggml_tensor) -> bool {
        // SAFETY: llama.cpp gives a computed node that lives as long as the call.
        let node = unsafe { &*tensor };
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.pauses(node)) {
            stream.advance();
            if !self.is_requested(node) {
                return true;
            }
        }
        if let Some(input) = self.input.as_mut().filter(|input| input.is(&node.name)) {
            if has_shape(node, self.width, self.hidden.len()) {
                let bytes = size_of_val(&*self.hidden);
                // SAFETY: the node is F32 with exactly as many floats as `hidden`.
                unsafe { ll::ggml_backend_tensor_set(tensor, self.hidden.as_ptr().cast(), 0, bytes) };
                input.computed += 1;
            }
            return true;
        }
        if has_shape(node, self.width, self.rows.len()) {
            let bytes = size_of_val(&*self.rows);
            // SAFETY: the node is F32 with exactly as many floats as `rows`.
            unsafe { ll::ggml_backend_tensor_get(tensor, self.rows.as_mut_ptr().cast(), 0, bytes) };
            self.output.computed += 1;
        }
        false
    }

    /// llama.cpp's evaluation callback. With `ask` it returns whether the node is requested; otherwise the node is computed
    /// and it returns whether the graph continues.
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
                return capture.is_requested(node) || capture.stream.as_ref().is_some_and(|stream| stream.pauses(node));
            }
            capture.on_computed(tensor)
        });
        catch_unwind(call).unwrap_or(false)
    }
}

/// Whether a node is F32 with rows of `width` and `floats` values in total.
fn has_shape(node: &ll::ggml_tensor, width: usize, floats: usize) -> bool {
    let product = node.ne.iter().try_fold(1_i64, |product, dim| product.checked_mul(*dim));
    node.type_ == ll::GGML_TYPE_F32
        && usize::try_from(node.ne[0]) == Ok(width)
        && product.and_then(|product| usize::try_from(product).ok()) == Some(floats)
}
