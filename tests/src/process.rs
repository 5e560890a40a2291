//! Nodes as child processes of the command line.

use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use swarmllm_core::base::{LayerRange, ModelId};
use tempfile::TempDir;

use crate::TIMEOUT;
use crate::cluster::{CONTEXT, Member, THREADS, Transport, await_plan, join, unique_network};
use crate::models::TestModel;
use crate::netns::NetNamespace;

/// The command line's binary, built beside this test.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let name = format!("swarmllm{}", std::env::consts::EXE_SUFFIX);
    let beside = test.ancestors().skip(1).take(2).map(|dir| dir.join(&name)).find(|path| path.is_file());
    beside.unwrap_or_else(|| panic!("no `{name}` beside {}: run `cargo build --workspace` first", test.display()))
}

/// The ready line of `swarmllm run --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// The node's id.
    pub id: String,
    /// Its swarm.
    pub network: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// An invite, if requested.
    pub invite: Option<String>,
}

/// A `swarmllm run` without HTTP. Killed when dropped.
pub struct Process {
    child: Child,
    /// The ready line.
    pub ready: Ready,
    /// Time from the start to the ready line.
    pub started_in: Duration,
}

impl Process {
    /// Starts a node on `data_dir` with `extra` arguments and waits until it is ready.
    pub fn start(data_dir: &Path, network: &str, transport: Transport, extra: &[&str]) -> Process {
        let own = ["--network", network, "--listen", transport.listen()];
        Self::start_plain(data_dir, &[&own, extra].concat())
    }

    /// Starts a node without discovery, with the swarm of its directory or `arguments`.
    pub fn start_plain(data_dir: &Path, arguments: &[&str]) -> Process {
        Self::start_by(Command::new(binary()), data_dir, arguments)
    }

    /// Like [`start_plain`](Self::start_plain), in a network namespace.
    pub fn start_in_namespace(namespace: &NetNamespace, data_dir: &Path, arguments: &[&str]) -> Process {
        Self::start_by(namespace.command(binary()), data_dir, arguments)
    }

    fn start_by(mut command: Command, data_dir: &Path, arguments: &[&str]) -> Process {
        let begin = Instant::now();
        command.arg("run").arg("--json").arg("--data-dir").arg(data_dir);
        command.args(["--no-mdns", "--no-http"]).args(arguments);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the command line can be started");
        let stdout = child.stdout.take().expect("its output is piped");
        let (send, receive) = mpsc::channel();
        // Reads to the end, so that the child never blocks on its output.
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(send.send(line)))
        });
        let line = receive.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("`swarmllm run` did not become ready; exit: {:?}", child.wait());
        });
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("not a ready line ({error}): {line}"));
        Process { child, ready, started_in: begin.elapsed() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process, as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Terminates the process, as `kill` does, and waits for its end.
    pub fn terminate(&mut self) -> ExitStatus {
        let asked = Command::new("kill").arg(self.pid().to_string()).status().expect("`kill` can be started");
        assert!(asked.success(), "the child was running");
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(begin.elapsed() < TIMEOUT, "the child did not terminate");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in KiB, if the system reports it.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok();
        let line = |text: String| text.lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
        let text = status.and_then(line).or_else(|| {
            let output = Command::new("ps").args(["-o", "rss=", "-p", &self.pid().to_string()]).output().ok()?;
            String::from_utf8(output.stdout).ok()
        })?;
        text.split_whitespace().next()?.parse().ok()
    }

    /// The open files, if the system reports them.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fd", self.pid())) else { return Vec::new() };
        entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
    }
}

/// Sends a signal by name to a running process.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.expect("`kill` can be started").success(), "process {pid} is running");
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the command line and returns its standard output; panics on failure.
pub fn run(arguments: &[&str]) -> String {
    run_with(arguments, "")
}

/// Like [`run`], with this standard input.
pub fn run_with(arguments: &[&str], input: &str) -> String {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(input.as_bytes()).and_then(|()| file.rewind()).expect("it can be written");
    let output = Command::new(binary()).args(arguments).stdin(file).output().expect("the command line starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "swarmllm {}: {}\n{error}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).expect("the command line prints UTF-8")
}

