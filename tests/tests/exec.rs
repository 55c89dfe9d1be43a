//! Commands in instances: what a client asks, types and hears, and what is left when somebody goes.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Client, stub},
    cluster::{Cluster, Who},
    exec::{Exec, Heard},
    machine::Machine,
    measure::exec::bytes_lost,
    must::{self, PATIENCE, become_true},
    suite,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// What ends at once.
const AT_ONCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("plain__should_keep_streams_apart_and_end_with_the_code", plain);
        suite.test("terminal__should_have_its_size_and_follow_it", terminal);
        suite.test("command__should_gain_nothing", gains_nothing);
        suite.test("bulk__should_pass_without_loss_and_wait_for_slow_readers", bulk);
        suite.test("client__should_take_its_command_with_it", client_goes);
        suite.test("command__should_end_with_what_it_hangs_on", revocation);
        suite.test("node_agent__should_close_cleanly_and_leave_nothing", node_agent_dies);
        suite.test("requests__should_be_refused_in_words", refusals);
        suite.test("limits__should_be_kept", limits);
        suite.test("history__should_tell_who_ran_what", history);
    })
}

fn tool(words: &[&str]) -> Value {
    let command = [&["stub"], words].concat();
    json!({"command": command})
}

async fn plain(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("plain")).await?;
        let both = Exec::run(client, "plain", &tool(&["both"])).await?;
        ensure!(
            both.code()? == 0 && both.stdout == b"to stdout" && both.stderr == b"to stderr",
            "{both:?}"
        );
        for code in [1, 42, 255] {
            let ended = Exec::run(client, "plain", &tool(&["exit", &code.to_string()])).await?;
            ensure!(ended.code()? == code, "{ended:?}");
        }
        let mut cat = Exec::started(client, "plain", &tool(&["cat"])).await?;
        cat.sender.stdin(b"one ").await?;
        ensure!(cat.receiver.stdout(4).await? == b"one ");
        cat.sender.stdin(b"two").await?;
        cat.sender.say(&json!({"type": "stdin_end"})).await?;
        let rest = cat.receiver.rest().await?;
        ensure!(rest.code()? == 0 && rest.stdout == b"two", "{rest:?}");
        // A command that is not there, and a folder that is not, are told as a shell tells them.
        let unknown = Exec::run(client, "plain", &json!({"command": ["no-such-program"]})).await?;
        ensure!(unknown.code()? == 127, "{unknown:?}");
        ensure!(
            String::from_utf8_lossy(&unknown.stdout).contains("no-such-program"),
            "{unknown:?}"
        );
        let request = json!({"command": ["stub", "both"], "workdir": "/no/such/folder"});
        let nowhere = Exec::run(client, "plain", &request).await?;
        ensure!([126, 127].contains(&nowhere.code()?), "{nowhere:?}");
        // The image has a shell that does nothing.
        let shell = Exec::run(client, "plain", &json!({})).await?;
        ensure!(shell.code()? != 0, "{shell:?}");
        Ok(())
    })
    .await
}

async fn terminal(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("screen")).await?;
        let mut request = tool(&["size"]);
        for (key, value) in [("tty", json!(true)), ("rows", json!(31)), ("cols", json!(101))] {
            request[key] = value;
        }
        let mut size = Exec::started(client, "screen", &request).await?;
        shows(&mut size, "31 101").await?;
        size.sender.say(&json!({"type": "resize", "rows": 40, "cols": 132})).await?;
        shows(&mut size, "40 132").await?;
        size.sender.say(&json!({"type": "stdin_end"})).await?;
        ensure!(size.receiver.rest().await?.code()? == 0);
        // What looks like the engine's framing is a terminal's output like any other.
        let mut request = tool(&["cat"]);
        request["tty"] = json!(true);
        let mut cat = Exec::started(client, "screen", &request).await?;
        cat.sender.stdin(b"\x01\x01\n").await?;
        let echoed = cat.receiver.stdout_with("\x01\x01\r\n").await?;
        cat.sender.stdin(b"more\n").await?;
        cat.receiver
            .stdout_with("more")
            .await
            .with_context(|| format!("after {echoed:?}"))?;
        // Ctrl-C.
        cat.sender.stdin(b"\x03").await?;
        let ended = cat.receiver.rest().await?;
        ensure!(ended.code()? == 130, "{ended:?}");
        Ok(())
    })
    .await
}

/// Types lines until one is answered by this size, which goes another way than what is typed.
async fn shows(size: &mut Exec, wanted: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut shown = String::new();
    while !shown.contains(wanted) {
        ensure!(began.elapsed() < PATIENCE, "no `{wanted}` but {shown:?}");
        size.sender.stdin(b"\n").await?;
        shown.push_str(&size.receiver.stdout_with("\r\n").await?);
    }
    Ok(())
}

