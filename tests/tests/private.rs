//! Private swarms: joined by invite, closed to all other nodes, otherwise like public ones.

use std::time::Duration;

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{Invite, Node, NodeBuilder, Parts};
use swarmllm_tests::cluster::{Member, THREADS, Transport, answer, await_plan, builder, stage_parts, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::{Process, run, run_with};
use swarmllm_tests::prompts::ANSWER;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::{eventually, in_time};
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
const DAY: Duration = Duration::from_secs(86_400);

/// A node on loopback in the swarm set by `enter`.
async fn member(enter: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Member {
    let dir = TempDir::new().expect("a temporary directory");
    let plain = Node::builder().data_dir(dir.path()).mdns(false).threads(THREADS).context(2048).engine("llama.cpp");
    // Private swarms ignore the QUIC address.
    let listen = [Transport::Tcp.listen(), Transport::Quic.listen()].map(str::to_owned).to_vec();
    let node = enter(plain.listen(listen)).start().await.expect("a node starts");
    Member { node, dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_admits_a_node_and_the_name_alone_does_not() {
    let founder = member(|builder| builder.private(true)).await;
    let status = founder.node.status();
    assert!(status.private && status.addresses.iter().all(|address| address.contains("/tcp/")), "{status:?}");
    let invite = founder.node.invite(DAY).expect("it listens");
    let read = Invite::read(&invite).expect("it is one");
    assert_eq!((&read.network, read.issuer, read.is_private()), (&status.network, founder.node.id(), true));

    let model = founder.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    let cut = MODEL.cut(2);
    let mut hosts = Vec::new();
    for index in 0..cut.len() {
        let host = member(|builder| builder.join(&invite)).await;
        host.import(&MODEL.path(), MODEL.name(), stage_parts(&cut, index)).await;
        hosts.push(host);
    }
    // Both have dialled the founder; they connect to each other when they compute together.
    await_plan(&founder.node, model).await;
    let completion = answer(&founder.node, model, TEXT, ANSWER).await.expect("the private swarm answers");
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    assert_eq!(completion.tokens, whole.greedy(&whole.tokenize(TEXT), ANSWER));

    let dir = TempDir::new().expect("a temporary directory");
    let outsider = builder(dir.path(), &status.network, Transport::Tcp).start().await.expect("a node starts");
    let refused = in_time("a refusal", outsider.connect(&founder.node.addresses()[0])).await.expect_err("no key");
    assert!(matches!(refused.0.kind(), ErrorKind::PeerUnreachable | ErrorKind::Timeout), "{refused}");
    assert!(outsider.peers().is_empty() && founder.node.peers().iter().all(|peer| peer.id != outsider.id()));
    outsider.shutdown(Duration::from_secs(5)).await;

    // The data directory stores the swarm and the addresses of the invite.
    let dir = hosts.pop().expect("two hosts").stop().await;
    let listen = vec![Transport::Tcp.listen().to_owned()];
    let again = Node::builder().data_dir(dir.path()).mdns(false).listen(listen).start().await.expect("it starts again");
    assert!(again.status().private && again.status().network == status.network);
    let back = || again.peers().iter().any(|peer| peer.id == founder.node.id() && peer.connected);
    eventually("the founder is found", back).await;
    again.shutdown(Duration::from_secs(5)).await;
    for host in hosts {
        host.stop().await;
    }
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_invite_starts_no_node() {
    let founder = member(|builder| builder.private(true)).await;
    let expired = founder.node.invite(Duration::ZERO).expect("it can be written");
    let mut forged = founder.node.invite(DAY).expect("it can be written");
    let middle = forged.len() / 2;
    let other = if forged.as_bytes()[middle] == b'A' { "B" } else { "A" };
    forged.replace_range(middle..=middle, other);
    let good = founder.node.invite(DAY).expect("it can be written");
    let dir = TempDir::new().expect("a temporary directory");
    let at = |network: Option<String>| {
        let builder = Node::builder().data_dir(dir.path()).mdns(false);
        network.map_or(builder.clone(), |network| builder.network(network))
    };
    for (what, builder) in [
        ("expired", at(None).join(&expired)),
        ("forged", at(None).join(&forged)),
        ("no invite", at(None).join("hello")),
        ("for another network", at(Some(unique_network())).join(&good)),
    ] {
        let refused = builder.start().await.err().unwrap_or_else(|| panic!("{what}: it started"));
        assert_eq!(refused.0.kind(), ErrorKind::InvalidArgument, "{what}: {refused}");
    }
    let node = at(None).preset(swarmllm_core::node::Preset::Offline).start().await.expect("nothing stayed behind");
    assert!(!node.status().private);
    node.shutdown(Duration::from_secs(5)).await;
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_connect_through_the_command_line() {
    let dirs = [TempDir::new().expect("a directory"), TempDir::new().expect("a directory")];
    let [one, two] = dirs.each_ref().map(|dir| dir.path().display().to_string());
    let founder =
        Process::start_plain(dirs[0].path(), &["--private", "--invite", "1", "--listen", Transport::Tcp.listen()]);
    let invite = founder.ready.invite.clone().expect("an invite was asked for");
    let joined = run_with(&["join", "-", "--data-dir", &two, "--json"], &format!("{invite}\n"));
    assert!(joined.contains("\"private\":true"), "{joined}");
    let guest = Process::start_plain(dirs[1].path(), &["--listen", Transport::Tcp.listen()]);
    assert_eq!(guest.ready.network, founder.ready.network);
    drop(guest);
    let peers = run(&["peers", "--data-dir", &two, "--json", "--wait", "3"]);
    assert!(peers.contains(&founder.ready.id), "the founder was found: {peers}");
    drop(founder);
    let again = run(&["invite", "--data-dir", &one, "--json", "--listen", Transport::Tcp.listen()]);
    assert!(again.contains("swarmllm-"), "{again}");
}
