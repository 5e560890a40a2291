//! Builds llama.cpp's CPU kernels once more for each CPU level above the base level of `llama-cpp-sys-2`, so that one
//! library runs at full speed on all of them.
//!
//! llama.cpp's own solution is shared libraries that are loaded at run time, but a linked library cannot bring files along.
//! So each build's objects are joined into one whose symbols are local except for the entry point, which gets a unique
//! name. `engine/llama_cpp/kernels.rs` selects one at run time and includes the list of entry points (`kernels.rs` in
//! `OUT_DIR`) from here. Sources and settings are those of `llama-cpp-sys-2`'s build, which ends before this one starts,
//! because that crate `links`.
//!
//! A debug build runs on the machine that builds it, so it gets that machine's best level only. Cargo warns, and llama.cpp
//! runs without a level, if a tool is missing (GNU's `ld` and `objcopy`, a compiler for the instructions, the folder of the
//! other build), if the target is not Linux, or if the build is a cross build. The library reports the reason if the CPU
//! supports a level that it lacks.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "llama-cpp")]
    kernels::main();
}

#[cfg(feature = "llama-cpp")]
#[path = "src/engine/llama_cpp/levels.rs"]
// Some items are used by the library only.
#[allow(dead_code)]
mod levels;

#[cfg(feature = "llama-cpp")]
mod kernels {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::levels::{LEVELS, Level, has};

    /// The entry point of llama.cpp's CPU kernels.
    const ENTRY: &str = "ggml_backend_cpu_reg";

    /// CMake settings of llama.cpp, equal to those of `llama-cpp-sys-2`.
    const SETTINGS: [(&str, &str); 10] = [
        ("BUILD_SHARED_LIBS", "OFF"),
        ("GGML_NATIVE", "OFF"),
        ("GGML_OPENMP", "OFF"),
        ("LLAMA_BUILD_APP", "OFF"),
        ("LLAMA_BUILD_COMMON", "OFF"),
        ("LLAMA_BUILD_EXAMPLES", "OFF"),
        ("LLAMA_BUILD_SERVER", "OFF"),
        ("LLAMA_BUILD_TESTS", "OFF"),
        ("LLAMA_BUILD_TOOLS", "OFF"),
        ("LLAMA_CURL", "OFF"),
    ];

    pub fn main() {
        println!("cargo:rerun-if-changed=src/engine/llama_cpp/levels.rs");
        let var = |name: &str| std::env::var(name).unwrap_or_default();
        let out = PathBuf::from(var("OUT_DIR"));
        let built = build_levels(&var, &out);
        std::fs::write(out.join("kernels.rs"), entry_points(&built)).expect("OUT_DIR is writable");
    }

