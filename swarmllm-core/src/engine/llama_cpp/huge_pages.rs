//! Huge pages for weights, on Linux.
//!
//! A decode step reads every weight of its stage once. Each page of 4 KiB costs a page fault during the load and an address
//! translation in every step. Many systems give pages of 2 MiB only to memory with a request (`madvise`), which llama.cpp
//! does not make.
//!
//! The request must come after llama.cpp has allocated its buffers and before it writes to them: existing pages are only
//! replaced by copies. llama.cpp first calls its progress callback at that moment. The callback does not name the buffers,
//! so the process's mappings are compared with those from before the load. The difference may include another thread's new
//! memory: the request is a hint that changes no contents.
//!
//! If the kernel has no free huge pages, weights stay in ordinary pages.

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Address range of a mapping.
type Mapping = Range<usize>;

/// Smallest mapping for which huge pages are requested. Thread stacks are smaller (8 MiB by default); they are hardly used,
/// and huge pages would make them resident.
const SMALLEST: usize = 16 << 20;
/// Alignment of a request: the size of a huge page on x86, and on ARM with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// The request for the weights of one load.
pub(super) struct HugePages {
    /// Anonymous mappings before the load in address order; `None` after the request.
    before: Option<Vec<Mapping>>,
}

impl HugePages {
    /// Must be called directly before the load.
    pub fn before_load() -> Self {
        Self { before: imp::mappings() }
    }

    /// llama.cpp's progress callback, called on the loading thread before each tensor is read.
    pub unsafe extern "C" fn on_progress(_: f32, huge_pages: *mut c_void) -> bool {
        // SAFETY: `huge_pages` is the value given to the load; it outlives the load and has no other user.
        let huge_pages = unsafe { &mut *huge_pages.cast::<Self>() };
        // A tracing subscriber of the host may panic; the panic must not cross into C.
        let _ = catch_unwind(AssertUnwindSafe(|| huge_pages.request()));
        true
    }

    /// Requests huge pages for the mappings since the start of the load, once.
    fn request(&mut self) {
        let Some(before) = self.before.take() else { return };
        let mapped = added(&before, &imp::mappings().unwrap_or_default());
        mapped.iter().cloned().for_each(request);
        let bytes: usize = mapped.iter().map(Range::len).sum();
        tracing::debug!(bytes, "requested huge pages for weights");
    }
}

/// Requests huge pages for memory that has not been written yet. Without effect if the system has none.
pub(super) fn request(memory: Range<usize>) {
    let Some(start) = memory.start.checked_next_multiple_of(HUGE_PAGE) else { return };
    let end = memory.end / HUGE_PAGE * HUGE_PAGE;
    if start < end {
        imp::request(start..end);
    }
}

/// Large parts of mappings that were not mapped before. The kernel merges neighbouring mappings, so that an old one may be
/// a part of a new one.
fn added(before: &[Mapping], now: &[Mapping]) -> Vec<Mapping> {
    let mut added = Vec::new();
    for mapping in now.iter().filter(|mapping| mapping.len() >= SMALLEST) {
        let first = before.partition_point(|old| old.end <= mapping.start);
        let mut start = mapping.start;
        for old in before.iter().skip(first).take_while(|old| old.start < mapping.end) {
            added.push(start..old.start);
            start = old.end;
        }
        added.push(start..mapping.end);
    }
    added.retain(|part| part.end.saturating_sub(part.start) >= SMALLEST);
    added
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::File;
    use std::io::{BufRead, BufReader};

    use super::Mapping;

    /// Private, readable and writable mappings without a file. `None` if the kernel does not list mappings.
    pub(super) fn mappings() -> Option<Vec<Mapping>> {
        let maps = BufReader::new(File::open("/proc/self/maps").ok()?);
        // The kernel bounds the number of lines (`vm.max_map_count`).
        Some(maps.lines().map_while(Result::ok).filter_map(|line| anonymous(&line)).collect())
    }

    /// The address range of a line of `/proc/self/maps`, if the mapping is anonymous.
    pub(super) fn anonymous(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (access, _offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let is_anonymous = access == "rw-p" && inode == "0" && fields.next().is_none();
        let address = |text| usize::from_str_radix(text, 16).ok();
        is_anonymous.then_some(address(start)?..address(end)?)
    }

    pub(super) fn request(memory: Mapping) {
        // SAFETY: a hint that changes no contents, whatever is mapped there; without a mapping or huge pages the call
        // returns an error and changes nothing.
        unsafe { libc::madvise(memory.start as *mut libc::c_void, memory.len(), libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::Mapping;

    pub(super) fn mappings() -> Option<Vec<Mapping>> {
        None
    }

    pub(super) fn request(_: Mapping) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Like [`added`], with bounds in MiB.
    fn new_parts(before: &[[usize; 2]], now: &[[usize; 2]]) -> Vec<[usize; 2]> {
        let mappings = |ends: &[[usize; 2]]| ends.iter().map(|[start, end]| start << 20..end << 20).collect::<Vec<_>>();
        let parts = added(&mappings(before), &mappings(now));
        parts.into_iter().map(|part| [part.start >> 20, part.end >> 20]).collect()
    }

    #[test]
    fn huge_pages_are_requested_only_for_large_new_mappings() {
        let none: [[usize; 2]; 0] = [];
        assert_eq!(new_parts(&[], &[]), none);
        assert_eq!(new_parts(&[], &[[1, 9], [20, 36]]), [[20, 36]]);
        let old = [[0, 1], [20, 60]];
        assert_eq!(new_parts(&old, &old), none);
        assert_eq!(new_parts(&old, &[[0, 100]]), [[1, 20], [60, 100]]);
        assert_eq!(new_parts(&[[8, 40]], &[[20, 56]]), [[40, 56]]);
        assert_eq!(new_parts(&[[8, 80]], &[[20, 56]]), none);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_private_mappings_without_a_file_are_anonymous() {
        let anonymous = imp::anonymous;
        assert_eq!(anonymous("7f00000000-7f00200000 rw-p 00000000 00:00 0 "), Some(0x7f_0000_0000..0x7f_0020_0000));
        for other in [
            "7f00000000-7f00200000 r--p 00000000 00:00 0 ",
            "7f00000000-7f00200000 rw-s 00000000 00:00 0 ",
            "7f00000000-7f00200000 rw-p 00000000 fe:00 247030 /usr/lib/libc.so.6",
            "7f00000000-7f00200000 rw-p 00000000 00:00 0 [heap]",
            "7f00000000",
            "",
        ] {
            assert_eq!(anonymous(other), None, "{other}");
        }
    }
}
