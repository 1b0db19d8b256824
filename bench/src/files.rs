//! The folder of a report and the files in it.

use std::fs;
use std::path::Path;

use crate::fault::{Fault, Result};

/// The folder of a report, and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    let refused = |cause| Fault::Refused(format!("{} cannot be made: {cause}", folder.display()));
    fs::create_dir_all(folder).map_err(refused)
}

/// The same, and whether a file can be written there: a folder that cannot be used costs no hour of measuring. What lies in it
/// stays as it is.
pub fn prepare_folder(folder: &Path) -> Result<()> {
    make_folder(folder)?;
    let refused = |cause| Fault::Refused(format!("nothing can be written into {}: {cause}", folder.display()));
    let trial = folder.join("trial.part");
    fs::write(&trial, "").and_then(|()| fs::remove_file(&trial)).map_err(refused)
}

/// Whole or not at all: a run that is stopped while it writes leaves the last report.
pub fn write_file(path: &Path, text: &str) -> Result<()> {
    let refused = |cause| Fault::Refused(format!("{} cannot be written: {cause}", path.display()));
    let beside = path.with_extension("part");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_tried_without_a_trace() {
        let folder = std::env::temp_dir().join(format!("tarsier-bench-{}-files", std::process::id()));
        prepare_folder(&folder).unwrap();
        write_file(&folder.join("report.md"), "figures").unwrap();
        prepare_folder(&folder).unwrap();
        let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["report.md"]);
        let inside = prepare_folder(&folder.join("report.md")).unwrap_err().to_string();
        assert!(inside.contains("report.md cannot be made"), "{inside}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
