//! CPU levels with their own build of llama.cpp's kernels. The build script includes this file too.

/// A CPU level.
pub struct Level {
    /// Name of the level.
    pub name: &'static str,
    /// llama.cpp's CMake settings.
    pub settings: &'static [(&'static str, &'static str)],
    /// CPU features that the level needs beside those of the base build.
    pub needs: &'static [&'static str],
}

impl Level {
    /// Whether a CPU with the given features supports the level.
    pub fn fits(&self, has: impl Fn(&str) -> bool) -> bool {
        BASE.iter().chain(self.needs).all(|feature| has(feature))
    }
}

/// The levels of this architecture, best first.
#[cfg(target_arch = "x86_64")]
pub const LEVELS: &[Level] = X86_64;
/// The levels of this architecture, best first.
#[cfg(target_arch = "aarch64")]
pub const LEVELS: &[Level] = AARCH64;
/// No levels for other architectures.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const LEVELS: &[Level] = &[];

/// CPU features of the base build; on ARM those of the architecture.
#[cfg(target_arch = "x86_64")]
const BASE: &[&str] = &["avx2", "fma", "f16c", "bmi2", "sse4.2"];
#[cfg(not(target_arch = "x86_64"))]
const BASE: &[&str] = &[];

/// ggml has products for VNNI and BF16 but none for VBMI, which Cascade Lake (VNNI) and Cooper Lake (both) lack. With VBMI
/// compilers shuffle bytes better: steps of few rows take 0.97 of the time.
pub const X86_64: &[Level] = &[
    Level {
        name: "avx512_bf16",
        settings: &[
            ("GGML_AVX512", "ON"),
            ("GGML_AVX512_VBMI", "ON"),
            ("GGML_AVX512_VNNI", "ON"),
            ("GGML_AVX512_BF16", "ON"),
        ],
        needs: &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512vbmi", "avx512vnni", "avx512bf16"],
    },
    Level {
        name: "avx512_vbmi",
        settings: &[("GGML_AVX512", "ON"), ("GGML_AVX512_VBMI", "ON"), ("GGML_AVX512_VNNI", "ON")],
        needs: &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512vbmi", "avx512vnni"],
    },
    Level {
        name: "avx512_vnni",
        settings: &[("GGML_AVX512", "ON"), ("GGML_AVX512_VNNI", "ON")],
        needs: &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512vnni"],
    },
    Level {
        name: "avx512",
        settings: &[("GGML_AVX512", "ON")],
        needs: &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"],
    },
    Level { name: "avx_vnni", settings: &[("GGML_AVX_VNNI", "ON")], needs: &["avxvnni"] },
];

/// Apple's compiler targets at least the M1, which has the features of `dotprod`.
pub const AARCH64: &[Level] = &[
    Level {
        name: "i8mm",
        settings: &[("GGML_CPU_ARM_ARCH", "armv8.6-a+dotprod+fp16+i8mm")],
        needs: &["dotprod", "fp16", "i8mm"],
    },
    #[cfg(not(target_vendor = "apple"))]
    Level {
        name: "dotprod",
        settings: &[("GGML_CPU_ARM_ARCH", "armv8.2-a+dotprod+fp16")],
        needs: &["dotprod", "fp16"],
    },
];

/// Whether this machine can run the base build.
pub fn has_base() -> bool {
    BASE.iter().all(|feature| has(feature))
}

/// Whether this machine's CPU has a feature of the table or of the base build.
pub fn has(feature: &str) -> bool {
    macro_rules! detected {
        ($detect:ident: $($name:tt)*) => {
            match feature {
                $($name => std::arch::$detect!($name),)*
                _ => false,
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    let found = detected!(is_x86_feature_detected: "avx2" "fma" "f16c" "bmi2" "sse4.2" "avxvnni" "avx512f" "avx512cd"
        "avx512vl" "avx512dq" "avx512bw" "avx512vbmi" "avx512vnni" "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    let found = detected!(is_aarch64_feature_detected: "dotprod" "fp16" "i8mm");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found = detected!(none:);
    found
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const AVX512: [&str; 5] = ["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"];

    fn level(features: &[&str]) -> &'static str {
        let has = |feature: &str| BASE.contains(&feature) || features.contains(&feature);
        X86_64.iter().find(|level| level.fits(has)).map_or("base", |level| level.name)
    }

    #[test]
    fn each_cpu_generation_gets_its_best_level() {
        let avx512 = |more: &[&'static str]| level(&[&AVX512[..], more].concat());
        for (processor, found, expected) in [
            ("Haswell", level(&[]), "base"),
            ("Alder Lake", level(&["avxvnni"]), "avx_vnni"),
            ("Skylake-SP", avx512(&[]), "avx512"),
            ("Cascade Lake", avx512(&["avx512vnni"]), "avx512_vnni"),
            ("Cooper Lake", avx512(&["avx512vnni", "avx512bf16"]), "avx512_vnni"),
            ("Ice Lake", avx512(&["avx512vnni", "avx512vbmi"]), "avx512_vbmi"),
            ("Sapphire Rapids", avx512(&["avx512vnni", "avx512vbmi", "avx512bf16", "avxvnni"]), "avx512_bf16"),
        ] {
            assert_eq!(found, expected, "{processor}");
        }
        let lacking = |feature: &str| feature != "avx2" && AVX512.contains(&feature);
        assert!(X86_64.iter().all(|level| !level.fits(lacking)), "every level needs the base features");
    }

    #[test]
    fn a_level_is_built_with_exactly_the_features_that_it_needs() {
        for (setting, feature) in [
            ("GGML_AVX512", "avx512f"),
            ("GGML_AVX512_VNNI", "avx512vnni"),
            ("GGML_AVX512_BF16", "avx512bf16"),
            ("GGML_AVX512_VBMI", "avx512vbmi"),
            ("GGML_AVX_VNNI", "avxvnni"),
        ] {
            for level in X86_64 {
                let built = level.settings.contains(&(setting, "ON"));
                assert_eq!(built, level.needs.contains(&feature), "{} and {feature}", level.name);
            }
        }
    }
}
