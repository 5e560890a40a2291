//! The driver on its own: events in, actions out, over a model that always says the same token.

use std::time::Duration;

use super::attendance::STALL_DEADLINE;
use super::*;
use crate::base::{ErrorKind, LayerRange, SessionId};
use crate::engine::sample::{LogitRow, Sampler, SamplingParams};
use crate::pipeline::plan::PlanStage;
use crate::pipeline::prefix::{BLOCK, Namer};
use crate::pipeline::route::{OpenParams, Route, RouteStage};
use crate::pipeline::session::{Guess, LearntOfGuesses, SessionParams};
use crate::pipeline::watch::Absent;
use crate::wire::codec::Codec;
use crate::wire::control::{Host, Opened};
use crate::wire::job::{LogitShape, LogitsHeader};
use crate::wire::prefix::Prefix;

const SESSION: SessionId = SessionId([1; 16]);
const LOCAL: NodeId = NodeId([0; 32]);
const VOCAB: u32 = 11;
const WIDTH: u32 = 4;
const SECOND: Duration = Duration::from_secs(1);

fn node(name: u8) -> NodeId {
    NodeId([name; 32])
}

fn host(name: u8) -> Host {
    Host { node: node(name), addresses: Vec::new() }
}

/// One layer at each of these hosts, and stand-bys beside them.
fn route(hosts: &[u8], stand_bys: &[Option<u8>]) -> Route {
    let stage = |(index, name): (usize, &u8)| {
        let (layers, head) = (LayerRange::new(index as u32, index as u32 + 1), index + 1 == hosts.len());
        let stand_by = stand_bys.get(index).copied().flatten().map(host);
        RouteStage::new(PlanStage { node: node(*name), layers, head }, Vec::new(), 1, stand_by)
    };
    Route { model: ModelId([2; 32]), stages: hosts.iter().enumerate().map(stage).collect(), token_us: 0 }
}

fn opened(cached: u32, max_rows: u32) -> Opened {
    Opened { width: WIDTH, vocab: Some(VOCAB), max_rows, cached, context: 64, load_ms: 0 }
}

fn lost(text: &str) -> Fault {
    Fault::new(ErrorKind::PeerLost, text)
}

fn manager(exact: bool) -> RouteManager {
    let params = OpenParams {
        session: SESSION,
        model: ModelId([2; 32]),
        engine: String::new(),
        exact,
        context: 64,
        least: 1,
        width: WIDTH,
        vocab: VOCAB,
    };
    RouteManager::new(params, LOCAL)
}

/// What opens a route's stages, at hosts that have so much of the text and admit so many rows.
fn replies(actions: &[RouteAction], cached: u32, max_rows: u32) -> Vec<RouteEvent> {
    let reply = |action: &RouteAction| match action {
        RouteAction::Open { place, open, .. } => {
            Some(RouteEvent::Replied { epoch: open.epoch, place: *place, reply: Ok(opened(cached, max_rows)) })
        }
        _ => None,
    };
    actions.iter().filter_map(reply).collect()
}

/// A driver, the time, and all that it wanted since somebody looked.
struct Bench {
    driver: SessionDriver,
    now: Instant,
    wanted: Vec<Action>,
}

