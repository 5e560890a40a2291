//! A link that takes its time: a relay on loopback hands every byte of a TCP connection on after a delay.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Pieces that are on the way at once, each way.
const UNDER_WAY: usize = 4096;
/// Bytes of a piece.
const PIECE: usize = 64 * 1024;

/// The address `/ip4/…/tcp/…/p2p/…` of a peer as seen over a link on which everything takes `delay` longer, each way.
/// The link is there until the runtime ends.
pub async fn delayed(address: &str, delay: Duration) -> String {
    let mut parts: Vec<String> = address.split('/').map(str::to_owned).collect();
    assert_eq!(parts[3], "tcp", "a TCP address");
    let to: SocketAddr = format!("{}:{}", parts[2], parts[4]).parse().expect("an address with a port");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    parts[4] = listener.local_addr().expect("a bound socket").port().to_string();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            for socket in [&near, &far] {
                socket.set_nodelay(true).expect("an option of the socket");
            }
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            carry(near_in, far_out, delay);
            carry(far_in, near_out, delay);
        }
    });
    parts.join("/")
}

/// Carries one direction until it ends.
fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE];
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            if sender.send((Instant::now() + delay, piece[..read].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_whole_and_late() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("/ip4/127.0.0.1/tcp/{}/p2p/x", listener.local_addr().unwrap().port());
        let delay = Duration::from_millis(40);
        let seen = delayed(&address, delay).await;
        let port: u16 = seen.split('/').nth(4).unwrap().parse().unwrap();
        let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let begun = Instant::now();
        near.write_all(b"there").await.unwrap();
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes).await.unwrap();
        far.write_all(b"again").await.unwrap();
        near.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"again");
        assert!(begun.elapsed() >= 2 * delay);
    }
}
