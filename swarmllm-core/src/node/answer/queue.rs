//! The queue of requests that this node coordinates. It does no I/O.
//!
//! A [`QueueEntry`] bounds the number and the memory of waiting requests. Per model, one request at a time has the
//! [`AdmissionTurn`] to look for a free slot, so hosts of a full swarm get one node's requests one by one; the others wait,
//! fairly between callers. On admission the request gets a [`RunningAnswer`], and the next request gets the turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::base::{Bytes, ErrorKind, Fault, ModelId};

/// Most waiting requests.
const MAX_WAITING: usize = 256;
/// Most bytes of waiting prompts: 16 texts of 4 MiB before tokenization, or 128 prompts of 131,072 tokens of 4 bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// One caller may use this fraction of both limits (1/2), so a flooding caller leaves capacity to others.
const CALLER_FRACTION: usize = 2;
/// Pause before a request looks for a free slot again, unless an answer of this node ends earlier; doubled up to the
/// maximum. Hosts additionally let a request wait some seconds for a slot.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Caller name given by the host program. The queue is fair between callers.
pub(crate) type Caller = Arc<str>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Queue {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: WaitingTotals,
    by_caller: HashMap<Caller, WaitingTotals>,
    models: HashMap<ModelId, ModelQueue>,
}

/// Number and memory of waiting requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct WaitingTotals {
    requests: usize,
    bytes: usize,
}

impl WaitingTotals {
    fn with(self, bytes: usize) -> WaitingTotals {
        WaitingTotals { requests: self.requests + 1, bytes: self.bytes.saturating_add(bytes) }
    }

    fn without(self, bytes: usize) -> WaitingTotals {
        WaitingTotals { requests: self.requests.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }

    fn fits(self, share: usize) -> bool {
        self.requests <= MAX_WAITING / share && self.bytes <= MAX_WAITING_BYTES / share
    }
}

/// Requests for one model.
#[derive(Default)]
struct ModelQueue {
    /// Whether a request has the turn.
    busy: bool,
    /// Waiting requests by caller, the caller served longest ago first.
    callers: VecDeque<(Caller, VecDeque<oneshot::Sender<AdmissionTurn>>)>,
    /// Running answers of each caller.
    running: HashMap<Caller, usize>,
    /// Notified when an answer ends.
    ended: Arc<Notify>,
}

impl ModelQueue {
    /// The next request: of the caller with the fewest running answers; among equals, of the caller served longest ago.
    fn next(&mut self) -> Option<oneshot::Sender<AdmissionTurn>> {
        self.remove_cancelled();
        let running = |caller: &Caller| self.running.get(caller).copied().unwrap_or(0);
        let (at, _) = self.callers.iter().enumerate().min_by_key(|(at, (caller, _))| (running(caller), *at))?;
        let (caller, mut requests) = self.callers.remove(at)?;
        let next = requests.pop_front();
        // The caller's further requests wait behind all other callers.
        self.callers.push_back((caller, requests));
        next
    }

    fn remove_cancelled(&mut self) {
        self.callers.iter_mut().for_each(|(_, requests)| requests.retain(|request| !request.is_closed()));
        self.callers.retain(|(_, requests)| !requests.is_empty());
    }

    fn push(&mut self, caller: &Caller, request: oneshot::Sender<AdmissionTurn>) {
        self.remove_cancelled();
        match self.callers.iter_mut().find(|(other, _)| other == caller) {
            Some((_, requests)) => requests.push_back(request),
            None => self.callers.push_back((caller.clone(), VecDeque::from([request]))),
        }
    }

    fn is_idle(&self) -> bool {
        !self.busy && self.callers.is_empty() && self.running.is_empty()
    }
}

impl Queue {
    /// Adds a request to the queue; refuses it if the queue is full.
    pub fn enter(&self, caller: &Caller, bytes: usize) -> Result<QueueEntry, Fault> {
        let mut state = self.state();
        let all = state.waiting.with(bytes);
        let own = state.by_caller.get(caller).copied().unwrap_or_default().with(bytes);
        let refuse = |totals: WaitingTotals, whose: &str| {
            let totals = totals.without(bytes);
            let (requests, bytes) = (totals.requests, Bytes(totals.bytes as u64));
            let text = format!("{requests} requests {whose} with {bytes} of prompts are waiting already; try again");
            Fault::new(ErrorKind::Overloaded, text)
        };
        if !all.fits(1) {
            return Err(refuse(all, "here"));
        }
        if !own.fits(CALLER_FRACTION) {
            return Err(refuse(own, "of this caller"));
        }
        state.waiting = all;
        state.by_caller.insert(caller.clone(), own);
        Ok(QueueEntry { queue: self.clone(), caller: caller.clone(), bytes })
    }

    /// Number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.state().waiting.requests
    }

