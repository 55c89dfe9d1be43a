//! What a tenant can do inside an instance with programs that it brings along.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use bollard::{container::LogOutput, exec::StartExecResults, models::ExecConfig};
use futures_util::TryStreamExt as _;

use crate::{
    cluster::{Cluster, Who},
    command, engine, must,
};

/// In the home; the stub's image has no libraries of its own.
const FOLDER: &str = "brought";
/// Where the home is inside.
const HOME: &str = "/home/agent";

/// What a program said, and its exit code.
#[derive(Debug)]
pub struct Said {
    /// 0: it did what it should.
    pub code: i64,
    /// Both outputs.
    pub text: String,
}

/// Copies programs of this machine, with their libraries, into a home.
pub fn bring(home: &Path, programs: &[&str]) -> anyhow::Result<()> {
    let folder = home.join(FOLDER);
    fs::create_dir_all(&folder)?;
    for name in programs {
        let program = must::program(&[name]).with_context(|| format!("`{name}` is not installed"))?;
        let linked = command::run(&format!("ldd {}", program.display()))?;
        let libraries = linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from);
        for file in libraries.chain([program]) {
            let copy = folder.join(file.file_name().context("a program without a name")?);
            fs::copy(&file, &copy)?;
            chown(copy, Some(1000), Some(1000))?;
        }
    }
    Ok(())
}

/// Runs a brought program inside, as the tenant, in its home.
pub async fn run(cluster: &Cluster<'_>, id: &str, arguments: &[&str]) -> anyhow::Result<Said> {
    let (program, arguments) = arguments.split_first().context("no program")?;
    let home = cluster.data(Who::NodeAgent).join("instances").join(id).join("home");
    let loader = fs::read_dir(home.join(FOLDER))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| name.starts_with("ld-linux"))
        .context("no loader was brought")?;
    let brought = format!("{HOME}/{FOLDER}");
    let mut line = vec![format!("{brought}/{loader}"), "--library-path".to_owned(), brought.clone()];
    line.push(format!("{brought}/{program}"));
    line.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let docker = cluster.machine.dockerd.engine();
    let container = engine::container(docker, id).await?.id.context("a container without an id")?;
    let config = ExecConfig {
        cmd: Some(line),
        working_dir: Some(HOME.to_owned()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let exec = docker.create_exec(&container, config).await?.id;
    let StartExecResults::Attached { output, .. } = docker.start_exec(&exec, None).await? else {
        anyhow::bail!("the program's output is not given");
    };
    let output: Vec<LogOutput> = output.try_collect().await?;
    let text = output.iter().map(ToString::to_string).collect();
    let ended = docker.inspect_exec(&exec).await?;
    ensure!(ended.running != Some(true), "it runs on");
    let code = ended.exit_code.context("no exit code")?;
    Ok(Said { code, text })
}
