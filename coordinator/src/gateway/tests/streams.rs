//! What flows: events, upgrades and bodies, and what happens when one side goes.

use super::*;

#[tokio::test]
async fn events__should_come_as_the_agent_writes_them() {
    let running = Running::start().await;
    let mut stream = running.open("GET /events", "Accept: text/event-stream\r\n").await;
    assert!(head(&mut stream).await.contains("text/event-stream"));
    for number in 0..5 {
        // The agent writes the next one only when it is told to, so nothing can have been held back.
        agent::next_event(running.node.agent).await;
        let mut line = String::new();
        while !line.starts_with("data:") {
            line.clear();
            assert_ne!(stream.read_line(&mut line).await.unwrap(), 0);
        }
        assert_eq!(line.trim(), format!("data: {number}"));
    }
    drop(stream);
    running.node.all_closed().await;
}

#[tokio::test]
async fn upgrade__should_carry_bytes_both_ways() {
    let running = Running::start().await;
    let mut stream = running
        .open("GET /echo", "Connection: Upgrade\r\nUpgrade: anything/1\r\n")
        .await;
    let answer = head(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.contains("upgrade: anything/1"),
        "{answer}"
    );
    let sent: Vec<u8> = (0..30 * MEBIBYTE).map(|at| (at % 251) as u8).collect();
    let mut received = vec![0; sent.len()];
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut received)).unwrap();
    assert!(sent == received);
    drop((reader, writer));
    running.node.all_closed().await;
}

#[tokio::test]
async fn upgrade__should_end_when_the_agent_ends() {
    let running = Running::start().await;
    let mut stream = running
        .open("GET /hello-and-close", "Connection: Upgrade\r\nUpgrade: anything/1\r\n")
        .await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 101"));
    assert_eq!(text(&mut stream).await, "hello");
    drop(stream);
    running.node.all_closed().await;
}

#[tokio::test]
async fn upgrade__should_pass_a_refusal_on() {
    let running = Running::start().await;
    let mut stream = running
        .open("GET /show", "Connection: Upgrade\r\nUpgrade: anything/1\r\n")
        .await;
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("upgrade"), "{answer}");
}

#[tokio::test]
async fn bodies__should_be_streamed_in_full_both_ways() {
    let running = Running::start().await;
    let size = 30 * MEBIBYTE;
    let body = vec![7; size];
    let framed = format!("Connection: close\r\nContent-Length: {size}\r\n");
    let mut stream = running.open("POST /count", &framed).await;
    stream.write_all(&body).await.unwrap();
    let answer = text(&mut stream).await;
    assert!(answer.ends_with(&format!("{size} length")), "{answer}");

    let mut stream = running
        .open("GET /count", "Connection: close\r\nTransfer-Encoding: chunked\r\n")
        .await;
    stream.write_all(b"5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n").await.unwrap();
    let answer = text(&mut stream).await;
    assert!(answer.ends_with("8 chunked"), "{answer}");

    let mut stream = running.open(&format!("GET /give/{size}"), "Connection: close\r\n").await;
    head(&mut stream).await;
    assert_eq!(rest(&mut stream).await.len(), size);
}

#[tokio::test]
async fn request__should_not_be_smuggled_by_two_lengths() {
    let running = Running::start().await;
    let framed = "Connection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    let mut stream = running.open("POST /count", framed).await;
    stream.write_all(b"5\r\nabcde\r\n0\r\n\r\n").await.unwrap();
    let answer = text(&mut stream).await;
    assert!(
        answer.ends_with("5 chunked") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    let framed = "Connection: close\r\nContent-Length: 3\r\nContent-Length: 5\r\n";
    let mut stream = running.open("POST /count", framed).await;
    stream.write_all(b"abcde").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn hang_up__should_end_the_agents_work() {
    let running = Running::start().await;
    // Before the answer began.
    let stream = running.open("GET /silent", "").await;
    running.node.opened(1).await;
    drop(stream);
    running.node.all_closed().await;
    // In the middle of an endless answer that is not read.
    let mut stream = running.open("GET /endless", "").await;
    head(&mut stream).await;
    drop(stream);
    running.node.all_closed().await;
    // In the middle of a request.
    let mut stream = running.open("POST /count", "Content-Length: 1000\r\n").await;
    stream.write_all(b"only this").await.unwrap();
    running.node.opened(3).await;
    drop(stream);
    running.node.all_closed().await;
}