    /// Waits for the turn to look for a free slot for this model. Cancel-safe: dropping it leaves the queue.
    pub async fn turn(&self, model: ModelId, caller: &Caller) -> AdmissionTurn {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = self.state();
            let queue = state.models.entry(model).or_default();
            if !std::mem::replace(&mut queue.busy, true) {
                return AdmissionTurn::new(self, model, queue);
            }
            queue.push(caller, sender);
        }
        match turn.await {
            Ok(turn) => turn,
            // Unreachable: a model's queue outlives its requests.
            Err(_) => std::future::pending().await,
        }
    }

    /// Passes the turn to the next request that still waits.
    fn pass_on(&self, model: ModelId) {
        loop {
            let mut state = self.state();
            let Some(queue) = state.models.get_mut(&model) else { return };
            let Some(next) = queue.next() else {
                queue.busy = false;
                return state.remove_idle(model);
            };
            let turn = AdmissionTurn::new(self, model, queue);
            drop(state);
            // A request that just left returns the turn without recursion.
            match next.send(turn) {
                Ok(()) => return,
                Err(turn) => turn.disarm(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in one of the short critical sections leaves no harmful state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove_idle(&mut self, model: ModelId) {
        if self.models.get(&model).is_some_and(ModelQueue::is_idle) {
            self.models.remove(&model);
        }
    }
}

/// A request in the queue; leaves it when dropped.
pub(crate) struct QueueEntry {
    queue: Queue,
    caller: Caller,
    bytes: usize,
}

impl QueueEntry {
    /// Caller of the request.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Updates the bytes that the request holds.
    pub fn resize(&mut self, bytes: usize) {
        let mut state = self.queue.state();
        let resize = |totals: &mut WaitingTotals| {
            totals.bytes = (totals.bytes - self.bytes.min(totals.bytes)).saturating_add(bytes);
        };
        resize(&mut state.waiting);
        state.by_caller.get_mut(&self.caller).into_iter().for_each(resize);
        drop(state);
        self.bytes = bytes;
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.waiting = state.waiting.without(self.bytes);
        if let Some(totals) = state.by_caller.get_mut(&self.caller) {
            *totals = totals.without(self.bytes);
            if totals.requests == 0 {
                state.by_caller.remove(&self.caller);
            }
        }
    }
}

/// The turn to look for a free slot; one request per model has it. Dropping it passes the turn on.
pub(crate) struct AdmissionTurn {
    queue: Queue,
    /// Whether dropping it passes the turn on.
    armed: bool,
    model: ModelId,
    ended: Arc<Notify>,
    pause: Duration,
}

impl AdmissionTurn {
    fn new(queue: &Queue, model: ModelId, waiting: &ModelQueue) -> Self {
        Self { queue: queue.clone(), armed: true, model, ended: waiting.ended.clone(), pause: FIRST_PAUSE }
    }

    fn disarm(mut self) {
        self.armed = false;
    }

    /// Waits until a slot may be free. Cancel-safe.
    pub async fn wait_for_slot(&mut self) {
        // `Notify` stores a permit: an answer that ends before this wait wakes it.
        let _ = tokio::time::timeout(self.pause, self.ended.notified()).await;
        self.pause = MAX_PAUSE.min(self.pause * 2);
    }

    /// Runs an attempt. After `longest`, the turn is released and the attempt continues beside the next request.
    pub async fn attempt<T>(&mut self, longest: Duration, attempt: impl Future<Output = T>) -> T {
        tokio::pin!(attempt);
        match tokio::time::timeout(longest, &mut attempt).await {
            Ok(done) => done,
            Err(_) => {
                self.release();
                attempt.await
            }
        }
    }

    /// Passes the turn on while this request continues.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.queue.pass_on(self.model);
        }
    }

    /// Whether the turn was passed on.
    pub fn is_released(&self) -> bool {
        !self.armed
    }

    /// The request is admitted; the turn passes on.
    pub fn admit(self, caller: &Caller) -> RunningAnswer {
        let queue = self.queue.clone();
        if let Some(waiting) = queue.state().models.get_mut(&self.model) {
            *waiting.running.entry(caller.clone()).or_default() += 1;
        }
        RunningAnswer { queue, model: self.model, caller: caller.clone() }
    }
}

impl Drop for AdmissionTurn {
    fn drop(&mut self) {
        if self.armed {
            self.queue.pass_on(self.model);
        }
    }
}

/// A running answer of a caller; ends when dropped.
pub(crate) struct RunningAnswer {
    queue: Queue,
    model: ModelId,
    caller: Caller,
}

impl Drop for RunningAnswer {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        let Some(queue) = state.models.get_mut(&self.model) else { return };
        if let Some(running) = queue.running.get_mut(&self.caller) {
            *running -= 1;
            if *running == 0 {
                queue.running.remove(&self.caller);
            }
        }
        queue.ended.notify_one();
        state.remove_idle(self.model);
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

    /// Requests of these callers wait while another has the turn; returns the order in which they get it.
    fn order(queue: &Queue, first: AdmissionTurn, callers: &[&str]) -> Vec<String> {
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

    fn first(queue: &Queue) -> AdmissionTurn {
        queue.turn(MODEL, &caller("first")).now_or_never().expect("no other request waits")
    }

    #[test]
    fn callers_alternate_and_each_callers_requests_keep_their_order() {
        let queue = Queue::default();
        let turn = first(&queue);
        assert_eq!(order(&queue, turn, &["a", "a", "a", "b", "a", "c", "b"]), ["a", "b", "c", "a", "b", "a", "a"]);
        assert!(queue.state().models.is_empty(), "an empty queue is removed");
    }

    #[test]
    fn callers_with_fewer_running_answers_come_first() {
        let queue = Queue::default();
        let busy = first(&queue).admit(&caller("a"));
        let turn = first(&queue);
        assert_eq!(order(&queue, turn, &["a", "a", "b", "b"]), ["b", "b", "a", "a"]);
        drop(busy);
        assert!(queue.state().models.is_empty());
    }

    #[test]
    fn admission_passes_the_turn_to_the_next_waiting_request() {
        let queue = Queue::default();
        let turn = first(&queue);
        let (a, b) = (caller("a"), caller("b"));
        let mut leaves = Box::pin(queue.turn(MODEL, &a));
        let mut stays = Box::pin(queue.turn(MODEL, &b));
        assert!((&mut leaves).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        drop(leaves);
        let place = turn.admit(&a);
        assert!((&mut stays).now_or_never().is_some());
        drop(place);
        // A request that was granted the turn and never polled passes it on.
        let turn = first(&queue);
        let mut given = Box::pin(queue.turn(MODEL, &a));
        assert!((&mut given).now_or_never().is_none());
        drop(turn);
        drop(given);
        drop(first(&queue));
        // Each model has its own queue.
        let _turn = first(&queue);
        assert!(queue.turn(ModelId([2; 32]), &a).now_or_never().is_some());
    }

    #[test]
    fn cancelled_requests_take_no_space_in_the_queue() {
        let (queue, caller) = (Queue::default(), caller("a"));
        let _turn = first(&queue);
        let come = || {
            let mut waits = Box::pin(queue.turn(MODEL, &caller));
            assert!(waits.as_mut().now_or_never().is_none());
            waits
        };
        (0..100).for_each(|_| drop(come()));
        let _stays = come();
        assert_eq!(queue.state().models[&MODEL].callers.iter().map(|(_, requests)| requests.len()).sum::<usize>(), 1);
    }

    #[tokio::test]
    async fn an_ending_answer_wakes_the_request_with_the_turn() {
        let queue = Queue::default();
        let place = first(&queue).admit(&caller("a"));
        let mut turn = first(&queue);
        turn.pause = Duration::from_secs(3600);
        drop(place);
        turn.wait_for_slot().await;
    }

    #[tokio::test]
    async fn a_long_attempt_releases_the_turn_and_a_short_one_keeps_it() {
        let queue = Queue::default();
        let (mut turn, next) = (first(&queue), caller("next"));
        turn.attempt(Duration::from_secs(3600), async {}).await;
        assert!(!turn.is_released());
        let (told, came) = oneshot::channel();
        let beside = async { told.send(queue.turn(MODEL, &next).await).is_ok() };
        let longest = Duration::from_millis(10);
        let both = async { tokio::join!(turn.attempt(longest, came), beside).0 };
        let came = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the next request has the turn");
        assert!(turn.is_released());
        drop(turn);
        assert!(queue.turn(MODEL, &next).now_or_never().is_none(), "the turn is passed on once");
        drop(came);
    }

    #[test]
    fn the_queue_is_bounded_in_total_and_per_caller() {
        let queue = Queue::default();
        let (a, b, c) = (caller("a"), caller("b"), caller("c"));
        let kind = |entered: Result<QueueEntry, Fault>| entered.err().map(|fault| fault.kind());
        let of =
            |caller: &Caller, count: usize| (0..count).map(|_| queue.enter(caller, 1).unwrap()).collect::<Vec<_>>();
        let mut tickets = of(&a, MAX_WAITING / CALLER_FRACTION);
        assert_eq!(kind(queue.enter(&a, 1)), Some(ErrorKind::Overloaded));
        tickets.extend(of(&b, MAX_WAITING - MAX_WAITING / CALLER_FRACTION));
        assert_eq!(kind(queue.enter(&c, 1)), Some(ErrorKind::Overloaded));
        assert_eq!(queue.waiting(), MAX_WAITING);
        drop(tickets);
        assert_eq!(queue.waiting(), 0);
        let mut large = queue.enter(&a, MAX_WAITING_BYTES / CALLER_FRACTION).unwrap();
        assert_eq!(kind(queue.enter(&a, 1)), Some(ErrorKind::Overloaded));
        large.resize(4);
        let _more = queue.enter(&a, 1).unwrap();
        let _others = queue.enter(&b, MAX_WAITING_BYTES / CALLER_FRACTION).unwrap();
        drop(large);
        assert_eq!(
            queue.state().waiting,
            WaitingTotals { requests: 2, bytes: 1 + MAX_WAITING_BYTES / CALLER_FRACTION }
        );
        let room = MAX_WAITING_BYTES - MAX_WAITING_BYTES / CALLER_FRACTION - 1;
        assert_eq!(kind(queue.enter(&c, room + 1)), Some(ErrorKind::Overloaded), "the total of all callers is bounded");
        assert!(queue.enter(&c, room).is_ok());
    }
}
