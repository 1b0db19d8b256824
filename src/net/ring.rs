//! The ring: what this crate asks of io_uring that tokio-uring has no call for, and the one file that names raw pointers.
//!
//! Everything here is safe to call. An operation owns what the kernel reads or writes until it completes: the descriptor,
//! and the buffer or the pool it comes from. Dropping an operation's future does not stop the kernel, so **no operation may
//! be the losing branch of a `select!` or a timeout**: bytes that a dropped [`Recv`] took would be lost, and so would its
//! buffer. End a connection with `shutdown` and then await what is in flight.
//!
//! The runtime hands operations to the kernel only when the thread parks. A task that is always ready would starve all of
//! them without bound, so long work ends its turn with [`yield_through_ring`] and never with `yield_now`.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use io_uring::{cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// Operations queued between two submissions; a full queue submits early.
const SUBMISSION_ENTRIES: u32 = 1_024;
/// Completions may come for every connection at once. The kernel keeps what overflows, but slowly.
const COMPLETION_ENTRIES: u32 = 16_384;

/// A thread's runtime with its ring.
pub struct Ring(tokio_uring::Runtime);

impl Ring {
    /// # Errors
    /// When the kernel refuses a ring: one line that says what to change.
    pub fn new() -> Result<Ring, RingRefused> {
        let mut uring = tokio_uring::uring_builder();
        // Else the kernel interrupts this thread for each operation that completes while it runs: 2,000 connections whose peers
        // were killed cost 26 ms in one pass, most of it these interrupts, and a load of reads 9.8 us a read in place of 7.2. What
        // has completed waits for the thread's next system call, which is the end of the pass; a thread that sleeps is woken.
        uring.setup_cqsize(COMPLETION_ENTRIES).setup_clamp().setup_coop_taskrun();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSION_ENTRIES).uring_builder(&uring);
        tokio_uring::Runtime::new(&builder).map(Ring).map_err(RingRefused)
    }

    /// Runs a future to its end on this thread. Everything below, and [`spawn`], works only inside of it.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(async {
            POOL.set(Some(Rc::new(ReceivePool::new())));
            let output = future.await;
            POOL.set(None);
            output
        })
    }
}

/// The kernel gave no ring.
#[derive(Debug)]
pub struct RingRefused(io::Error);

impl std::error::Error for RingRefused {}

impl std::fmt::Display for RingRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let advice = match self.0.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSYS) => {
                "this kernel has none, or a seccomp profile hides it: use Linux 5.19 or later and allow io_uring_setup, io_uring_enter and io_uring_register"
            }
            Some(Errno::PERM | Errno::ACCESS) => {
                "not permitted: set sysctl kernel.io_uring_disabled=0, or allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
            }
            Some(Errno::NOMEM) => {
                "out of memory for it: raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) or the memory limit of the cgroup"
            }
            Some(Errno::MFILE | Errno::NFILE) => "out of file descriptors: raise the limit (ulimit -n, LimitNOFILE=)",
            _ => "the kernel refused it",
        };
        write!(f, "cannot start io_uring: {advice} ({})", self.0)
    }
}

/// A task on this thread.
pub fn spawn<F: Future + 'static>(task: F) -> tokio::task::JoinHandle<F::Output> {
    tokio_uring::spawn(task)
}

/// Ends the turn of a long piece of work: by the time this completes, the ring has been submitted and every task that was
/// ready has run.
///
/// The kernel's worker for files runs where this thread is pinned, and a scheduler that lets a thread end its slice (EEVDF,
/// seen on Linux 6.18) leaves it waiting for up to a tick at the write and again at the sync of a frame, while this thread has
/// more to do. So it is let in front. Where nobody else wants the core, that is a system call that returns at once.
pub async fn yield_through_ring() {
    Nop::submit().await;
    if AtWorker::any() {
        std::thread::yield_now();
    }
}

thread_local! {
    static AT_WORKER: Cell<u32> = const { Cell::new(0) };
}

/// A file operation of this thread that a worker of the kernel may carry out, until it is dropped.
struct AtWorker(PhantomData<*const ()>);

impl AtWorker {
    fn new() -> AtWorker {
        AT_WORKER.set(AT_WORKER.get() + 1);
        AtWorker(PhantomData)
    }

