//! Accelerators: which ones this build can use on this machine, and how many layers of a stage they get.
//!
//! They are features of the build: `cuda`, `metal`, `vulkan`, which are llama.cpp's own backends.

use std::ffi::CStr;
use std::sync::OnceLock;

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;

use super::log;

/// Whether the build has a backend beside the processor's.
const BUILT: bool = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));

/// The machine's accelerators, by their drivers' names. Looking for them may take a second, once per process.
pub(super) fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    match BUILT {
        true => NAMES.get_or_init(find),
        false => &[],
    }
}

fn find() -> Vec<String> {
    log::init();
    // SAFETY: counts and looks up what llama.cpp has registered at its start.
    let devices = unsafe { (0..ll::ggml_backend_dev_count()).map(|index| ll::ggml_backend_dev_get(index)) };
    let name = |device: ll::ggml_backend_dev_t| {
        // SAFETY: a registered device lives as long as the process.
        let (kind, text) = unsafe { (ll::ggml_backend_dev_type(device), ll::ggml_backend_dev_description(device)) };
        let computes = kind == ll::GGML_BACKEND_DEVICE_TYPE_GPU || kind == ll::GGML_BACKEND_DEVICE_TYPE_IGPU;
        let named = computes && !text.is_null();
        // SAFETY: a text that ends with a zero and lives as long as the device.
        named.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    devices.filter_map(name).collect()
}

/// How many layers of a stage are computed by an accelerator where `asked` may be; a head counts as one.
pub(super) fn layers(asked: u32, layers: LayerRange, head: bool) -> u32 {
    if asked == 0 || names().is_empty() { 0 } else { asked.min(layers.len() + u32::from(head)) }
}

/// That number as llama.cpp counts: from the end, where the head has a place whether there is one or not.
pub(super) fn told(gpu_layers: u32, head: bool) -> i32 {
    let places = if gpu_layers > 0 && !head { gpu_layers + 1 } else { gpu_layers };
    i32::try_from(places).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_without_the_head_has_a_place_for_it_in_llama_cpps_count() {
        assert_eq!([told(0, false), told(0, true), told(3, false), told(3, true)], [0, 0, 4, 3]);
    }

    #[test]
    fn no_layer_is_given_to_an_accelerator_that_is_not_there() {
        let most = if names().is_empty() { 0 } else { 5 };
        assert_eq!(layers(u32::MAX, LayerRange::new(2, 6), true), most);
        assert_eq!(layers(0, LayerRange::new(2, 6), true), 0);
    }
}
