//! A slow link: a proxy on loopback that forwards TCP connections with a delay or a limited bandwidth.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum chunks in flight per direction.
const MAX_IN_FLIGHT: usize = 4096;
/// Bytes per chunk.
const CHUNK: usize = 64 * 1024;

/// The address `/ip4/…/tcp/…/p2p/…` of a peer over a link with a one-way delay of `delay`. The link lasts until the process
/// ends.
pub fn delayed(address: &str, delay: Duration) -> String {
    proxied(address, delay, None, &Arc::default())
}

/// The address over a link with this bandwidth per connection and direction, in bytes per second.
pub fn limited(address: &str, bytes_per_second: u32) -> String {
    limited_and_counted(address, bytes_per_second, &Arc::default())
}

/// Like [`limited`], counting the bytes of both directions in `carried`.
pub fn limited_and_counted(address: &str, bytes_per_second: u32, carried: &Arc<AtomicU64>) -> String {
    proxied(address, Duration::ZERO, Some(bytes_per_second), carried)
}

fn proxied(address: &str, delay: Duration, width: Option<u32>, carried: &Arc<AtomicU64>) -> String {
    let carried = carried.clone();
    let mut parts: Vec<String> = address.split('/').map(str::to_owned).collect();
    assert_eq!(parts[3], "tcp", "a TCP address");
    let to = format!("{}:{}", parts[2], parts[4]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    parts[4] = listener.local_addr().expect("a bound socket").port().to_string();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&to) else { continue };
            forward(&near, &far, delay, width, carried.clone());
            forward(&far, &near, delay, width, carried.clone());
        }
    });
    parts.join("/")
}

/// Forwards one direction until it ends. Uses threads, since a runtime's timers are too coarse.
fn forward(from: &TcpStream, to: &TcpStream, delay: Duration, width: Option<u32>, carried: Arc<AtomicU64>) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    to.set_nodelay(true).expect("an option of the socket");
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(MAX_IN_FLIGHT);
    thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        // Time when the link is free again.
        let mut free = Instant::now();
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            carried.fetch_add(read as u64, Ordering::Relaxed);
            if let Some(width) = width {
                free = free.max(Instant::now()) + Duration::from_secs_f64(read as f64 / f64::from(width));
                // Reads no further until the link is free, so that the sender is throttled.
                thread::sleep(free.saturating_duration_since(Instant::now()));
            }
            if sender.send((Instant::now() + delay, chunk[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, chunk) in receiver {
            wait_until(due);
            if to.write_all(&chunk).is_err() {
                return;
            }
        }
        // Forwards the end of the stream.
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// Waits precisely: sleep alone wakes some tenths of a millisecond late.
fn wait_until(due: Instant) {
    const LATE: Duration = Duration::from_micros(300);
    thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(LATE));
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_the_end_arrive_complete_and_delayed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("/ip4/127.0.0.1/tcp/{}/p2p/x", listener.local_addr().unwrap().port());
        let delay = Duration::from_millis(40);
        let seen = delayed(&address, delay);
        let port: u16 = seen.split('/').nth(4).unwrap().parse().unwrap();
        let mut near = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let begun = Instant::now();
        near.write_all(b"there").unwrap();
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes).unwrap();
        far.write_all(b"again").unwrap();
        near.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"again");
        assert!(begun.elapsed() >= 2 * delay);
        near.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut bytes).unwrap(), 0);
    }
}
