//! Builds llama.cpp's CPU kernels once more for each kind of processor that has better instructions than the ones that
//! `llama-cpp-sys-2` builds for, so that one library serves them all at full speed.
//!
//! llama.cpp has such builds too, as shared libraries to be found at run time; a library that is to be linked into a host
//! cannot bring files along. So each build's objects are joined into one and its names are made local, but for the entry
//! point, which gets a name of its own; `engine/llama_cpp/kernels.rs` chooses one at run time. Sources and rules are those
//! of `llama-cpp-sys-2`'s own build, which has come to its end before this one begins, since that crate `links`.
//!
//! An unoptimised build is run where it is made, so it gets the best build for this machine only. Where something that
//! a level needs is not there (GNU's `ld` and `objcopy`, a compiler that knows the instructions, that other build's folder),
//! and where the program is built for another system than Linux or on another kind of machine, cargo warns, and llama.cpp
//! computes without that level. The library tells the reason too, where the processor could run a level that it lacks.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(kernels, values(any()))");
    #[cfg(feature = "llama-cpp")]
    kernels::main();
}

#[cfg(feature = "llama-cpp")]
#[path = "src/engine/llama_cpp/levels.rs"]
// Some of it is for the library.
#[allow(dead_code)]
mod levels;

#[cfg(feature = "llama-cpp")]
mod kernels {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::levels::{LEVELS, Level, has};

    /// The entry point of llama.cpp's CPU kernels.
    const ENTRY: &str = "ggml_backend_cpu_reg";

    /// The version that `Cargo.toml` pins: a folder beside ours may be left of another, whose kernels would not fit.
    const LLAMA_CPP_SYS: &str = "0.1.160";

    /// What of llama.cpp is not wanted, and how the rest is built; as `llama-cpp-sys-2` has it.
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
        let set = |name: &str| std::env::var(name).unwrap_or_default();
        let (os, target, host) = (set("CARGO_CFG_TARGET_OS"), set("TARGET"), set("HOST"));
        // The tools that join objects, and the table of levels, are the ones of the machine that builds.
        if os != "linux" {
            return lack(&format!("kernels for better processors are built for Linux only, this is a build for {os}"));
        }
        if host != target {
            return lack(&format!("kernels for better processors are not cross-built, here on {host} for {target}"));
        }
        let release = set("PROFILE") == "release";
        let levels: Vec<&Level> = match release {
            true => LEVELS.iter().collect(),
            false => LEVELS.iter().filter(|level| level.fits(has)).take(1).collect(),
        };
        if !release {
            tell("a debug build has the kernels for the machine that built it only");
        }
        build(&levels, Path::new(&set("OUT_DIR")));
    }

    /// What the library says where the processor could run a level that it lacks.
    fn tell(reason: &str) {
        println!("cargo:rustc-env=SWARMLLM_FEWER_KERNELS={}", reason.lines().next().unwrap_or_default());
    }

    /// Warns whoever builds, too.
    fn lack(reason: &str) {
        tell(reason);
        println!("cargo:warning=llama.cpp computes with the kernels that all processors get: {reason}");
    }

    fn build(levels: &[&Level], out: &Path) {
        let Some(source) = source(out) else { return lack("the build of llama-cpp-sys-2 was not found") };
        println!("cargo:rustc-link-search=native={}", out.display());
        for level in levels {
            match build_level(&source, level, out) {
                Ok(archive) => {
                    println!("cargo:rustc-link-lib=static={archive}");
                    println!("cargo:rustc-cfg=kernels=\"{}\"", level.name);
                }
                Err(why) => {
                    tell(&why);
                    println!("cargo:warning=llama.cpp gets no CPU kernels for {}: {why}", level.name);
                }
            }
        }
    }

    /// The sources of llama.cpp: where `llama-cpp-sys-2`, whose build lies beside ours, took them from.
    fn source(out: &Path) -> Option<PathBuf> {
        let builds = std::fs::read_dir(out.parent()?.parent()?).ok()?;
        builds.filter_map(Result::ok).find_map(|build| {
            build.file_name().to_str().filter(|name| name.starts_with("llama-cpp-sys-2-"))?;
            let settings = std::fs::read_to_string(build.path().join("out/build/CMakeCache.txt")).ok()?;
            let home = settings.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))?;
            Some(PathBuf::from(home)).filter(|home| is_pinned(home))
        })
    }

    /// Whether llama.cpp's folder lies in the crate of the pinned version.
    fn is_pinned(home: &Path) -> bool {
        let facts = home.parent().and_then(|package| std::fs::read_to_string(package.join("Cargo.toml")).ok());
        let version = format!("version = \"{LLAMA_CPP_SYS}\"");
        facts.is_some_and(|facts| facts.lines().any(|line| line == version))
    }

    /// Builds one level; gives the name of the archive, without `lib` and `.a`.
    fn build_level(source: &Path, level: &Level, out: &Path) -> Result<String, String> {
        let dir = out.join(level.name);
        begin_anew(&dir, &format!("{dir:?} {source:?} {SETTINGS:?} {:?}", level.settings));
        let mut config = cmake::Config::new(source);
        config.profile("Release").out_dir(dir).build_target("ggml-cpu");
        for (key, value) in SETTINGS.iter().chain(level.settings) {
            config.define(key, value);
        }
        // A name that is unique in the whole program would stay one after it has been made local.
        config.cflag("-w").cxxflag("-w").cxxflag("-fno-gnu-unique");
        // The crate panics where cmake or the compiler fails, having printed why.
        let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.build()));
        let built = built.map_err(|_| "it could not be compiled")?;
        join(&built.join("build/ggml/src/libggml-cpu.a"), level.name, out)
    }

    /// Removes what an earlier build of other settings left, which would stay set, and a folder that was moved, which cmake
    /// refuses.
    fn begin_anew(dir: &Path, made_of: &str) {
        let stamp = dir.join("made-of");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == made_of) {
            return;
        }
        let _ = std::fs::remove_dir_all(dir);
        // Without its stamp the folder is made anew the next time.
        let _ = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&stamp, made_of));
    }

    /// Joins an archive's objects into one whose names are its own. That includes the functions that C++ headers bring:
    /// the rest of the program must not get the ones that were compiled for a better processor.
    fn join(archive: &Path, name: &str, out: &Path) -> Result<String, String> {
        let (joined, entry) = (out.join(format!("{name}.o")), format!("swarmllm_kernels_{name}"));
        let partial = ["-r", "--force-group-allocation", "--whole-archive", "-o"];
        run(Command::new("ld").args(partial).arg(&joined).arg(archive))?;
        let keep = [format!("--redefine-sym={ENTRY}={entry}"), format!("--keep-global-symbol={entry}")];
        run(Command::new("objcopy").args(keep).arg(&joined))?;
        let packed = out.join(format!("lib{entry}.a"));
        // `ar` would add to an older one.
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
