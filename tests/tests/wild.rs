//! Swarms over an adverse network: NAT routers, packet loss, outages.
//!
//! Each test builds machines from network namespaces (`swarmllm_tests::netns`) and runs itself again inside the
//! coordinator's. Ignored in a plain run: `make net` checks whether the machine allows them, and runs them.

use std::time::{Duration, Instant};

use swarmllm_core::base::ModelId;
use swarmllm_core::node::{Completion, Delta, GenerateError, Node, Parts};
use swarmllm_tests::cluster::{CONTEXT, Member, THREADS, answer, ask};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::netns::{Machine, Nat, TestNetwork};
use swarmllm_tests::process::{Process, import};
use swarmllm_tests::reference::ReferenceModel;
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
const NETWORK: &str = "wild";
const TCP: &str = "/ip4/0.0.0.0/tcp/8810";
const QUIC: &str = "/ip4/0.0.0.0/udp/8800/quic-v1";
/// Tokens of an answer.
const TOKENS: u32 = 32;
/// Timeout of operations over the adverse network.
const LONGEST: Duration = Duration::from_secs(60);

/// Maximum median time to first token after an outage.
const RECOVERY: Duration = Duration::from_secs(5);

/// Starts the bootstrap peer on this machine.
fn bootstrap(machine: &Machine) -> (Process, TempDir, String) {
    let dir = TempDir::new().expect("a temporary directory");
    let arguments = ["--network", NETWORK, "--bootstrap", "--listen", TCP, "--listen", QUIC];
    let process = Process::start_in_namespace(&machine.namespace, dir.path(), &arguments);
    let id = process.ready.addresses[0].rsplit('/').next().expect("its id").to_owned();
    let address = format!("/ip4/{}/tcp/8810/p2p/{id}", machine.ip);
    (process, dir, address)
}

/// A host of one of `stages` stages with this bootstrap peer.
fn host(machine: &Machine, known: &str, (stages, index): (u32, usize), more: &[&str]) -> (Process, TempDir) {
    let (dir, cut) = (TempDir::new().expect("a temporary directory"), MODEL.cut(stages));
    import(dir.path(), &MODEL.path(), MODEL.name(), cut[index], index + 1 == cut.len());
    let (threads, context) = (THREADS.to_string(), CONTEXT.to_string());
    let own = ["--network", NETWORK, "--bootstrap", known, "--listen", TCP, "--listen", QUIC];
    let limits = ["--threads", &threads, "--context", &context, "--engine", "llama.cpp"];
    (Process::start_in_namespace(&machine.namespace, dir.path(), &[&own[..], &limits, more].concat()), dir)
}

/// A coordinator in this process's namespace.
async fn coordinator(known: &str) -> (Member, ModelId) {
    // `RUST_LOG` sets the log level of this process and of the hosts.
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
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), TOKENS)
}