impl Bench {
    /// A session of a prompt of so many tokens over a route that is open.
    fn of(prompt: u32, exact: bool, guess: Guess, route: Route) -> Self {
        let (mut routes, now) = (manager(exact), Instant::now());
        routes.open(route, Prefix::default());
        let open = open_all(&mut routes, now, 0, 8).expect("all stages are open");
        let config = SessionConfig {
            codec: Codec::F32,
            namer: Namer::new([0; 32]),
            needs_all: false,
            reads: false,
            prompt: prompt as usize,
            longest: 1 << 10,
        };
        let make = |start: Start| {
            let params = SessionParams {
                prompt: (0..prompt).map(|token| token % VOCAB).collect(),
                max_tokens: 40,
                max_rows: start.max_rows,
                chunk: start.max_rows,
                vocab: VOCAB,
                cached: start.cached,
                guess,
                learnt: LearntOfGuesses::default(),
            };
            Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), Box::new(|_| false))
        };
        let driver = SessionDriver::new(config, routes, open, make, now);
        let mut bench = Self { driver, now, wanted: Vec::new() };
        bench.drain();
        bench
    }

    /// A prompt of 3 tokens.
    fn over(hosts: &[u8], stand_bys: &[Option<u8>]) -> Self {
        Self::of(3, false, Guess::Never, route(hosts, stand_bys))
    }

    fn drain(&mut self) {
        while let Some(action) = self.driver.next_action(self.now) {
            self.wanted.push(action);
        }
    }

    fn on(&mut self, event: Event) {
        self.driver.on(event, self.now);
        self.drain();
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.now += time;
        self.on(event);
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.wanted)
    }

    /// The steps that were wanted: epoch, position, rows.
    fn sends(&mut self) -> Vec<(u32, u32, u32)> {
        let send = |action: Action| match action {
            Action::Send { header, .. } => Some((header.epoch, header.pos, header.rows)),
            _ => None,
        };
        self.take().into_iter().filter_map(send).collect()
    }

    /// Who is told to end the session, and in which epoch.
    fn releases(&mut self) -> Vec<(u32, Vec<u8>, usize)> {
        let release = |action: Action| match action {
            Action::Route(RouteAction::Release { epoch, nodes, keep }) => {
                Some((epoch, nodes.iter().map(|node| node.0[0]).collect(), keep.ids.len()))
            }
            _ => None,
        };
        self.take().into_iter().filter_map(release).collect()
    }

    fn answer(&mut self, from: u8, epoch: u32, step: u32) {
        self.answer_with(from, epoch, step, sevens(1));
    }

    fn answer_with(&mut self, from: u8, epoch: u32, step: u32, rows: Vec<LogitRow>) {
        self.on(answered(from, epoch, step, rows));
    }

    fn lose(&mut self, peer: u8) {
        self.on(Event::Lost { loss: Loss::Peer(node(peer)), link_ended: false });
    }

    /// Finds and opens this route, where one is looked for.
    fn reopen(&mut self, route: Route, cached: u32) {
        self.on(Event::Route(RouteEvent::Found { purpose: Purpose::Next, found: Ok(route) }));
        self.open_wanted(cached, 8);
    }

    fn open_wanted(&mut self, cached: u32, max_rows: u32) {
        let wanted: Vec<RouteAction> = self.wanted.iter().filter_map(of_routes).collect();
        for action in wanted {
            if let RouteAction::Connect { epoch, place, .. } = action {
                self.on(Event::Route(RouteEvent::Connected { epoch, place, connected: Ok(()) }));
            }
        }
        let wanted: Vec<RouteAction> = self.wanted.iter().filter_map(of_routes).collect();
        replies(&wanted, cached, max_rows).into_iter().for_each(|reply| self.on(Event::Route(reply)));
    }

    fn ended(&self) -> Option<Result<End, ErrorKind>> {
        self.driver.end().map(|end| end.clone().map_err(|fault| fault.kind()))
    }
}

/// So many rows that say token 7.
fn sevens(rows: u32) -> Vec<LogitRow> {
    (0..rows).map(|_| LogitRow::Top { lse: 1.0, ids: vec![7], logits: vec![1.0] }).collect()
}

/// The last stage's answer to a step.
fn answered(from: u8, epoch: u32, step: u32, rows: Vec<LogitRow>) -> Event {
    let (count, shape) = (rows.len() as u32, LogitShape::Top { k: 1 });
    let header = LogitsHeader { session: SESSION, epoch, step, rows: count, shape, compute_us: vec![1000, 3000] };
    Event::Delivered(Some((node(from), Message::Logits { header, rows })))
}

