//! Kinds of processors that get a build of llama.cpp's CPU kernels of their own. The build script reads this file too.

/// A kind of processor.
pub struct Level {
    /// Its name.
    pub name: &'static str,
    /// llama.cpp's settings for it.
    pub settings: &'static [(&'static str, &'static str)],
    /// Whether this machine is of the kind, or of a better one.
    pub fits: fn() -> bool,
}

/// Best first.
#[cfg(target_arch = "x86_64")]
pub const LEVELS: &[Level] = &[
    Level {
        name: "avx512_bf16",
        settings: &[
            ("GGML_AVX512", "ON"),
            ("GGML_AVX512_VBMI", "ON"),
            ("GGML_AVX512_VNNI", "ON"),
            ("GGML_AVX512_BF16", "ON"),
        ],
        fits: || has_avx512_vnni() && has!("avx512bf16"),
    },
    Level {
        name: "avx512_vnni",
        settings: &[("GGML_AVX512", "ON"), ("GGML_AVX512_VBMI", "ON"), ("GGML_AVX512_VNNI", "ON")],
        fits: has_avx512_vnni,
    },
    Level { name: "avx512", settings: &[("GGML_AVX512", "ON")], fits: has_avx512 },
    Level { name: "avx_vnni", settings: &[("GGML_AVX_VNNI", "ON")], fits: || has_base() && has!("avxvnni") },
];

/// Best first.
#[cfg(target_arch = "aarch64")]
pub const LEVELS: &[Level] = &[
    Level {
        name: "i8mm",
        settings: &[("GGML_CPU_ARM_ARCH", "armv8.6-a+dotprod+fp16+i8mm")],
        fits: || has!("dotprod") && has!("fp16") && has!("i8mm"),
    },
    Level {
        name: "dotprod",
        settings: &[("GGML_CPU_ARM_ARCH", "armv8.2-a+dotprod+fp16")],
        fits: || has!("dotprod") && has!("fp16"),
    },
];

/// None for others.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const LEVELS: &[Level] = &[];

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected as has;
#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected as has;

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_base() && has!("avx512f") && has!("avx512cd") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_vnni() -> bool {
    has_avx512() && has!("avx512vbmi") && has!("avx512vnni")
}

/// Whether this machine can run the build that all get.
#[cfg(target_arch = "x86_64")]
pub fn has_base() -> bool {
    has!("avx2") && has!("fma") && has!("f16c") && has!("bmi2") && has!("sse4.2")
}

/// Whether this machine can run the build that all get; beside x86-64 that is for whatever the architecture begins with.
#[cfg(not(target_arch = "x86_64"))]
pub fn has_base() -> bool {
    true
}