/// Imports layers of a GGUF into a data directory through the command line.
pub fn import(data_dir: &Path, gguf: &Path, name: &str, layers: LayerRange, head: bool) {
    let layers = format!("{layers}{}", if head { ",head" } else { "" });
    let (dir, gguf) = (data_dir.display().to_string(), gguf.display().to_string());
    run(&["import", &gguf, "--data-dir", &dir, "--name", name, "--layers", &layers]);
}

/// A coordinator in this process, and one child process per stage.
pub struct ProcessCluster {
    /// Stores metadata and embedding.
    pub coordinator: Member,
    /// The stage hosts.
    pub hosts: Vec<Process>,
    /// Their data directories.
    pub dirs: Vec<TempDir>,
    /// The model.
    pub model: ModelId,
    /// The layers of each host.
    pub cut: Vec<LayerRange>,
    /// The swarm's name.
    pub network: String,
    /// The transport.
    pub transport: Transport,
    extra: Vec<String>,
}

impl ProcessCluster {
    /// Starts a swarm with exactly one possible route.
    pub async fn start(model: TestModel, transport: Transport, stages: u32) -> ProcessCluster {
        let coordinator = Member::start(&unique_network(), transport).await;
        Self::start_with(coordinator, model, transport, stages, THREADS).await
    }

    /// Like [`start`](Self::start), with this coordinator and `threads` compute threads per host.
    pub async fn start_with(
        coordinator: Member,
        model: TestModel,
        transport: Transport,
        stages: u32,
        threads: u32,
    ) -> ProcessCluster {
        let id = coordinator.import(&model.path(), model.name(), swarmllm_core::node::Parts::Coordinator).await;
        let extra = ["--threads", &threads.to_string(), "--context", &CONTEXT.to_string(), "--engine", "llama.cpp"];
        let mut cluster = ProcessCluster {
            network: coordinator.node.status().network,
            coordinator,
            hosts: Vec::new(),
            dirs: Vec::new(),
            model: id,
            cut: model.cut(stages),
            transport,
            extra: extra.map(str::to_owned).to_vec(),
        };
        for (index, layers) in cluster.cut.clone().into_iter().enumerate() {
            let dir = TempDir::new().expect("a temporary directory");
            import(dir.path(), &model.path(), model.name(), layers, index + 1 == cluster.cut.len());
            cluster.dirs.push(dir);
            let host = cluster.spawn(index).await;
            cluster.hosts.push(host);
        }
        await_plan(&cluster.coordinator.node, id).await;
        cluster
    }

    /// Adds a host with the layers of stage `stage`; returns its index.
    pub async fn add_spare(&mut self, gguf: &Path, name: &str, stage: usize) -> usize {
        let (dir, index) = (TempDir::new().expect("a temporary directory"), self.hosts.len());
        import(dir.path(), gguf, name, self.cut[stage], stage + 1 == self.cut.len());
        self.dirs.push(dir);
        let host = self.spawn(index).await;
        self.hosts.push(host);
        let added = self.hosts[index].ready.id.clone();
        self.await_peer(&added).await;
        index
    }

    /// Waits until the coordinator knows the host's layers.
    pub async fn await_peer(&self, id: &str) {
        let knows = || {
            let peers = self.coordinator.node.peers();
            peers.iter().any(|peer| peer.id.to_string() == id && peer.connected && !peer.holdings.is_empty())
        };
        crate::eventually("the coordinator knows the host", knows).await;
    }

    /// The index of a host by its id.
    pub fn index_of(&self, id: &str) -> usize {
        self.hosts.iter().position(|host| host.ready.id == id).expect("one of the swarm's hosts")
    }

    async fn spawn(&self, index: usize) -> Process {
        let extra: Vec<&str> = self.extra.iter().map(String::as_str).collect();
        let host = Process::start(self.dirs[index].path(), &self.network, self.transport, &extra);
        join(&self.coordinator.node, &host.ready.addresses, self.transport).await;
        host
    }

    /// Restarts a host on its data directory.
    pub async fn restart(&mut self, index: usize) {
        self.hosts[index] = self.spawn(index).await;
        self.await_peer(&self.hosts[index].ready.id).await;
        await_plan(&self.coordinator.node, self.model).await;
    }
}
