//! A device of the log over the failing disk, which writes, syncs and answers when it is told to.

use std::cell::RefCell;
use std::rc::Rc;

use crate::net::ring::AlignedBuffer;
use crate::sim::disk::{FakeFile, SECTOR_BYTES};
use crate::wal::LogFailure;
use crate::wal::disk::DiskFile;
use crate::wal::log::Device;

#[derive(Clone, Default)]
pub struct FakeDevice(Rc<RefCell<Flight>>);

#[derive(Default)]
enum Flight {
    #[default]
    Nothing,
    Submitted(Rc<FakeFile>, u64, AlignedBuffer),
    Written(Rc<FakeFile>, AlignedBuffer),
    Done(Result<(), LogFailure>, AlignedBuffer),
}

impl FakeDevice {
    pub fn advance(&self) {
        let flight = self.0.take();
        *self.0.borrow_mut() = match flight {
            Flight::Submitted(file, offset, buffer) => match file.write_at(offset, &buffer) {
                Ok(()) => Flight::Written(file, buffer),
                Err(error) => Flight::Done(Err(LogFailure::of_write(error)), buffer),
            },
            Flight::Written(file, buffer) => Flight::Done(file.sync_data().map_err(LogFailure::Broken), buffer),
            other => other,
        };
    }
}

impl Device for FakeDevice {
    type Segment = FakeFile;

    fn submit(&mut self, segment: &Rc<FakeFile>, offset: u64, mut frame: AlignedBuffer, filled: usize) {
        frame.resize(filled.next_multiple_of(SECTOR_BYTES));
        let before = self.0.replace(Flight::Submitted(segment.clone(), offset, frame));
        assert!(matches!(before, Flight::Nothing), "one frame at a time");
    }

    fn poll(&mut self) -> Option<(Result<(), LogFailure>, AlignedBuffer)> {
        match self.0.take() {
            Flight::Done(result, buffer) => Some((result, buffer)),
            other => {
                *self.0.borrow_mut() = other;
                None
            }
        }
    }
}
