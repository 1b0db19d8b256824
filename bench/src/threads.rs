//! Threads of the load, each with an event loop of its own.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::task::LocalSet;

use crate::fault::{Fault, Result};
use crate::process;

/// The event loop of one thread.
pub fn event_loop() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|cause| Fault::Refused(format!("no event loop: {cause}")))
}

/// A thread of this name.
pub fn spawn<T: Send + 'static>(name: String, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let spawned = std::thread::Builder::new().name(name).spawn(body);
    spawned.map_err(|cause| Fault::Refused(format!("no thread for the load: {cause}")))
}

/// As [`on_thread`], for a client that stands for one on another machine.
pub fn on_preferred_thread<T, F>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<oneshot::Receiver<Result<T>>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    on_thread(name, || {
        // The report says how far that is allowed.
        process::prefer_this_thread();
        work()
    })
}

/// Runs `work` on a thread with an event loop of its own.
pub fn on_thread<T, F>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> Result<oneshot::Receiver<Result<T>>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (sender, receiver) = oneshot::channel();
    spawn(name.to_owned(), move || {
        let outcome = event_loop().and_then(|runtime| LocalSet::new().block_on(&runtime, work()));
        // Nobody listens any more after another part has failed.
        let _ = sender.send(outcome);
    })?;
    Ok(receiver)
}

/// What came of it.
pub async fn finished<T>(answer: impl Future<Output = std::result::Result<Result<T>, RecvError>>) -> Result<T> {
    answer.await.map_err(|_| Fault::Refused("a load thread panicked".to_owned()))?
}
