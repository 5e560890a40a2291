//! The driver by itself: events in, actions out, over a model that always generates token 7.

use std::time::Duration;

use super::host_probes::STALL_DEADLINE;
use super::*;
use crate::base::{ErrorKind, LayerRange, SessionId};
use crate::engine::sample::{LogitRow, Sampler, SamplingParams};
use crate::pipeline::plan::PlanStage;
use crate::pipeline::route::manager::{RouteAction, RouteEvent, SearchPurpose, Verdict};
use crate::pipeline::route::opening::Place;
use crate::pipeline::route::watch::UnresponsiveHosts;
use crate::pipeline::route::{OpenParams, Route, RouteStage};
use crate::pipeline::session::prefix::{BLOCK, PrefixHasher};
use crate::pipeline::session::{SessionParams, Speculation, SpeculationStats};
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

/// A route of one layer at each host, with these standbys.
fn route(hosts: &[u8], standbys: &[Option<u8>]) -> Route {
    let stage = |(index, name): (usize, &u8)| {
        let (layers, head) = (LayerRange::new(index as u32, index as u32 + 1), index + 1 == hosts.len());
        let standby = standbys.get(index).copied().flatten().map(host);
        RouteStage::new(PlanStage { node: node(*name), layers, head }, Vec::new(), 1, standby)
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

/// Replies that open a route's stages, at hosts with this KV and step size.
fn replies(actions: &[RouteAction], cached: u32, max_rows: u32) -> Vec<RouteEvent> {
    let reply = |action: &RouteAction| match action {
        RouteAction::Open { place, open, .. } => {
            Some(RouteEvent::Replied { epoch: open.epoch, place: *place, reply: Ok(opened(cached, max_rows)) })
        }
        _ => None,
    };
    actions.iter().filter_map(reply).collect()
}

/// A driver, the time, and its actions since the last look.
struct Bench {
    driver: SessionDriver,
    now: Instant,
    wanted: Vec<Action>,
}

impl Bench {
    /// A session with a prompt of `prompt` tokens over an open route.
    fn of(prompt: u32, exact: bool, speculation: Speculation, route: Route) -> Self {
        let (mut routes, now) = (manager(exact), Instant::now());
        routes.open(route, Prefix::default());
        let open = open_all(&mut routes, now, 0, 8).expect("all stages are open");
        let config = SessionConfig {
            codec: Codec::F32,
            prefix_hasher: PrefixHasher::new([0; 32]),
            needs_all_states: false,
            is_embedding: false,
            prompt: prompt as usize,
            max_answer_bytes: 1 << 10,
        };
        let make = |start: FirstRoute| {
            let params = SessionParams {
                prompt: (0..prompt).map(|token| token % VOCAB).collect(),
                max_tokens: 40,
                max_rows: start.max_rows,
                chunk: start.max_rows,
                vocab: VOCAB,
                cached: start.cached,
                speculation,
                stats: SpeculationStats::default(),
            };
            Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), Box::new(|_| false))
        };
        let driver = SessionDriver::new(config, routes, open, make, now);
        let mut bench = Self { driver, now, wanted: Vec::new() };
        bench.drain();
        bench
    }

    /// A prompt of 3 tokens.
    fn over(hosts: &[u8], standbys: &[Option<u8>]) -> Self {
        Self::of(3, false, Speculation::Off, route(hosts, standbys))
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

    /// The sent steps: epoch, position, rows.
    fn sends(&mut self) -> Vec<(u32, u32, u32)> {
        let send = |action: Action| match action {
            Action::Send { header, .. } => Some((header.epoch, header.pos, header.rows)),
            _ => None,
        };
        self.take().into_iter().filter_map(send).collect()
    }

    /// Releases: epoch, nodes, blocks that may be kept.
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
        self.on(Event::Lost { loss: HostLoss::Peer(node(peer)), link_ended: false });
    }

    /// Answers the search with this route, and opens it.
    fn reopen(&mut self, route: Route, cached: u32) {
        self.on(Event::Route(RouteEvent::Found { purpose: SearchPurpose::Open, found: Ok(route) }));
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

    fn ended(&self) -> Option<Result<SessionEnd, ErrorKind>> {
        self.driver.end().map(|end| end.clone().map_err(|fault| fault.kind()))
    }
}

/// Rows that predict token 7.
fn sevens(rows: u32) -> Vec<LogitRow> {
    (0..rows).map(|_| LogitRow::Top { lse: 1.0, ids: vec![7], logits: vec![1.0] }).collect()
}

/// An answer of the last stage.
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

/// Connects to all hosts and opens their stages.
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
fn an_answer_is_emitted_paid_and_followed_by_a_step() {
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
    assert!(sends < emits && sends.is_some(), "stages work while the token is processed: {wanted:?}");
}

#[test]
fn a_session_with_a_lost_host_resumes_in_a_higher_epoch() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.answer(2, 0, 0);
    bench.take();
    bench.lose(2);
    let wanted = bench.take();
    let find = |action: &Action| match action {
        Action::Route(RouteAction::Find { without, purpose: SearchPurpose::Open, .. }) => Some(without.clone()),
        _ => None,
    };
    assert_eq!(wanted.iter().find_map(find), Some(vec![node(2)]));
    bench.wanted = wanted;
    assert_eq!(bench.releases(), [(0, vec![0, 1, 2], 0)], "the failed route is released");
    bench.reopen(route(&[1, 3], &[]), 2);
    let rerouted = bench.wanted.iter().any(|action| matches!(action, Action::Rerouted { epoch: 1, kept: 2, .. }));
    assert!(rerouted, "{:?}", bench.wanted);
    assert_eq!(bench.sends(), [(1, 2, 2)], "the last token of the prompt and the emitted one");
}

