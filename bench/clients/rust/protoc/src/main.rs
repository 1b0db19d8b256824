//! As much of protoc as prost-build asks for: reads .proto files and writes their descriptors.
//!
//! `protoc --include_imports --include_source_info -o OUTPUT -I INCLUDE ... FILE ...`, and `--version`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protoc: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut output, mut includes, mut files) = (None, Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--version" => {
                println!("libprotoc 31.0");
                return Ok(());
            }
            "--include_imports" | "--include_source_info" | "--experimental_allow_proto3_optional" => {}
            "-o" => output = arguments.next().map(PathBuf::from),
            "-I" => includes.extend(arguments.next().map(PathBuf::from)),
            unknown if unknown.starts_with('-') => return Err(format!("unknown argument {unknown}")),
            file => files.push(PathBuf::from(file)),
        }
    }
    let output = output.ok_or("no -o")?;
    let mut compiler = protox::Compiler::new(includes).map_err(|error| error.to_string())?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files).map_err(|error| error.to_string())?;
    std::fs::write(&output, compiler.encode_file_descriptor_set())
        .map_err(|error| format!("{}: {error}", output.display()))
}
