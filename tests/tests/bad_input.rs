//! Invalid input yields a typed error with cause, place and remedy; the node continues and nothing on disk is damaged.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use swarmllm_core::base::{ErrorKind, LayerRange};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, FinishReason, GenerateError, GenerateOptions, GenerateRequest, ImportOptions, Node,
    Parts, Preset, Prompt,
};
use swarmllm_tests::cluster::{
    Cluster, Member, Transport, answer, ask, await_plan, builder, greedy, join, unique_network,
};
use swarmllm_tests::files::{flip, shards, sizes};
use swarmllm_tests::gguf::bad_files;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::ProcessCluster;
use swarmllm_tests::prompts::{ANSWER, harbour_log};
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::{eventually, in_time};
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";

fn expected(tokens: u32) -> Vec<u32> {
    let whole = ReferenceModel::load(&MODEL.path(), swarmllm_tests::cluster::THREADS);
    whole.greedy(&whole.tokenize(TEXT), tokens)
}

async fn import(node: &Node, path: &Path) -> Result<ErrorKind, String> {
    match in_time("an import", node.import(path, ImportOptions::default())).await {
        Ok(info) => Err(format!("{} was accepted", info.name)),
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error has a text");
            Ok(error.kind())
        }
    }
}

async fn refusal(node: &Node, request: GenerateRequest) -> GenerateError {
    let outcome = in_time("a refusal", async { node.generate(request).await?.finish().await }).await;
    let error = outcome.expect_err("the request is refused");
    assert!(matches!(error, GenerateError::Refused(_)), "nothing was generated: {error}");
    assert!(!error.to_string().is_empty(), "an error has a text");
    error
}

fn request(model: &str, prompt: Prompt) -> GenerateRequest {
    GenerateRequest { model: model.to_owned(), prompt, options: greedy(4) }
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.to_owned())
}

