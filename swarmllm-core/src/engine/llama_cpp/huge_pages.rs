//! Huge pages for weights, on Linux.
//!
//! A decode step reads every weight of its stage once. In pages of 4 KiB each of them costs a page fault while the stage is
//! loaded and a translation of its address in every step. Many systems give pages of 2 MiB only to memory for which a
//! program asks (`madvise`), and llama.cpp does not ask.
//!
//! The request has to come after llama.cpp has allocated its buffers and before it writes to them: pages that exist are
//! only replaced by copying them. llama.cpp's progress callback is called for the first time at that moment. It does not
//! name the buffers, so the process's mappings are compared with those from before the load. Another thread's new memory
//! may be among the difference: the request is a hint, which changes no contents.
//!
//! Where the kernel has no huge pages, or none to give, weights stay in ordinary ones.

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Addresses of a mapping.
type Mapping = Range<usize>;

/// Smallest mapping for which huge pages are requested. Stacks of threads are smaller (8 MiB at most, where nobody has asked
/// for more): they are hardly used, and huge pages would make them resident.
const SMALLEST: usize = 16 << 20;
/// Alignment of a request: the size of a huge page on x86, and on ARM with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// The request for the weights of one load.
pub(super) struct HugePages {
    /// Anonymous mappings before the load, in the order of their addresses; none once the request was made.
    before: Option<Vec<Mapping>>,
}

impl HugePages {
    /// To be called right before the load.
    pub fn before_load() -> Self {
        Self { before: imp::mappings() }
    }

    /// llama.cpp's progress callback. It is called on the thread that loads, before each tensor is read.
    pub unsafe extern "C" fn on_progress(_: f32, huge_pages: *mut c_void) -> bool {
        // SAFETY: `huge_pages` is the value that the load was started with; it outlives the load and is used by nobody else.
        let huge_pages = unsafe { &mut *huge_pages.cast::<Self>() };
        // A subscriber of the host's may panic; the panic must not cross into C.
        let _ = catch_unwind(AssertUnwindSafe(|| huge_pages.request()));
        true
    }

    /// Requests huge pages for what was mapped since the load began; once.
    fn request(&mut self) {
        let Some(before) = self.before.take() else { return };
        let mapped = added(&before, &imp::mappings().unwrap_or_default());
        mapped.iter().cloned().for_each(request);
        let bytes: usize = mapped.iter().map(Range::len).sum();
        tracing::debug!(bytes, "requested huge pages for weights");
    }
}

/// Requests huge pages for memory to which nobody has written yet. Nothing happens where there are none.
pub(super) fn request(memory: Range<usize>) {
    let Some(start) = memory.start.checked_next_multiple_of(HUGE_PAGE) else { return };
    let end = memory.end / HUGE_PAGE * HUGE_PAGE;
    if start < end {
        imp::request(start..end);
    }
}

/// Large parts of mappings that were not mapped before. The kernel joins neighbouring mappings, so that an old one may be a
/// part of a new one.
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

    /// Private, readable and writable mappings of no file. None where the kernel tells nothing about them.
    pub(super) fn mappings() -> Option<Vec<Mapping>> {
        let maps = BufReader::new(File::open("/proc/self/maps").ok()?);
        // The kernel bounds their number (`vm.max_map_count`).
        Some(maps.lines().map_while(Result::ok).filter_map(|line| anonymous(&line)).collect())
    }

    /// The addresses in a line of `/proc/self/maps`, where the mapping is anonymous.
    pub(super) fn anonymous(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (access, _offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let is_anonymous = access == "rw-p" && inode == "0" && fields.next().is_none();
        let address = |text| usize::from_str_radix(text, 16).ok();
        is_anonymous.then_some(address(start)?..address(end)?)
    }

    pub(super) fn request(memory: Mapping) {
        // SAFETY: a hint, which changes no contents, whatever is mapped there; where nothing is, or the kernel has no huge
        // pages, it gives an error, which changes nothing either.
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

    /// As [`added`], with mappings by their ends in MiB.
    fn new_parts(before: &[[usize; 2]], now: &[[usize; 2]]) -> Vec<[usize; 2]> {
        let mappings = |ends: &[[usize; 2]]| ends.iter().map(|[start, end]| start << 20..end << 20).collect::<Vec<_>>();
        let parts = added(&mappings(before), &mappings(now));
        parts.into_iter().map(|part| [part.start >> 20, part.end >> 20]).collect()
    }

    #[test]
    fn huge_pages_are_requested_only_for_large_memory_that_is_new() {
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
    fn only_private_mappings_of_no_file_count_as_anonymous() {
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
