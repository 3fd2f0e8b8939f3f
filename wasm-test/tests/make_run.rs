//! `make run` leaves no process behind, however it ends. Otherwise the next `make run` would find its ports in use.

use std::path::Path;
use std::process::{Command, Stdio};

use wasm_test::process::{Folder, Process, argument};
use wasm_test::{eventually, repository};

/// Starts these commands like `demo/run.py`, writes their process ids to a file, and then executes the last statement.
const PROGRAM: &str = r#"
import pathlib, signal, sys, threading, time
folder, last, *commands = sys.argv[1:]
sys.path.insert(0, "demo")
import run
run.RUN = pathlib.Path(folder)
processes = run.Processes(threading.Event())
numbers = [str(processes.start(f"program-{index}", command.split()).pid) for index, command in enumerate(commands)]
written = run.RUN / ".numbers"
written.write_text(" ".join(numbers))
written.rename(run.RUN / "numbers")
exec(last)
"#;

async fn numbers(folder: &Folder) -> Vec<String> {
    eventually("the programs run", async || {
        let numbers = folder.read("numbers");
        (!numbers.is_empty()).then(|| numbers.split(' ').map(str::to_owned).collect())
    })
    .await
}

fn runs(number: &str) -> bool {
    Path::new("/proc").join(number).join("exe").exists()
}

/// The kinds of programs in `make run`: a program, a script that executes another one, and a script that waits for others.
const PROGRAMS: [&str; 3] = ["sleep 1000", ".tools/bin/python -c __import__('time').sleep(1000)", "sh -c sleep${IFS}1000"];

#[tokio::test]
async fn the_started_programs_end_with_make_run() {
    for (how, last) in [
        ("killed by SIGKILL", "time.sleep(1000)"),
        ("aborted", "__import__('os').abort()"),
        ("exited without cleanup", "__import__('os')._exit(1)"),
    ] {
        let folder = Folder::new().expect("a folder");
        let path = folder.file(".").canonicalize().expect("a path");
        let arguments = [&["-c", PROGRAM, argument(&path), last], &PROGRAMS[..]].concat();
        let process = Process::start("python", &arguments, &folder).expect("it starts");
        let numbers = numbers(&folder).await;
        assert_eq!(numbers.len(), PROGRAMS.len());
        // Sends SIGKILL if the program still runs.
        drop(process);
        eventually(how, async || (!numbers.iter().any(|number| runs(number))).then_some(())).await;
    }
}

/// Make itself may be killed, too. Its recipe is another process.
#[tokio::test]
async fn make_run_ends_when_make_is_killed() {
    let folder = Folder::new().expect("a folder");
    let path = folder.file(".").canonicalize().expect("a path");
    let program = folder.file("program.py");
    let last = "import os; run.end_with(os.getppid()); signal.pause()";
    std::fs::write(&program, PROGRAM).expect("the program is written");
    let makefile = folder.file("Makefile");
    let python = ".tools/bin/python";
    let recipe = format!("all:\n\t@exec {python} {} {} '{last}' 'sleep 1000'\n", argument(&program), argument(&path));
    std::fs::write(&makefile, recipe).expect("the Makefile is written");
    let mut make = Command::new("make")
        .args(["-f", argument(&makefile)])
        .current_dir(repository())
        .stdout(Stdio::null())
        .spawn()
        .expect("make starts");
    let numbers = numbers(&folder).await;
    make.kill().expect("make is killed");
    make.wait().expect("make has ended");
    eventually("the program ended", async || (!numbers.iter().any(|number| runs(number))).then_some(())).await;
}
