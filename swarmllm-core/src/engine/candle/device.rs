//! Device of a stage: the CPU, or, with the features `candle-cuda` and `candle-metal`, the machine's first accelerator.
//! CUDA was tested on an H200; Metal was never compiled, because it needs Apple's toolchain and machine.

use std::sync::OnceLock;

use candle_core::Device;

use crate::base::LayerRange;

/// The accelerator, if build and machine have one. Detected once per process.
fn accelerator() -> Option<&'static Device> {
    static FOUND: OnceLock<Option<Device>> = OnceLock::new();
    let look = || match () {
        () if cfg!(feature = "candle-cuda") => Some(Device::new_cuda(0)),
        () if cfg!(feature = "candle-metal") => Some(Device::new_metal(0)),
        () => None,
    };
    let found = FOUND.get_or_init(|| {
        let refused = |error: &_| tracing::warn!(%error, "candle finds no accelerator and uses the CPU");
        look().and_then(|device: candle_core::Result<_>| device.inspect_err(refused).ok())
    });
    found.as_ref()
}

/// Name of the accelerator, if there is one.
pub(super) fn name() -> Option<String> {
    accelerator().map(|device| format!("{:?}, by candle", device.location()))
}

/// Device of a stage, and its number of layers on the accelerator: all or none. The head counts as one layer.
pub(super) fn select(asked: u32, layers: LayerRange, head: bool) -> (Device, u32) {
    choose(accelerator(), asked, layers.len() + u32::from(head))
}

fn choose(accelerator: Option<&Device>, asked: u32, all: u32) -> (Device, u32) {
    match accelerator {
        Some(device) if asked >= all => (device.clone(), all),
        _ => (Device::Cpu, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accelerator_gets_all_layers_of_a_stage_or_none() {
        let there = Device::Cpu;
        let layers = |accelerator, asked| choose(accelerator, asked, 4).1;
        assert_eq!([u32::MAX, 4, 3, 0].map(|asked| layers(Some(&there), asked)), [4, 4, 0, 0]);
        assert_eq!(layers(None, u32::MAX), 0);
    }
}