#[test]
fn a_late_answer_of_an_earlier_route_is_ignored() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.lose(1);
    bench.reopen(route(&[3, 2], &[]), 0);
    bench.take();
    bench.answer(2, 0, 0);
    assert!(bench.take().is_empty(), "the host is the same, the epoch is not");
    bench.answer(2, 1, 0);
    assert!(bench.take().iter().any(|action| matches!(action, Action::Emit(_))));
}

#[test]
fn a_standby_takes_over_without_a_search() {
    let mut bench = Bench::over(&[1, 2], &[None, Some(3)]);
    bench.take();
    bench.lose(2);
    assert!(!bench.wanted.iter().any(|action| matches!(action, Action::Route(RouteAction::Find { .. }))));
    bench.open_wanted(2, 8);
    let hosts: Vec<u8> = bench.driver.route().stages.iter().map(|stage| stage.host.node.0[0]).collect();
    assert_eq!((hosts, bench.driver.route().epoch), (vec![1, 3], 1));
    assert_eq!(bench.sends(), [(1, 2, 1)]);
}

#[test]
fn a_lost_standby_ends_only_the_copies() {
    let mut bench = Bench::over(&[1, 2], &[Some(3)]);
    assert!(bench.take().iter().any(|action| matches!(action, Action::UseRoute { copy: Some(_), .. })));
    bench.lose(3);
    assert_eq!(bench.take(), [Action::StopCopies]);
    assert!(bench.driver.is_running());
}

#[test]
fn a_good_end_keeps_a_prefix_and_releases_earlier_hosts_too() {
    let mut bench = Bench::of(BLOCK, false, Speculation::Off, route(&[1, 2], &[]));
    bench.lose(1);
    bench.reopen(route(&[3, 2], &[]), 0);
    bench.answer_with(2, 1, 0, Vec::new());
    bench.answer(2, 1, 1);
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.ended(), Some(Ok(SessionEnd::Cancelled)));
    assert_eq!(bench.releases(), [(1, vec![0, 2, 3], 1), (1, vec![1], 0)]);
}

#[test]
fn a_failed_session_keeps_nothing_and_owes_nothing_in_flight() {
    let mut bench = Bench::of(BLOCK, false, Speculation::Off, route(&[1], &[]));
    bench.take();
    bench.on(Event::DeadlinePassed);
    assert_eq!(bench.ended(), Some(Err(ErrorKind::Timeout)));
    assert!(!bench.wanted.iter().any(|action| matches!(action, Action::Owe(_))));
    assert_eq!(bench.releases(), [(0, vec![0, 1], 0)]);
}

#[test]
fn a_step_that_was_not_sent_is_not_paid() {
    let mut bench = Bench::over(&[1], &[]);
    bench.take();
    bench.on(Event::SendAborted);
    bench.on(Event::Cancelled);
    assert!(!bench.take().iter().any(|action| matches!(action, Action::Owe(_))));
    let mut bench = Bench::over(&[1], &[]);
    bench.on(Event::Cancelled);
    assert!(bench.take().iter().any(|action| matches!(action, Action::Owe(_))), "a step in flight is computed");
}

