//! The queue of requests that this node answers as coordinator: who waits for a place, and whose turn it is. Pure but for
//! the waiting itself.
//!
//! A request gets a [`Ticket`] when it comes, which bounds how many wait and what they hold. For each model one request at
//! a time has the [`Turn`] to look for a place, so that the hosts of a full swarm are asked by one request of this node and
//! not by all; the others wait in a line in which callers take turns. With its [`Place`] a request leaves the line, and the
//! next has the turn at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::base::{Bytes, ErrorKind, Fault, ModelId};

/// Requests that wait at once.
const MAX_WAITING: usize = 256;
/// Bytes of prompts that they hold together: 16 texts of 4 MiB that are not read yet, or 128 prompts of 131,072 tokens, 4
/// bytes each.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Part of both that the requests of one caller may have, so that one that floods the queue leaves room for others.
const SHARE: usize = 2;
/// Pause of a request that found no place before it looks again, where no answer of this node ends meanwhile; it doubles
/// up to the longest. Hosts let it wait for a slot for some seconds themselves, beside that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Who asks, by the name that the host program gives; callers share the node's places fairly.
pub(crate) type Caller = Arc<str>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Queue {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    held: Held,
    by_caller: HashMap<Caller, Held>,
    lines: HashMap<ModelId, Line>,
}

/// What requests that wait hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    requests: usize,
    bytes: usize,
}

impl Held {
    fn with(self, bytes: usize) -> Held {
        Held { requests: self.requests + 1, bytes: self.bytes.saturating_add(bytes) }
    }

    fn without(self, bytes: usize) -> Held {
        Held { requests: self.requests.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }

    fn fits(self, share: usize) -> bool {
        self.requests <= MAX_WAITING / share && self.bytes <= MAX_WAITING_BYTES / share
    }
}

/// Those that wait for a model.
#[derive(Default)]
struct Line {
    /// Whether somebody has the turn.
    taken: bool,
    /// Callers with their requests, those that were served longest ago first.
    callers: VecDeque<(Caller, VecDeque<oneshot::Sender<Turn>>)>,
    /// Answers under way of each caller.
    answering: HashMap<Caller, usize>,
    /// Told each time that an answer ends.
    ended: Arc<Notify>,
}

impl Line {
    /// The next in the line: of the caller with the fewest answers under way, among equals of the one served longest ago.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        self.forget_those_who_left();
        let answering = |caller: &Caller| self.answering.get(caller).copied().unwrap_or(0);
        let (at, _) = self.callers.iter().enumerate().min_by_key(|(at, (caller, _))| (answering(caller), *at))?;
        let (caller, mut requests) = self.callers.remove(at)?;
        let next = requests.pop_front();
        // The others of the caller wait behind all other callers.
        self.callers.push_back((caller, requests));
        next
    }

    fn forget_those_who_left(&mut self) {
        self.callers.iter_mut().for_each(|(_, requests)| requests.retain(|request| !request.is_closed()));
        self.callers.retain(|(_, requests)| !requests.is_empty());
    }

    fn push(&mut self, caller: &Caller, request: oneshot::Sender<Turn>) {
        self.forget_those_who_left();
        match self.callers.iter_mut().find(|(other, _)| other == caller) {
            Some((_, requests)) => requests.push_back(request),
            None => self.callers.push_back((caller.clone(), VecDeque::from([request]))),
        }
    }

    fn is_idle(&self) -> bool {
        !self.taken && self.callers.is_empty() && self.answering.is_empty()
    }
}

