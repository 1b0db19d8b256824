//! The folder of a report and the files in it.

use std::fs;
use std::path::Path;

use crate::fault::{Fault, Result};

/// The folder of a report, and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    let refused = |cause| Fault::Refused(format!("{} cannot be made: {cause}", folder.display()));
    fs::create_dir_all(folder).map_err(refused)
}

/// Whole or not at all: a run that is stopped while it writes leaves the last report.
pub fn write_file(path: &Path, text: &str) -> Result<()> {
    let refused = |cause| Fault::Refused(format!("{} cannot be written: {cause}", path.display()));
    let beside = path.with_extension("part");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(refused)
}
