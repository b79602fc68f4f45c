//! The part of protoc's command line that prost-build uses: `-I DIRECTORY -o FILE [--include_imports]
//! [--include_source_info] PROTO...`, written with protox. Other `--` options are accepted and ignored.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut includes, mut files) = (Vec::<PathBuf>::new(), Vec::<PathBuf>::new());
    let (mut output, mut imports, mut source) = (None, false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = |short: &str| -> Result<PathBuf, String> {
            match argument[short.len()..].trim_start_matches('=') {
                "" => arguments.next().map(PathBuf::from).ok_or_else(|| format!("{short} needs a value")),
                joined => Ok(joined.into()),
            }
        };
        if argument.starts_with("-I") {
            includes.push(value("-I")?);
        } else if argument.starts_with("-o") {
            output = Some(value("-o")?);
        } else if argument == "--version" {
            println!("libprotoc 3.21.0 (protox)");
            return Ok(());
        } else if argument == "--include_imports" {
            imports = true;
        } else if argument == "--include_source_info" {
            source = true;
        } else if !argument.starts_with('-') {
            files.push(argument.into());
        }
    }
    // protox knows Google's own files; a directory that is not there was protoc's.
    includes.retain(|directory| directory.is_dir());
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(imports).include_source_info(source).open_files(files)?;
    std::fs::write(output.ok_or("-o is missing")?, compiler.encode_file_descriptor_set())?;
    Ok(())
}
