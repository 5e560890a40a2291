//! A node stores only its shards, for any number of nodes of a model, and no node needs the GGUF after the import.

use std::path::Path;
use std::time::Duration;

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{Node, Parts};
use swarmllm_tests::cluster::{Cluster, Member, THREADS, Transport, answer, await_plan, join, unique_network};
use swarmllm_tests::files::{is_gguf, shards, sizes};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::ProcessCluster;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::{eventually, in_time};

/// Maximum bytes of keys, store and manifests beside the shards.
const HOUSEKEEPING: u64 = 8 * 1024 * 1024;

fn check_dir(dir: &Path, gguf: u64, who: &str) {
    let held: u64 = shards(dir).iter().map(|(_, size)| size).sum();
    assert!(held > 0, "{who} has shards");
    assert!(held < gguf, "{who} holds {held} bytes of shards, the whole file has {gguf}");
    let largest = shards(dir).first().map_or(0, |(_, size)| *size).max(HOUSEKEEPING);
    let files = sizes(dir);
    for (path, size) in &files {
        assert!(*size <= held && *size <= largest, "{who}: {} has {size} bytes", path.display());
        assert!(!is_gguf(path) || *size < HOUSEKEEPING, "{who}: {} is a GGUF", path.display());
    }
    let all: u64 = files.values().sum();
    assert!(all <= held + HOUSEKEEPING, "{who} has {all} bytes on disk for {held} bytes of shards");
}

async fn answers(node: &Node, model: swarmllm_core::base::ModelId) {
    let completion =
        answer(node, model, "The lighthouse keeper counted the ships", 16).await.expect("the swarm answers");
    assert_eq!(completion.completion_tokens, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_model_can_be_removed_and_reports_freed_bytes() {
    const MODEL: TestModel = TestModel::SmolLm2;
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    answers(&member.node, model).await;
    let held: u64 = shards(member.dir.path()).iter().map(|(_, size)| size).sum();
    let abbreviated = member.node.remove(&MODEL.name()[..3]).await.expect_err("a beginning is not enough");
    assert_eq!(abbreviated.kind(), ErrorKind::InvalidArgument);
    let removed = in_time("a removal", async {
        loop {
            match member.node.remove(MODEL.name()).await {
                Ok(removed) => break removed,
                // The stage may not have processed the end of the answer yet.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let removed = removed.await;
    assert_eq!((removed.id, removed.name.as_str(), removed.freed), (model, MODEL.name(), held));
    assert!(shards(member.dir.path()).is_empty() && member.node.models().is_empty());
    assert_eq!(
        member.node.remove(MODEL.name()).await.expect_err("the model is removed").kind(),
        ErrorKind::ModelNotFound
    );
    let again = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, again).await;
    answers(&member.node, again).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_answers_without_the_gguf_from_shards_only() {
    for model in TestModel::ALL {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let copy = dir.path().join("copy.gguf");
        let gguf = std::fs::copy(model.path(), &copy).expect("there is room for a copy");
        let cluster = Cluster::start_from(&copy, model.name(), model.cut(3), Transport::Tcp).await;
        std::fs::remove_file(&copy).expect("the copy can be removed");
        answers(cluster.node(), cluster.model).await;
        for (index, member) in cluster.members().enumerate() {
            check_dir(member.dir.path(), gguf, &format!("{}, member {index}", model.name()));
        }
        assert_eq!(open_below("/proc/self/fd", &copy), 0, "no node keeps the GGUF open");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_host_of_the_whole_model_shortens_the_plan() {
    const MODEL: TestModel = TestModel::SmolLm2;
    const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
    let cluster = Cluster::start(MODEL, Transport::Tcp, 5).await;
    let node = cluster.node().clone();
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    let expected = whole.greedy(&whole.tokenize(TEXT), 16);
    let spread = answer(&node, cluster.model, TEXT, 16).await.expect("five nodes answer");
    assert_eq!((spread.tokens, spread.route.len()), (expected.clone(), 5));
    let newcomer = Member::start(&node.status().network, Transport::Tcp).await;
    newcomer.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    join(&node, &newcomer.node.addresses(), Transport::Tcp).await;
    let holds = || node.peers().iter().any(|peer| peer.id == newcomer.node.id() && !peer.holdings.is_empty());
    eventually("the newcomer says what it holds", holds).await;
    let plan = node.plan(&cluster.model.to_string()).await.expect("a plan");
    let hosts: Vec<_> = plan.stages.iter().map(|stage| stage.node).collect();
    assert_eq!(hosts, [newcomer.node.id()]);
    let alone = answer(&node, cluster.model, TEXT, 16).await.expect("the newcomer answers");
    assert_eq!((alone.tokens, alone.route.len()), (expected, 1));
    newcomer.stop().await;
    cluster.stop().await;
}

/// Number of descriptors in `fds` to a path; 0 if the system does not report them.
fn open_below(fds: &str, path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(fds) else { return 0 };
    let name = path.to_string_lossy().into_owned();
    let leads = |link: std::path::PathBuf| link.to_string_lossy().starts_with(&name);
    entries.flatten().filter(|entry| std::fs::read_link(entry.path()).is_ok_and(leads)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_never_opens_the_gguf() {
    let model = TestModel::SmolLm2;
    let cluster = ProcessCluster::start(model, Transport::Tcp, 3).await;
    answers(&cluster.coordinator.node, cluster.model).await;
    for (host, dir) in cluster.hosts.iter().zip(&cluster.dirs) {
        let open = host.open_files();
        assert!(!open.contains(&model.path()), "a host has {open:?} open");
        check_dir(dir.path(), model.path().metadata().expect("the model has a size").len(), "a host");
    }
    cluster.coordinator.stop().await;
}