fn of_routes(action: &Action) -> Option<RouteAction> {
    match action {
        Action::Route(action) => Some(action.clone()),
        _ => None,
    }
}

fn drained(routes: &mut RouteManager) -> Vec<RouteAction> {
    std::iter::from_fn(|| routes.next_action()).collect()
}

/// Connects to all hosts and has them open their stages.
fn open_all(routes: &mut RouteManager, now: Instant, cached: u32, max_rows: u32) -> Option<OpenRoute> {
    for action in drained(routes) {
        if let RouteAction::Connect { epoch, place, .. } = action {
            routes.on(RouteEvent::Connected { epoch, place, connected: Ok(()) }, now);
        }
    }
    let wanted = drained(routes);
    let mut open = None;
    for reply in replies(&wanted, cached, max_rows) {
        open = routes.on(reply, now).and_then(Result::ok).or(open);
    }
    open
}

#[test]
fn an_answer_is_said_owed_for_and_followed_by_the_next_step() {
    let mut bench = Bench::over(&[1, 2], &[]);
    assert_eq!(bench.sends(), [(0, 0, 3)]);
    bench.answer(2, 0, 0);
    let wanted = bench.take();
    let owed: Vec<u64> = wanted
        .iter()
        .filter_map(|action| if let Action::Owe(debt) = action { Some(debt.milli) } else { None })
        .collect();
    assert_eq!(owed, [1500, 1500], "one row with an output and two at a quarter, to each host");
    let (sends, emits) = (
        wanted.iter().position(|action| matches!(action, Action::Send { .. })),
        wanted.iter().position(|action| matches!(action, Action::Emit(_))),
    );
    assert!(sends < emits && sends.is_some(), "stages work while the token is looked at: {wanted:?}");
}

#[test]
fn a_lost_host_has_the_session_go_on_elsewhere_in_a_higher_epoch() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.answer(2, 0, 0);
    bench.take();
    bench.lose(2);
    let wanted = bench.take();
    let find = |action: &Action| match action {
        Action::Route(RouteAction::Find { without, purpose: Purpose::Next, .. }) => Some(without.clone()),
        _ => None,
    };
    assert_eq!(wanted.iter().find_map(find), Some(vec![node(2)]));
    bench.wanted = wanted;
    assert_eq!(bench.releases(), [(0, vec![0, 1, 2], 0)], "what the broken route has is released");
    bench.reopen(route(&[1, 3], &[]), 2);
    let rerouted = bench.wanted.iter().any(|action| matches!(action, Action::Rerouted { epoch: 1, kept: 2, .. }));
    assert!(rerouted, "{:?}", bench.wanted);
    assert_eq!(bench.sends(), [(1, 2, 2)], "the last token of the prompt and the one that was said");
}

#[test]
fn a_late_answer_of_an_earlier_route_is_passed_over() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.lose(1);
    bench.reopen(route(&[3, 2], &[]), 0);
    bench.take();
    bench.answer(2, 0, 0);
    assert!(bench.take().is_empty(), "its host is the same, its epoch is not");
    bench.answer(2, 1, 0);
    assert!(bench.take().iter().any(|action| matches!(action, Action::Emit(_))));
}

#[test]
fn a_stand_by_takes_over_without_a_search() {
    let mut bench = Bench::over(&[1, 2], &[None, Some(3)]);
    bench.take();
    bench.lose(2);
    assert!(!bench.wanted.iter().any(|action| matches!(action, Action::Route(RouteAction::Find { .. }))));
    bench.open_wanted(2, 8);
    let hosts: Vec<u8> = bench.driver.way().stages.iter().map(|stage| stage.host.node.0[0]).collect();
    assert_eq!((hosts, bench.driver.way().epoch), (vec![1, 3], 1));
    assert_eq!(bench.sends(), [(1, 2, 1)]);
}