    fn any() -> bool {
        AT_WORKER.get() > 0
    }
}

impl Drop for AtWorker {
    fn drop(&mut self) {
        AT_WORKER.set(AT_WORKER.get() - 1);
    }
}

/// Hands back what the operation owned, with the kernel's answer.
struct Completed<D>(PhantomData<D>);

impl<D> OneshotOutputTransform for Completed<D> {
    type Output = (cqueue::Entry, D);
    type StoredData = D;

    fn transform_oneshot_output(self, data: D, entry: cqueue::Entry) -> (cqueue::Entry, D) {
        (entry, data)
    }
}

type Operation<D> = InFlightOneshot<D, Completed<D>>;

/// # Safety
/// Every pointer and descriptor in `entry` must stay valid, wherever `data` is moved, for as long as `data` lives; memory
/// that the kernel writes must have no reader until the operation completes.
unsafe fn submit<D>(data: D, entry: squeue::Entry) -> Operation<D> {
    UnsubmittedOneshot::new(data, Completed(PhantomData), entry).submit()
}

fn result(entry: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))
}

/// An operation that does nothing but pass through the kernel.
pub struct Nop(Operation<()>);

impl Nop {
    pub fn submit() -> Nop {
        // SAFETY: the entry names no memory and no descriptor.
        Nop(unsafe { submit((), opcode::Nop::new().build()) })
    }
}

impl Future for Nop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

/// Accepts one client. It must run to its end, or the client that it took is leaked; shut the listening socket down to
/// end it.
pub struct Accept(Operation<Rc<OwnedFd>>);

impl Accept {
    pub fn submit(listener: &Rc<OwnedFd>) -> Accept {
        let entry = opcode::Accept::new(types::Fd(listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut());
        let entry = entry.flags(rustix::net::SocketFlags::CLOEXEC.bits() as i32).build();
        // SAFETY: the operation owns a share of the descriptor; null asks for no address.
        Accept(unsafe { submit(listener.clone(), entry) })
    }
}

impl Future for Accept {
    type Output = io::Result<OwnedFd>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (entry, _listener) = ready!(Pin::new(&mut self.0).poll(context));
        result(&entry)?;
        // SAFETY: a successful accept answers with a new descriptor, and this is the only place that sees the answer.
        Poll::Ready(Ok(unsafe { OwnedFd::from_raw_fd(entry.result()) }))
    }
}

/// Sends a buffer from an offset on. Gives the buffer back with how much of it left.
pub struct Send(Operation<(Rc<OwnedFd>, Vec<u8>)>);

impl Send {
    /// # Panics
    /// When `from` lies behind the end of the buffer.
    pub fn submit(socket: &Rc<OwnedFd>, buffer: Vec<u8>, from: usize) -> Send {
        let bytes = &buffer[from..];
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let flags = rustix::net::SendFlags::NOSIGNAL.bits() | rustix::net::RecvFlags::WAITALL.bits();
        let entry =
            opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length).flags(flags as i32).build();
        // SAFETY: the operation owns the vector, whose heap memory does not move with it, and a share of the descriptor.
        Send(unsafe { submit((socket.clone(), buffer), entry) })
    }
}

impl Future for Send {
    type Output = (io::Result<usize>, Vec<u8>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (entry, (_socket, buffer)) = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready((result(&entry), buffer))
    }
}

/// Writes a buffer from `from` on to a place in a file. Gives the buffer back with how much of it was written.
pub struct Write(Operation<(Rc<OwnedFd>, AlignedBuffer, AtWorker)>);

impl Write {
    /// # Panics
    /// When `from` lies behind the end of the buffer.
    pub fn submit(file: &Rc<OwnedFd>, buffer: AlignedBuffer, from: usize, offset: u64) -> Write {
        let bytes = &buffer[from..];
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), length).offset(offset).build();
        // SAFETY: the operation owns the buffer, whose heap memory does not move with it, and a share of the descriptor.
        Write(unsafe { submit((file.clone(), buffer, AtWorker::new()), entry) })
    }
}

impl Future for Write {
    type Output = (io::Result<usize>, AlignedBuffer);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (entry, (_file, buffer, _)) = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready((result(&entry), buffer))
    }
}

