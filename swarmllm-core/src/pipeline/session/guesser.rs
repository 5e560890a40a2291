//! What guesses ahead in an answer: what repeats itself, and a draft model where there is one. Each has a pace of its own, since
//! what their windows cost and how often they are right have nothing in common; at each token the one that promises more
//! goes on.

use super::{Flight, Guess, LearntOfGuesses, SessionParams};
use crate::pipeline::draft::{Ground, NGrams, Pace, Reach, Took};

/// See the module.
pub(super) struct Guesser {
    /// The text by its n-grams.
    grams: NGrams,
    pace: Pace,
    draft: Option<Drafted>,
    made: u32,
    right: u32,
}

/// A draft model, which the runner has.
struct Drafted {
    pace: Pace,
    /// Tokens of the text that it has read, and guesses that it is asked for.
    read: usize,
    asked: usize,
}

/// How an answer goes on.
pub(super) enum Next {
    /// With guesses from what repeats itself, so far ahead.
    Repeats { guesses: Vec<u32>, reach: Reach },
    /// The draft model is asked for so many guesses at most.
    Ask { most: usize },
}

impl Guesser {
    /// What guesses in a session; nothing where it is not to.
    pub fn new(params: &SessionParams) -> Option<Self> {
        let learnt = params.learnt;
        let draft = match params.guess {
            Guess::Never => return None,
            Guess::Repeats => None,
            Guess::Draft(draft) => Some(Drafted { pace: Pace::of_draft(learnt.draft, draft), read: 0, asked: 0 }),
        };
        let (grams, pace) = (NGrams::new(&params.prompt), Pace::new(learnt.repeats));
        Some(Self { grams, pace, draft, made: 0, right: 0 })
    }

    /// The next token of the text, whether it was guessed or not.
    pub fn hear(&mut self, token: u32) {
        if let Some((guess, ground)) = self.grams.next() {
            self.pace.saw(ground, guess == token);
        }
        self.grams.push(token);
    }

    /// How to go on behind a text of so many tokens, with at most `most` guesses, where the answer may have `left` more tokens.
    /// The draft model is asked only where nothing is under way.
    pub fn next(&mut self, most: usize, idle: bool, text: usize, left: u32) -> Next {
        let guesses = self.grams.guess(most);
        let ground = self.grams.next().map_or(Ground::Repeats(0), |(_, ground)| ground);
        let reach = self.pace.reach(guesses.len(), ground);
        if let Some(draft) = self.draft.as_mut().filter(|_| idle && reach.windows == 1) {
            let asked = draft.pace.draft(most, text.saturating_sub(draft.read), left);
            let promise = draft.pace.promise(asked, Ground::Draft);
            if asked > 0 && promise > self.pace.promise(reach.guesses, ground) {
                draft.asked = asked;
                return Next::Ask { most: asked };
            }
        }
        Next::Repeats { guesses, reach }
    }

    /// What the draft model guessed behind a text of so many tokens; nothing where it failed, and is not asked again.
    pub fn guessed(&mut self, guesses: Option<&[u32]>, text: usize) {
        let Some(draft) = self.draft.as_mut().filter(|_| guesses.is_some()) else {
            self.draft = None;
            return;
        };
        draft.read = text;
        if guesses.is_none_or(|guesses| guesses.len() < draft.asked) {
            // It was unsure of the next one, which is as good as a wrong one.
            draft.pace.saw(Ground::Draft, false);
        }
    }

    /// How many tokens the draft model may guess while its last guesses, of which there were so many, are under way: the one
    /// that the answer brings and as many again, as far as there is time for while the step travels. One alone is of no use,
    /// since it is read beside the next anyway. None where the draft model was unsure of how they go on.
    pub fn foresees(&self, guesses: usize) -> usize {
        let sure = self.draft.as_ref().filter(|draft| guesses > 0 && guesses == draft.asked);
        sure.map_or(0, |draft| draft.pace.spare().min(guesses + 1))
    }

    /// The answer to a step, of whose guesses, those that followed it included, `tried` were tried and `right` were right.
    pub fn took(&mut self, flight: &Flight, (tried, right): (usize, usize), took: Took) {
        let own = flight.window.len().saturating_sub(1);
        // The first guess of a chained window was right, or it would be stale.
        self.right += (right.min(own) + usize::from(flight.chained.is_some())) as u32;
        self.made += flight.guesses() as u32;
        let plain = own == 0 && flight.chained.is_none();
        if let Some(draft) = self.draft.as_mut().filter(|_| flight.drafted || plain) {
            if flight.drafted {
                (0..tried).for_each(|nth| draft.pace.saw(Ground::Draft, nth < right));
            }
            draft.pace.took(own, (tried, right), took, flight.alone, flight.chained);
        }
        if plain || !flight.drafted {
            self.pace.took(own, (tried, right), took.without_guessing(), flight.alone, flight.chained);
        }
    }

    /// A step was computed in vain, behind a wrong guess.
    pub fn wasted(&mut self, flight: &Flight, took: Took) {
        self.made += flight.guesses() as u32;
        self.pace.wasted(took.gap);
    }

    /// Guesses that were made, and how many were right.
    pub fn counts(&self) -> (u32, u32) {
        (self.made, self.right)
    }

    /// What was learnt so far.
    pub fn learnt(&self) -> LearntOfGuesses {
        let draft = self.draft.as_ref().map(|draft| draft.pace.learnt()).unwrap_or_default();
        LearntOfGuesses { repeats: self.pace.learnt(), draft }
    }
}
