//! Many who connect and want nothing good.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::*;

const CROWD: usize = 500;

/// Connects without a word; gives the connection.
async fn silent(port: u16) -> Option<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_that_connect_and_say_nothing_are_let_go_and_keep_nobody_out_for_long() {
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
    // Who is connected notices nothing, and the node can still connect to others.
    let (crowded_net, _tasks) = echo(crowded);
    let mut stream = soon("a stream", friend.net.open(crowded_net.local(), Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
    let other = node(TCP).await;
    soon("a dial", crowded_net.dial(&address(&other))).await.unwrap();
    // Somebody new gets in, though others connect and say nothing all the time.
    let newcomer = node(TCP).await;
    soon("a way in", async {
        while newcomer.net.dial(&target).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    // And in the end all of the crowd are gone.
    soon("the crowd's end", async {
        for mut one in crowd {
            let mut byte = [0; 256];
            while matches!(one.read(&mut byte).await, Ok(1..)) {}
        }
    })
    .await;
    assert_eq!(crowded_net.peers().snapshot().len(), 3, "only those who said who they are");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_over_the_wire_is_counted_by_kind_and_keeps_to_the_ceiling() {
    const CEILING: u64 = 2 << 20;
    for listen in [TCP, QUIC] {
        let slow = node_with(NetConfig { ceiling: CEILING.try_into().ok(), ..config(&[listen]) }).await;
        let (fast, at) = (node(listen).await, address(&slow));
        let slow_id = soon("a connection", fast.net.dial(&at)).await.unwrap();
        let (slow_net, _tasks) = echo(slow);
        let mut stream = soon("a stream", fast.net.open(slow_id, Channel::Control)).await.unwrap();
        let (begun, bytes) = (std::time::Instant::now(), vec![7; 3 << 20]);
        soon("a long echo", round_trip(&mut stream, &bytes)).await;
        // There and back, of which a burst may go at once.
        let least = (2 * bytes.len() as u64 - CEILING) as f64 / CEILING as f64;
        assert!(begun.elapsed().as_secs_f64() > least * 0.9, "{:?} over {listen}", begun.elapsed());
        let (theirs, ours) = (slow_net.traffic(), fast.net.traffic());
        let told = Flow { sent: bytes.len() as u64, received: bytes.len() as u64 };
        assert_eq!((theirs.control, ours.control), (told, told));
        assert_eq!((theirs.shard, theirs.stage), (Flow::default(), Flow::default()));
        assert!(theirs.other.sent > 0 && theirs.other.sent < 64 * 1024, "{theirs:?}");
    }
}
