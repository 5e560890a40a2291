//! A link that takes its time: a relay on loopback hands every byte of a TCP connection on after a delay, or only so many
//! a second.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces that are on the way at once, each way.
const UNDER_WAY: usize = 4096;
/// Bytes of a piece.
const PIECE: usize = 64 * 1024;

/// The address `/ip4/…/tcp/…/p2p/…` of a peer as seen over a link on which everything takes `delay` longer, each way.
/// The link is there until the process ends.
pub fn delayed(address: &str, delay: Duration) -> String {
    relayed(address, delay, None, &Arc::default())
}

/// The same over a link of which each connection carries so many bytes a second, each way.
pub fn narrow(address: &str, bytes_per_second: u32) -> String {
    counted(address, bytes_per_second, &Arc::default())
}

/// The same, with a count of the bytes that it carried, both ways together.
pub fn counted(address: &str, bytes_per_second: u32, carried: &Arc<AtomicU64>) -> String {
    relayed(address, Duration::ZERO, Some(bytes_per_second), carried)
}

fn relayed(address: &str, delay: Duration, width: Option<u32>, carried: &Arc<AtomicU64>) -> String {
    let carried = carried.clone();
    let mut parts: Vec<String> = address.split('/').map(str::to_owned).collect();
    assert_eq!(parts[3], "tcp", "a TCP address");
    let to = format!("{}:{}", parts[2], parts[4]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    parts[4] = listener.local_addr().expect("a bound socket").port().to_string();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&to) else { continue };
            carry(&near, &far, delay, width, carried.clone());
            carry(&far, &near, delay, width, carried.clone());
        }
    });
    parts.join("/")
}

/// Carries one direction until it ends. Threads of its own, since a runtime's timers are too coarse for this.
fn carry(from: &TcpStream, to: &TcpStream, delay: Duration, width: Option<u32>, carried: Arc<AtomicU64>) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    to.set_nodelay(true).expect("an option of the socket");
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        // When the link is free again.
        let mut free = Instant::now();
        while let Ok(read @ 1..) = from.read(&mut piece) {
            carried.fetch_add(read as u64, Ordering::Relaxed);
            if let Some(width) = width {
                free = free.max(Instant::now()) + Duration::from_secs_f64(read as f64 / f64::from(width));
                // What cannot be carried yet is not taken, so that the sender notices.
                thread::sleep(free.saturating_duration_since(Instant::now()));
            }
            if sender.send((Instant::now() + delay, piece[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in receiver {
            wait_until(due);
            if to.write_all(&piece).is_err() {
                return;
            }
        }
        // What ended on one side ends on the other.
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// Waits for the very moment: a sleeper wakes some tenths of a millisecond late, which no line adds.
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
    fn bytes_come_whole_and_late_and_so_does_the_end() {
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