/// Generates an answer; retries while no route is available.
async fn answer_with_retries(node: &Node, model: ModelId) -> Completion {
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

/// The transport to each host, in order.
fn transports(node: &Node, hosts: &[String]) -> Vec<Option<String>> {
    let peers = node.peers();
    let way =
        |id: &String| peers.iter().find(|peer| peer.id.to_string() == *id).and_then(|peer| peer.transport.clone());
    hosts.iter().map(way).collect()
}

/// Builds the network of the NAT tests: a public bootstrap peer, and two hosts and the coordinator each behind a router,
/// with UPnP for the hosts if `forward`.
async fn behind_routers(test: &str, nat: Nat, forward: bool) -> Option<(Member, ModelId, Vec<String>)> {
    if TestNetwork::current().is_some() {
        let known = std::env::var("SWARMLLM_TEST_KNOWN").expect("the bootstrap peer's address");
        let hosts = std::env::var("SWARMLLM_TEST_HOSTS").expect("the hosts' ids");
        let (member, model) = coordinator(&known).await;
        return Some((member, model, hosts.split(',').map(str::to_owned).collect()));
    }
    let mut network = TestNetwork::new();
    let relay = network.public_machine("relay");
    let [first, second, asker] = ["first", "second", "asker"].map(|role| network.natted_machine(role, nat));
    if forward {
        ["first", "second"].into_iter().for_each(|role| network.enable_upnp(role));
    }
    let (_relay, _dir, known) = bootstrap(&relay);
    let more: &[&str] = if forward { &["--upnp"] } else { &[] };
    let hosts = [host(&first, &known, (2, 0), more), host(&second, &known, (2, 1), more)];
    let ids = hosts.iter().map(|(host, _)| host.ready.id.clone()).collect::<Vec<_>>().join(",");
    network.run_inside(test, &asker, &[("SWARMLLM_TEST_KNOWN", known), ("SWARMLLM_TEST_HOSTS", ids)]);
    None
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip` and `nft`: make net"]
async fn machines_behind_nat_reach_direct_connections() {
    let test = "machines_behind_nat_reach_direct_connections";
    let Some((member, model, hosts)) = behind_routers(test, Nat::PortPreserving, false).await else { return };
    answers_directly(member, model, &hosts).await;
}

/// Checks an answer over any transport, the upgrade to direct connections, and an answer over them.
async fn answers_directly(member: Member, model: ModelId, hosts: &[String]) {
    let completion = answer_with_retries(&member.node, model).await;
    assert_eq!(completion.tokens, expected());
    println!("the first answer came over {:?}", transports(&member.node, hosts));
    let begun = Instant::now();
    let direct =
        || transports(&member.node, hosts).iter().flatten().filter(|way| *way != "relay").count() == hosts.len();
    while !direct() {
        assert!(begun.elapsed() < LONGEST, "still {:?}", transports(&member.node, hosts));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(answer_with_retries(&member.node, model).await.tokens, completion.tokens);
    println!("later ones over {:?}", transports(&member.node, hosts));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip`, `nft` and `miniupnpd`: make net"]
async fn upnp_yields_direct_connections_without_hole_punching() {
    let test = "upnp_yields_direct_connections_without_hole_punching";
    if !TestNetwork::has_upnp_daemon() {
        return println!("NOT RUN: `miniupnpd` is missing (Debian: miniupnpd-nftables)");
    }
    let Some((member, model, hosts)) = behind_routers(test, Nat::RandomPort, true).await else { return };
    answers_directly(member, model, &hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, `ip` and `nft`: make net"]
async fn without_a_direct_path_the_relay_carries_the_answer() {
    let test = "without_a_direct_path_the_relay_carries_the_answer";
    let Some((member, model, hosts)) = behind_routers(test, Nat::RandomPort, false).await else { return };
    let completion = answer_with_retries(&member.node, model).await;
    assert_eq!(completion.tokens, expected());
    assert_eq!(transports(&member.node, &hosts), vec![Some("relay".to_owned()); hosts.len()]);
    member.stop().await;
}

/// Number of outages in a run, to limit the test time; they last from 1 to 20 seconds.
fn partitions() -> u32 {
    std::env::var("SWARMLLM_TEST_PARTITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(6).max(2)
}

/// One answer over the adverse network: correct as far as it goes, and in time.
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
async fn outages_and_packet_loss_cost_time_but_no_token() {
    let test = "outages_and_packet_loss_cost_time_but_no_token";
    let Some(network) = TestNetwork::current() else {
        let mut network = TestNetwork::new();
        let machines = ["relay", "a", "b", "c", "d", "asker"].map(|role| network.public_machine(role));
        let (_relay, _dir, known) = bootstrap(&machines[0]);
        let _hosts: Vec<_> = (0..4).map(|index| host(&machines[index + 1], &known, (2, index / 2), &[])).collect();
        network.drop_packets(5);
        return network.run_inside(test, &machines[5], &[("SWARMLLM_TEST_KNOWN", known)]);
    };
    let (member, model) = coordinator(&std::env::var("SWARMLLM_TEST_KNOWN").expect("the bootstrap peer")).await;
    let expected = expected();
    assert_eq!(answer_with_retries(&member.node, model).await.tokens, expected);
    // The lines: 1 the bootstrap peer, 2 and 3 hosts of the first stage, 4 and 5 of the second, 6 the coordinator.
    let cuts: [&[usize]; 6] = [&[2], &[6], &[4, 5], &[1, 3], &[2, 4], &[3, 5, 6]];
    let (rounds, mut recoveries) = (partitions(), Vec::new());
    for round in 0..rounds {
        let length = Duration::from_secs_f64(1.0 + 19.0 * f64::from(round) / f64::from(rounds - 1));
        let lines = cuts[round as usize % cuts.len()];
        let (node, tokens) = (member.node.clone(), expected.clone());
        let through = tokio::spawn(async move { ask_under_cuts(&node, model, &tokens).await });
        tokio::time::sleep(Duration::from_millis(700)).await;
        network.cut(lines);
        let healed = Instant::now() + length;
        let during = tokio::time::timeout(length, ask_under_cuts(&member.node, model, &expected)).await;
        tokio::time::sleep(healed.saturating_duration_since(Instant::now())).await;
        network.cut(&[]);
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
    println!("{rounds} outages: first token after {median:.1?} in the median, {last:.1?} at most");
    // With 5 % packet loss, a handshake sometimes loses several packets in a row and connects seconds later.
    assert!(median <= RECOVERY && last <= 3 * RECOVERY, "{recoveries:?}");
    member.stop().await;
}
