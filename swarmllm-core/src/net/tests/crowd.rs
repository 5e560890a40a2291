//! Many who connect and want nothing good.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

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
async fn the_keys_of_one_address_take_no_more_than_its_share_of_the_connections() {
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

/// Takes one connection and says nothing: where it listens, that it has taken it, and the connection's end.
async fn deaf() -> (String, oneshot::Receiver<()>, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
    let (took, taken) = oneshot::channel();
    let ended = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let _ = took.send(());
        while matches!(stream.read(&mut [0; 256]).await, Ok(1..)) {}
    });
    (at, taken, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brief_dial_ends_with_its_call_and_before_one_that_began_earlier() {
    let (dialler, friend) = (node(TCP).await, node(TCP).await);
    let by = soon("a connection", dialler.net.dial(&address(&friend))).await.unwrap();
    let stranger = |seed| Keypair::from_seed(&[seed; 32]).node_id();
    let ((patient_at, patient_taken, patient_ended), (brief_at, brief_taken, brief_ended)) =
        (deaf().await, deaf().await);
    let net = dialler.net.clone();
    tokio::spawn(async move { net.ensure_as_told(stranger(1), &[patient_at], by).await });
    soon("a dial", patient_taken).await.unwrap();
    let at = [brief_at];
    tokio::select! {
        met = dialler.net.try_as_told(stranger(2), &at, by) => panic!("nobody answers: {met:?}"),
        taken = brief_taken => taken.unwrap(),
    }
    tokio::select! {
        biased;
        ended = brief_ended => ended.unwrap(),
        _ = patient_ended => panic!("it lasts as long as any dial"),
    }
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
