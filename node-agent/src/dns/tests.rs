//! On loopback, with resolvers that the tests play.

use std::time::Duration;

use tokio::{net::TcpStream, task::JoinHandle};

use super::*;

const QUESTION: [u8; 17] = [7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A resolver that answers every question, by UDP and TCP, with so many bytes.
async fn resolver(size: usize) -> SocketAddr {
    let tcp = TcpListener::bind(loopback()).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let answer = move |question: &[u8]| {
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        answer.resize(size, 0xaa);
        answer
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, source) = udp.recv_from(&mut buffer).await.unwrap();
            // A forged number first: it must not be passed on.
            let mut forged = answer(&buffer[..length]);
            forged[0] ^= 0xff;
            udp.send_to(&forged, source).await.unwrap();
            udp.send_to(&answer(&buffer[..length]), source).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let question = tcp::read_message(&mut stream).await.unwrap();
            tcp::write_message(&mut stream, &answer(&question)).await.unwrap();
        }
    });
    address
}

async fn forwarder(upstreams: Vec<SocketAddr>) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let forwarder = bind_at(loopback(), upstreams).await.unwrap();
    let address = forwarder.udp.local_addr().unwrap();
    assert_eq!(address, forwarder.tcp.local_addr().unwrap());
    let stop = CancellationToken::new();
    (address, stop.clone(), tokio::spawn(forwarder.serve(stop)))
}

async fn ask(forwarder: SocketAddr, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(forwarder).await.unwrap();
    socket.send(question).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(Duration::from_secs(8), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer.truncate(length);
    buffer
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    UdpSocket::bind(loopback()).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn forwarder__should_pass_answers_on_in_their_full_size() {
    let (address, stop, serving) = forwarder(vec![resolver(3000).await]).await;
    let answer = ask(address, &QUESTION).await;
    assert_eq!((answer.len(), &answer[..3]), (3000, &[7, 9, 0x81][..]));
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn forwarder__should_answer_many_questions_of_one_connection() {
    let (address, ..) = forwarder(vec![resolver(60_000).await]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    for number in 0..3 {
        let mut question = QUESTION;
        question[1] = number;
        tcp::write_message(&mut stream, &question).await.unwrap();
        let answer = tcp::read_message(&mut stream).await.unwrap();
        assert_eq!((answer.len(), answer[1]), (60_000, number));
    }
}

#[tokio::test]
async fn forwarder__should_ask_the_next_resolver_when_one_is_dead_or_silent() {
    let silent = UdpSocket::bind(loopback()).await.unwrap();
    let (address, ..) = forwarder(vec![nobody().await, silent.local_addr().unwrap(), resolver(40).await]).await;
    assert_eq!(ask(address, &QUESTION).await.len(), 40);
}

#[tokio::test]
async fn forwarder__should_say_failure_when_all_resolvers_are_dead() {
    let (address, ..) = forwarder(vec![nobody().await]).await;
    let answer = ask(address, &QUESTION).await;
    assert_eq!(answer, message::failure(&QUESTION));
    let mut stream = TcpStream::connect(address).await.unwrap();
    tcp::write_message(&mut stream, &QUESTION).await.unwrap();
    assert_eq!(tcp::read_message(&mut stream).await.unwrap(), answer);
}

#[tokio::test]
async fn forwarder__should_drop_what_is_no_question() {
    let (address, ..) = forwarder(vec![resolver(40).await]).await;
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(address).await.unwrap();
    let mut answer = QUESTION;
    answer[2] |= 0x80;
    for noise in [&answer[..], &QUESTION[..11], &[]] {
        socket.send(noise).await.unwrap();
    }
    let mut question = QUESTION;
    question[0] = 42;
    socket.send(&question).await.unwrap();
    let mut buffer = [0; 512];
    // The only answer is to the only question, which came last.
    assert_eq!(socket.recv(&mut buffer).await.unwrap(), 40);
    assert_eq!(buffer[0], 42);
}

#[tokio::test]
async fn bind__should_say_what_to_do_when_the_port_is_taken_or_nobody_can_be_asked() {
    let taken = TcpListener::bind(loopback()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind_at(address, vec![address]).await.unwrap_err();
    assert!(error.to_string().contains("bind-interfaces"), "{error}");
    assert!(matches!(bind_at(loopback(), Vec::new()).await, Err(DnsError::NoUpstream)));
}