#[test]
fn sampled_tokens_are_emitted_before_an_end_or_a_recovery() {
    for event in [Event::Cancelled, Event::SendFailed(lost("so"))] {
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
fn tokens_behind_the_readers_stop_are_dropped() {
    // The answer repeats itself, so that after some tokens a step has draft tokens.
    let mut bench = Bench::of(3, false, Speculation::NGrams, route(&[1], &[]));
    let mut sent = VecDeque::new();
    let (step, rows) = loop {
        let wanted = bench.take();
        sent.extend(wanted.iter().filter_map(|action| match action {
            Action::Send { header, .. } => Some((header.step, header.rows - header.want_from)),
            _ => None,
        }));
        match sent.pop_front().expect("a step is in flight") {
            (step, rows) if rows > 1 => break (step, rows),
            (step, rows) => bench.answer_with(1, 0, step, sevens(rows)),
        }
    };
    let generated = bench.driver.session().generated().len();
    bench.driver.on(answered(1, 0, step, sevens(rows)), bench.now);
    let is_said = |action: &Action| matches!(action, Action::Emit(_));
    while bench.driver.next_action(bench.now).is_some_and(|action| !is_said(&action)) {}
    assert!(bench.driver.session().generated().len() > generated + 1, "more tokens were sampled");
    bench.on(Event::ReaderStopped);
    assert_eq!(bench.ended(), Some(Ok(SessionEnd::Stop)));
    assert_eq!(bench.driver.session().generated().len(), generated + 1);
    assert!(!bench.take().iter().any(is_said));
}

#[test]
fn silent_hosts_are_left_only_for_a_route_without_them() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.take();
    let late = bench.driver.wake_at().unwrap() - bench.now;
    assert!(late < SECOND);
    bench.after(late, Event::Wake);
    let Some(Action::ProbeHosts { probe, stages }) = bench.take().pop() else { panic!("no host is probed") };
    assert_eq!(stages.len(), 2);
    let silent = || UnresponsiveHosts { silent: vec![node(2)], gone: Vec::new() };
    bench.after(SECOND, Event::HostsProbed { probe, unresponsive: silent() });
    let purpose = SearchPurpose::AvoidSilent { probe };
    let wanted = bench.take();
    assert!(matches!(&wanted[..], [Action::Route(RouteAction::Find { purpose: what, .. })] if *what == purpose));
    let none = || Err(Fault::new(ErrorKind::NoPlan, "there is no other route"));
    bench.on(Event::Route(RouteEvent::Found { purpose, found: none() }));
    assert!(bench.driver.is_running() && bench.take().is_empty());
    bench.after(SECOND, Event::Wake);
    assert!(matches!(bench.take()[..], [Action::ProbeHosts { .. }]), "the host is probed again");
    bench.on(Event::HostsProbed { probe, unresponsive: silent() });
    bench.on(Event::Route(RouteEvent::Found { purpose, found: Ok(route(&[1, 3], &[])) }));
    assert!(!bench.driver.is_running());
}

#[test]
fn an_answer_voids_the_current_probe() {
    let mut bench = Bench::over(&[1, 2], &[]);
    let late = bench.driver.wake_at().unwrap() - bench.now;
    bench.after(late, Event::Wake);
    let Some(Action::ProbeHosts { probe, .. }) = bench.take().pop() else { panic!("no host is probed") };
    bench.answer(2, 0, 0);
    bench.take();
    let unresponsive = UnresponsiveHosts { gone: vec![node(2)], silent: Vec::new() };
    bench.on(Event::HostsProbed { probe, unresponsive });
    assert!(bench.driver.is_running() && bench.take().is_empty());
}

#[test]
fn stages_that_never_answer_fail_the_session_unless_paused() {
    let stalled = |paused: bool| {
        let mut bench = Bench::over(&[1], &[]);
        bench.driver.pause(paused, bench.now);
        bench.after(STALL_DEADLINE, Event::Wake);
        bench.ended()
    };
    assert_eq!((stalled(false), stalled(true)), (Some(Err(ErrorKind::Timeout)), None));
}

#[test]
fn an_exact_answer_fails_where_other_hosts_admit_shorter_steps() {
    let mut bench = Bench::of(3, true, Speculation::Off, route(&[1], &[]));
    bench.take();
    bench.lose(1);
    bench.on(Event::Route(RouteEvent::Found { purpose: SearchPurpose::Open, found: Ok(route(&[2], &[])) }));
    bench.open_wanted(0, 4);
    assert_eq!(bench.ended(), Some(Err(ErrorKind::PeerLost)));
}

#[test]
fn losses_during_the_opening_are_losses_of_the_route() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[1, 2], &[]), Prefix::default());
    routes.on(RouteEvent::Lost(node(2)), now);
    let open = open_all(&mut routes, now, 0, 8).unwrap();
    assert_eq!(open.lost, [node(2)].into());
}