#[test]
fn a_stand_by_that_is_lost_ends_the_copies_and_nothing_else() {
    let mut bench = Bench::over(&[1, 2], &[Some(3)]);
    assert!(bench.take().iter().any(|action| matches!(action, Action::Follow { copy: Some(_), .. })));
    bench.lose(3);
    assert_eq!(bench.take(), [Action::StopCopies]);
    assert!(bench.driver.is_running());
}

#[test]
fn a_good_end_names_what_may_be_kept_and_tells_hosts_of_earlier_routes_too() {
    let mut bench = Bench::of(BLOCK, false, Guess::Never, route(&[1, 2], &[]));
    bench.lose(1);
    bench.reopen(route(&[3, 2], &[]), 0);
    bench.answer_with(2, 1, 0, Vec::new());
    bench.answer(2, 1, 1);
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.ended(), Some(Ok(End::Cancelled)));
    assert_eq!(bench.releases(), [(1, vec![0, 2, 3], 1), (1, vec![1], 0)]);
}

#[test]
fn a_session_that_fails_names_nothing_that_may_be_kept_and_owes_for_nothing_under_way() {
    let mut bench = Bench::of(BLOCK, false, Guess::Never, route(&[1], &[]));
    bench.take();
    bench.on(Event::Overdue);
    assert_eq!(bench.ended(), Some(Err(ErrorKind::Timeout)));
    assert!(!bench.wanted.iter().any(|action| matches!(action, Action::Owe(_))));
    assert_eq!(bench.releases(), [(0, vec![0, 1], 0)]);
}

#[test]
fn nobody_is_owed_for_a_step_that_was_not_sent() {
    let mut bench = Bench::over(&[1], &[]);
    bench.take();
    bench.on(Event::NotSent);
    bench.on(Event::Cancelled);
    assert!(!bench.take().iter().any(|action| matches!(action, Action::Owe(_))));
    let mut bench = Bench::over(&[1], &[]);
    bench.on(Event::Cancelled);
    assert!(bench.take().iter().any(|action| matches!(action, Action::Owe(_))), "what is under way is computed");
}

#[test]
fn tokens_that_were_chosen_are_said_before_a_session_ends_or_its_route_is_left() {
    for event in [Event::Cancelled, Event::Unsent(lost("so"))] {
        let mut bench = Bench::over(&[1], &[]);
        bench.take();
        bench.driver.on(answered(1, 0, 0, sevens(1)), bench.now);
        while let Some(action) = bench.driver.next_action(bench.now) {
            let sends = matches!(action, Action::Send { .. });
            bench.wanted.push(action);
            if sends {
                break;
            }
        }
        bench.take();
        bench.on(event);
        let wanted = bench.take();
        assert!(matches!(wanted.first(), Some(Action::Emit(_))), "{wanted:?}");
    }
}

#[test]
fn what_was_chosen_behind_the_token_at_which_the_reader_stops_is_no_part_of_the_answer() {
    // The answer repeats itself, so that after some tokens a step has guesses.
    let mut bench = Bench::of(3, false, Guess::Repeats, route(&[1], &[]));
    let mut sent = VecDeque::new();
    let (step, rows) = loop {
        let wanted = bench.take();
        sent.extend(wanted.iter().filter_map(|action| match action {
            Action::Send { header, .. } => Some((header.step, header.rows - header.want_from)),
            _ => None,
        }));
        match sent.pop_front().expect("a step is under way") {
            (step, rows) if rows > 1 => break (step, rows),
            (step, rows) => bench.answer_with(1, 0, step, sevens(rows)),
        }
    };
    let said = bench.driver.session().generated().len();
    bench.driver.on(answered(1, 0, step, sevens(rows)), bench.now);
    let is_said = |action: &Action| matches!(action, Action::Emit(_));
    while bench.driver.next_action(bench.now).is_some_and(|action| !is_said(&action)) {}
    assert!(bench.driver.session().generated().len() > said + 1, "more was chosen");
    bench.on(Event::Enough);
    assert_eq!(bench.ended(), Some(Ok(End::Stop)));
    assert_eq!(bench.driver.session().generated().len(), said + 1);
    assert!(!bench.take().iter().any(is_said));
}