/// Makes what was written to a file durable, with the metadata that reading it back takes (`fdatasync`).
///
/// An operation of its own rather than a write with `RWF_DSYNC`: only so the answer says whether a write was refused or a
/// sync failed, and the kernel finishes such a write on a worker bound to this CPU, which waits when the CPU is busy.
pub struct SyncData(Operation<(Rc<OwnedFd>, AtWorker)>);

impl SyncData {
    pub fn submit(file: &Rc<OwnedFd>) -> SyncData {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the operation owns a share of the descriptor and names no memory.
        SyncData(unsafe { submit((file.clone(), AtWorker::new()), entry) })
    }
}

impl Future for SyncData {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (entry, _) = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(result(&entry).map(drop))
    }
}

/// Bytes that start at a multiple of 4 KiB in memory, as direct writes want them. Its capacity is fixed.
#[derive(Debug)]
pub struct AlignedBuffer {
    /// Made longer than asked for, so that an aligned part can be cut out of it. It never grows: it would move.
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    pub const ALIGNMENT: usize = 4_096;

    pub fn with_capacity(bytes: usize) -> AlignedBuffer {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes + Self::ALIGNMENT);
        let start = memory.as_ptr().addr().next_multiple_of(Self::ALIGNMENT) - memory.as_ptr().addr();
        memory.resize(start, 0);
        AlignedBuffer { memory, start }
    }

    pub fn capacity(&self) -> usize {
        self.memory.capacity() - Self::ALIGNMENT
    }

    pub fn clear(&mut self) {
        self.memory.truncate(self.start);
    }

    /// # Panics
    /// When there is no room.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        assert!(self.memory.len() + bytes.len() <= self.memory.capacity(), "an aligned buffer does not grow");
        self.memory.extend_from_slice(bytes);
    }

    /// Zeros at the end, or less of it.
    ///
    /// # Panics
    /// When there is no room.
    pub fn resize(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity(), "an aligned buffer does not grow");
        self.memory.resize(self.start + bytes, 0);
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

/// Receives into a buffer of this thread's pool, which the kernel picks when bytes are there: waiting costs no buffer.
pub struct Recv {
    operation: Operation<Rc<OwnedFd>>,
    pool: Rc<ReceivePool>,
}

impl Recv {
    pub fn submit(socket: &Rc<OwnedFd>) -> Recv {
        let pool = POOL.with_borrow(Clone::clone).expect("connections live inside Ring::run, which makes the pool");
        let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), std::ptr::null_mut(), BUFFER_BYTES as u32);
        let entry = entry.buf_group(BUFFER_GROUP).build().flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the operation owns a share of the descriptor. The kernel writes into a buffer that was provided to it;
        // those are never freed, and nobody reads one between its provision and this operation's answer.
        Recv { operation: unsafe { submit(socket.clone(), entry) }, pool }
    }
}

impl Future for Recv {
    /// Empty when the peer has ended. `ENOBUFS` when every buffer was taken: see [`replenish`].
    type Output = io::Result<Received>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (entry, _socket) = ready!(Pin::new(&mut self.operation).poll(context));
        // An error or an end may still have picked a buffer; it goes back with the value.
        let id = cqueue::buffer_select(entry.flags());
        let length = result(&entry);
        let received = Received { id, length: *length.as_ref().unwrap_or(&0), pool: self.pool.clone() };
        Poll::Ready(length.map(|_| received))
    }
}

/// Bytes from a socket, in a buffer of the pool until dropped.
pub struct Received {
    id: Option<u16>,
    length: usize,
    pool: Rc<ReceivePool>,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some(id) = self.id else { return &[] };
        // SAFETY: the buffer belongs to this value from the kernel's answer until drop provides it again, the kernel has
        // written `length` bytes of it, and buffers are never freed.
        unsafe { std::slice::from_raw_parts(self.pool.address(id), self.length) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.pool.give_back(id);
        }
    }
}

thread_local! {
    static POOL: RefCell<Option<Rc<ReceivePool>>> = const { RefCell::new(None) };
}

/// h2 reads up to 8 KiB at once.
const BUFFER_BYTES: usize = 8 * 1_024;
const BUFFERS_PER_BLOCK: u16 = 64;
/// 2 MiB a shard, which it keeps once they were needed. Beyond it a connection waits its turn: back-pressure, not memory.
const BUFFERS_MAX: u16 = 256;
/// Buffers given back in one go, so that one provision serves many receives.
const GIVE_BACK_BATCH: usize = 16;
const BUFFER_GROUP: u16 = 0;