async fn gains_nothing(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("mere")).await?;
        let own = client.get("/gateway/mere/env").await?.success()?;
        let mut request = tool(&["who"]);
        request["env"] = json!({"MORE": "a=b c"});
        request["workdir"] = json!("/tmp");
        request["user"] = json!("agent");
        let who = Exec::run(client, "mere", &request).await?;
        let who: Value = serde_json::from_slice(&who.stdout).with_context(|| format!("{who:?}"))?;
        for key in [
            "uid",
            "gid",
            "capabilities",
            "bounding_capabilities",
            "no_new_privileges",
            "seccomp",
        ] {
            ensure!(who[key] == own[key] && who[key].is_string(), "{key}: {who} instead of {own}");
        }
        ensure!(
            who["uid"] == "1000\t1000\t1000\t1000" && who["capabilities"] == "0000000000000000",
            "{who}"
        );
        ensure!(who["folder"] == "/tmp" && who["environment"]["MORE"] == "a=b c", "{who}");
        Ok(())
    })
    .await
}

async fn bulk(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("bulk")).await?;
        ensure!(bytes_lost(cluster, "bulk", 20 << 20).await? == 0);
        // Somebody who does not read: the command waits, and nothing grows.
        let size = 300 << 20;
        let mut before = Vec::new();
        for who in Who::ALL {
            before.push(cluster.process(who)?.resident_mebibytes()?);
        }
        let mut pour = Exec::started(&cluster.client, "bulk", &tool(&["pour", &size.to_string()])).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for (who, before) in Who::ALL.into_iter().zip(before) {
            let grown = cluster.process(who)?.resident_mebibytes()? - before;
            ensure!(grown < 24.0, "the {who:?} has grown by {grown} MiB");
        }
        let mut arrived = 0;
        let code = loop {
            match pour.receiver.next().await? {
                Heard::Stdout(bytes) => arrived += bytes.len(),
                Heard::Message(message) => break message["code"].as_i64(),
                other => anyhow::bail!("{other:?} after {arrived} bytes"),
            }
        };
        ensure!(arrived == size && code == Some(0), "{arrived} of {size} bytes, {code:?}");
        Ok(())
    })
    .await
}

/// Commands of the stub that run now, by what they were told.
fn running(tool: &str) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        let is_stub = words.iter().any(|word| word.ends_with(b"stub"));
        found += usize::from(is_stub && words.contains(&tool.as_bytes()));
    }
    Ok(found)
}

async fn until(count: usize) -> anyhow::Result<()> {
    let what = format!("{count} commands run");
    become_true(&what, PATIENCE, async || Ok(running("stay")? == count)).await
}

async fn client_goes(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("alone")).await?;
        for tty in [false, true] {
            for words in [&["stay"][..], &["stay", "with-child"]] {
                let mut request = tool(words);
                request["tty"] = json!(tty);
                let mut stay = Exec::started(client, "alone", &request).await?;
                stay.receiver.stdout_with("here").await?;
                ensure!(running("stay")? == words.len(), "tty {tty}: {words:?}");
                // Without a word.
                drop(stay);
                until(0).await.with_context(|| format!("tty {tty}: {words:?}"))?;
            }
        }
        // A client that goes while its command takes nothing in.
        let Exec {
            mut sender,
            mut receiver,
        } = Exec::started(client, "alone", &tool(&["stay"])).await?;
        receiver.stdout_with("here").await?;
        let stuck = async { while sender.stdin(&[0; 60_000]).await.is_ok() {} };
        ensure!(
            tokio::time::timeout(Duration::from_secs(3), stuck).await.is_err(),
            "nobody takes it"
        );
        drop((sender, receiver));
        let what = "a command that takes nothing in ends with its client";
        become_true(what, PATIENCE * 2, async || Ok(running("stay")? == 0)).await
    })
    .await
}

