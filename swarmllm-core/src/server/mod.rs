//! The HTTP server: endpoints in OpenAI's format for a node.
//!
//! The server owns the listening sockets and their connections, and no state of the node.
//!
//! Every accepted field has an effect, and every other field is refused by name. The exceptions are fields that clients send
//! by default and that do not show in an answer; they are accepted without effect: `user`, `metadata`, `store: false`,
//! `service_tier`, `safety_identifier`, `prompt_cache_key`, a message's `name`, and `parallel_tool_calls` without tools.
//!
//! A client that disconnects cancels its answer. Every wait and every buffer is bounded. The server refuses foreign hosts and
//! origins (DNS rebinding, web pages), bodies that are too large or not JSON, and addresses beyond this machine without an
//! API key.
//!
//! May import: base and the node's public items.

mod auth;
mod driver;
mod openai;
mod reject;
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

/// Default port of the HTTP server.
pub const DEFAULT_PORT: u16 = 8800;
/// Minimum length of an API key, in bytes.
pub const MIN_KEY_BYTES: usize = 16;
/// Maximum of [`ServerConfig::max_connections`].
pub const MAX_CONNECTIONS: usize = 65_536;

/// Addresses and limits of a server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Addresses to listen on; port 0 takes any free port. Default: `127.0.0.1:8800`. An address other than loopback needs
    /// `api_key`.
    pub listen: Vec<SocketAddr>,
    /// Key of requests, sent as `Authorization: Bearer`: at least [`MIN_KEY_BYTES`] of printable ASCII. Default: none.
    pub api_key: Option<String>,
    /// Further values of the `Host` header, beside `localhost`, the loopback addresses and the bound addresses.
    pub allowed_hosts: Vec<String>,
    /// Maximum size of a request body, in bytes. Default: 10 MiB.
    pub max_body: usize,
    /// Concurrent connections; further ones wait in the kernel's queue. Default: 256.
    pub max_connections: usize,
    /// Time limit of a request's head, from the moment when the connection is idle. Default: 10 s.
    pub header_timeout: Duration,
    /// Time limit of a request's body. Default: 30 s.
    pub body_timeout: Duration,
    /// Time after which a connection is closed when its client reads nothing of its answer. Default: 30 s.
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

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// `listen` is empty.
    #[error("no address to listen on: give at least one")]
    NoAddress,
    /// Other machines can reach the address, and there is no API key.
    #[error("{address} can be reached from other machines: set an API key, or listen on 127.0.0.1")]
    KeyNeeded {
        /// The configured address.
        address: SocketAddr,
    },
    /// The API key is too short, or cannot be sent in a header.
    #[error("the API key must have at least {MIN_KEY_BYTES} characters of printable ASCII without spaces")]
    WeakKey,
    /// A limit out of range.
    #[error("max_connections is {given}; it must be between 1 and {MAX_CONNECTIONS}")]
    BadLimit {
        /// The configured limit.
        given: usize,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address}: {cause}; choose another port, or stop the program that uses it")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
        cause: io::Error,
    },
}

impl ServeError {
    /// The error kind.
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
/// May be called from a thread without a runtime. The server keeps a handle of the node.
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

/// Binds all addresses or none. The caller must have entered the runtime.
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

/// A running server. Dropping it closes all connections at once.
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

    /// The bound addresses, in the configured order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets running answers end until `deadline`, then closes the remaining connections, which cancels their
    /// answers. Idempotent. If the future is dropped early, accepting has stopped, and answers run on until the server drops.
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