#[test]
fn silent_hosts_are_left_only_where_a_route_does_without_them() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.take();
    let late = bench.driver.wake_at().unwrap() - bench.now;
    assert!(late < SECOND);
    bench.after(late, Event::Time);
    let Some(Action::Ask { question, stages }) = bench.take().pop() else { panic!("nobody is asked") };
    assert_eq!(stages.len(), 2);
    let silent = || Absent { silent: vec![node(2)], gone: Vec::new() };
    bench.after(SECOND, Event::Present { question, absent: silent() });
    let purpose = Purpose::Silent { question };
    let wanted = bench.take();
    assert!(matches!(&wanted[..], [Action::Route(RouteAction::Find { purpose: what, .. })] if *what == purpose));
    let none = || Err(Fault::new(ErrorKind::NoPlan, "there is no other"));
    bench.on(Event::Route(RouteEvent::Found { purpose, found: none() }));
    assert!(bench.driver.is_running() && bench.take().is_empty());
    bench.after(SECOND, Event::Time);
    assert!(matches!(bench.take()[..], [Action::Ask { .. }]), "it is asked again");
    bench.on(Event::Present { question, absent: silent() });
    bench.on(Event::Route(RouteEvent::Found { purpose, found: Ok(route(&[1, 3], &[])) }));
    assert!(!bench.driver.is_running());
}

#[test]
fn an_answer_makes_a_question_that_is_under_way_void() {
    let mut bench = Bench::over(&[1, 2], &[]);
    let late = bench.driver.wake_at().unwrap() - bench.now;
    bench.after(late, Event::Time);
    let Some(Action::Ask { question, .. }) = bench.take().pop() else { panic!("nobody is asked") };
    bench.answer(2, 0, 0);
    bench.take();
    let absent = Absent { gone: vec![node(2)], silent: Vec::new() };
    bench.on(Event::Present { question, absent });
    assert!(bench.driver.is_running() && bench.take().is_empty());
}

#[test]
fn stages_that_never_answer_end_the_session_unless_its_reader_is_what_it_waits_for() {
    let stalled = |paused: bool| {
        let mut bench = Bench::over(&[1], &[]);
        bench.driver.pause(paused, bench.now);
        bench.after(STALL_DEADLINE, Event::Time);
        bench.ended()
    };
    assert_eq!((stalled(false), stalled(true)), (Some(Err(ErrorKind::Timeout)), None));
}

#[test]
fn an_exact_answer_ends_where_other_hosts_take_shorter_steps() {
    let mut bench = Bench::of(3, true, Guess::Never, route(&[1], &[]));
    bench.take();
    bench.lose(1);
    bench.on(Event::Route(RouteEvent::Found { purpose: Purpose::Next, found: Ok(route(&[2], &[])) }));
    bench.open_wanted(0, 4);
    assert_eq!(bench.ended(), Some(Err(ErrorKind::PeerLost)));
}

#[test]
fn what_is_lost_while_a_route_is_opened_that_route_has_lost() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[1, 2], &[]), Prefix::default());
    routes.on(RouteEvent::Lost(node(2)), now);
    let open = open_all(&mut routes, now, 0, 8).unwrap();
    assert_eq!(open.lost, [node(2)].into());
}

#[test]
fn a_session_that_is_cancelled_while_it_opens_a_route_releases_it() {
    let mut bench = Bench::over(&[1], &[]);
    bench.lose(1);
    bench.on(Event::Route(RouteEvent::Found { purpose: Purpose::Next, found: Ok(route(&[2], &[])) }));
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.ended(), Some(Ok(End::Cancelled)));
    assert_eq!(bench.releases()[0], (1, vec![0, 2], 0));
}