    /// Builds the levels; returns the names of those that were built.
    fn build_levels(var: &dyn Fn(&str) -> String, out: &Path) -> Vec<&'static str> {
        let (os, target, host) = (var("CARGO_CFG_TARGET_OS"), var("TARGET"), var("HOST"));
        // The tools that join objects and the compiled table of levels are those of the build machine.
        if os != "linux" {
            return omit(&format!("kernels for better CPUs are built for Linux only, this is a build for {os}"));
        }
        if host != target {
            return omit(&format!("kernels for better CPUs are not cross-built, here on {host} for {target}"));
        }
        let release = var("PROFILE") == "release";
        let levels: Vec<&Level> = match release {
            true => LEVELS.iter().collect(),
            false => LEVELS.iter().filter(|level| level.fits(has)).take(1).collect(),
        };
        if !release {
            report("a debug build has the kernels for the machine that built it only");
        }
        // The output folder of `llama-cpp-sys-2`'s build, which cargo passes on.
        let Some(source) = source(Path::new(&var("DEP_LLAMA_ROOT"))) else {
            return omit("the build of llama-cpp-sys-2 was not found");
        };
        println!("cargo:rustc-link-search=native={}", out.display());
        let mut built = Vec::new();
        for level in levels {
            match build_level(&source, level, out) {
                Ok(archive) => {
                    println!("cargo:rustc-link-lib=static={archive}");
                    built.push(level.name);
                }
                Err(why) => {
                    report(&why);
                    println!("cargo:warning=llama.cpp gets no CPU kernels for {}: {why}", level.name);
                }
            }
        }
        built
    }

    /// Sets the reason that the library reports if the CPU supports a level that it lacks.
    fn report(reason: &str) {
        println!("cargo:rustc-env=SWARMLLM_FEWER_KERNELS={}", reason.lines().next().unwrap_or_default());
    }

    /// Omits all levels, with a warning.
    fn omit(reason: &str) -> Vec<&'static str> {
        report(reason);
        println!("cargo:warning=llama.cpp uses the base kernels only: {reason}");
        Vec::new()
    }

    /// Rust source of the entry points of the built levels.
    fn entry_points(built: &[&str]) -> String {
        let declared: String =
            built.iter().map(|name| format!("    fn swarmllm_kernels_{name}() -> ll::ggml_backend_reg_t;\n")).collect();
        let listed: String = built.iter().map(|name| format!("    (\"{name}\", swarmllm_kernels_{name}),\n")).collect();
        let declared = if built.is_empty() { declared } else { format!("unsafe extern \"C\" {{\n{declared}}}\n") };
        format!(
            "{declared}/// The built levels and their entry points.\nconst BUILT: &[(&str, Entry)] = &[\n{listed}];\n"
        )
    }

    /// Source folder of llama.cpp in `llama-cpp-sys-2`'s build.
    fn source(build: &Path) -> Option<PathBuf> {
        let settings = std::fs::read_to_string(build.join("build/CMakeCache.txt")).ok()?;
        settings.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL=")).map(PathBuf::from)
    }

    /// Builds one level; returns the name of the archive without `lib` and `.a`.
    fn build_level(source: &Path, level: &Level, out: &Path) -> Result<String, String> {
        let dir = out.join(level.name);
        clear_stale_build(&dir, &format!("{dir:?} {source:?} {SETTINGS:?} {:?}", level.settings));
        let mut config = cmake::Config::new(source);
        config.profile("Release").out_dir(dir).build_target("ggml-cpu");
        for (key, value) in SETTINGS.iter().chain(level.settings) {
            config.define(key, value);
        }
        // A symbol that is unique in the whole program would stay unique after it is made local.
        config.cflag("-w").cxxflag("-w").cxxflag("-fno-gnu-unique");
        // The crate prints the cause and panics if cmake or the compiler fails.
        let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.build()));
        let built = built.map_err(|_| "it could not be compiled")?;
        join(&built.join("build/ggml/src/libggml-cpu.a"), level.name, out)
    }

    /// Empties the build folder after a change of settings, which cmake would ignore, or of paths, which cmake refuses.
    fn clear_stale_build(dir: &Path, fingerprint: &str) {
        let stamp = dir.join("made-of");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == fingerprint) {
            return;
        }
        let _ = std::fs::remove_dir_all(dir);
        // Without a stamp the next build removes the folder again.
        let _ = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&stamp, fingerprint));
    }

    /// Joins an archive's objects into one with local symbols. That includes inline functions of C++ headers: the rest of
    /// the program must not use versions that were compiled for a better CPU.
    fn join(archive: &Path, name: &str, out: &Path) -> Result<String, String> {
        let (joined, entry) = (out.join(format!("{name}.o")), format!("swarmllm_kernels_{name}"));
        let partial = ["-r", "--force-group-allocation", "--whole-archive", "-o"];
        run(Command::new("ld").args(partial).arg(&joined).arg(archive))?;
        let keep = [format!("--redefine-sym={ENTRY}={entry}"), format!("--keep-global-symbol={entry}")];
        run(Command::new("objcopy").args(keep).arg(&joined))?;
        let packed = out.join(format!("lib{entry}.a"));
        // `ar` would add to an existing archive.
        let _ = std::fs::remove_file(&packed);
        run(Command::new("ar").arg("crs").arg(&packed).arg(&joined))?;
        Ok(entry)
    }

    fn run(command: &mut Command) -> Result<(), String> {
        let program = command.get_program().to_string_lossy().into_owned();
        match command.output() {
            Err(error) => Err(format!("`{program}` was not started: {error}")),
            Ok(done) if !done.status.success() => {
                Err(format!("`{program}` failed: {}", String::from_utf8_lossy(&done.stderr).trim()))
            }
            Ok(_) => Ok(()),
        }
    }
}
