//! Guesses ahead, without a second model: what followed the last time when these tokens were seen. Pure.
//!
//! [`NGrams`] proposes, [`Pace`] says how many guesses are worth their rows: the more tokens of the text so far speak for a
//! guess, the more often it is right, which is learnt of every token that came, guessed or not. The stages compute a
//! window of guesses in one step; the coordinator samples row after row and keeps guesses for as long as they are what it
//! would have chosen, so that a guess never changes what is said, only how fast. (Prompt lookup decoding, as in Saxena
//! 2023; the verification is that of Leviathan et al. 2023 for a draft that is certain of itself.)
//!
//! A window may follow another before that one is confirmed, so that stages which would wait for it have work meanwhile.
//!
//! What a window costs is no simple function of its rows (llama.cpp takes some numbers of rows by other ways than others,
//! and an accelerator prepares each number once), so each length is tried before it is judged, twice where nothing was
//! known of it; [`Lessons`] keep what was learnt in one answer for the next ones.
//!
//! What is thought to pay may not. So guesses are paid from a purse, which what they gain fills and what they lose empties: an
//! answer that nothing speaks for is no slower than without them, but for a token or two.

//!
//! The tokens of a draft model have a policy of their own ([`DraftPolicy`]): the draft model says how likely it holds each.

mod lessons;
mod ngrams;
mod pace;
mod policy;

pub use lessons::Lessons;
pub use ngrams::NGrams;
pub use pace::{Draft, Ground, Learnt, MAX_GUESSES, Pace, Reach, Took};
pub use policy::{DraftLearnt, DraftPolicy, DraftToken, Drafted, Horizon};
