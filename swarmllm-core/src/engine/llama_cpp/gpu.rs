//! Accelerators of this build on this machine, and the number of layers that they compute.
//!
//! The features `cuda`, `metal` and `vulkan` build llama.cpp's own backends.

use std::ffi::CStr;
use std::sync::OnceLock;

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;

use super::log;

/// Whether the build has a backend beside the CPU's.
const BUILT: bool = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));

/// The machine's accelerators by driver name. The first call in a process may take a second.
pub(super) fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    match BUILT {
        true => NAMES.get_or_init(find),
        false => &[],
    }
}

fn find() -> Vec<String> {
    log::init();
    // SAFETY: counts and looks up devices that llama.cpp registered at its start.
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

/// Layers of a stage on the accelerator, at most `requested`; the head counts as one.
pub(super) fn layers(requested: u32, layers: LayerRange, head: bool) -> u32 {
    if requested == 0 || names().is_empty() { 0 } else { requested.min(layers.len() + u32::from(head)) }
}

/// The same number in llama.cpp's count, which runs from the end and always includes the head.
pub(super) fn n_gpu_layers(gpu_layers: u32, head: bool) -> i32 {
    let places = if gpu_layers > 0 && !head { gpu_layers + 1 } else { gpu_layers };
    i32::try_from(places).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_cpps_layer_count_always_includes_the_head() {
        assert_eq!(
            [n_gpu_layers(0, false), n_gpu_layers(0, true), n_gpu_layers(3, false), n_gpu_layers(3, true)],
            [0, 0, 4, 3]
        );
    }

    #[test]
    fn without_an_accelerator_no_layer_is_offloaded() {
        let most = if names().is_empty() { 0 } else { 5 };
        assert_eq!(layers(u32::MAX, LayerRange::new(2, 6), true), most);
        assert_eq!(layers(0, LayerRange::new(2, 6), true), 0);
    }
}
