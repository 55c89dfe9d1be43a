//! The images that suites run: the stub, built here, and the real OpenClaw, built by `infra/`.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use bollard::query_parameters::CreateImageOptions;
use futures_util::TryStreamExt as _;

use crate::{command, dockerd::Dockerd};

/// Name of the stub's image.
pub const STUB: &str = "crabshack/stub-agent:1";
const TAR: &str = "stub-agent.tar";

/// The folder cargo builds into, found from where this program lies.
pub fn target_folder() -> anyhow::Result<PathBuf> {
    let profile = profile_folder()?;
    Ok(profile.parent().context("a build folder without a parent")?.to_owned())
}

/// The folder of this program's profile, like `target/debug`.
pub fn profile_folder() -> anyhow::Result<PathBuf> {
    let program = env::current_exe()?;
    let folder = program.parent().context("a program without a folder")?;
    let folder = if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    };
    Ok(folder.to_owned())
}

/// The top of the repository.
pub fn repository() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Runs cargo in the repository, with the same target folder.
pub fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .arg("--quiet")
        .args(arguments)
        .current_dir(repository())
        .env("CARGO_TARGET_DIR", target_folder()?)
        .status()
        .context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// The node agent that a later product would bring, with a recipe that differs.
pub fn changed_agent() -> anyhow::Result<PathBuf> {
    Ok(profile_folder()?.join("crabshack-node-agent-changed"))
}

/// Builds it, and then the node agent as it is again: both builds have the same place.
pub fn build_changed_agent() -> anyhow::Result<()> {
    let built = profile_folder()?.join("crabshack-node-agent");
    let release = built.with_file_name("").ends_with("release");
    let build = |more: &[&str]| {
        let mut arguments = vec!["build", "--locked", "-p", "crabshack-node-agent"];
        arguments.extend(release.then_some("--release"));
        arguments.extend(more);
        cargo(&arguments)
    };
    build(&["--features", "changed-recipe"])?;
    let kept = changed_agent()?;
    // The place may be in use by another suite.
    let new = kept.with_extension("new");
    fs::copy(&built, &new)?;
    fs::rename(new, kept)?;
    build(&[])
}

/// Builds the stub (static, in its own profile) and packs its image, unless the tar is newer.
pub fn build_stub() -> anyhow::Result<PathBuf> {
    cargo(&[
        "rustc",
        "--locked",
        "--profile",
        "stub",
        "-p",
        "crabshack-stub-agent",
        "--bin",
        "crabshack-stub-agent",
        "--",
        "-C",
        "target-feature=+crt-static",
    ])?;
    let target = target_folder()?;
    let program = target.join("stub/crabshack-stub-agent");
    let tar = target.join(TAR);
    let newer = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if newer(&tar).is_none_or(|tar| Some(tar) < newer(&program)) {
        pack(&program, &tar)?;
    }
    Ok(tar)
}

fn pack(program: &Path, tar: &Path) -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    for folder in [
        "usr/local/bin",
        "bin",
        "home/agent",
        "tmp",
        "etc/crabshack",
        "proc",
        "sys",
        "dev",
    ] {
        fs::create_dir_all(at(folder))?;
    }
    fs::copy(program, at("usr/local/bin/crabshack-stub-agent"))?;
    symlink("crabshack-stub-agent", at("usr/local/bin/crabshack-configure"))?;
    symlink("../usr/local/bin/crabshack-stub-agent", at("bin/sh"))?;
    symlink("crabshack-stub-agent", at("usr/local/bin/stub"))?;
    fs::write(at("etc/passwd"), "root:x:0:0::/:/\nagent:x:1000:1000::/home/agent:/\n")?;
    fs::write(at("etc/group"), "root:x:0:\nagent:x:1000:\n")?;
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777))?;
    chown(at("home/agent"), Some(1000), Some(1000))?;
    // Another suite may be reading the old one.
    let new = tar.with_extension("new");
    command::run(&format!(
        "tar --sort=name --mtime=@0 --numeric-owner -C {} -cf {} .",
        root.path().display(),
        new.display()
    ))?;
    Ok(fs::rename(new, tar)?)
}

/// The stub's files.
pub fn stub_tar() -> anyhow::Result<PathBuf> {
    Ok(target_folder()?.join(TAR))
}

/// Imports the stub's image.
pub async fn import_stub(dockerd: &Dockerd) -> anyhow::Result<()> {
    let changes = [
        "USER 1000:1000",
        "ENV HOME=/home/agent",
        r#"ENTRYPOINT ["/usr/local/bin/crabshack-stub-agent"]"#,
    ];
    import(dockerd, &stub_tar()?, STUB, &changes).await
}

/// `docker import` of a tar.
pub async fn import(dockerd: &Dockerd, tar: &Path, name: &str, changes: &[&str]) -> anyhow::Result<()> {
    let (repository, tag) = name.rsplit_once(':').context("an image name without a tag")?;
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repository.to_owned()),
        tag: Some(tag.to_owned()),
        changes: changes.iter().map(|&change| change.to_owned()).collect(),
        ..CreateImageOptions::default()
    };
    let bytes = tokio::fs::read(tar)
        .await
        .with_context(|| format!("{} is missing", tar.display()))?;
    let body = bollard::body_full(bytes.into());
    let progress = dockerd.engine().create_image(Some(options), Some(body), None);
    progress
        .try_collect::<Vec<_>>()
        .await
        .with_context(|| format!("{name} cannot be imported"))?;
    Ok(())
}

/// The real OpenClaw's tar and image settings, as `infra/` builds them (minutes, when not cached).
pub fn build_openclaw() -> anyhow::Result<PathBuf> {
    let script = repository().join("infra/images/openclaw/build.sh");
    writeln!(std::io::stderr(), "building the OpenClaw image's tar, unless it is cached")?;
    let output = Command::new(&script)
        .arg("--tar-only")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{} failed", script.display());
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(
        text.trim().lines().last().context("no path of a tar was printed")?,
    ))
}
