//! How the services lead the courses of Lock and Election through their steps.
//!
//! A course that waits is a row in [`Awaited`] and nothing else: its call is not looked at until a change names it.

use bytes::Bytes;

use crate::backend::{Command, Reply};
use crate::grpc::status::Status;
use crate::net::{CallId, Output};
use crate::service::{Asked, Services, Unary};

use super::Recipe;
use super::awaited::Awaited;
use super::course::{self, Around, Begun, Course, Gone, Next};

/// What became of a change that was to be told.
pub enum Telling {
    /// Nobody waits for what was shown so far.
    Nothing,
    /// One call was told. It is named when it has something to send.
    Call(Option<CallId>),
}

impl Services {
    pub(in crate::service) fn begin_recipe(
        &mut self,
        handle: u32,
        recipe: Recipe,
        message: Bytes,
    ) -> Result<Asked, Status> {
        Ok(Asked::Backend(match course::begin(recipe, message, &self.limits)? {
            Begun::Single(command) => command,
            Begun::Course(course, command) => {
                self.request_bytes += course.bytes();
                self.calls[handle as usize].state = Unary::Course(Box::new(course));
                command
            }
        }))
    }

    /// Runs one step of a course, and does what it says next. Names the call when it has something to send.
    pub(in crate::service) fn step(
        &mut self,
        handle: u32,
        run: impl FnOnce(&mut Course, Around<'_>) -> Next,
    ) -> Option<CallId> {
        let call = &mut self.calls[handle as usize];
        let Unary::Course(course) = &mut call.state else { unreachable!("only a course has steps") };
        let around = Around { identity: self.identity, limits: &self.limits, announcer: &self.announcer };
        self.request_bytes -= course.bytes();
        let next = run(course, around);
        self.request_bytes += course.bytes();
        if !matches!(next, Next::Wait) {
            self.awaited.remove(handle);
        }
        match next {
            Next::Wait | Next::Pause => {}
            Next::Ask(command) => self.ask(handle, command),
            Next::Follow => {
                let following = course.following().clone();
                if following.at >= self.awaited.shown() {
                    self.awaited.insert(handle, following.place, following.at);
                } else {
                    self.ask(handle, Command::History { from: following.at.next() });
                }
            }
            Next::Answer(message) => self.end_course(handle, Unary::Short(message)),
            Next::Refuse(status) => self.end_course(handle, Unary::Failed(status)),
        }
        let call = &self.calls[handle as usize];
        let has_output = match &call.state {
            Unary::Course(course) => course.has_output(),
            _ => true,
        };
        has_output.then_some(call.id)
    }

    fn end_course(&mut self, handle: u32, state: Unary) {
        let state = std::mem::replace(&mut self.calls[handle as usize].state, state);
        if let Unary::Course(course) = state {
            self.request_bytes -= course.bytes();
        }
    }

    fn ask(&mut self, handle: u32, command: Command) {
        self.calls[handle as usize].under_way += 1;
        self.asked.push_back((handle, command));
    }

    /// What the courses ask of the backend, with the call whose reply it is.
    pub fn next_command(&mut self) -> Option<(u32, Command)> {
        self.asked.pop_front()
    }

    /// Those who wait for keys, who are to be shown every batch.
    pub fn awaited(&mut self) -> &mut Awaited {
        &mut self.awaited
    }

    pub fn has_tellings(&self) -> bool {
        self.awaited.has_next()
    }

    /// Tells one call of one change.
    pub fn tell_next(&mut self) -> Telling {
        let Some(told) = self.awaited.next_told() else {
            self.announcer.forget();
            return Telling::Nothing;
        };
        Telling::Call(self.step(told.handle, |course, around| course.told(&told.batch, told.index, around)))
    }

    pub(in crate::service) fn course_output(&mut self, handle: u32, bytes_max: usize) -> Output {
        let mut output = Output::Nothing;
        self.step(handle, |course, _| {
            let next;
            (output, next) = course.output(bytes_max);
            next
        });
        if matches!(output, Output::End(_)) {
            self.end_course(handle, Unary::Abandoned);
            self.free(handle);
        }
        output
    }

    /// The peer of a course has gone.
    pub(in crate::service) fn course_closed(&mut self, handle: u32, course: Box<Course>) {
        self.awaited.remove(handle);
        let gone = course.gone(&self.limits);
        self.leave(handle, course, gone);
    }

    /// A reply to a course that goes on though its peer has gone.
    pub(in crate::service) fn course_left(&mut self, handle: u32, mut course: Box<Course>, reply: Reply) {
        self.request_bytes -= course.bytes();
        let around = Around { identity: self.identity, limits: &self.limits, announcer: &self.announcer };
        let gone = course.left(reply, around);
        self.request_bytes += course.bytes();
        self.leave(handle, course, gone);
    }

    fn leave(&mut self, handle: u32, course: Box<Course>, gone: Gone) {
        let state = match gone {
            Gone::AfterReply(command) => {
                if let Some(command) = command {
                    self.ask(handle, command);
                }
                Unary::Left(course)
            }
            Gone::Leave(command) => {
                self.request_bytes -= course.bytes();
                self.ask(handle, command);
                Unary::Abandoned
            }
            Gone::Nothing => {
                self.request_bytes -= course.bytes();
                Unary::Abandoned
            }
        };
        self.calls[handle as usize].state = state;
        self.free_if_abandoned(handle);
    }
}
