//! Swarms over a network that is not kind: routers that let nobody in, lost packets, cut lines.
//!
//! Each test builds machines of network namespaces (`swarmllm_tests::space`) and runs itself once more inside the
//! coordinator's. Ignored by a plain run: `make net` says whether the machine allows them, and runs them.

use std::time::{Duration, Instant};

use swarmllm_core::base::ModelId;
use swarmllm_core::node::{Completion, Delta, GenerateError, Node, Parts};
use swarmllm_tests::cluster::{CONTEXT, Member, THREADS, answer, ask};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::{Process, import};
use swarmllm_tests::space::{Nat, Place, World};
use swarmllm_tests::whole::Whole;
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
const NETWORK: &str = "wild";
const TCP: &str = "/ip4/0.0.0.0/tcp/8810";
const QUIC: &str = "/ip4/0.0.0.0/udp/8800/quic-v1";
/// Tokens of an answer.
const TOKENS: u32 = 32;
/// Longest wait for anything that an unkind network may delay.
const LONGEST: Duration = Duration::from_secs(60);

/// Time within which the first token comes once cut lines are back, in the median.
const RECOVERY: Duration = Duration::from_secs(5);

/// The peer that others find each other by, at this address.
fn bootstrap(place: &Place) -> (Process, TempDir, String) {
    let dir = TempDir::new().expect("a temporary directory");
    let arguments = ["--network", NETWORK, "--bootstrap", "--listen", TCP, "--listen", QUIC];
    let process = Process::start_in(&place.space, dir.path(), &arguments);
    let id = process.ready.addresses[0].rsplit('/').next().expect("its id").to_owned();
    let address = format!("/ip4/{}/tcp/8810/p2p/{id}", place.ip);
    (process, dir, address)
}

/// A host of one of `stages` stages, which knows the bootstrap peer.
fn host(place: &Place, known: &str, (stages, index): (u32, usize), more: &[&str]) -> (Process, TempDir) {
    let (dir, cut) = (TempDir::new().expect("a temporary directory"), MODEL.cut(stages));
    import(dir.path(), &MODEL.path(), MODEL.name(), cut[index], index + 1 == cut.len());
    let (threads, context) = (THREADS.to_string(), CONTEXT.to_string());
    let own = ["--network", NETWORK, "--bootstrap", known, "--listen", TCP, "--listen", QUIC];
    let limits = ["--threads", &threads, "--context", &context, "--engine", "llama.cpp"];
    (Process::start_in(&place.space, dir.path(), &[&own[..], &limits, more].concat()), dir)
}

/// A coordinator in this process's namespace.
async fn coordinator(known: &str) -> (Member, ModelId) {
    // `RUST_LOG` says what this process tells, and the hosts.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let dir = TempDir::new().expect("a temporary directory");
    let builder = Node::builder().data_dir(dir.path()).network(NETWORK).mdns(false);
    let builder = builder.listen(vec![TCP.to_owned(), QUIC.to_owned()]).bootstrap(vec![known.to_owned()]);
    let node = builder.threads(THREADS).context(CONTEXT).engine("llama.cpp").start().await.expect("a node starts");
    let member = Member { node, dir };
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    (member, model)
}

fn expected() -> Vec<u32> {
    let whole = Whole::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), TOKENS)
}

