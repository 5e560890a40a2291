//! The HTTP surface: OpenAI-shaped endpoints for a node.
//!
//! Owns the listening sockets and their connections, nothing of the node's. Promises: every accepted field acts and
//! every other is refused by name, but for those that clients send by default and that change nothing that an answer shows
//! (`user`, `metadata`, `store: false`, `service_tier`, `safety_identifier`, `prompt_cache_key`, a message's `name`, and
//! `parallel_tool_calls` without tools), which are accepted without effect; a client that leaves cancels its answer; every wait and every buffer is bounded.
//! Refuses: hosts and origins that are not its own (DNS rebinding, web pages), bodies that are not JSON or are too
//! large, addresses beyond this machine without a key. May import: base and the node's public items.

mod auth;
mod driver;
mod openai;
mod reject;
mod stall;
mod state;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::base::ErrorKind;
use crate::node::Node;

/// Port of the HTTP surface where none is configured.
pub const DEFAULT_PORT: u16 = 8800;
/// Shortest key that is accepted, in bytes.
pub const MIN_KEY_BYTES: usize = 16;
/// Most connections that may be configured.
pub const MAX_CONNECTIONS: usize = 65_536;

/// How a server listens and what it bounds.
#[derive(Clone)]
pub struct ServerConfig {
    /// Addresses to listen on; port 0 takes any free port. Default: `127.0.0.1:8800`. One that is not loopback needs
    /// `api_key`.
    pub listen: Vec<SocketAddr>,
    /// Key that requests carry as `Authorization: Bearer`: at least [`MIN_KEY_BYTES`] of printable ASCII. Default:
    /// none.
    pub api_key: Option<String>,
    /// Names that the `Host` header may have beside `localhost`, the loopback addresses and the bound ones.
    pub allowed_hosts: Vec<String>,
    /// Largest request body, in bytes. Default: 10 MiB.
    pub max_body: usize,
    /// Connections served at once; more wait in the kernel's queue. Default: 256.
    pub max_connections: usize,
    /// Time for a request's head, counted from when a connection is idle. Default: 10 s.
    pub header_timeout: Duration,
    /// Time for a request's body. Default: 30 s.
    pub body_timeout: Duration,
    /// Time after which a client that does not read its answer is dropped. Default: 30 s.
    pub write_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT)],
            api_key: None,
            allowed_hosts: Vec::new(),
            max_body: 10 << 20,
            max_connections: 256,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing to listen on.
    #[error("no address to listen on: give at least one")]
    NoAddress,
    /// The address can be reached by others, and there is no key.
    #[error("{address} can be reached from other machines: set an API key, or listen on 127.0.0.1")]
    KeyNeeded {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The key is too short, or cannot be sent in a header.
    #[error("the API key must have at least {MIN_KEY_BYTES} characters of printable ASCII without spaces")]
    WeakKey,
    /// A limit that cannot be.
    #[error("max_connections is {given}; it must be between 1 and {MAX_CONNECTIONS}")]
    BadLimit {
        /// The limit asked for.
        given: usize,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address}: {cause}; choose another port, or stop who uses it")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
}

impl ServeError {
    /// The numbered kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServeError::NoAddress | ServeError::BadLimit { .. } => ErrorKind::InvalidArgument,
            ServeError::KeyNeeded { .. } | ServeError::WeakKey => ErrorKind::InvalidConfig,
            ServeError::Bind { .. } => ErrorKind::PortInUse,
        }
    }
}

/// Serves `node` over HTTP on the node's runtime, until the [`Server`] is shut down or dropped.
///
/// May be called from a thread without a runtime. The server holds a handle of the node.
pub fn serve(node: Node, config: ServerConfig) -> Result<Server, ServeError> {
    check(&config)?;
    let _runtime = node.runtime().enter();
    let (listeners, addresses) = bind(&config.listen)?;
    let policy = Arc::new(auth::Policy::new(&config, &addresses));
    let limits = state::Limits { max_body: config.max_body, body_timeout: config.body_timeout };
    let app = openai::app(state::AppState { node, limits }, policy);
    let driver = driver::Driver {
        app,
        slots: Arc::new(Semaphore::new(config.max_connections)),
        header_timeout: config.header_timeout,
        write_timeout: config.write_timeout,
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    Ok(Server::start(driver, listeners, addresses))
}

fn check(config: &ServerConfig) -> Result<(), ServeError> {
    if config.listen.is_empty() {
        return Err(ServeError::NoAddress);
    }
    if !(1..=MAX_CONNECTIONS).contains(&config.max_connections) {
        return Err(ServeError::BadLimit { given: config.max_connections });
    }
    match &config.api_key {
        Some(key) if key.len() < MIN_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(ServeError::WeakKey)
        }
        Some(_) => Ok(()),
        None => match config.listen.iter().find(|address| !address.ip().is_loopback()) {
            Some(address) => Err(ServeError::KeyNeeded { address: *address }),
            None => Ok(()),
        },
    }
}

/// Binds every address or none. Needs the runtime to be entered.
fn bind(listen: &[SocketAddr]) -> Result<(Vec<tokio::net::TcpListener>, Vec<SocketAddr>), ServeError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for &address in listen {
        let open = || -> io::Result<(tokio::net::TcpListener, SocketAddr)> {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let bound = listener.local_addr()?;
            Ok((tokio::net::TcpListener::from_std(listener)?, bound))
        };
        let (listener, bound) = open().map_err(|cause| ServeError::Bind { address, cause })?;
        listeners.push(listener);
        addresses.push(bound);
    }
    Ok((listeners, addresses))
}

/// A running server. Dropping it closes every connection at once.
pub struct Server {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    fn start(driver: driver::Driver, listeners: Vec<tokio::net::TcpListener>, addresses: Vec<SocketAddr>) -> Self {
        let server =
            Self { addresses, stop: driver.stop.clone(), abort: driver.abort.clone(), tasks: driver.tasks.clone() };
        for listener in listeners {
            driver.tasks.spawn(driver.clone().accept(listener));
        }
        server
    }

    /// The bound addresses, in the order they were configured.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets running answers end until `deadline`, then closes the rest, which cancels their answers.
    /// Idempotent. Where the future is dropped early, accepting has stopped and answers go on until the server drops.
    pub async fn shutdown(&self, deadline: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.abort.cancel();
    }
}

#[cfg(test)]
mod tests;
