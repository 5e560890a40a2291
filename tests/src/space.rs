//! A small internet: network namespaces of this machine, joined by a router that loses packets and cuts lines when told to.
//!
//! Needs root, `ip` and `nft`. The tests that use it are ignored by a plain run; `make net` runs them where the machine
//! allows it. A test builds its world from outside and then runs itself once more inside the coordinator's namespace.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Tells a test that it runs inside, and in which world.
const INSIDE: &str = "SWARMLLM_TEST_SPACE";
/// The first two numbers of every address outside of homes: of those that are not private, for nobody forwards ports of a
/// router that has a private address itself.
const OUTSIDE: &str = "11.77";
/// What a router has that forwards ports where machines ask for it.
const FORWARDER: &str = "miniupnpd";

/// One namespace: a machine of its own, as far as the network goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    name: String,
}

impl Space {
    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell script inside; panics where it fails.
    pub fn sh(&self, script: &str) {
        let output =
            self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().expect("`ip` can be started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "in {}: {script}: {}\n{error}", self.name, output.status);
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }
}

/// A machine and its address as others see it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The machine.
    pub space: Space,
    /// Its address outside, its router's where it is behind one.
    pub ip: String,
    /// The line that leads to it, for [`World::cut`].
    pub line: usize,
}

/// How a router gives its machines ports outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// The same port as inside where it is free, as most do.
    Plain,
    /// Another one for each connection, so that nobody can tell in advance which.
    Random,
}

/// All machines of a test, and the router between them.
pub struct World {
    prefix: String,
    lines: usize,
    /// What forwards ports on routers, and its settings.
    forwarders: Vec<(Child, TempDir)>,
    /// Whether it goes when this handle does.
    owned: bool,
}

impl World {
    /// An empty one.
    pub fn new() -> World {
        let world =
            World { prefix: format!("swl{}", std::process::id()), lines: 0, forwarders: Vec::new(), owned: true };
        world.add("core");
        world.core().sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        world.core().sh("nft add table ip f; nft add chain ip f lines '{ type filter hook forward priority 0; }'");
        world.core().sh("nft add chain ip f cuts; nft add rule ip f lines jump cuts");
        world
    }

    /// The one that this process runs inside of, if it does.
    pub fn inside() -> Option<World> {
        let prefix = std::env::var(INSIDE).ok()?;
        Some(World { prefix, lines: 0, forwarders: Vec::new(), owned: false })
    }

    fn space(&self, role: &str) -> Space {
        Space { name: format!("{}-{role}", self.prefix) }
    }

    fn core(&self) -> Space {
        self.space("core")
    }

    fn add(&self, role: &str) -> Space {
        let space = self.space(role);
        run("ip", &["netns", "add", &space.name]);
        space.sh("ip link set lo up");
        space
    }

    /// A wire between two machines, with the addresses of both ends.
    fn wire(&self, near: (&Space, &str, &str), far: (&Space, &str, &str)) {
        let (a, b) = (&near.0.name, &far.0.name);
        run("ip", &["link", "add", near.1, "netns", a, "type", "veth", "peer", "name", far.1, "netns", b]);
        for (space, device, address) in [near, far] {
            space.sh(&format!("ip addr add {address}/24 dev {device}; ip link set dev {device} up"));
        }
    }

    /// A machine that everybody can connect to.
    pub fn open(&mut self, role: &str) -> Place {
        let space = self.add(role);
        self.lines += 1;
        let (line, core) = (self.lines, self.core());
        let (inner, outer) = (format!("{OUTSIDE}.{line}.2"), format!("{OUTSIDE}.{line}.1"));
        self.wire((&space, "wan", &inner), (&core, &format!("line{line}"), &outer));
        space.sh(&format!("ip route add default via {outer}"));
        Place { space, ip: inner, line }
    }

    /// A machine behind a router of its own that lets nobody in.
    pub fn hidden(&mut self, role: &str, nat: Nat) -> Place {
        let router = self.open(&format!("{role}-nat"));
        let space = self.add(role);
        self.wire((&space, "lan", "192.168.1.2"), (&router.space, "lan", "192.168.1.1"));
        space.sh("ip route add default via 192.168.1.1");
        let ports = if nat == Nat::Random { "fully-random" } else { "" };
        router.space.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft add table ip n; nft add chain ip n out '{{ type nat hook postrouting priority 100; }}'
             nft add rule ip n out oifname wan masquerade {ports}
             nft add table ip f; nft add chain ip f in '{{ type filter hook forward priority 0; }}'
             nft add rule ip f in iifname wan ct state new ct status dnat accept
             nft add rule ip f in iifname wan ct state new drop
             nft add chain ip f own '{{ type filter hook input priority 0; }}'
             nft add rule ip f own iifname wan ct state new drop"
        ));
        Place { space, ..router }
    }

    /// Whether this machine has what routers forward ports with.
    pub fn can_forward() -> bool {
        Command::new(FORWARDER).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// From now on the router of a machine that is [`hidden`](Self::hidden) forwards ports where it asks for it (UPnP).
    pub fn forward(&mut self, role: &str) {
        let router = self.space(&format!("{role}-nat"));
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
        let mut daemon = router.command(FORWARDER);
        daemon.arg("-d").arg("-f").arg(&file).arg("-P").arg(dir.path().join("pid"));
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.forwarders.push((daemon.spawn().expect("it can be started"), dir));
    }

    /// Loses so many of a hundred packets between machines from now on.
    pub fn lose(&self, percent: u32) {
        self.core().sh(&format!("nft add rule ip f lines numgen random mod 100 '<' {percent} drop"));
    }

    /// Cuts these lines; no others stay cut.
    pub fn cut(&self, lines: &[usize]) {
        let rule = |line| {
            format!("nft add rule ip f cuts iifname line{line} drop; nft add rule ip f cuts oifname line{line} drop\n")
        };
        let rules: String = lines.iter().map(rule).collect();
        self.core().sh(&format!("nft flush chain ip f cuts\n{rules}"));
    }

    /// Runs the test `name` of this binary once more, inside of `place`, with more variables; panics where it fails.
    pub fn run_inside(&self, name: &str, place: &Place, variables: &[(&str, String)]) {
        let test = std::env::current_exe().expect("a running test has a path");
        let mut command = place.space.command(test);
        command.args(["--exact", name, "--ignored", "--nocapture"]).env(INSIDE, &self.prefix);
        command.envs(variables.iter().map(|(key, value)| (*key, value)));
        assert!(command.status().expect("`ip` can be started").success(), "{name} failed inside");
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
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
        for (daemon, _) in &mut self.forwarders {
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
