//! A stop has a beginning (SIGTERM, SIGINT) and a deadline.

use std::{io, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
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
    /// Ends when SIGTERM or SIGINT arrives.
    pub async fn signalled() -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }

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