async fn whole_node(network: &str) -> Member {
    let member = Member::start(network, Transport::Tcp).await;
    let id = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    member
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crafted_gguf_is_refused_without_traces() {
    let files = TempDir::new().expect("a temporary directory");
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let before = sizes(member.dir.path());
    for (what, bytes) in bad_files() {
        let path = files.path().join("bad.gguf");
        std::fs::write(&path, bytes).expect("the file can be written");
        assert_eq!(import(&member.node, &path).await, Ok(ErrorKind::BadGguf), "{what}");
        assert!(sizes(&member.dir.path().join("shards")).is_empty(), "{what}: no shard remains");
        assert!(member.node.models().is_empty(), "{what}: no model is registered");
    }
    let after = sizes(member.dir.path());
    let grown = after.iter().filter(|(path, size)| before.get(*path).is_none_or(|old| old < *size));
    let grown: u64 = grown.map(|(_, size)| size).sum();
    assert!(grown < 1024 * 1024, "the data directory is unchanged except for housekeeping: {after:?}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_an_io_error_with_its_path() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let error = member.node.import(Path::new("/no/such.gguf"), ImportOptions::default()).await.expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("/no/such.gguf"), "{error}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncertified_architecture_is_never_run() {
    let mut bytes = std::fs::read(MODEL.path()).expect("the model can be read");
    const HEADER: usize = 64 * 1024;
    let places: Vec<usize> =
        bytes[..HEADER].windows(5).enumerate().filter(|(_, five)| five == b"llama").map(|(at, _)| at).collect();
    places.iter().for_each(|at| bytes[*at..at + 5].copy_from_slice(b"zebra"));
    let files = TempDir::new().expect("a temporary directory");
    let path = files.path().join("zebra.gguf");
    std::fs::write(&path, bytes).expect("there is room for a copy");
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    assert_eq!(import(&member.node, &path).await, Ok(ErrorKind::UnsupportedArchitecture));
    assert!(member.node.models().is_empty(), "nothing is stored");
    // A catalogue may store a model that no local engine can run.
    let options = ImportOptions { anyway: true, ..ImportOptions::default() };
    let model = member.node.import(&path, options).await.expect("it is kept for others");
    assert!(model.warnings.iter().any(|warning| warning.contains("zebra")), "{:?}", model.warnings);
    let refused = refusal(&member.node, request(&model.id.to_string(), text("Hello"))).await;
    assert_eq!(refused.kind(), ErrorKind::UnsupportedArchitecture);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_an_unknown_model_names_it() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    for name in ["no-such-model", &"ab".repeat(32), "../../etc/passwd", ""] {
        let error = refusal(&member.node, request(name, text("Hello"))).await;
        assert_eq!(error.kind(), ErrorKind::ModelNotFound, "{name}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(member.node.plan(name).await.expect_err("no plan").kind(), ErrorKind::ModelNotFound, "{name}");
        let pulled = in_time("a pull", member.node.pull(name, Parts::All, None)).await;
        assert_eq!(pulled.expect_err("nothing to pull").kind(), ErrorKind::ModelNotFound, "{name}");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_peer_is_unreachable_and_nonsense_an_invalid_address() {
    let (network, other) = (unique_network(), unique_network());
    let member = Member::start(&network, Transport::Tcp).await;
    let stranger = Member::start(&other, Transport::Tcp).await;
    let gone = Member::start(&network, Transport::Tcp).await;
    let gone_address = gone.node.addresses()[0].clone();
    gone.stop().await;
    let connect = async |address: &str| {
        let outcome = in_time("connecting", member.node.connect(address)).await;
        outcome.expect_err("no node of this swarm listens there").kind()
    };
    assert_eq!(connect(&gone_address).await, ErrorKind::PeerUnreachable);
    assert_eq!(connect("not an address").await, ErrorKind::InvalidArgument);
    // A node of another swarm supports none of this swarm's protocols.
    let kind = connect(&stranger.node.addresses()[0]).await;
    assert!(matches!(kind, ErrorKind::PeerUnreachable | ErrorKind::Refused | ErrorKind::BadFrame), "{kind:?}");
    assert!(member.node.peers().iter().all(|peer| !peer.serves), "a node of another swarm is not a host");
    // The right address with the wrong id is not the requested peer.
    let place = stranger.node.addresses()[0].split("/p2p/").next().expect("an address").to_owned();
    let own_name = member.node.addresses()[0].split("/p2p/").nth(1).expect("a name").to_owned();
    let kind = connect(&format!("{place}/p2p/{own_name}")).await;
    assert!(matches!(kind, ErrorKind::PeerUnreachable | ErrorKind::InvalidArgument), "{kind:?}");
    stranger.stop().await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_beyond_their_limits_are_refused_before_any_work() {
    let member = whole_node(&unique_network()).await;
    let with = |change: &dyn Fn(&mut GenerateOptions)| {
        let mut request = request(MODEL.name(), text(TEXT));
        change(&mut request.options);
        request
    };
    let sampling = |change: &dyn Fn(&mut SamplingParams)| with(&|options| change(&mut options.sampling));
    let bad = [
        ("a temperature that is no number", "temperature", sampling(&|sampling| sampling.temperature = f32::NAN)),
        ("a negative temperature", "temperature", sampling(&|sampling| sampling.temperature = -1.0)),
        ("top_p above 1", "top_p", sampling(&|sampling| sampling.top_p = 1.5)),
        ("an infinite penalty", "repeat_penalty", sampling(&|sampling| sampling.repeat_penalty = f32::INFINITY)),
        ("an answer of no token", "max_tokens", with(&|options| options.max_tokens = Some(0))),
        (
            "17 stop texts",
            "stop",
            with(&|options| options.stop = (0..17).map(|index| format!("stop {index}")).collect()),
        ),
        ("a token outside the vocabulary", "prompt", request(MODEL.name(), Prompt::Tokens(vec![1, u32::MAX]))),
        ("no token at all", "prompt", request(MODEL.name(), Prompt::Tokens(Vec::new()))),
        ("a text without tokens", "prompt", request(MODEL.name(), text(""))),
    ];
    for (what, field, request) in bad {
        let refused = refusal(&member.node, request).await;
        assert_eq!((refused.kind(), refused.fault().field()), (ErrorKind::InvalidArgument, Some(field)), "{what}");
        assert!(refused.to_string().starts_with(&format!("`{field}`: ")), "{refused}");
    }
    let id = member.node.models()[0].id;
    assert_eq!(answer(&member.node, id, TEXT, 8).await.expect("the node continues").tokens, expected(8));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_conversation_and_template_name_their_field() {
    let member = whole_node(&unique_network()).await;
    let chat = async |messages: Vec<ChatMessage>, template: Option<&str>| {
        let chat_template = template.map(str::to_owned);
        let request = ChatRequest { model: MODEL.name().to_owned(), messages, chat_template, ..ChatRequest::default() };
        member.node.chat(request).await.err().expect("it is refused")
    };
    let empty = chat(Vec::new(), None).await;
    assert_eq!(empty.kind(), ErrorKind::InvalidArgument);
    assert!(empty.to_string().contains("`messages`"), "{empty}");
    let question = vec![ChatMessage { role: "user".to_owned(), content: "Hello".to_owned() }];
    for template in ["{{ raise_exception('no') }}", "{% if %}", "{{ nobody.name.first }}"] {
        let failed = chat(question.clone(), Some(template)).await;
        assert_eq!(failed.kind(), ErrorKind::BadTemplate, "{failed}");
        assert!(failed.to_string().contains("`chat_template`"), "{failed}");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_overflow_is_refused_with_both_sizes() {
    const CONTEXT: u32 = 256;
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), &unique_network(), Transport::Tcp).context(CONTEXT);
    let member = Member { node: node.start().await.expect("a node starts"), dir };
    let id = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    let error = refusal(&member.node, request(MODEL.name(), Prompt::Text(harbour_log(60)))).await;
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert!(error.to_string().contains("256"), "{error}");
    let mut long_answer = request(MODEL.name(), text(TEXT));
    long_answer.options.max_tokens = Some(u32::MAX);
    let long = member.node.generate(long_answer).await.expect("it is clipped").finish().await.expect("an answer");
    let whole = long.finish == FinishReason::Length && long.prompt_tokens + long.completion_tokens == CONTEXT;
    assert!(whole || long.finish == FinishReason::Stop, "{long:?}");
    assert_eq!(member.node.models()[0].served_context, CONTEXT);
    assert_eq!(answer(&member.node, id, TEXT, 8).await.expect("the node continues").tokens, expected(8));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_context_shrinks_to_fit_memory() {
    const MIB: u64 = 1 << 20;
    for (memory, fits) in [(200 * MIB, true), (120 * MIB, false)] {
        let dir = TempDir::new().expect("a temporary directory");
        let builder = Node::builder().data_dir(dir.path()).preset(Preset::Offline).engine("llama.cpp").memory(memory);
        let member = Member { node: builder.start().await.expect("a node starts"), dir };
        let id = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
        if fits {
            assert_eq!(answer(&member.node, id, TEXT, 8).await.expect("it answers").tokens, expected(8));
            let context = member.node.models()[0].served_context;
            assert!((512..4096).contains(&context), "{context} positions are reported");
        } else {
            let error = refusal(&member.node, request(MODEL.name(), text(TEXT))).await;
            assert_eq!(error.kind(), ErrorKind::NoPlan);
            for named in ["`memory`", "`sessions`", "120.0 MiB"] {
                assert!(error.to_string().contains(named), "{error} names {named}");
            }
            assert!(!error.to_string().contains("`context`"), "{error}: the context is at its minimum");
        }
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_hosts_names_the_missing_layers() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let id = member.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    let error = refusal(&member.node, request(MODEL.name(), text(TEXT))).await;
    assert_eq!(error.kind(), ErrorKind::NoPlan);
    assert!(error.to_string().contains("0..30"), "{error}");
    assert_eq!(member.node.plan(&id.to_string()).await.expect_err("no plan").kind(), ErrorKind::NoPlan);
    assert!(member.node.models().iter().all(|info| !info.ready), "the model is not ready");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_damaged_on_disk_is_never_used() {
    let cut = vec![LayerRange::new(0, MODEL.layers())];
    let mut cluster = Cluster::start_from(&MODEL.path(), MODEL.name(), cut, Transport::Tcp).await;
    let host = cluster.hosts.pop().expect("there is one host");
    let (shard, size) = shards(host.dir.path()).remove(3);
    let dir = host.stop().await;
    let good = std::fs::read(&shard).expect("the shard can be read");
    flip(&shard, size / 2);
    let network = cluster.node().status().network;
    let host = Member::start_on(dir, &network, Transport::Tcp).await;
    join(cluster.node(), &host.node.addresses(), Transport::Tcp).await;
    let kind = refusal(cluster.node(), request(MODEL.name(), text(TEXT))).await.kind();
    let allowed = [ErrorKind::ShardCorrupt, ErrorKind::ShardMissing, ErrorKind::NoPlan];
    assert!(allowed.contains(&kind), "{kind:?}");
    // The damaged shard was quarantined. The host serves again once an intact one is stored.
    let dir = host.stop().await;
    std::fs::write(&shard, good).expect("the shard can be written");
    let host = Member::start_on(dir, &network, Transport::Tcp).await;
    join(cluster.node(), &host.node.addresses(), Transport::Tcp).await;
    await_plan(cluster.node(), cluster.model).await;
    let completion = answer(cluster.node(), cluster.model, TEXT, ANSWER).await.expect("the swarm answers");
    assert_eq!(completion.tokens, expected(ANSWER));
    host.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_shard_is_refused_and_fetched_from_an_honest_peer() {
    let network = unique_network();
    let (liar, honest) = (whole_node(&network).await, whole_node(&network).await);
    let asker = Member::start(&network, Transport::Tcp).await;
    let (shard, size) = shards(liar.dir.path()).remove(0);
    flip(&shard, size - 1);
    join(&asker.node, &liar.node.addresses(), Transport::Tcp).await;
    let known = || !asker.node.peers().iter().all(|peer| peer.holdings.is_empty());
    eventually("the liar has said what it holds", known).await;
    let pulled = in_time("a pull", asker.node.pull(MODEL.name(), Parts::All, None)).await;
    assert_eq!(pulled.expect_err("one shard is corrupt").kind(), ErrorKind::ShardCorrupt);
    check_shards(asker.dir.path());
    join(&asker.node, &honest.node.addresses(), Transport::Tcp).await;
    eventually("both have said what they hold", || asker.node.peers().iter().all(|peer| !peer.holdings.is_empty()))
        .await;
    let info =
        in_time("a pull", asker.node.pull(MODEL.name(), Parts::All, None)).await.expect("the honest peer has it all");
    assert!(info.ready && info.has_head && info.held == [LayerRange::new(0, MODEL.layers())], "{info:?}");
    check_shards(asker.dir.path());
    liar.stop().await;
    honest.stop().await;
    assert_eq!(answer(&asker.node, info.id, TEXT, 8).await.expect("it answers alone").tokens, expected(8));
    asker.stop().await;
}

/// Checks that every shard has the digest in its name.
fn check_shards(data_dir: &Path) {
    for (path, _) in shards(data_dir) {
        let digest = blake3::hash(&std::fs::read(&path).expect("a shard can be read")).to_hex().to_string();
        assert!(path.file_name().is_some_and(|name| *name == *digest), "{} does not have its digest", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_peer_yields_a_typed_error_with_the_partial_answer() {
    const HEARD: usize = 8;
    const LONG: u32 = 400;
    let whole = expected(LONG);
    for victim in 0..2 {
        let mut cluster = ProcessCluster::start(MODEL, Transport::Tcp, 2).await;
        let node = cluster.coordinator.node.clone();
        let mut generation = ask(&node, cluster.model, TEXT, LONG).await.expect("the swarm answers");
        let mut streamed = String::new();
        for _ in 0..HEARD {
            match in_time("the next words", generation.next()).await {
                Some(Ok(swarmllm_core::node::Delta::Text(more))) => streamed.push_str(&more),
                other => panic!("the answer went on: {other:?}"),
            }
        }
        cluster.hosts[victim].kill();
        let error = loop {
            match in_time("the end", generation.next()).await {
                Some(Ok(swarmllm_core::node::Delta::Text(more))) => streamed.push_str(&more),
                Some(Err(error)) => break error,
                other => panic!("a dead stage cannot finish an answer: {other:?}"),
            }
        };
        assert!(generation.next().await.is_none(), "nothing follows an error");
        let GenerateError::Interrupted { partial, .. } = &error else {
            panic!("the partial answer is missing: {error}")
        };
        assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
        assert!(
            partial.tokens.len() >= HEARD && whole.starts_with(&partial.tokens),
            "nothing is lost and nothing is wrong"
        );
        assert_eq!(partial.text, streamed, "the partial answer is the streamed text");
        // The node refuses while the layers are missing, and answers when they are back.
        let refused = refusal(&node, request(MODEL.name(), text(TEXT))).await.kind();
        assert!(matches!(refused, ErrorKind::NoPlan | ErrorKind::PeerUnreachable | ErrorKind::PeerLost), "{refused:?}");
        cluster.restart(victim).await;
        let completion = answer(&node, cluster.model, TEXT, ANSWER).await.expect("the swarm answers again");
        assert_eq!(completion.tokens, whole[..ANSWER as usize]);
        cluster.coordinator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_at_its_deadline_with_the_partial_text() {
    let member = whole_node(&unique_network()).await;
    let mut late = request(MODEL.name(), text(TEXT));
    late.options.max_tokens = Some(1900);
    late.options.deadline = Some(Duration::from_millis(500));
    let outcome = in_time("a deadline", async { member.node.generate(late).await?.finish().await }).await;
    assert_eq!(outcome.expect_err("1,900 tokens take longer").kind(), ErrorKind::Timeout);
    let id = member.node.models()[0].id;
    assert_eq!(answer(&member.node, id, TEXT, 8).await.expect("the node continues").tokens, expected(8));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_the_directory_unlocked() {
    let dir = TempDir::new().expect("a temporary directory");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (tcp_port, udp_port) = (tcp.local_addr().expect("bound").port(), udp.local_addr().expect("bound").port());
    let taken = [
        (tcp_port, format!("/ip4/127.0.0.1/tcp/{tcp_port}")),
        (udp_port, format!("/ip4/127.0.0.1/udp/{udp_port}/quic-v1")),
    ];
    for (port, address) in taken {
        let start = builder(dir.path(), &unique_network(), Transport::Tcp).listen(vec![address]).start();
        let Err(error) = in_time("a start", start).await else { panic!("port {port} is taken") };
        assert_eq!(error.kind(), ErrorKind::PortInUse, "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
    let member = Member::start_on(dir, &unique_network(), Transport::Tcp).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_cannot_use_one_data_directory() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let second = builder(member.dir.path(), &unique_network(), Transport::Tcp).start();
    let Err(error) = in_time("a start", second).await else { panic!("the directory is taken") };
    assert_eq!(error.kind(), ErrorKind::DataDirBusy);
    assert!(error.to_string().contains(&member.dir.path().display().to_string()), "{error}");
    assert_eq!(member.node.status().data_dir, member.dir.path());
    let dir = member.stop().await;
    Member::start_on(dir, &unique_network(), Transport::Tcp).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_named_and_left_unchanged() {
    let network = unique_network();
    let dir = Member::start(&network, Transport::Tcp).await.stop().await;
    let store = dir.path().join("store.redb");
    let garbage = vec![7; 4096];
    std::fs::write(&store, &garbage).expect("the store can be written over");
    let Err(error) = builder(dir.path(), &network, Transport::Tcp).start().await else { panic!("it is damaged") };
    assert_eq!(error.kind(), ErrorKind::StoreDamaged);
    assert!(error.to_string().contains("store.redb"), "{error}");
    assert_eq!(std::fs::read(&store).expect("the file still exists"), garbage);
    std::fs::remove_file(&store).expect("the user has no backup and starts with an empty store");
    Member::start_on(dir, &network, Transport::Tcp).await.stop().await;
}

/// A small in-memory file system, unmounted on drop.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this user may not mount.
    fn of_mib(mib: u32) -> Option<SmallDisk> {
        let dir = TempDir::new().expect("a temporary directory");
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output().ok()?;
        mount.status.success().then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_has_its_own_error_and_damages_nothing() {
    let Some(disk) = SmallDisk::of_mib(40) else {
        eprintln!("SKIPPED: only root can mount the small disk that this test fills");
        return;
    };
    let network = unique_network();
    let start = async || builder(disk.0.path(), &network, Transport::Tcp).start().await.expect("a node starts");
    let few = || Parts::Stage { layers: LayerRange::new(0, 2), head: false };
    let options =
        |parts| ImportOptions { name: Some(MODEL.name().into()), parts: Some(vec![parts]), ..ImportOptions::default() };
    let node = start().await;
    let held = node.import(&MODEL.path(), options(few())).await.expect("two layers fit");
    let error = node.import(&MODEL.path(), options(Parts::All)).await.expect_err("98 MB do not fit 40 MiB");
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
    check_shards(disk.0.path());
    let source = whole_node(&network).await;
    join(&node, &source.node.addresses(), Transport::Tcp).await;
    let pulled = in_time("a pull", node.pull(&held.id.to_string(), Parts::All, None)).await;
    assert_eq!(pulled.expect_err("98 MB do not fit 40 MiB").kind(), ErrorKind::DiskFull);
    check_shards(disk.0.path());
    node.shutdown(Duration::from_secs(10)).await;
    drop(node);
    let node = start().await;
    let info = node.models().into_iter().find(|info| info.id == held.id).expect("the model is still known");
    assert!(info.held.iter().any(|range| range.covers(LayerRange::new(0, 2))), "{info:?}");
    node.shutdown(Duration::from_secs(10)).await;
    source.stop().await;
}
