//! A test network of Linux network namespaces, joined by a router with configurable packet loss and outages.
//!
//! Needs root, `ip` and `nft`. The tests that use it are ignored in a plain run; `make net` runs them if the machine allows
//! it. A test builds the network and then runs itself again inside the coordinator's namespace.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Set for a test that runs inside a test network: the network's prefix.
const PREFIX_VARIABLE: &str = "SWARMLLM_TEST_SPACE";
/// Prefix of all public addresses. Not a private range: port forwarding is refused by routers with a private address.
const OUTSIDE: &str = "11.77";
/// The UPnP daemon of routers.
const UPNP_DAEMON: &str = "miniupnpd";

/// A network namespace, which acts as a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetNamespace {
    name: String,
}

impl NetNamespace {
    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell script inside; panics on failure.
    pub fn sh(&self, script: &str) {
        let output =
            self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().expect("`ip` can be started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "in {}: {script}: {}\n{error}", self.name, output.status);
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }
}

/// A machine and its public address.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its namespace.
    pub namespace: NetNamespace,
    /// Its public address, or that of its router.
    pub ip: String,
    /// Index of its line, for [`TestNetwork::cut`].
    pub line: usize,
}

/// Port mapping of a NAT router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Keeps the source port if it is free, as most routers do.
    PortPreserving,
    /// A random port per connection (symmetric NAT).
    RandomPort,
}

/// The machines of a test and the router between them.
pub struct TestNetwork {
    prefix: String,
    lines: usize,
    /// The UPnP daemons and their settings.
    upnp_daemons: Vec<(Child, TempDir)>,
    /// Whether the namespaces are removed on drop.
    owned: bool,
}

impl TestNetwork {
    /// A network without machines.
    pub fn new() -> TestNetwork {
        let world = TestNetwork {
            prefix: format!("swl{}", std::process::id()),
            lines: 0,
            upnp_daemons: Vec::new(),
            owned: true,
        };
        world.add("core");
        world.core().sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        world.core().sh("nft add table ip f; nft add chain ip f lines '{ type filter hook forward priority 0; }'");
        world.core().sh("nft add chain ip f cuts; nft add rule ip f lines jump cuts");
        world
    }

    /// The network that this process runs in, if any.
    pub fn current() -> Option<TestNetwork> {
        let prefix = std::env::var(PREFIX_VARIABLE).ok()?;
        Some(TestNetwork { prefix, lines: 0, upnp_daemons: Vec::new(), owned: false })
    }

    fn namespace(&self, role: &str) -> NetNamespace {
        NetNamespace { name: format!("{}-{role}", self.prefix) }
    }

    fn core(&self) -> NetNamespace {
        self.namespace("core")
    }

