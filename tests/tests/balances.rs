//! Computed work is signed by both nodes, and a peer's debt is limited.

use swarmllm_core::base::{ErrorKind, Hash, NodeId, SessionId};
use swarmllm_core::identity::Keypair;
use swarmllm_core::ledger::record::{Body, Proposal};
use swarmllm_core::ledger::{AccountId, Balance, price};
use swarmllm_core::node::{GenerateError, Node, Parts};
use swarmllm_core::pipeline::link::request::request;
use swarmllm_core::wire::control::{AccountHeads, Reply, Request};
use swarmllm_tests::chain::Imported;
use swarmllm_tests::cluster::{
    Cluster, Member, Transport, answer, await_plan, builder, join, stage_parts, unique_network,
};
use swarmllm_tests::eventually;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::rogue::Rogue;
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
/// Tokens of an answer: more than one payment covers.
const TOKENS: u32 = 100;

fn with(node: &Node, peer: NodeId) -> Option<Balance> {
    node.balances().into_iter().find(|balance| balance.peer == peer)
}

/// Whether both nodes have signed the same total and nothing is unsigned.
fn agree(debtor: &Node, creditor: &Node) -> bool {
    let (Some(ours), Some(theirs)) = (with(debtor, creditor.id()), with(creditor, debtor.id())) else { return false };
    ours.spent > 0 && ours.spent == theirs.earned && (ours.unsigned_spent, theirs.unsigned_earned) == (0, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_an_answer_is_signed_and_survives_restarts() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let manifest = Imported::open(&MODEL.path()).manifest.clone();
    let said = answer(cluster.node(), cluster.model, TEXT, TOKENS).await.unwrap();
    for (index, host) in cluster.hosts.iter().enumerate() {
        eventually("the answer is paid for", || agree(cluster.node(), &host.node)).await;
        // The prompt in one step with one output row, then one row per token; the last token is not computed.
        let weight = manifest.stage_weight(cluster.cut[index], index == 1);
        let later = u64::from(said.completion_tokens - 1) * price::step_cost(weight, 1, 1);
        let cost = price::step_cost(weight, said.prompt_tokens, 1) + later;
        let spent = with(cluster.node(), host.node.id()).unwrap().spent;
        // Each of at most five payments is rounded up.
        let exact = price::milli_to_credits(cost);
        assert!((exact..exact + 5).contains(&spent), "{spent} credits for {cost} thousandths");
    }
    let before: Vec<Vec<Balance>> = cluster.members().map(|member| member.node.balances()).collect();
    let mut dirs = Vec::new();
    let (coordinator, hosts) = (cluster.coordinator, cluster.hosts);
    for member in std::iter::once(coordinator).chain(hosts) {
        dirs.push(member.stop().await);
    }
    for (dir, before) in dirs.iter().zip(before) {
        // Another swarm has no accounts.
        let elsewhere = builder(dir.path(), &unique_network(), Transport::Tcp).start().await.unwrap();
        assert_eq!((elsewhere.balances(), before.is_empty()), (Vec::new(), false));
        elsewhere.shutdown(swarmllm_tests::cluster::SHUTDOWN_DEADLINE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_pays_before_it_ends() {
    let network = unique_network();
    let (asker, host) =
        (Member::start(&network, Transport::Quic).await, Member::start(&network, Transport::Quic).await);
    let model = asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    host.import(&MODEL.path(), MODEL.name(), stage_parts(&MODEL.cut(1), 0)).await;
    join(&asker.node, &host.node.addresses(), Transport::Quic).await;
    await_plan(&asker.node, model).await;
    answer(&asker.node, model, TEXT, 8).await.unwrap();
    let (debtor, creditor) = (asker.node.id(), host.node.id());
    let asker = asker.stop().await;
    let earned = with(&host.node, debtor).unwrap();
    assert!(earned.earned > 0 && earned.unsigned_earned == 0, "{earned:?}");
    let host = host.stop().await;
    for (dir, peer, expected) in [(&asker, creditor, (0, earned.earned)), (&host, debtor, (earned.earned, 0))] {
        let node = builder(dir.path(), &network, Transport::Quic).start().await.unwrap();
        let balance = with(&node, peer).unwrap();
        assert_eq!((balance.earned, balance.spent), expected);
        node.shutdown(swarmllm_tests::cluster::SHUTDOWN_DEADLINE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_at_its_debt_limit_is_refused_and_others_served() {
    /// About ten tokens of the whole model.
    const LIMIT: u64 = 1_500;
    let network = unique_network();
    let dir = TempDir::new().unwrap();
    let strict = builder(dir.path(), &network, Transport::Tcp).credit_limit(LIMIT).start().await.unwrap();
    let host = Member { node: strict, dir };
    host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let asker = async || {
        let asker = Member::start(&network, Transport::Tcp).await;
        let model = asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
        join(&asker.node, &host.node.addresses(), Transport::Tcp).await;
        await_plan(&asker.node, model).await;
        (asker, model)
    };
    let (first, model) = asker().await;
    match answer(&first.node, model, TEXT, 64).await {
        Err(GenerateError::Interrupted { partial, cause }) => {
            assert_eq!(cause.kind(), ErrorKind::NoCredit, "{cause}");
            assert!((1..32).contains(&partial.completion_tokens), "{} tokens", partial.completion_tokens);
        }
        other => panic!("the limit ends the answer: {other:?}"),
    }
    let refused = answer(&first.node, model, TEXT, 4).await.unwrap_err();
    assert!(matches!(&refused, GenerateError::Refused(fault) if fault.kind() == ErrorKind::NoCredit), "{refused}");
    eventually("the debt is signed for", || agree(&first.node, &host.node)).await;
    let owed = with(&host.node, first.node.id()).unwrap().earned;
    // At most one step beyond the limit, and the prompt's step is the most expensive.
    assert!((LIMIT..2 * LIMIT).contains(&owed), "{owed} credits");
    let (second, model) = asker().await;
    assert_eq!(answer(&second.node, model, TEXT, 4).await.unwrap().completion_tokens, 4);
    assert_eq!(answer(&host.node, model, TEXT, 4).await.unwrap().completion_tokens, 4, "local work costs nothing");
    for member in [first, second, host] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_foreign_payments_change_nothing() {
    let network = unique_network();
    let victim = Member::start(&network, Transport::Tcp).await;
    let rogue = Rogue::start(&network, Transport::Tcp, None).await;
    rogue.net.dial(&victim.node.addresses()[0]).await.expect("the victim is reached");
    let (stranger, network_id) = (Keypair::generate().unwrap(), Hash(*blake3::hash(network.as_bytes()).as_bytes()));
    let account = AccountId { debtor: stranger.node_id(), creditor: victim.node.id() };
    let prev = Body::genesis(&network_id, &account, 0);
    let work = Hash(*blake3::hash(&SessionId([0; 16]).0).as_bytes());
    let body = Body { network: network_id, account, epoch: 0, seq: 1, prev, total: 5, delta: 5, work, time: 0 };
    let sound = Proposal::sign(body, &stranger).encode().to_vec();
    let mut forged = sound.clone();
    *forged.last_mut().unwrap() ^= 1;
    let heads = |debit| Request::Heads(AccountHeads { debit, credit: None });
    let asked = [
        Request::Pay { proposal: Vec::new() },
        Request::Pay { proposal: vec![0; 32 << 10] },
        Request::Pay { proposal: forged },
        // Valid, but another node's debt.
        Request::Pay { proposal: sound.clone() },
        heads(Some(vec![7; 330])),
        heads(Some(sound)),
    ];
    for ask in asked {
        let refused = request(&rogue.net, victim.node.id(), &ask, std::time::Duration::from_secs(10)).await;
        assert_eq!(refused.map(|_| ()).map_err(|fault| fault.kind()), Err(ErrorKind::BadFrame), "{ask:?}");
    }
    // Longer than any request: not read.
    let long = Request::Pay { proposal: vec![0; 1 << 20] };
    assert!(request(&rogue.net, victim.node.id(), &long, std::time::Duration::from_secs(10)).await.is_err());
    let fine = rogue.ask(victim.node.id(), heads(None)).await;
    assert_eq!(fine, Reply::Heads(AccountHeads::default()));
    assert!(victim.node.balances().is_empty());
    victim.stop().await;
}
