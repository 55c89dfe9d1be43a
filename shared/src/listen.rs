//! Listeners that stay open while a daemon restarts: systemd holds them and passes them on, so that
//! a client waits instead of being refused. Without systemd nothing here does anything.

use std::{
    collections::HashMap,
    env, io,
    net::{SocketAddr, TcpListener},
    sync::{Mutex, PoisonError},
};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The listeners that were passed to this process, by their names in the socket units.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<HashMap<String, TcpListener>>);

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    /// Where connections wait.
    pub socket: TcpListener,
    /// Somebody else holds it open too: what waits in it is for the next process.
    pub is_held: bool,
}

impl Listener {
    /// Where it really listens: a passed one need not be where the settings say.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl From<TcpListener> for Listener {
    /// One that ends with this process.
    fn from(socket: TcpListener) -> Self {
        Self { socket, is_held: false }
    }
}

impl Inherited {
    /// Takes them over, once. Call it before threads are started: it reads and clears the environment.
    ///
    /// # Errors
    /// When something that was passed is not a TCP listener.
    pub fn take() -> io::Result<Self> {
        // Before the descriptors: taking those clears the environment.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut listeners = HashMap::new();
        for (index, name) in names_of(&names, passed.len()).into_iter().enumerate() {
            if let Some(listener) = passed.take_tcp_listener(index)? {
                listeners.insert(name, listener);
            }
        }
        Ok(Self(Mutex::new(listeners)))
    }

    /// The listener of that name, or one that is bound to the address now.
    ///
    /// # Errors
    /// When none was passed and the address cannot be listened on.
    pub fn listener(&self, name: &str, address: SocketAddr) -> io::Result<Listener> {
        let passed = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        match passed {
            Some(socket) => Ok(Listener { socket, is_held: true }),
            None => TcpListener::bind(address).map(Listener::from),
        }
    }
}

/// A name for each descriptor; one that has none is named by its place, which nobody asks for.
fn names_of(names: &str, count: usize) -> Vec<String> {
    let mut given = names.split(':').filter(|name| !name.is_empty());
    (0..count)
        .map(|index| given.next().map_or_else(|| index.to_string(), str::to_owned))
        .collect()
}

/// Tells systemd that everything is served.
pub fn ready() {
    tell(&NotifyState::Ready);
}

/// Tells systemd that the end has begun.
pub fn stopping() {
    tell(&NotifyState::Stopping);
}

/// Tells systemd that the process still works, for units with `WatchdogSec=`.
pub fn alive() {
    tell(&NotifyState::Watchdog);
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!("systemd cannot be told `{state}`: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names__should_go_with_the_descriptors_in_order() {
        assert_eq!(names_of("api:ui:agents", 3), ["api", "ui", "agents"]);
        assert_eq!(names_of("", 2), ["0", "1"]);
        assert_eq!(names_of("api", 2), ["api", "1"]);
        assert!(names_of("api:ui", 0).is_empty());
    }

    #[test]
    fn listener__should_be_the_passed_one_once_and_a_new_one_otherwise() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let passed = TcpListener::bind(any).unwrap();
        let address = passed.local_addr().unwrap();
        let inherited = Inherited(Mutex::new(HashMap::from([("api".to_owned(), passed)])));
        let listener = |name| {
            let listener = inherited.listener(name, any).unwrap();
            (listener.address().unwrap() == address, listener.is_held)
        };
        assert_eq!(listener("ui"), (false, false));
        assert_eq!(listener("api"), (true, true));
        assert_eq!(listener("api"), (false, false));
    }
}