/// The receive buffers of this thread.
struct ReceivePool {
    /// Leaked: a shard lives as long as its process, and what the kernel may write into must not be freed before the ring.
    blocks: RefCell<Vec<*mut u8>>,
    returned: RefCell<Vec<u16>>,
    provided: Cell<u16>,
}

impl ReceivePool {
    fn new() -> ReceivePool {
        let pool = ReceivePool { blocks: RefCell::default(), returned: RefCell::default(), provided: Cell::new(0) };
        pool.grow();
        pool
    }

    fn address(&self, id: u16) -> *mut u8 {
        let block = self.blocks.borrow()[usize::from(id / BUFFERS_PER_BLOCK)];
        block.wrapping_add(usize::from(id % BUFFERS_PER_BLOCK) * BUFFER_BYTES)
    }

    fn grow(&self) {
        let first = self.provided.get();
        let block = vec![0; usize::from(BUFFERS_PER_BLOCK) * BUFFER_BYTES].into_boxed_slice();
        self.blocks.borrow_mut().push(Box::leak(block).as_mut_ptr());
        self.provided.set(first + BUFFERS_PER_BLOCK);
        self.provide(first, BUFFERS_PER_BLOCK);
    }

    fn give_back(&self, id: u16) {
        self.returned.borrow_mut().push(id);
        if self.returned.borrow().len() >= GIVE_BACK_BATCH {
            self.flush();
        }
    }

    /// Provides what was given back, neighbours together.
    fn flush(&self) {
        let mut ids = self.returned.borrow_mut();
        ids.sort_unstable();
        let joined = |left: &u16, right: &u16| left + 1 == *right && !right.is_multiple_of(BUFFERS_PER_BLOCK);
        for run in ids.chunk_by(joined) {
            self.provide(run[0], run.len() as u16);
        }
        ids.clear();
    }

    /// The submission queue keeps its order, so a receive that is submitted behind this finds the buffers.
    fn provide(&self, first: u16, count: u16) {
        if tokio::runtime::Handle::try_current().is_err() {
            // The thread's runtime has ended and took its ring along; there is nobody to provide to.
            return;
        }
        let entry =
            opcode::ProvideBuffers::new(self.address(first), BUFFER_BYTES as i32, count, BUFFER_GROUP, first).build();
        // SAFETY: `count` buffers from `first` on lie in one block, which is never freed, and nobody holds any of them:
        // they are new, or the values that held them have been dropped. Nothing depends on the answer: a provision that
        // the kernel refuses shows as ENOBUFS.
        drop(unsafe { submit((), entry) });
    }
}

/// After `ENOBUFS`: provides what has been given back, or more. False when the pool is at its bound and all of it is out;
/// wait with a [`Nop`] then.
pub fn replenish() -> bool {
    let pool = POOL.with_borrow(Clone::clone).expect("connections live inside Ring::run, which makes the pool");
    if !pool.returned.borrow().is_empty() {
        pool.flush();
        return true;
    }
    if pool.provided.get() < BUFFERS_MAX {
        pool.grow();
        return true;
    }
    false
}

/// Wakes a shard from any thread without a lock.
///
/// Whoever rings has put its message into a queue first; whoever waits looks into the queues after [`Doorbell::wait`]
/// returns. Rings while one is unanswered cost one atomic operation and no system call.
#[derive(Clone)]
pub struct Doorbell(Arc<Bell>);

struct Bell {
    descriptor: OwnedFd,
    rung: AtomicBool,
}

