//! Takes the hidden states out of a stage without the head: llama.cpp asks about each node of its graph, we want the
//! last layer's output, copy it, and stop the graph there, so that norm and output are never computed.

use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as ll;

/// What the callback fills.
pub(super) struct Capture {
    name: CString,
    width: usize,
    /// Room for the rows of the step, set before it.
    pub rows: Vec<f32>,
    /// How often the node was met with the shape that the step needs.
    pub hits: u32,
}

impl Capture {
    /// A capture of the output of the last of `layers` layers.
    pub fn new(layers: u32, width: u32) -> Self {
        let name = format!("l_out-{}", layers.saturating_sub(1));
        // A formatted number has no zero byte, so the name is never the empty one.
        Self { name: CString::new(name).unwrap_or_default(), width: width as usize, rows: Vec::new(), hits: 0 }
    }

    /// Makes room for a step of `rows` rows.
    pub fn prepare(&mut self, rows: usize) {
        self.rows.clear();
        self.rows.resize(rows * self.width, 0.0);
        self.hits = 0;
    }

    fn is_wanted(&self, tensor: &ll::ggml_tensor) -> bool {
        let name = self.name.as_bytes_with_nul();
        tensor.name.iter().zip(name).all(|(given, wanted)| *given as u8 == *wanted) && tensor.name.len() >= name.len()
    }

    /// Copies the node where it has the shape that the step needs.
    fn take(&mut self, tensor: *mut ll::ggml_tensor) {
        // SAFETY: llama.cpp gives a computed node that lives as long as the call.
        let node = unsafe { &*tensor };
        let floats = node.ne.iter().try_fold(1_i64, |product, dim| product.checked_mul(*dim));
        let fits = node.type_ == ll::GGML_TYPE_F32
            && usize::try_from(node.ne[0]) == Ok(self.width)
            && floats.and_then(|floats| usize::try_from(floats).ok()) == Some(self.rows.len());
        if fits {
            // SAFETY: the node is F32 with exactly as many floats as there is room for.
            unsafe { ll::ggml_backend_tensor_get(tensor, self.rows.as_mut_ptr().cast(), 0, size_of_val(&*self.rows)) };
            self.hits += 1;
        }
    }

    /// llama.cpp's evaluation callback: `ask` is whether the node is wanted, otherwise it is computed; the answer then
    /// is whether to go on.
    pub unsafe extern "C" fn on_eval(tensor: *mut ll::ggml_tensor, ask: bool, capture: *mut c_void) -> bool {
        // SAFETY: `capture` is the boxed capture of the context that computes, which the stage does not touch meanwhile.
        let capture = unsafe { &mut *capture.cast::<Capture>() };
        let call = AssertUnwindSafe(|| {
            if ask {
                // SAFETY: llama.cpp gives a node that lives as long as the call.
                return capture.is_wanted(unsafe { &*tensor });
            }
            capture.take(tensor);
            false
        });
        catch_unwind(call).unwrap_or(false)
    }
}
