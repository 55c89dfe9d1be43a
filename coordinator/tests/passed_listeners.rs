//! Under systemd no connection is refused while the coordinator restarts: systemd holds the listeners
//! and passes them on. Here the test does, through standard input.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command, Stdio},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn restart__should_refuse_no_connection_when_listeners_are_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(any).unwrap();
    let address = listener.local_addr().unwrap();
    let notified = folder.path().join("notify");
    let notify = UnixDatagram::bind(&notified).unwrap();
    notify.set_read_timeout(Some(LIMIT)).unwrap();
    // Ports that were free a moment ago; the API's setting is not used, so it may be any.
    let free = || TcpListener::bind(any).unwrap().local_addr().unwrap().port().to_string();
    let start = || -> Child {
        Command::new(env!("CARGO_BIN_EXE_crabshack"))
            .arg("serve")
            .env_clear()
            .env("CRABSHACK_ADMIN_SECRET", "0123456789abcdef")
            .env("CRABSHACK_DATA_DIR", folder.path().join("data"))
            .env("CRABSHACK_PORT", "1")
            .env("CRABSHACK_UI_PORT", free())
            .env("CRABSHACK_AGENT_LISTEN", format!("127.0.0.1:{}", free()))
            .env("NOTIFY_SOCKET", &notified)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "api")
            .env("LISTEN_FDS_FIRST_FD", "0")
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let told = |word: &str| {
        let mut text = [0; 256];
        let length = notify.recv(&mut text).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]).unwrap().trim_end(), word);
    };
    let ask = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .unwrap();
        stream
    };
    let answered = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    let stop = |mut child: Child| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        told("STOPPING=1");
        assert!(child.wait().unwrap().success());
    };

    let first = start();
    told("READY=1");
    answered(ask());
    stop(first);
    // Nobody serves now, and nobody is refused.
    let waiting = ask();
    let second = start();
    told("READY=1");
    answered(waiting);
    stop(second);

    notify.set_nonblocking(true).unwrap();
    assert_eq!(notify.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