#[test]
fn stages_are_asked_for_once_their_hosts_are_connected_and_a_host_that_falls_silent_is_replaced() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[0, 1], &[]), Prefix::default());
    let wanted = drained(&mut routes);
    let kinds: Vec<u8> = wanted
        .iter()
        .map(|action| match action {
            RouteAction::Attempt { stages, .. } => stages.len() as u8,
            RouteAction::Open { node, .. } => node.0[0] + 10,
            RouteAction::Connect { host, .. } => host.node.0[0] + 20,
            _ => 0,
        })
        .collect();
    assert_eq!(kinds, [1, 10, 21], "the coordinator's own stage needs no connection");
    let place = Place { stands_by: false, stage: 1 };
    routes.on(RouteEvent::Connected { epoch: 0, place, connected: Ok(()) }, now);
    assert!(matches!(drained(&mut routes)[..], [RouteAction::Open { .. }]));
    let probe = routes.wake_at().unwrap();
    routes.on(RouteEvent::Time, probe);
    assert!(matches!(drained(&mut routes)[..], [RouteAction::Probe { .. }]));
    routes.on(RouteEvent::Probed { epoch: 0, place, silent: true }, probe);
    let purpose = Purpose::Loading { epoch: 0, place };
    assert!(matches!(&drained(&mut routes)[..], [RouteAction::Find { purpose: what, .. }] if *what == purpose));
    routes.on(RouteEvent::Found { purpose, found: Ok(route(&[0, 2], &[])) }, probe);
    let own = Place { stands_by: false, stage: 0 };
    routes.on(RouteEvent::Replied { epoch: 0, place: own, reply: Ok(opened(0, 8)) }, probe);
    let wanted = drained(&mut routes);
    let without = wanted.iter().find_map(|action| match action {
        RouteAction::Find { without, purpose: Purpose::Next, .. } => Some(without.clone()),
        _ => None,
    });
    assert_eq!(without, Some(vec![node(1)]));
    assert!(wanted.contains(&RouteAction::Settled));
}

#[test]
fn a_host_that_opens_a_stage_of_another_shape_is_refused_for_good() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[1], &[]), Prefix::default());
    let place = Place { stands_by: false, stage: 0 };
    routes.on(RouteEvent::Connected { epoch: 0, place, connected: Ok(()) }, now);
    drained(&mut routes);
    let reply = Ok(Opened { width: WIDTH + 1, ..opened(0, 8) });
    assert!(routes.on(RouteEvent::Replied { epoch: 0, place, reply }, now).is_none());
    let verdict = Verdict::Refused(ErrorKind::BadFrame);
    assert!(drained(&mut routes).contains(&RouteAction::Note { node: node(1), verdict }));
}

#[test]
fn a_step_that_could_not_be_sent_is_not_owed_for() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.take();
    let (driver, now) = (&mut bench.driver, bench.now);
    let comes = |driver: &mut SessionDriver, wanted: fn(&Action) -> bool| {
        std::iter::from_fn(|| driver.next_action(now)).any(|action| wanted(&action))
    };
    driver.on(answered(2, 0, 0, sevens(1)), now);
    assert!(comes(driver, |action| matches!(action, Action::Send { .. })));
    driver.on(Event::Unsent(lost("its link")), now);
    assert!(comes(driver, |action| matches!(action, Action::Emit(_))), "what was chosen is said");
    driver.on(Event::Enough, now);
    assert!(!comes(driver, |action| matches!(action, Action::Owe(_))));
    assert_eq!(bench.ended(), Some(Ok(End::Stop)));
}

#[test]
fn who_was_asked_for_an_attempt_that_came_to_nothing_is_released_from_that_attempt_on() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.lose(2);
    bench.on(Event::Route(RouteEvent::Found { purpose: Purpose::Next, found: Ok(route(&[1, 3], &[])) }));
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.releases().last(), Some(&(1, vec![3], 0)), "its stage may be open, and only its reply be lost");
}
