//! Stop texts: matched across token boundaries; possible beginnings are held back.

/// Matches stop texts in a stream of text.
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// Text released after a piece of the stream.
#[derive(Debug, PartialEq)]
pub(crate) struct SafeText {
    /// Text before any stop text.
    pub text: String,
    /// Whether a stop text matched.
    pub stopped: bool,
}

impl StopMatcher {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds text to the stream.
    pub fn push(&mut self, text: &str) -> SafeText {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return SafeText { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        SafeText { text: std::mem::replace(&mut self.held, tail), stopped: false }
    }

    /// Ends the stream; returns the text held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest proper prefix of `stop` that is a suffix of `text`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|len| stop.is_char_boundary(*len) && text.ends_with(&stop[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect());
        let mut text = String::new();
        for piece in pieces {
            let shown = matcher.push(piece);
            text.push_str(&shown.text);
            if shown.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    #[test]
    fn a_stop_text_matches_across_pieces() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(run(&["ab", "é!"], &["caé", "!"]), ("ca".to_owned(), true));
    }

    #[test]
    fn an_incomplete_stop_text_is_released() {
        assert_eq!(run(&["END"], &["one E", "N", "T"]), ("one ENT".to_owned(), false));
        assert_eq!(run(&["END"], &["EN"]), ("EN".to_owned(), false));
    }

    proptest! {
        #[test]
        fn the_result_is_independent_of_pieces(text in "[abé]{0,24}", stop in "[abé]{1,4}", cuts in proptest::collection::vec(0usize..24, 0..6)) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|pair| chars[pair[0]..pair[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let want = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(run(&[&stop], &pieces), want);
        }
    }
}