/// Asks until there is an answer; only the want of a route is a reason to ask again.
async fn patient_answer(node: &Node, model: ModelId) -> Completion {
    let begun = Instant::now();
    loop {
        match answer(node, model, TEXT, TOKENS).await {
            Ok(completion) => return completion,
            Err(GenerateError::Refused(fault)) if begun.elapsed() < LONGEST => {
                println!("not yet: {fault}");
                for peer in node.peers() {
                    println!(
                        "  {} {} {:?} {:?} {}",
                        peer.id,
                        peer.connected,
                        peer.transport,
                        peer.addresses,
                        peer.holdings.len()
                    );
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// The ways in which the coordinator's peers are connected, by host.
fn ways(node: &Node, hosts: &[String]) -> Vec<Option<String>> {
    let peers = node.peers();
    let way =
        |id: &String| peers.iter().find(|peer| peer.id.to_string() == *id).and_then(|peer| peer.transport.clone());
    hosts.iter().map(way).collect()
}

/// The world of the tests about routers: a bootstrap peer outside, two hosts and the coordinator each behind a router. Those
/// of the hosts may forward ports.
async fn behind_routers(test: &str, nat: Nat, forward: bool) -> Option<(Member, ModelId, Vec<String>)> {
    if World::inside().is_some() {
        let known = std::env::var("SWARMLLM_TEST_KNOWN").expect("the bootstrap peer's address");
        let hosts = std::env::var("SWARMLLM_TEST_HOSTS").expect("the hosts' ids");
        let (member, model) = coordinator(&known).await;
        return Some((member, model, hosts.split(',').map(str::to_owned).collect()));
    }
    let mut world = World::new();
    let relay = world.open("relay");
    let [first, second, asker] = ["first", "second", "asker"].map(|role| world.hidden(role, nat));
    if forward {
        ["first", "second"].into_iter().for_each(|role| world.forward(role));
    }
    let (_relay, _dir, known) = bootstrap(&relay);
    let more: &[&str] = if forward { &["--upnp"] } else { &[] };
    let hosts = [host(&first, &known, (2, 0), more), host(&second, &known, (2, 1), more)];
    let ids = hosts.iter().map(|(host, _)| host.ready.id.clone()).collect::<Vec<_>>().join(",");
    world.run_inside(test, &asker, &[("SWARMLLM_TEST_KNOWN", known), ("SWARMLLM_TEST_HOSTS", ids)]);
    None
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip` and `nft`: make net"]
async fn machines_behind_routers_answer_together_and_come_to_direct_connections() {
    let test = "machines_behind_routers_answer_together_and_come_to_direct_connections";
    let Some((member, model, hosts)) = behind_routers(test, Nat::Plain, false).await else { return };
    answers_directly(member, model, &hosts).await;
}

/// Answers, whichever way, and comes to direct connections, over which it answers too.
async fn answers_directly(member: Member, model: ModelId, hosts: &[String]) {
    let completion = patient_answer(&member.node, model).await;
    assert_eq!(completion.tokens, expected());
    println!("the first answer came over {:?}", ways(&member.node, hosts));
    let begun = Instant::now();
    let direct = || ways(&member.node, hosts).iter().flatten().filter(|way| *way != "relay").count() == hosts.len();
    while !direct() {
        assert!(begun.elapsed() < LONGEST, "still {:?}", ways(&member.node, hosts));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(patient_answer(&member.node, model).await.tokens, completion.tokens);
    println!("later ones over {:?}", ways(&member.node, hosts));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip`, `nft` and `miniupnpd`: make net"]
async fn where_routers_forward_ports_the_connections_are_direct_though_no_hole_can_be_made() {
    let test = "where_routers_forward_ports_the_connections_are_direct_though_no_hole_can_be_made";
    if !World::can_forward() {
        return println!("NOT RUN: `miniupnpd` is missing (Debian: miniupnpd-nftables)");
    }
    let Some((member, model, hosts)) = behind_routers(test, Nat::Random, true).await else { return };
    answers_directly(member, model, &hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip` and `nft`: make net"]
async fn where_no_direct_path_comes_up_the_relay_carries_the_whole_answer() {
    let test = "where_no_direct_path_comes_up_the_relay_carries_the_whole_answer";
    let Some((member, model, hosts)) = behind_routers(test, Nat::Random, false).await else { return };
    let completion = patient_answer(&member.node, model).await;
    assert_eq!(completion.tokens, expected());
    assert_eq!(ways(&member.node, &hosts), vec![Some("relay".to_owned()); hosts.len()]);
    member.stop().await;
}

/// Partitions that a run tries, so that the whole is not too long for every day; they last from 1 to 20 seconds.
fn partitions() -> u32 {
    std::env::var("SWARMLLM_TEST_PARTITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(6).max(2)
}

/// One answer over an unkind network: right as far as it goes, and not late.
async fn ask_under_cuts(node: &Node, model: ModelId, expected: &[u32]) -> Result<Duration, String> {
    let begun = Instant::now();
    let ended = async {
        let mut generation = ask(node, model, TEXT, TOKENS).await?;
        let mut first = None;
        loop {
            match generation.next().await.expect("an answer has an end")? {
                Delta::Done(completion) => return Ok((first.unwrap_or_default(), completion.tokens)),
                _ => first = first.or(Some(begun.elapsed())),
            }
        }
    };
    let ended: Result<(Duration, Vec<u32>), GenerateError> =
        tokio::time::timeout(LONGEST, ended).await.expect("every answer ends within a minute");
    match ended {
        Ok((first, tokens)) => {
            assert_eq!(tokens, expected, "a wrong token");
            Ok(first)
        }
        Err(error) => {
            if let GenerateError::Interrupted { partial, .. } = &error {
                assert!(expected.starts_with(&partial.tokens), "a wrong token in {:?}", partial.tokens);
            }
            Err(error.to_string())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip` and `nft`: make net"]
async fn cut_lines_and_lost_packets_cost_time_and_never_a_token() {
    let test = "cut_lines_and_lost_packets_cost_time_and_never_a_token";
    let Some(world) = World::inside() else {
        let mut world = World::new();
        let places = ["relay", "a", "b", "c", "d", "asker"].map(|role| world.open(role));
        let (_relay, _dir, known) = bootstrap(&places[0]);
        let _hosts: Vec<_> = (0..4).map(|index| host(&places[index + 1], &known, (2, index / 2), &[])).collect();
        world.lose(5);
        return world.run_inside(test, &places[5], &[("SWARMLLM_TEST_KNOWN", known)]);
    };
    let (member, model) = coordinator(&std::env::var("SWARMLLM_TEST_KNOWN").expect("the bootstrap peer")).await;
    let expected = expected();
    assert_eq!(patient_answer(&member.node, model).await.tokens, expected);
    // The lines: 1 the bootstrap peer, 2 and 3 hosts of the first stage, 4 and 5 of the second, 6 the coordinator.
    let cuts: [&[usize]; 6] = [&[2], &[6], &[4, 5], &[1, 3], &[2, 4], &[3, 5, 6]];
    let (rounds, mut recoveries) = (partitions(), Vec::new());
    for round in 0..rounds {
        let length = Duration::from_secs_f64(1.0 + 19.0 * f64::from(round) / f64::from(rounds - 1));
        let lines = cuts[round as usize % cuts.len()];
        let (node, tokens) = (member.node.clone(), expected.clone());
        let through = tokio::spawn(async move { ask_under_cuts(&node, model, &tokens).await });
        tokio::time::sleep(Duration::from_millis(700)).await;
        world.cut(lines);
        let healed = Instant::now() + length;
        let during = tokio::time::timeout(length, ask_under_cuts(&member.node, model, &expected)).await;
        tokio::time::sleep(healed.saturating_duration_since(Instant::now())).await;
        world.cut(&[]);
        let begun = Instant::now();
        let recovered = loop {
            let asked = begun.elapsed();
            match ask_under_cuts(&member.node, model, &expected).await {
                Ok(first) => break asked + first,
                Err(error) => println!("  {:?} after healing: {error}", begun.elapsed()),
            }
            assert!(begun.elapsed() < LONGEST, "the swarm does not recover");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let through = through.await.expect("no panic");
        println!(
            "lines {lines:?} cut for {length:.1?}: asked before {through:.1?}, during {during:.1?}, after {recovered:.1?}"
        );
        recoveries.push(recovered);
    }
    recoveries.sort_unstable();
    let (median, last) = (recoveries[recoveries.len() / 2], recoveries[recoveries.len() - 1]);
    println!("{rounds} cuts: a first token {median:.1?} after healing in the median, {last:.1?} at most");
    // Of twenty packets one is lost: now and then a handshake loses several in a row, and connects seconds later.
    assert!(median <= RECOVERY && last <= 3 * RECOVERY, "{recoveries:?}");
    member.stop().await;
}