impl Doorbell {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Doorbell> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Doorbell(Arc::new(Bell { descriptor, rung: AtomicBool::new(false) })))
    }

    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow, since each wait takes all of it; and a full counter would wake just the same.
            let _ = rustix::io::write(&self.0.descriptor, &1_u64.to_ne_bytes());
        }
    }

    /// Until somebody has rung since the last wait. Await it in a task of its own, to its end: a wait that is dropped
    /// swallows a ring.
    pub async fn wait(&self) {
        let mut count = Box::new([0_u8; 8]);
        let entry = opcode::Read::new(types::Fd(self.0.descriptor.as_raw_fd()), count.as_mut_ptr(), 8).build();
        // SAFETY: the operation owns the box, whose memory does not move with it, and a share of the descriptor.
        let (entry, _) = unsafe { submit((count, self.0.clone()), entry) }.await;
        debug_assert!(result(&entry).is_ok(), "an eventfd is read in eights");
        // Before the caller looks into its queues: a ring from here on writes again.
        self.0.rung.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Folder;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    fn pair() -> (Rc<OwnedFd>, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Rc::new(listener.accept().unwrap().0.into()), far)
    }

    #[test]
    fn a_receive_takes_a_pooled_buffer_and_gives_it_back() {
        Ring::new().unwrap().run(async {
            let (near, mut far) = pair();
            for round in 0..500_u32 {
                far.write_all(&round.to_be_bytes()).unwrap();
                let received = Recv::submit(&near).await.unwrap();
                assert_eq!(received[..], round.to_be_bytes());
            }
            let pool = POOL.with_borrow(Clone::clone).unwrap();
            assert_eq!(pool.provided.get(), BUFFERS_PER_BLOCK);
            drop(far);
            assert!(Recv::submit(&near).await.unwrap().is_empty());
        });
    }

    #[test]
    fn a_pool_that_runs_dry_says_so_and_grows() {
        Ring::new().unwrap().run(async {
            let (near, mut far) = pair();
            let mut held = Vec::new();
            for round in 0..200_u8 {
                far.write_all(&[round]).unwrap();
                let received = loop {
                    match Recv::submit(&near).await {
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(Errno::NOBUFS.raw_os_error()));
                            assert!(replenish());
                        }
                        Ok(received) => break received,
                    }
                };
                held.push(received);
            }
            assert!(held.iter().enumerate().all(|(index, received)| received[..] == [index as u8]));
        });
    }

    #[test]
    fn a_send_leaves_whole() {
        Ring::new().unwrap().run(async {
            let (near, mut far) = pair();
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                far.read_to_end(&mut got).unwrap();
                got.len()
            });
            let (sent, buffer) = Send::submit(&near, vec![7; 3_000_000], 1_000).await;
            assert_eq!((sent.unwrap(), buffer.len()), (2_999_000, 3_000_000));
            rustix::net::shutdown(&*near, rustix::net::Shutdown::Both).unwrap();
            assert_eq!(reader.join().unwrap(), 2_999_000);
        });
    }

    #[test]
    fn a_doorbell_wakes_from_another_thread_and_rings_while_unanswered_are_one() {
        Ring::new().unwrap().run(async {
            let bell = Doorbell::new().unwrap();
            let far = bell.clone();
            let thread = std::thread::spawn(move || {
                for _ in 0..1_000 {
                    far.ring();
                }
                std::thread::sleep(Duration::from_millis(20));
                far.ring();
            });
            let start = Instant::now();
            bell.wait().await;
            bell.wait().await;
            assert!(start.elapsed() < Duration::from_secs(5));
            thread.join().unwrap();
        });
    }

    #[test]
    fn a_worker_is_let_in_front_as_long_as_it_has_something_to_do() {
        Ring::new().unwrap().run(async {
            let directory = Folder::new("worker");
            std::fs::create_dir(&directory.0).unwrap();
            let file = Rc::new(std::fs::File::create(directory.0.join("frame")).unwrap().into());
            let mut frame = AlignedBuffer::with_capacity(8_192);
            frame.resize(8_192);
            assert!(!AtWorker::any());
            let write = super::Write::submit(&file, frame, 0, 0);
            assert!(AtWorker::any());
            let (written, _) = write.await;
            assert_eq!(written.unwrap(), 8_192);
            let sync = SyncData::submit(&file);
            assert!(AtWorker::any());
            sync.await.unwrap();
            assert!(!AtWorker::any());
        });
    }

    #[test]
    fn a_yield_through_the_ring_lets_operations_of_other_tasks_complete() {
        Ring::new().unwrap().run(async {
            let busy = spawn(async {
                loop {
                    yield_through_ring().await;
                }
            });
            let (near, mut far) = pair();
            far.write_all(b"x").unwrap();
            assert_eq!(Recv::submit(&near).await.unwrap()[..], *b"x");
            busy.abort();
        });
    }
}
