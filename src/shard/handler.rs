//! What connections ask of their shard: calls begin, messages come in, output goes out.

use std::net::SocketAddr;

use bytes::Bytes;
use http::request::Parts as PageRequest;

use crate::grpc::frame::whole_messages;
use crate::grpc::status::Status;
use crate::net::{CallHead, CallId, CallKind, Door, Handler, Intake, Opened, Output, Page};
use crate::service::errors::Refusal;
use crate::service::lease::LeaseMethod;
use crate::service::{Method, Route, Services, method_number, watch};
use crate::watch::foresight::{FORESIGHT, Foreseen};
use crate::watch::hub::StreamId;

use super::{CALLS_WITHOUT_MEMORY, CONNECTION_BYTES, Shard, WATCH_HANDLE, clock};

impl Handler for Shard {
    fn has_room(&self) -> bool {
        let admits = || self.connection_bytes() + CONNECTION_BYTES <= self.connection_bytes_max.get();
        // A burst of connections comes between two turns, and the bound is what the last turn knew.
        admits() || {
            self.look_at_budget(&mut self.core.borrow_mut());
            admits()
        }
    }

    fn open(&self, call: CallId, head: &CallHead<'_>) -> Result<Opened, Status> {
        let route = Route::of(head.path)?;
        Services::admit(head)?;
        let number = method_number(head.path).expect("a method that is served is in the table");
        let core = &mut *self.core.borrow_mut();
        Ok(match route {
            Route::Unary(method)
                if (method.kind() == CallKind::LongAnswer || head.calls >= CALLS_WITHOUT_MEMORY)
                    && !self.admits_stream(core) =>
            {
                return Err(Refusal::NoCallMemory.into());
            }
            Route::Unary(method) => {
                let handle = core.services.open(call, method);
                // How long a client waits for a lock, or keeps leases alive, says nothing about how fast it is answered.
                let is_lasting =
                    method.kind() == CallKind::LongAnswer || method == Method::Lease(LeaseMethod::KeepAlive);
                if !is_lasting {
                    core.meter.call_opened(handle, call.connection, number, clock::now());
                }
                Opened { kind: method.kind(), handle, method: number }
            }
            Route::Watch if !self.admits_stream(core) => return Err(Refusal::NoStreamMemory.into()),
            Route::Watch => {
                let stream = core.hub.open_stream(u64::from(call.connection) << 32 | u64::from(call.stream));
                Opened { kind: CallKind::RequestStream, handle: stream.0 | WATCH_HANDLE, method: number }
            }
        })
    }

    fn message(&self, call: CallId, handle: u32, message: Bytes) -> Intake {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            let kept = core.services.kept_of_request(handle, message.len());
            if kept > 0 && !self.admits_request(core, kept) {
                core.services.refuse(handle, Refusal::NoCallMemory);
                self.call_answered(core, handle, clock::now());
                return Intake::Continue;
            }
            match core.services.request(handle, message) {
                Some(command) => self.send(core, handle, command),
                None => self.call_answered(core, handle, clock::now()),
            }
            return if core.services.can_take_requests(handle) { Intake::Continue } else { Intake::Pause };
        }
        self.watch_request(core, call, StreamId(handle & !WATCH_HANDLE), &message)
    }

    fn foresee(&self, handle: u32, chunk: &[u8]) -> usize {
        let core = &*self.core.borrow();
        if handle & WATCH_HANDLE == 0 || !core.hub.gains_by_foresight() {
            return usize::MAX;
        }
        let mut ranges = [Foreseen::default(); FORESIGHT];
        let (mut messages, mut count) = (0, 0);
        for message in whole_messages(chunk).take(FORESIGHT) {
            messages += 1;
            if let Some(range) = watch::foreseen(message) {
                ranges[count] = range;
                count += 1;
            }
        }
        core.hub.foresee(&ranges[..count]);
        messages
    }

    fn can_take_requests(&self, _call: CallId, handle: u32) -> bool {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            return core.services.can_take_requests(handle);
        }
        // A watch stream that is about to end with a status hears nothing more.
        !core.ending.contains_key(&handle) && core.hub.can_take_requests(StreamId(handle & !WATCH_HANDLE))
    }

    fn end_of_requests(&self, _call: CallId, handle: u32) {
        // A watch stream that its client has half-closed goes on, as in etcd: an HTTP gateway sends one create request and
        // then only listens.
        if handle & WATCH_HANDLE == 0 {
            self.core.borrow_mut().services.end_of_requests(handle);
        }
    }

    fn output(&self, call: CallId, handle: u32, bytes_max: usize) -> Output {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            let was_paused = !core.services.can_take_requests(handle);
            let output = core.services.output(handle, bytes_max);
            // What was paused because its answers were not taken is heard again.
            if was_paused && matches!(output, Output::Bytes(_)) {
                self.ready.ready(call);
            }
            if let Some(command) = core.services.next_part(handle) {
                self.send(core, handle, command);
            }
            self.send_next_commands(core);
            return output;
        }
        let stream = StreamId(handle & !WATCH_HANDLE);
        if let Some(bytes) = core.hub.take_output(stream, bytes_max) {
            if core.hub.is_due() {
                self.wake();
            }
            return Output::Bytes(bytes);
        }
        match core.ending.remove(&handle) {
            Some(status) => {
                self.close_stream(core, stream);
                Output::End(status)
            }
            None => Output::Nothing,
        }
    }

    fn closed(&self, _call: CallId, handle: u32) {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            core.meter.call_closed(handle);
            core.services.closed(handle);
            self.send_next_commands(core);
            if core.services.has_work() {
                self.wake();
            }
            return;
        }
        core.ending.remove(&handle);
        self.close_stream(core, StreamId(handle & !WATCH_HANDLE));
    }

    fn page(&self, door: Door, peer: SocketAddr, request: PageRequest) -> Page {
        let shard = self.itself.upgrade().expect("whoever calls it holds it");
        Box::pin(shard.answer_page(door, peer, request))
    }
}