async fn revocation(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("held")).await?;
        let open = async |words: &[&str]| -> anyhow::Result<Exec> {
            let mut exec = Exec::started(client, "held", &tool(words)).await?;
            exec.receiver.stdout_with("here").await?;
            Ok(exec)
        };
        // The token.
        let mut exec = open(&["stay"]).await?;
        let ticket = client.post("/instances/held/exec", &Value::Null).await?.success()?;
        client.post("/instances/held/token/rotate", &Value::Null).await?.success()?;
        let began = Instant::now();
        let end = exec.receiver.rest().await?;
        ensure!(
            end.problem("unauthorized")?.contains("token") && end.closed == Some(1008),
            "{end:?}"
        );
        ensure!(began.elapsed() < AT_ONCE, "closed after {:?}", began.elapsed());
        ensure!(
            Exec::with_ticket(must::text(&ticket, "path")?).await.is_err(),
            "a ticket of before the change"
        );
        until(0).await?;
        // A stop.
        let mut exec = open(&["stay"]).await?;
        let began = Instant::now();
        let (stopped, end) = tokio::join!(client.act("held", "stop"), async {
            let end = exec.receiver.rest().await;
            (end, began.elapsed())
        });
        stopped?;
        let (end, after) = end;
        ensure!(
            end?.problem("stopped")?.contains("stopped") && after < AT_ONCE,
            "after {after:?}"
        );
        client
            .post("/instances/held/exec", &Value::Null)
            .await?
            .problem(409, "stopped")?;
        client.act("held", "start").await?;
        // A container that ends by itself.
        let mut exec = open(&["stay"]).await?;
        let id = must::text(&client.instance("held").await?, "instance_id")?.to_owned();
        machine.dockerd.engine().kill_container(&format!("cs-{id}"), None).await?;
        let end = exec.receiver.rest().await?;
        ensure!(end.last["type"] == "error" || end.last["code"] == 137, "{end:?}");
        become_true("it is back", PATIENCE, async || {
            Ok(client.status("held").await?.as_deref() == Some("running"))
        })
        .await?;
        become_true("it takes commands", PATIENCE, async || {
            Ok(Exec::run(client, "held", &tool(&["both"])).await?.code().is_ok())
        })
        .await?;
        // A deletion.
        let mut exec = open(&["stay"]).await?;
        let began = Instant::now();
        let (deleted, end) = tokio::join!(client.delete("held", true), async {
            let end = exec.receiver.rest().await;
            (end, began.elapsed())
        });
        deleted?;
        let (end, after) = end;
        ensure!(
            end?.problem("not_found")?.contains("deleted") && after < AT_ONCE,
            "after {after:?}"
        );
        Ok(())
    })
    .await
}

async fn node_agent_dies(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("node")).await?;
        for tty in [false, true] {
            let mut request = tool(&["stay"]);
            request["tty"] = json!(tty);
            let mut exec = Exec::started(&cluster.client, "node", &request).await?;
            exec.receiver.stdout_with("here").await?;
            cluster.kill9(Who::NodeAgent).await?;
            let began = Instant::now();
            let end = exec.receiver.rest().await?;
            ensure!(
                end.problem("unreachable")?.contains("node") && end.closed == Some(1011),
                "{end:?}"
            );
            ensure!(began.elapsed() < AT_ONCE, "closed after {:?}", began.elapsed());
            let away = Exec::run(&cluster.client, "node", &request).await?;
            away.problem("unreachable")?;
            cluster.start(Who::NodeAgent)?;
            cluster.ready(Who::NodeAgent).await?;
            until(0).await.context("what a killed node agent left behind")?;
        }
        // One that is asked to stop ends them itself; the instance runs on.
        let mut exec = Exec::started(&cluster.client, "node", &tool(&["stay", "with-child"])).await?;
        exec.receiver.stdout_with("here").await?;
        let (stopped, end) = tokio::join!(cluster.stop(Who::NodeAgent), exec.receiver.rest());
        stopped?;
        end?.problem("unreachable")?;
        ensure!(running("stay")? == 0, "a command outlives its node agent");
        cluster.start(Who::NodeAgent)?;
        cluster.ready(Who::NodeAgent).await?;
        // And the coordinator.
        let mut exec = Exec::started(&cluster.client, "node", &tool(&["stay"])).await?;
        exec.receiver.stdout_with("here").await?;
        cluster.kill9(Who::Coordinator).await?;
        until(0).await?;
        drop(exec);
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        become_true("commands are run again", PATIENCE, async || {
            Ok(Exec::run(&cluster.client, "node", &tool(&["both"])).await?.code()? == 0)
        })
        .await
    })
    .await
}

