//! Hostile crowds of connections, and limits of dials and traffic.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

const CROWD: usize = 500;

/// Opens a connection without sending anything.
async fn silent(port: u16) -> Option<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed_and_do_not_lock_others_out() {
    let (crowded, friend) = (node(TCP).await, node(TCP).await);
    let target = address(&crowded);
    let port = target.split('/').nth(4).and_then(|port| port.parse().ok()).unwrap();
    soon("a connection", friend.net.dial(&target)).await.unwrap();
    let crowd: Vec<TcpStream> = futures::stream::iter(0..CROWD)
        .map(|_| silent(port))
        .buffer_unordered(64)
        .filter_map(|one| async { one })
        .collect()
        .await;
    assert!(crowd.len() > CROWD / 2, "{} of them connected at all", crowd.len());
    // Existing connections are not affected, and the node can still dial others.
    let (crowded_net, _tasks) = echo(crowded);
    let mut stream = soon("a stream", friend.net.open(crowded_net.local(), Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
    let other = node(TCP).await;
    soon("a dial", crowded_net.dial(&address(&other))).await.unwrap();
    // A new node gets a connection although others connect silently all the time.
    let newcomer = node(TCP).await;
    soon("a connection", async {
        while newcomer.net.dial(&target).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    // Finally the whole crowd is disconnected.
    soon("the crowd's end", async {
        for mut one in crowd {
            let mut byte = [0; 256];
            while matches!(one.read(&mut byte).await, Ok(1..)) {}
        }
    })
    .await;
    assert_eq!(crowded_net.peers().snapshot().len(), 3, "only identified peers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_address_are_limited_for_all_its_keys() {
    const SHARE: u32 = 3;
    let bounded = NetConfig { max_per_address: SHARE, count_loopback: true, ..config(&[TCP]) };
    let (full, mut crowd) = (node_with(bounded).await, Vec::new());
    let target = address(&full);
    for number in 0..SHARE + 2 {
        let one = node(TCP).await;
        let dialled = soon("an end of the dial", one.net.dial(&target)).await;
        assert_eq!(dialled.is_ok(), number < SHARE, "{dialled:?}");
        crowd.push(one);
    }
    let refused = crowd.remove(SHARE as usize);
    soon("a dial of its own", full.net.dial(&address(&refused))).await.unwrap();
    crowd.remove(0).net.shutdown().await;
    let next = crowd.pop().unwrap();
    soon("a place that was given back", async {
        while next.net.dial(&target).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

/// Accepts one connection and sends nothing. Returns its address, the accept and the end of the connection.
async fn silent_listener() -> (String, oneshot::Receiver<()>, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
    let (accept, accepted) = oneshot::channel();
    let ended = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let _ = accept.send(());
        while matches!(stream.read(&mut [0; 256]).await, Ok(1..)) {}
    });
    (at, accepted, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellable_dial_ends_with_its_call() {
    let (dialler, friend) = (node(TCP).await, node(TCP).await);
    let by = soon("a connection", dialler.net.dial(&address(&friend))).await.unwrap();
    let stranger = |seed| Keypair::from_seed(&[seed; 32]).node_id();
    let ((patient_at, patient_accepted, patient_ended), (cancelled_at, cancelled_accepted, cancelled_ended)) =
        (silent_listener().await, silent_listener().await);
    let net = dialler.net.clone();
    tokio::spawn(async move { net.ensure_reported(stranger(1), &[patient_at], by).await });
    soon("a dial", patient_accepted).await.unwrap();
    let at = [cancelled_at];
    tokio::select! {
        met = dialler.net.try_reported(stranger(2), &at, by) => panic!("no answer is expected: {met:?}"),
        accepted = cancelled_accepted => accepted.unwrap(),
    }
    tokio::select! {
        biased;
        ended = cancelled_ended => ended.unwrap(),
        _ = patient_ended => panic!("the other dial must last until its timeout"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_is_counted_by_channel_and_limited_to_the_ceiling() {
    const CEILING: u64 = 2 << 20;
    for listen in [TCP, QUIC] {
        let slow = node_with(NetConfig { ceiling: CEILING.try_into().ok(), ..config(&[listen]) }).await;
        let (fast, at) = (node(listen).await, address(&slow));
        let slow_id = soon("a connection", fast.net.dial(&at)).await.unwrap();
        let (slow_net, _tasks) = echo(slow);
        let mut stream = soon("a stream", fast.net.open(slow_id, Channel::Control)).await.unwrap();
        let (begun, bytes) = (std::time::Instant::now(), vec![7; 3 << 20]);
        soon("a long echo", round_trip(&mut stream, &bytes)).await;
        // Both directions, minus one burst.
        let least = (2 * bytes.len() as u64 - CEILING) as f64 / CEILING as f64;
        assert!(begun.elapsed().as_secs_f64() > least * 0.9, "{:?} over {listen}", begun.elapsed());
        let (theirs, ours) = (slow_net.traffic(), fast.net.traffic());
        let expected = Flow { sent: bytes.len() as u64, received: bytes.len() as u64 };
        assert_eq!((theirs.control, ours.control), (expected, expected));
        assert_eq!((theirs.shard, theirs.stage), (Flow::default(), Flow::default()));
        assert!(theirs.other.sent > 0 && theirs.other.sent < 64 * 1024, "{theirs:?}");
    }
}
