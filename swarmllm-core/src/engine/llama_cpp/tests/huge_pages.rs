//! Whether weights come to lie in huge pages, as the kernel tells.

use std::path::Path;

use super::recipe::wide;
use super::{Chain, config};
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::huge_pages::request;

/// Where the kernel tells of its huge pages, if it has any.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Bytes of the mappings for which huge pages were requested, and how much of them lies in huge pages.
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

/// Whether this machine gives so many bytes of huge pages to who asks for them before writing.
fn are_there(bytes: u64) -> bool {
    let before = requested().1;
    let mut memory = Vec::<u8>::with_capacity(usize::try_from(bytes).expect("an address"));
    let start = memory.as_ptr().addr();
    request(start..start + memory.capacity());
    memory.resize(memory.capacity(), 1);
    requested().1.saturating_sub(before) >= bytes / 4 * 3
}

#[test]
fn weights_lie_in_huge_pages_where_the_kernel_has_any_to_give() {
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
    // Too late a request leaves weights in small pages.
    if are_there(weights) {
        assert!(huge >= weights / 2, "{huge} of {weights} bytes are in huge pages");
    }
    drop(chain);
}
