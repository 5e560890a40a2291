//! What guesses ahead in an answer: what repeats itself, and a draft model where there is one. Each has a pace of its own, since
//! what their windows cost and how often they are right have nothing in common; at each token the one that promises more
//! goes on.

use super::{Flight, Guess, LearntOfGuesses, SessionParams};
use crate::pipeline::draft::{DraftPolicy, Drafted, Ground, Horizon, NGrams, Pace, Reach, Took};

/// See the module.
pub(super) struct Guesser {
    /// The text by its n-grams.
    grams: NGrams,
    pace: Pace,
    draft: Option<DraftModel>,
    made: u32,
    right: u32,
}

/// A draft model, which the runner has.
struct DraftModel {
    policy: DraftPolicy,
}

/// How an answer goes on.
pub(super) enum Next {
    /// With guesses from what repeats itself, so far ahead.
    Repeats { guesses: Vec<u32>, reach: Reach },
    /// The draft model is asked.
    Ask(Horizon),
}

impl Guesser {
    /// What guesses in a session; nothing where it is not to.
    pub fn new(params: &SessionParams) -> Option<Self> {
        let learnt = params.learnt;
        let draft = match params.guess {
            Guess::Never => return None,
            Guess::Repeats => None,
            Guess::Draft(draft) => {
                Some(DraftModel { policy: DraftPolicy::new(learnt.draft.unwrap_or_default(), draft) })
            }
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

    /// How to go on, with at most `most` guesses.
    /// The draft model is asked only where nothing is under way.
    pub fn next(&mut self, most: usize, idle: bool) -> Next {
        let guesses = self.grams.guess(most);
        let ground = self.grams.next().map_or(Ground::Repeats(0), |(_, ground)| ground);
        let reach = self.pace.reach(guesses.len(), ground);
        let promise = self.pace.promise(reach.guesses, ground);
        let draft = self.draft.as_mut().filter(|_| idle && reach.windows == 1);
        // Where it is asked to see whether it has become better, nothing else promises anything either.
        let draft = draft.filter(|draft| reach.guesses == 0 || draft.policy.rate() > promise);
        match draft.and_then(|draft| draft.policy.ask(most)) {
            Some(horizon) => Next::Ask(horizon),
            None => Next::Repeats { guesses, reach },
        }
    }

    /// What the draft model made; nothing where it failed, and is not asked again. Gives how many of its tokens are to be sent.
    pub fn pick(&mut self, drafted: Option<&Drafted>) -> usize {
        let Some((draft, drafted)) = self.draft.as_mut().zip(drafted) else {
            self.draft = None;
            return 0;
        };
        draft.policy.pick(drafted)
    }

    /// How many tokens the draft model may make while its last ones are under way.
    pub fn foresees(&self) -> usize {
        self.draft.as_ref().map_or(0, |draft| draft.policy.foresees())
    }

    /// The answer to a step, of whose guesses, those that followed it included, `tried` were tried and `right` were right.
    pub fn took(&mut self, flight: &Flight, (tried, right): (usize, usize), took: Took) {
        let own = flight.window.len().saturating_sub(1);
        // The first guess of a chained window was right, or it would be stale.
        self.right += (right.min(own) + usize::from(flight.chained.is_some())) as u32;
        self.made += flight.guesses() as u32;
        let plain = own == 0 && flight.chained.is_none();
        match &mut self.draft {
            Some(draft) if flight.drafted => draft.policy.took((tried, right), took, flight.alone),
            Some(draft) if plain && flight.alone => draft.policy.took_plain(took),
            _ => {}
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
        let draft = self.draft.as_ref().map(|draft| draft.policy.learnt());
        LearntOfGuesses { repeats: self.pace.learnt(), draft }
    }
}