impl Queue {
    /// Takes a request into the queue, or refuses it where that is full.
    pub fn enter(&self, caller: &Caller, bytes: usize) -> Result<Ticket, Fault> {
        let mut state = self.state();
        let all = state.held.with(bytes);
        let own = state.by_caller.get(caller).copied().unwrap_or_default().with(bytes);
        let refuse = |held: Held, whose: &str| {
            let held = held.without(bytes);
            let (requests, bytes) = (held.requests, Bytes(held.bytes as u64));
            let text =
                format!("{requests} requests {whose} with {bytes} of prompts wait for a place already; try again");
            Fault::new(ErrorKind::Overloaded, text)
        };
        if !all.fits(1) {
            return Err(refuse(all, "here"));
        }
        if !own.fits(SHARE) {
            return Err(refuse(own, "of this caller"));
        }
        state.held = all;
        state.by_caller.insert(caller.clone(), own);
        Ok(Ticket { queue: self.clone(), caller: caller.clone(), bytes })
    }

    /// Requests that wait for a place.
    pub fn waiting(&self) -> usize {
        self.state().held.requests
    }

    /// Waits for the turn to look for a place for this model. Cancel-safe: dropped, the request has left the line.
    pub async fn turn(&self, model: ModelId, caller: &Caller) -> Turn {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.state();
            let line = state.lines.entry(model).or_default();
            if !std::mem::replace(&mut line.taken, true) {
                return Turn::new(self, model, line);
            }
            line.push(caller, give);
        }
        match given.await {
            Ok(turn) => turn,
            // The queue outlives its lines, and a line its requests.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives the turn to the next in the line that still waits.
    fn pass_on(&self, model: ModelId) {
        loop {
            let mut state = self.state();
            let Some(line) = state.lines.get_mut(&model) else { return };
            let Some(next) = line.next() else {
                line.taken = false;
                return state.forget_idle(model);
            };
            let turn = Turn::new(self, model, line);
            drop(state);
            // Who has left meanwhile gives it back, without another round through here.
            match next.send(turn) {
                Ok(()) => return,
                Err(turn) => turn.forget(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while one of these short critical sections ran cannot leave them half-changed in a harmful way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_idle(&mut self, model: ModelId) {
        if self.lines.get(&model).is_some_and(Line::is_idle) {
            self.lines.remove(&model);
        }
    }
}

/// A request in the queue; it leaves when dropped.
pub(crate) struct Ticket {
    queue: Queue,
    caller: Caller,
    bytes: usize,
}

impl Ticket {
    /// Whose the request is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The request holds so many bytes now.
    pub fn resize(&mut self, bytes: usize) {
        let mut state = self.queue.state();
        let held = |held: &mut Held| held.bytes = (held.bytes - self.bytes.min(held.bytes)).saturating_add(bytes);
        held(&mut state.held);
        state.by_caller.get_mut(&self.caller).into_iter().for_each(held);
        drop(state);
        self.bytes = bytes;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.held = state.held.without(self.bytes);
        if let Some(held) = state.by_caller.get_mut(&self.caller) {
            *held = held.without(self.bytes);
            if held.requests == 0 {
                state.by_caller.remove(&self.caller);
            }
        }
    }
}

/// The turn to look for a place, which one request for each model has. It is the next one's when dropped.
pub(crate) struct Turn {
    queue: Queue,
    /// Whether it is to be passed on.
    held: bool,
    model: ModelId,
    ended: Arc<Notify>,
    pause: Duration,
}

impl Turn {
    fn new(queue: &Queue, model: ModelId, line: &Line) -> Self {
        Self { queue: queue.clone(), held: true, model, ended: line.ended.clone(), pause: FIRST_PAUSE }
    }

    fn forget(mut self) {
        self.held = false;
    }

    /// There was no place: waits until there may be one. Cancel-safe.
    pub async fn again(&mut self) {
        // An answer that ends in between wakes whoever waits next.
        let _ = tokio::time::timeout(self.pause, self.ended.notified()).await;
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
    }

    /// Looks for a place. Where that takes longer than `longest`, the next in the line looks beside this request.
    pub async fn keep<T>(&mut self, longest: Duration, attempt: impl Future<Output = T>) -> T {
        tokio::pin!(attempt);
        match tokio::time::timeout(longest, &mut attempt).await {
            Ok(done) => done,
            Err(_) => {
                self.pass();
                attempt.await
            }
        }
    }

    /// Lets the next in the line look for a place beside this request, which takes long.
    pub fn pass(&mut self) {
        if std::mem::take(&mut self.held) {
            self.queue.pass_on(self.model);
        }
    }

    /// Whether another request may have the turn now.
    pub fn is_passed(&self) -> bool {
        !self.held
    }

    /// The request has its place, and the next in the line the turn.
    pub fn done(self, caller: &Caller) -> Place {
        let queue = self.queue.clone();
        if let Some(line) = queue.state().lines.get_mut(&self.model) {
            *line.answering.entry(caller.clone()).or_default() += 1;
        }
        Place { queue, model: self.model, caller: caller.clone() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held {
            self.queue.pass_on(self.model);
        }
    }
}

/// An answer under way; it ends when dropped.
pub(crate) struct Place {
    queue: Queue,
    model: ModelId,
    caller: Caller,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        let Some(line) = state.lines.get_mut(&self.model) else { return };
        if let Some(answering) = line.answering.get_mut(&self.caller) {
            *answering -= 1;
            if *answering == 0 {
                line.answering.remove(&self.caller);
            }
        }
        line.ended.notify_one();
        state.forget_idle(self.model);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MODEL: ModelId = ModelId([1; 32]);

    fn caller(name: &str) -> Caller {
        name.into()
    }

    /// Requests of these callers wait while another has the turn; gives whose turn it is, one after the other.
    fn order(queue: &Queue, first: Turn, callers: &[&str]) -> Vec<String> {
        let callers: Vec<Caller> = callers.iter().map(|name| caller(name)).collect();
        let mut waiting: Vec<_> =
            callers.iter().map(|caller| (caller, Some(Box::pin(queue.turn(MODEL, caller))))).collect();
        for (_, turn) in &mut waiting {
            assert!(turn.as_mut().unwrap().now_or_never().is_none(), "one at a time");
        }
        drop(first);
        let mut came = Vec::new();
        while came.len() < callers.len() {
            for (caller, waits) in &mut waiting {
                if let Some(turn) = waits.as_mut().and_then(|turn| turn.now_or_never()) {
                    (*waits, _) = (None, came.push(caller.to_string()));
                    drop(turn);
                }
            }
        }
        came
    }

    fn first(queue: &Queue) -> Turn {
        queue.turn(MODEL, &caller("first")).now_or_never().expect("nobody else waits")
    }

    #[test]
    fn callers_take_turns_and_the_requests_of_one_come_in_their_order() {
        let queue = Queue::default();
        let turn = first(&queue);
        assert_eq!(order(&queue, turn, &["a", "a", "a", "b", "a", "c", "b"]), ["a", "b", "c", "a", "b", "a", "a"]);
        assert!(queue.state().lines.is_empty(), "nothing is kept of a line that nobody is in");
    }

    #[test]
    fn a_caller_without_answers_goes_before_one_that_has_some() {
        let queue = Queue::default();
        let busy = first(&queue).done(&caller("a"));
        let turn = first(&queue);
        assert_eq!(order(&queue, turn, &["a", "a", "b", "b"]), ["b", "b", "a", "a"]);
        drop(busy);
        assert!(queue.state().lines.is_empty());
    }

    #[test]
    fn a_place_gives_the_turn_to_the_next_and_who_left_is_passed_over() {
        let queue = Queue::default();
        let turn = first(&queue);
        let (a, b) = (caller("a"), caller("b"));
        let mut leaves = Box::pin(queue.turn(MODEL, &a));
        let mut stays = Box::pin(queue.turn(MODEL, &b));
        assert!((&mut leaves).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        drop(leaves);
        let place = turn.done(&a);
        assert!((&mut stays).now_or_never().is_some());
        drop(place);
        // One that was given the turn and never took it passes it on.
        let turn = first(&queue);
        let mut given = Box::pin(queue.turn(MODEL, &a));
        assert!((&mut given).now_or_never().is_none());
        drop(turn);
        drop(given);
        drop(first(&queue));
        // Models have lines of their own.
        let _turn = first(&queue);
        assert!(queue.turn(ModelId([2; 32]), &a).now_or_never().is_some());
    }

    #[test]
    fn requests_that_have_left_take_no_room_in_a_line() {
        let (queue, caller) = (Queue::default(), caller("a"));
        let _turn = first(&queue);
        let come = || {
            let mut waits = Box::pin(queue.turn(MODEL, &caller));
            assert!(waits.as_mut().now_or_never().is_none());
            waits
        };
        (0..100).for_each(|_| drop(come()));
        let _stays = come();
        assert_eq!(queue.state().lines[&MODEL].callers.iter().map(|(_, requests)| requests.len()).sum::<usize>(), 1);
    }

    #[tokio::test]
    async fn an_answer_that_ends_wakes_the_one_that_has_the_turn() {
        let queue = Queue::default();
        let place = first(&queue).done(&caller("a"));
        let mut turn = first(&queue);
        turn.pause = Duration::from_secs(3600);
        drop(place);
        turn.again().await;
    }

    #[tokio::test]
    async fn an_attempt_that_takes_long_lets_the_next_look_beside_it_and_a_short_one_does_not() {
        let queue = Queue::default();
        let (mut turn, next) = (first(&queue), caller("next"));
        turn.keep(Duration::from_secs(3600), async {}).await;
        assert!(!turn.is_passed());
        let (told, came) = oneshot::channel();
        let beside = async { told.send(queue.turn(MODEL, &next).await).is_ok() };
        let longest = Duration::from_millis(10);
        let both = async { tokio::join!(turn.keep(longest, came), beside).0 };
        let came = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the next has the turn");
        assert!(turn.is_passed());
        drop(turn);
        assert!(queue.turn(MODEL, &next).now_or_never().is_none(), "it is passed on once, not twice");
        drop(came);
    }

    #[test]
    fn the_queue_is_bounded_in_number_and_in_bytes_and_one_caller_has_a_share_of_it() {
        let queue = Queue::default();
        let (a, b, c) = (caller("a"), caller("b"), caller("c"));
        let kind = |entered: Result<Ticket, Fault>| entered.err().map(|fault| fault.kind());
        let of =
            |caller: &Caller, count: usize| (0..count).map(|_| queue.enter(caller, 1).unwrap()).collect::<Vec<_>>();
        let mut tickets = of(&a, MAX_WAITING / SHARE);
        assert_eq!(kind(queue.enter(&a, 1)), Some(ErrorKind::Overloaded));
        tickets.extend(of(&b, MAX_WAITING - MAX_WAITING / SHARE));
        assert_eq!(kind(queue.enter(&c, 1)), Some(ErrorKind::Overloaded));
        assert_eq!(queue.waiting(), MAX_WAITING);
        drop(tickets);
        assert_eq!(queue.waiting(), 0);
        let mut large = queue.enter(&a, MAX_WAITING_BYTES / SHARE).unwrap();
        assert_eq!(kind(queue.enter(&a, 1)), Some(ErrorKind::Overloaded));
        large.resize(4);
        let _more = queue.enter(&a, 1).unwrap();
        let _others = queue.enter(&b, MAX_WAITING_BYTES / SHARE).unwrap();
        drop(large);
        assert_eq!(queue.state().held, Held { requests: 2, bytes: 1 + MAX_WAITING_BYTES / SHARE });
        let room = MAX_WAITING_BYTES - MAX_WAITING_BYTES / SHARE - 1;
        assert_eq!(kind(queue.enter(&c, room + 1)), Some(ErrorKind::Overloaded), "all callers together");
        assert!(queue.enter(&c, room).is_ok());
    }
}