async fn refusals(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("strict")).await?;
        let ask = async |body: Value| client.post("/instances/strict/exec", &body).await;
        for (body, word) in [
            (json!({"command": [""]}), "program"),
            (json!({"command": "ls"}), "command"),
            (json!({"user": "root"}), "own user"),
            (json!({"workdir": "x"}), "absolute"),
            (json!({"env": {"A B": ""}}), "env"),
            (json!({"tty": true, "rows": 0, "cols": 1}), "2000"),
            (json!({"command": ["x".repeat(70_000)]}), "64 KiB"),
        ] {
            let text = ask(body.clone()).await?.problem(400, "invalid_request")?;
            ensure!(text.contains(word), "{body}: {text}");
        }
        let stranger = Client::new(crabshack_tests::cluster::API, "not-the-admin-secret")?;
        stranger
            .post("/instances/strict/exec", &Value::Null)
            .await?
            .problem(401, "unauthorized")?;
        client
            .post("/instances/nobody/exec", &Value::Null)
            .await?
            .problem(404, "not_found")?;
        // A ticket is for one WebSocket of its instance.
        let path = must::text(&ask(tool(&["both"])).await?.success()?, "path")?.to_owned();
        Exec::with_ticket(&path).await?.receiver.rest().await?.code()?;
        ensure!(Exec::with_ticket(&path).await.is_err(), "a ticket twice");
        ensure!(Exec::with_ticket("/instances/strict/exec?ticket=guess").await.is_err());
        ensure!(Exec::with_ticket("/instances/strict/exec").await.is_err());
        // What a client must not say.
        for (message, code, word) in [
            (Message::binary(vec![0; (64 << 10) + 2]), "too_large", "64 KiB"),
            (Message::binary(vec![1, 2]), "invalid_request", "zero byte"),
            (Message::binary(vec![]), "invalid_request", "zero byte"),
            (Message::text("{}"), "invalid_request", "resize"),
            (
                Message::text(r#"{"type":"resize","rows":0,"cols":9}"#),
                "invalid_request",
                "2000",
            ),
        ] {
            let mut exec = Exec::started(client, "strict", &tool(&["cat"])).await?;
            exec.sender.send(message).await?;
            let text = exec.receiver.rest().await?.problem(code)?;
            ensure!(text.contains(word), "{text}");
        }
        Ok(())
    })
    .await
}

async fn limits(machine: &Machine) -> anyhow::Result<()> {
    let settings = [
        (Who::Coordinator, "CRABSHACK_EXEC_IDLE", "2s"),
        (Who::Coordinator, "CRABSHACK_EXEC_LENGTH", "5s"),
    ];
    Cluster::with_settings(machine, &settings, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("few")).await?;
        // So many tickets at a time, whether they are used or not.
        let mut held = Vec::new();
        let refused = loop {
            let answer = client.post("/instances/few/exec", &tool(&["cat"])).await?;
            if answer.status.as_u16() != 201 {
                break answer;
            }
            held.push(Exec::with_ticket(must::text(&answer.json()?, "path")?).await?);
            ensure!(held.len() < 100, "there is no limit");
        };
        let text = refused.problem(429, "too_many")?;
        ensure!(held.len() == 16 && text.contains("16 commands"), "{}: {text}", held.len());
        drop(held);
        become_true("places are given back", PATIENCE, async || {
            Ok(Exec::run(client, "few", &tool(&["both"])).await?.code()? == 0)
        })
        .await?;
        let mut quiet = Exec::started(client, "few", &tool(&["stay"])).await?;
        let text = quiet.receiver.rest().await?.problem("conflict")?;
        ensure!(text.contains("CRABSHACK_EXEC_IDLE"), "{text}");
        let mut busy = Exec::started(client, "few", &tool(&["cat"])).await?;
        let typing = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if busy.sender.stdin(b".").await.is_err() {
                    std::future::pending().await
                }
            }
        };
        let end = tokio::select! { end = busy.receiver.rest() => end?, () = typing => anyhow::bail!("no end") };
        let text = end.problem("conflict")?;
        ensure!(text.contains("CRABSHACK_EXEC_LENGTH") && end.stdout.len() >= 5, "{text}");
        until(0).await
    })
    .await
}

async fn history(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("told")).await?;
        let mut request = tool(&["exit", "7", "hunter2"]);
        request["env"] = json!({"PASSWORD": "hunter2"});
        Exec::run(&cluster.client, "told", &request).await?;
        become_true("the end is told", PATIENCE, async || {
            let events = cluster.client.get("/instances/told/events").await?.success()?;
            let all = events["events"].as_array().context("no events")?;
            let told: Vec<_> = all.iter().filter(|event| event["event"] == "exec").collect();
            ensure!(told.len() == 1 && told[0]["origin"] == "api", "{events}");
            let reason = told[0]["reason"].as_str().unwrap_or_default();
            ensure!(reason.starts_with("`stub` with 3 arguments, by admin"), "{reason}");
            Ok(reason.contains("exit code 1"))
        })
        .await?;
        for who in Who::ALL {
            let log = std::fs::read_to_string(cluster.log(who))?;
            ensure!(!log.contains("hunter2"), "the log of the {who:?} holds what is secret");
        }
        Ok(())
    })
    .await
}