    fn add(&self, role: &str) -> NetNamespace {
        let namespace = self.namespace(role);
        run("ip", &["netns", "add", &namespace.name]);
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Connects two machines with a veth pair; each end has a device name and an address.
    fn connect(&self, near: (&NetNamespace, &str, &str), far: (&NetNamespace, &str, &str)) {
        let (a, b) = (&near.0.name, &far.0.name);
        run("ip", &["link", "add", near.1, "netns", a, "type", "veth", "peer", "name", far.1, "netns", b]);
        for (namespace, device, address) in [near, far] {
            namespace.sh(&format!("ip addr add {address}/24 dev {device}; ip link set dev {device} up"));
        }
    }

    /// Adds a publicly reachable machine.
    pub fn public_machine(&mut self, role: &str) -> Machine {
        let namespace = self.add(role);
        self.lines += 1;
        let (line, core) = (self.lines, self.core());
        let (inner, outer) = (format!("{OUTSIDE}.{line}.2"), format!("{OUTSIDE}.{line}.1"));
        self.connect((&namespace, "wan", &inner), (&core, &format!("line{line}"), &outer));
        namespace.sh(&format!("ip route add default via {outer}"));
        Machine { namespace, ip: inner, line }
    }

    /// Adds a machine behind a NAT router of its own.
    pub fn natted_machine(&mut self, role: &str, nat: Nat) -> Machine {
        let router = self.public_machine(&format!("{role}-nat"));
        let namespace = self.add(role);
        self.connect((&namespace, "lan", "192.168.1.2"), (&router.namespace, "lan", "192.168.1.1"));
        namespace.sh("ip route add default via 192.168.1.1");
        let ports = if nat == Nat::RandomPort { "fully-random" } else { "" };
        router.namespace.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft add table ip n; nft add chain ip n out '{{ type nat hook postrouting priority 100; }}'
             nft add rule ip n out oifname wan masquerade {ports}
             nft add table ip f; nft add chain ip f in '{{ type filter hook forward priority 0; }}'
             nft add rule ip f in iifname wan ct state new ct status dnat accept
             nft add rule ip f in iifname wan ct state new drop
             nft add chain ip f own '{{ type filter hook input priority 0; }}'
             nft add rule ip f own iifname wan ct state new drop"
        ));
        Machine { namespace, ..router }
    }

    /// Whether the UPnP daemon is installed.
    pub fn has_upnp_daemon() -> bool {
        Command::new(UPNP_DAEMON).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Enables UPnP port forwarding on the router of a [`natted_machine`](Self::natted_machine) machine.
    pub fn enable_upnp(&mut self, role: &str) {
        let router = self.namespace(&format!("{role}-nat"));
        router.sh("nft add table inet u
             nft add chain inet u pass
             nft add chain inet u before '{ type nat hook prerouting priority -100; }'
             nft add chain inet u to; nft add rule inet u before jump to
             nft add chain inet u after '{ type nat hook postrouting priority 100; }'
             nft add chain inet u from; nft add rule inet u after jump from");
        let dir = TempDir::new().expect("a temporary directory");
        let file = dir.path().join("settings");
        let settings = "ext_ifname=wan\nlistening_ip=lan\nenable_upnp=yes\nenable_natpmp=no\n\
             uuid=6b8b4567-327b-23c6-643c-986966334873\nupnp_table_name=u\nupnp_nat_table_name=u\nupnp_forward_chain=pass\n\
             upnp_nat_chain=to\nupnp_nat_postrouting_chain=from\nallow 1024-65535 192.168.1.0/24 1024-65535\n";
        std::fs::write(&file, settings).expect("a temporary file can be written");
        let mut daemon = router.command(UPNP_DAEMON);
        daemon.arg("-d").arg("-f").arg(&file).arg("-P").arg(dir.path().join("pid"));
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.upnp_daemons.push((daemon.spawn().expect("it can be started"), dir));
    }

    /// Drops this percentage of packets between machines from now on.
    pub fn drop_packets(&self, percent: u32) {
        self.core().sh(&format!("nft add rule ip f lines numgen random mod 100 '<' {percent} drop"));
    }

    /// Cuts these lines and restores all others.
    pub fn cut(&self, lines: &[usize]) {
        let rule = |line| {
            format!("nft add rule ip f cuts iifname line{line} drop; nft add rule ip f cuts oifname line{line} drop\n")
        };
        let rules: String = lines.iter().map(rule).collect();
        self.core().sh(&format!("nft flush chain ip f cuts\n{rules}"));
    }

    /// Runs the test `name` of this binary again inside `machine` with these variables; panics on failure.
    pub fn run_inside(&self, name: &str, machine: &Machine, variables: &[(&str, String)]) {
        let test = std::env::current_exe().expect("a running test has a path");
        let mut command = machine.namespace.command(test);
        command.args(["--exact", name, "--ignored", "--nocapture"]).env(PREFIX_VARIABLE, &self.prefix);
        command.envs(variables.iter().map(|(key, value)| (*key, value)));
        assert!(command.status().expect("`ip` can be started").success(), "{name} failed inside");
    }
}

impl Default for TestNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let listed =
            Command::new("ip").args(["netns", "list"]).output().map(|output| output.stdout).unwrap_or_default();
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let names = listed.lines().filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| name.starts_with(&format!("{}-", self.prefix))) {
            let script = "ip netns pids \"$0\" | xargs -r kill -9; ip netns del \"$0\"";
            let _ = Command::new("sh").args(["-c", script, name]).status();
        }
        for (daemon, _) in &mut self.upnp_daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}\n{error}", arguments.join(" "), output.status);
}
