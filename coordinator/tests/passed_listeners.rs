//! Under systemd nobody is refused while the coordinator restarts: systemd holds the listeners
//! and passes them on. Here the test does, through standard input.

#![expect(clippy::unwrap_used, reason = "what a test needs beside its functions may panic as they do")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// What systemd is to the coordinator.
struct Manager {
    folder: TempDir,
    listener: TcpListener,
    notify: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            folder,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            notify,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Until it is ready.
    fn start(&self) -> Child {
        // Ports that were free a moment ago; the API's setting is not used, so it may be any.
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port().to_string()
        };
        let child = Command::new(env!("CARGO_BIN_EXE_crabshack"))
            .arg("serve")
            .env_clear()
            .env("CRABSHACK_ADMIN_SECRET", "0123456789abcdef")
            .env("CRABSHACK_DATA_DIR", self.folder.path().join("data"))
            .env("CRABSHACK_PORT", "1")
            .env("CRABSHACK_UI_PORT", free())
            .env("CRABSHACK_AGENT_LISTEN", format!("127.0.0.1:{}", free()))
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "api")
            .env("LISTEN_FDS_FIRST_FD", "0")
            .stdin(Stdio::from(OwnedFd::from(self.listener.try_clone().unwrap())))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.told("READY=1");
        child
    }

    fn told(&self, word: &str) {
        let mut text = [0; 256];
        let length = self.notify.recv(&mut text).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]).unwrap().trim_end(), word);
    }

    fn stop(&self, mut child: Child) {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.told("STOPPING=1");
        assert!(child.wait().unwrap().success());
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(mut stream: TcpStream) -> TcpStream {
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    stream
}

fn answered(mut stream: TcpStream) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn restart__should_let_connections_wait_when_listeners_are_passed_on() {
    let manager = Manager::new();
    let first = manager.start();
    answered(ask(connect(manager.address())));
    manager.stop(first);
    // Nobody serves now, and nobody is refused.
    let waiting = ask(connect(manager.address()));
    let second = manager.start();
    answered(waiting);
    manager.stop(second);
    manager.notify.set_nonblocking(true).unwrap();
    assert_eq!(manager.notify.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Callers connect, hesitate for as long as it takes to be accepted by a process that is told to stop, and ask.
#[test]
fn restarts__should_answer_every_request() {
    const RESTARTS: usize = 30;
    let manager = Manager::new();
    let address = manager.address();
    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let mut child = manager.start();
        let callers: Vec<_> = (0..6)
            .map(|caller| {
                let (over, answers) = (&over, &answers);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let stream = connect(address);
                        thread::sleep(Duration::from_millis(caller * 4));
                        answered(ask(stream));
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for restart in 0..RESTARTS {
            let before = answers.load(Ordering::Relaxed);
            while answers.load(Ordering::Relaxed) < before + 20 && callers.iter().any(|caller| !caller.is_finished()) {
                thread::sleep(Duration::from_micros(700 + 130 * restart as u64));
            }
            manager.stop(child);
            child = manager.start();
        }
        over.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().unwrap();
        }
        manager.stop(child);
    });
}
