//! A stop has a beginning (SIGTERM, SIGINT) and a deadline.

use std::{io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tells every task to end, and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled when the process should end.
    pub token: CancellationToken,
    /// Every long-lived task is spawned here.
    pub tasks: TaskTracker,
}

impl Shutdown {
    /// Spawns a task that ends by itself once the token is cancelled.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Cancels the token and waits at most that long for the tasks. False: some did not end.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

/// SIGTERM and SIGINT. From its making on neither ends the process by itself, and none is missed.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Make it before anybody is served, inside the runtime.
    ///
    /// # Errors
    /// When the kernel does not take the handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ends when one of them arrives, or has since the last time.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
