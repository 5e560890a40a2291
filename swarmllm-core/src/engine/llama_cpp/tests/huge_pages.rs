//! Checks with the kernel whether weights are in huge pages.

use std::path::Path;

use super::recipe::wide;
use super::{Chain, config};
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::huge_pages::request;

/// Settings of the kernel's huge pages; absent without support.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Bytes of the mappings for which huge pages were requested, and their bytes in huge pages.
fn requested() -> (u64, u64) {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("the process's mappings");
    let (mut size, mut huge, mut sum) = (0, 0, (0, 0));
    for (key, value) in maps.lines().filter_map(|line| line.split_once(':')) {
        let bytes = || value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") << 10;
        match key {
            "Size" => size = bytes(),
            "AnonHugePages" => huge = bytes(),
            "VmFlags" if value.split_whitespace().any(|flag| flag == "hg") => sum = (sum.0 + size, sum.1 + huge),
            _ => {}
        }
    }
    sum
}

/// Whether this machine gives `bytes` of huge pages to a request before the first write.
fn are_there(bytes: u64) -> bool {
    let before = requested().1;
    let mut memory = Vec::<u8>::with_capacity(usize::try_from(bytes).expect("an address"));
    let start = memory.as_ptr().addr();
    request(start..start + memory.capacity());
    memory.resize(memory.capacity(), 1);
    requested().1.saturating_sub(before) >= bytes / 4 * 3
}

#[test]
fn weights_are_in_huge_pages_if_the_kernel_has_any() {
    if !Path::new(SETTINGS).exists() {
        eprintln!("SKIPPED: the kernel has no transparent huge pages");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let cut = wide(&directory);
    let weights = std::fs::metadata(&cut.path).expect("the file's size").len();
    let chain = Chain::load(&LlamaCpp::new(), &cut, &[], &config());
    let (bytes, huge) = requested();
    assert!(bytes >= weights / 10 * 9, "requested for {bytes} of {weights} bytes");
    // A late request would leave weights in small pages.
    if are_there(weights) {
        assert!(huge >= weights / 2, "{huge} of {weights} bytes are in huge pages");
    }
    drop(chain);
}
