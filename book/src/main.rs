//! `make docs`: builds the book in `docs/` into the folder that is named on the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: apexmcp-book FOLDER");
        return ExitCode::from(2);
    };
    match apexmcp_book::build(folder.as_ref()) {
        Ok(()) => {
            println!("open {}", std::path::Path::new(&folder).join("index.html").display());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
