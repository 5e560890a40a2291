//! Transports: QUIC, and TCP and relayed connections with Noise and Yamux. All authenticate the peer's Ed25519 key, so a
//! relay can neither read nor change the bytes. A private swarm uses TCP and relayed connections, encrypted with the swarm's
//! key below Noise (libp2p's pnet).

use std::sync::Arc;

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{PeerId, Transport, identity, noise, quic, relay, tcp};

use super::NetError;
use super::config::{
    HANDSHAKE_DEADLINE, MAX_STREAMS_PER_CONNECTION, QUIC_CONNECTION_WINDOW, QUIC_IDLE, QUIC_KEEP_ALIVE,
    QUIC_STREAM_WINDOW,
};
use super::dial_transport::DialTransport;
use super::meter::{Meter, Metered};
use super::muxer::Yamux;
use super::peers::PeerRegistry;
use crate::identity::SwarmKey;

/// Builds the transports around the relay client's. Must be called within their runtime.
pub(super) fn build(
    key: &identity::Keypair,
    swarm: Option<&SwarmKey>,
    relay_transport: relay::client::Transport,
    meter: &Arc<Meter>,
    peers: &PeerRegistry,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, NetError> {
    let noise = noise::Config::new(key).map_err(|error| NetError::Setup { reason: format!("noise: {error}") })?;
    // Without nodelay a small message waits for the acknowledgement of the previous one: 40 ms and more.
    let tcp = relay_transport.or_transport(tcp::tokio::Transport::new(tcp::Config::new().nodelay(true)));
    let Some(swarm) = swarm else {
        let tcp = tcp.upgrade(Version::V1Lazy).authenticate(noise).multiplex(Yamux).timeout(HANDSHAKE_DEADLINE);
        let both = quic::tokio::Transport::new(quic_config(key)).or_transport(tcp).map(|either, _| match either {
            Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
            Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        });
        return Ok(dialling_and_metered(both, meter, peers));
    };
    // Below Noise: a peer without the key cannot even identify.
    let sealed = PnetConfig::new(PreSharedKey::new(*swarm.bytes()));
    let tcp = tcp.and_then(move |socket, _| sealed.handshake(socket));
    let tcp = tcp.upgrade(Version::V1Lazy).authenticate(noise).multiplex(Yamux).timeout(HANDSHAKE_DEADLINE);
    Ok(dialling_and_metered(tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))), meter, peers))
}

/// Adds [`DialTransport`] and metering. The bytes of a relayed connection are counted at the connection to its relay.
fn dialling_and_metered<T>(transport: T, meter: &Arc<Meter>, peers: &PeerRegistry) -> Boxed<(PeerId, StreamMuxerBox)>
where
    T: Transport<Output = (PeerId, StreamMuxerBox)> + Send + Unpin + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Error: Send + Sync,
{
    let meter = meter.clone();
    let counted = transport.map(move |(peer, muxer), endpoint| match endpoint.is_relayed() {
        true => (peer, muxer),
        false => (peer, StreamMuxerBox::new(Metered::new(muxer, meter.clone()))),
    });
    DialTransport::new(counted.boxed(), peers.clone()).boxed()
}

fn quic_config(key: &identity::Keypair) -> quic::Config {
    let millis = |time: std::time::Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let mut config = quic::Config::new(key);
    config.handshake_timeout = QUIC_IDLE;
    config.max_idle_timeout = millis(QUIC_IDLE);
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = u32::try_from(MAX_STREAMS_PER_CONNECTION).unwrap_or(u32::MAX);
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config
}
