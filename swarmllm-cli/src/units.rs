//! Sizes with units.

/// Units and their bytes; the longest first, because each ends with `B`.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Bytes of `8GiB`, `500 MB` or `1024`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit = |(name, bytes): &(&str, u64)| {
        let cut = text.len().checked_sub(name.len())?;
        let (number, tail) = text.split_at_checked(cut)?;
        tail.eq_ignore_ascii_case(name).then_some((number, *bytes))
    };
    let (number, bytes) = UNITS.iter().find_map(unit).unwrap_or((text, 1));
    let count =
        number.trim().parse::<u64>().map_err(|_| format!("`{text}` is not a size; write it as 8GiB or in bytes"))?;
    count.checked_mul(bytes).ok_or_else(|| format!("`{text}` does not fit into 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_may_have_a_unit() {
        let table = [("0", 0), ("1024", 1024), ("8GiB", 8 << 30), ("500 MB", 500_000_000), ("1kib", 1024), ("7B", 7)];
        for (text, bytes) in table {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "8 giga", "99999999TiB", "é"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