#[test]
fn a_session_cancelled_during_an_opening_releases_the_route() {
    let mut bench = Bench::over(&[1], &[]);
    bench.lose(1);
    bench.on(Event::Route(RouteEvent::Found { purpose: SearchPurpose::Open, found: Ok(route(&[2], &[])) }));
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.ended(), Some(Ok(SessionEnd::Cancelled)));
    assert_eq!(bench.releases()[0], (1, vec![0, 2], 0));
}

#[test]
fn stages_open_after_connecting_and_a_silent_host_is_replaced() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[0, 1], &[]), Prefix::default());
    let wanted = drained(&mut routes);
    let kinds: Vec<u8> = wanted
        .iter()
        .map(|action| match action {
            RouteAction::BeginAttempt { stages, .. } => stages.len() as u8,
            RouteAction::Open { node, .. } => node.0[0] + 10,
            RouteAction::Connect { host, .. } => host.node.0[0] + 20,
            _ => 0,
        })
        .collect();
    assert_eq!(kinds, [1, 10, 21], "the coordinator's own stage needs no connection");
    let place = Place { is_standby: false, stage: 1 };
    routes.on(RouteEvent::Connected { epoch: 0, place, connected: Ok(()) }, now);
    assert!(matches!(drained(&mut routes)[..], [RouteAction::Open { .. }]));
    let probe = routes.wake_at().unwrap();
    routes.on(RouteEvent::Wake, probe);
    assert!(matches!(drained(&mut routes)[..], [RouteAction::Probe { .. }]));
    routes.on(RouteEvent::Probed { epoch: 0, place, silent: true }, probe);
    let purpose = SearchPurpose::AvoidLoading { epoch: 0, place };
    assert!(matches!(&drained(&mut routes)[..], [RouteAction::Find { purpose: what, .. }] if *what == purpose));
    routes.on(RouteEvent::Found { purpose, found: Ok(route(&[0, 2], &[])) }, probe);
    let own = Place { is_standby: false, stage: 0 };
    routes.on(RouteEvent::Replied { epoch: 0, place: own, reply: Ok(opened(0, 8)) }, probe);
    let wanted = drained(&mut routes);
    let without = wanted.iter().find_map(|action| match action {
        RouteAction::Find { without, purpose: SearchPurpose::Open, .. } => Some(without.clone()),
        _ => None,
    });
    assert_eq!(without, Some(vec![node(1)]));
    assert!(wanted.contains(&RouteAction::EndAttempt));
}

#[test]
fn a_host_with_a_stage_of_another_shape_is_refused() {
    let (mut routes, now) = (manager(false), Instant::now());
    routes.open(route(&[1], &[]), Prefix::default());
    let place = Place { is_standby: false, stage: 0 };
    routes.on(RouteEvent::Connected { epoch: 0, place, connected: Ok(()) }, now);
    drained(&mut routes);
    let reply = Ok(Opened { width: WIDTH + 1, ..opened(0, 8) });
    assert!(routes.on(RouteEvent::Replied { epoch: 0, place, reply }, now).is_none());
    let verdict = Verdict::Refused(ErrorKind::BadFrame);
    assert!(drained(&mut routes).contains(&RouteAction::Record { node: node(1), verdict }));
}

#[test]
fn a_step_that_failed_to_send_is_not_paid() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.take();
    let (driver, now) = (&mut bench.driver, bench.now);
    let comes = |driver: &mut SessionDriver, wanted: fn(&Action) -> bool| {
        std::iter::from_fn(|| driver.next_action(now)).any(|action| wanted(&action))
    };
    driver.on(answered(2, 0, 0, sevens(1)), now);
    assert!(comes(driver, |action| matches!(action, Action::Send { .. })));
    driver.on(Event::SendFailed(lost("its link")), now);
    assert!(comes(driver, |action| matches!(action, Action::Emit(_))), "sampled tokens are emitted");
    driver.on(Event::ReaderStopped, now);
    assert!(!comes(driver, |action| matches!(action, Action::Owe(_))));
    assert_eq!(bench.ended(), Some(Ok(SessionEnd::Stop)));
}

#[test]
fn hosts_of_a_failed_attempt_are_released_from_its_epoch_on() {
    let mut bench = Bench::over(&[1, 2], &[]);
    bench.lose(2);
    bench.on(Event::Route(RouteEvent::Found { purpose: SearchPurpose::Open, found: Ok(route(&[1, 3], &[])) }));
    bench.take();
    bench.on(Event::Cancelled);
    assert_eq!(bench.releases().last(), Some(&(1, vec![3], 0)), "its stage may be open and only its reply lost");
}
