//! Images from a real registry: checked before the stream, pulled by digest, allowed, kept ready,
//! collected; with a registry that fails in every way it can.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use bollard::{Docker, models::ContainerCreateBody, query_parameters::CreateContainerOptions};
use crabshack_tests::{
    client::{Event, stub},
    cluster::{Cluster, Who},
    command,
    machine::Machine,
    must::{PATIENCE, become_true, eventually, stay_true, text},
    registry::{Build, Caller, Fault, HOST, Registry, Variety},
    suite,
};
use reqwest::Method;
use serde_json::{Value, json};

/// Docker tries a layer five times, a little later each time, before it gives up.
const PULL_PATIENCE: Duration = Duration::from_secs(90);
/// The coordinator asks a registry so long at most; with what a busy machine adds.
const ASKED: Duration = Duration::from_secs(9);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("tag__should_mean_the_image_it_named_when_it_was_asked_for", replaced_tag);
        suite.test("image__should_be_refused_before_the_stream_when_it_cannot_run", refused);
        suite.test("registry_trouble__should_be_told_before_the_stream_and_in_time", trouble);
        suite.test("registry__should_not_be_needed_for_what_a_node_has", held);
        suite.test("proxy__should_be_asked_for_registries_but_those_that_need_none", proxy);
        suite.test("login__should_reach_the_registry_and_nobody_else", login);
        suite.test("pull__should_tell_how_far_it_has_come", progress);
        suite.test("pull__should_say_what_went_wrong_and_go_on_when_it_can", pull_trouble);
        suite.test("pulls__should_be_few_at_a_time", few_pulls);
        suite.test(
            "list__should_be_the_only_images_and_bring_them_before_they_are_asked_for",
            list,
        );
        suite.test("node__should_refuse_what_its_own_list_does_not_allow", own_list);
        suite.test("collection__should_take_what_nobody_needs_and_nothing_else", collection);
        suite.test("full_disk__should_end_a_pull_and_take_unneeded_images_at_once", full_disk);
    })
}

/// A valid creation of an instance from an image.
fn from(name: &str, image: &str) -> Value {
    let mut body = stub(name);
    body["image"] = image.into();
    body
}

async fn is_here(engine: &Docker, image: &str) -> anyhow::Result<bool> {
    match engine.inspect_image(image).await {
        Ok(_) => Ok(true),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn by_digest(name: &str, digest: &str) -> String {
    format!("{HOST}/{name}@{digest}")
}

async fn replaced_tag(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let first = registry.push("replaced", "1", &Build::default()).await?;
    let image = registry.reference("replaced", "1");
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&from("early", &image)).await?;
        let second = registry.push("replaced", "1", &Build::of(Variety::List)).await?;
        ensure!(first != second, "both are {first}");
        cluster.client.act("early", "restart").await?;
        cluster.client.create(&from("late", &image)).await?;
        for (name, digest) in [("early", &first), ("late", &second)] {
            let instance = cluster.client.instance(name).await?;
            ensure!(instance["image"] == image.as_str(), "{instance}");
            ensure!(
                instance["image_digest"] == digest.as_str(),
                "{name} is not {digest}: {instance}"
            );
            ensure!(
                is_here(machine.dockerd.engine(), &by_digest("replaced", digest)).await?,
                "{digest}"
            );
        }
        // What GET shows can be given back.
        let pinned = format!("{image}@{first}");
        cluster.client.create(&from("pinned", &pinned)).await?;
        let instance = cluster.client.instance("pinned").await?;
        ensure!(
            instance["image"] == image.as_str() && instance["image_digest"] == first.as_str(),
            "{instance}"
        );
        Ok(())
    })
    .await
}

/// Asks for an instance, which must be refused, and returns the words.
async fn refusal(cluster: &Cluster<'_>, image: &str, status: u16, code: &str) -> anyhow::Result<String> {
    let began = std::time::Instant::now();
    let answer = cluster.client.post("/instances", &from("refused", image)).await?;
    let words = answer.problem(status, code).with_context(|| image.to_owned())?;
    ensure!(began.elapsed() < ASKED, "{image}: refused after {:?}", began.elapsed());
    ensure!(cluster.client.instances().await?.is_empty(), "{image}: something was made");
    Ok(words)
}

async fn refused(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    registry.push("foreign", "1", &Build::of(Variety::Foreign)).await?;
    registry.push("foreign", "list", &Build::of(Variety::ForeignList)).await?;
    let known = registry.push("known", "1", &Build::default()).await?;
    Cluster::with(machine, async |cluster| {
        for tag in ["1", "list"] {
            let image = registry.reference("foreign", tag);
            let words = refusal(cluster, &image, 400, "image_unusable").await?;
            ensure!(words.contains("the nodes are"), "{words}");
        }
        for image in [registry.reference("nothing", "1"), registry.reference("known", "2")] {
            let words = refusal(cluster, &image, 400, "image_not_found").await?;
            ensure!(words.contains("does not have it"), "{words}");
        }
        let gone = format!("{}@sha256:{}", registry.reference("known", "1"), "0".repeat(64));
        refusal(cluster, &gone, 400, "image_not_found").await?;
        // It was never here, so its digest is looked at.
        registry.faults.set(&Fault::Lies);
        for image in [
            registry.reference("known", "1"),
            format!("{}@{known}", registry.reference("known", "1")),
        ] {
            let words = refusal(cluster, &image, 502, "registry_failed").await?;
            ensure!(words.contains("where sha256:"), "{words}");
        }
        Ok(())
    })
    .await
}

async fn trouble(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    registry.push("trouble", "1", &Build::default()).await?;
    let image = registry.reference("trouble", "1");
    Cluster::with(machine, async |cluster| {
        for (fault, status, code, words) in [
            (
                Fault::Late(Duration::from_secs(60)),
                502,
                "registry_failed",
                "does not answer within",
            ),
            (Fault::Status(401, None), 400, "image_not_found", "login"),
            (Fault::Status(403, None), 400, "image_not_found", "login"),
            (Fault::Status(500, None), 502, "registry_failed", "500"),
            (Fault::Status(503, None), 502, "registry_failed", "503"),
            (Fault::Cut(100), 502, "registry_failed", "cannot be reached"),
        ] {
            registry.faults.set(&fault);
            let said = refusal(cluster, &image, status, code).await?;
            ensure!(said.contains(words), "{fault:?}: {said}");
        }
        registry.faults.set(&Fault::Status(429, Some(7)));
        let answer = cluster.client.post("/instances", &from("refused", &image)).await?;
        answer.problem(503, "registry_failed")?;
        ensure!(answer.header("retry-after") == "7", "{:?}", answer.headers);
        // Nobody listens there at all.
        refusal(cluster, "127.0.0.1:5999/trouble:1", 502, "registry_failed").await?;
        registry.faults.set(&Fault::None);
        cluster.client.create(&from("fine", &image)).await?;
        Ok(())
    })
    .await
}

async fn held(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let digest = registry.push("held", "1", &Build::default()).await?;
    let image = registry.reference("held", "1");
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&from("first", &image)).await?;
        for fault in [Fault::Status(500, None), Fault::Status(401, None)] {
            registry.faults.set(&fault);
            // By tag nobody knows it: it came by digest.
            refusal_of_one(cluster, &image).await?;
            cluster.client.create(&from("second", &format!("{image}@{digest}"))).await?;
            cluster.client.delete("second", true).await?;
        }
        // What was built on the node is no registry's.
        let asked = registry.faults.requests(Caller::Coordinator);
        cluster.client.create(&stub("own")).await?;
        ensure!(registry.faults.requests(Caller::Coordinator) == asked, "a registry was asked");
        // An image that somebody tagged on the node a moment ago.
        let options = bollard::query_parameters::TagImageOptions {
            repo: Some("crabshack/just-built".to_owned()),
            tag: Some("1".to_owned()),
        };
        let engine = machine.dockerd.engine();
        engine.tag_image(crabshack_tests::image::STUB, Some(options)).await?;
        eventually("the coordinator hears of a new image", Duration::from_secs(5), async || {
            let answer = cluster
                .client
                .post("/instances", &from("built", "crabshack/just-built:1"))
                .await?;
            Ok(answer.status.is_success().then_some(()))
        })
        .await
    })
    .await
}

async fn refusal_of_one(cluster: &Cluster<'_>, image: &str) -> anyhow::Result<()> {
    let answer = cluster.client.post("/instances", &from("by-tag", image)).await?;
    ensure!(
        answer.status.is_client_error() || answer.status.is_server_error(),
        "{}",
        answer.text
    );
    Ok(())
}

async fn proxy(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    registry.push("proxied", "1", &Build::default()).await?;
    let proxy = format!("http://{HOST}");
    Cluster::with_settings(machine, &[(Who::Coordinator, "HTTP_PROXY", &proxy)], async |cluster| {
        // Only the proxy knows where that is.
        let body = json!({"plain_http": true}).to_string();
        let put = cluster.client.request(Method::PUT, "/registries/registry.example").body(body);
        put.send().await?.error_for_status()?;
        let asked = registry.faults.requests(Caller::Coordinator);
        let entry = json!({"ref": "registry.example/proxied:1", "service_type": "openclaw"});
        let added = cluster.client.post("/images", &entry).await?.success()?;
        ensure!(added["digest"].is_string(), "{added}");
        ensure!(
            registry.faults.requests(Caller::Coordinator) > asked,
            "the proxy was not asked"
        );
        cluster.stop(Who::Coordinator).await?;
        cluster.set(Who::Coordinator, "NO_PROXY", "registry.example");
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        let asked = registry.faults.requests(Caller::Coordinator);
        let resolved = cluster
            .client
            .post("/images/resolve-digests", &Value::Null)
            .await?
            .success()?;
        ensure!(resolved["failed"][0]["ref"] == entry["ref"], "{resolved}");
        ensure!(resolved["images"][0]["digest"] == added["digest"], "{resolved}");
        ensure!(registry.faults.requests(Caller::Coordinator) == asked, "the proxy was asked");
        Ok(())
    })
    .await
}

async fn login(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    Cluster::with(machine, async |cluster| {
        for (name, fault) in [
            ("basic", Fault::Basic("puller", "their-password")),
            ("token", Fault::Token("puller", "their-password")),
        ] {
            registry.push(name, "1", &Build::default()).await?;
            registry.faults.set(&fault);
            let image = registry.reference(name, "1");
            let words = refusal(cluster, &image, 400, "image_not_found").await?;
            ensure!(words.contains("PUT /registries/"), "{words}");
            let path = format!("/registries/{HOST}");
            let put = async |password: &str| {
                let body = json!({"username": "puller", "password": password, "plain_http": true});
                let request = cluster.client.request(Method::PUT, &path).body(body.to_string());
                anyhow::Ok(request.send().await?.error_for_status()?.text().await?)
            };
            put("wrong").await?;
            refusal(cluster, &image, 400, "image_not_found").await?;
            let shown = put("their-password").await?;
            let listed = cluster.client.get("/registries").await?.text;
            ensure!(!format!("{shown}{listed}").contains("their-password"), "{shown} {listed}");
            cluster.client.create(&from(name, &image)).await?;
            cluster.client.delete(name, true).await?;
            let gone = cluster.client.request(Method::DELETE, &path).send().await?;
            ensure!(gone.status().as_u16() == 204, "{gone:?}");
            ensure!(
                cluster.client.get("/registries").await?.json()? == json!({"registries": []}),
                "it is still there"
            );
        }
        for who in Who::ALL {
            let log = std::fs::read_to_string(cluster.log(who))?;
            ensure!(!log.contains("their-password"), "the password is in a log");
        }
        Ok(())
    })
    .await
}

/// The percentages that a stream told.
fn percents(events: &[Event]) -> Vec<u32> {
    let messages = events.iter().filter_map(|event| event.data["message"].as_str());
    messages
        .filter_map(|message| message.strip_prefix("Pulling the image: ")?.split_once(" %")?.0.parse().ok())
        .collect()
}

async fn progress(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    registry.push("slow", "1", &Build::large(8)).await?;
    let image = registry.reference("slow", "1");
    Cluster::with(machine, async |cluster| {
        registry.faults.set_for(Caller::Docker, Fault::Slow(2 << 20));
        let events = cluster.client.create(&from("slow", &image)).await?;
        let told = percents(&events);
        let grows = told.windows(2).all(|pair| pair[0] <= pair[1]);
        ensure!(
            told.len() >= 2 && told.iter().any(|percent| (1..100).contains(percent)),
            "{told:?} {events:?}"
        );
        ensure!(grows, "{told:?}");
        Ok(())
    })
    .await
}

async fn pull_trouble(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let cases = [
        ("limited", Fault::Status(429, None), "limits pulls"),
        ("failing", Fault::Status(500, None), "cannot be reached or fails"),
    ];
    Cluster::with(machine, async |cluster| {
        // What is cut goes on where it ended, so nobody needs to hear of it.
        registry.push("cut", "1", &Build::large(3)).await?;
        registry.faults.set_for(Caller::Docker, Fault::Cut(1 << 20));
        cluster.client.create(&from("cut", &registry.reference("cut", "1"))).await?;
        registry.faults.set(&Fault::None);
        for (name, fault, words) in cases {
            registry.push(name, "1", &Build::default()).await?;
            registry.faults.set_for(Caller::Docker, fault);
            let body = from(name, &registry.reference(name, "1"));
            let mut events = cluster.client.events("/instances", &body).await?;
            reason(cluster, name, words).await?;
            registry.faults.set(&Fault::None);
            // It is tried again by itself.
            let ready = async || Ok(cluster.client.instance(name).await?["phase"] == "ready");
            become_true("it gets ready by itself", PULL_PATIENCE, ready).await?;
            drop(events.rest().await?);
            cluster.client.delete(name, true).await?;
        }
        for (name, fault, words) in [
            ("lying", Fault::Lies, "not what its digest names"),
            ("closed", Fault::Status(401, None), "does not let us pull"),
        ] {
            registry.push(name, "1", &Build::default()).await?;
            registry.faults.set_for(Caller::Docker, fault);
            let body = from(name, &registry.reference(name, "1"));
            let events = cluster.client.events("/instances", &body).await?.rest().await?;
            let last = events.last().context("no events")?;
            ensure!(last.name == "error", "{last:?}");
            ensure!(text(&last.data, "message")?.contains(words), "{last:?}");
            registry.faults.set(&Fault::None);
            cluster.client.act(name, "start").await?;
        }
        Ok(())
    })
    .await
}

async fn reason(cluster: &Cluster<'_>, name: &str, words: &str) -> anyhow::Result<()> {
    become_true(&format!("the reason of {name} says `{words}`"), PULL_PATIENCE, async || {
        let instance = cluster.client.instance(name).await?;
        ensure!(instance["phase"] != "ready", "{name} is ready");
        ensure!(instance["reason"].is_string(), "{}", instance["phase"]);
        let reason = text(&instance, "reason")?;
        ensure!(reason.contains(words), "{reason}");
        Ok(true)
    })
    .await
}

async fn few_pulls(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let names = ["few-1", "few-2", "few-3", "few-4"];
    for name in names {
        registry.push(name, "1", &Build::large(2)).await?;
    }
    Cluster::with_settings(machine, &[(Who::NodeAgent, "CRABSHACK_PULLS", "2")], async |cluster| {
        registry.faults.set_for(Caller::Docker, Fault::Slow(2 << 20));
        let mut streams = Vec::new();
        for name in names {
            // Two instances of one image are one pull.
            for number in [1, 2] {
                let body = from(&format!("{name}-{number}"), &registry.reference(name, "1"));
                streams.push(cluster.client.events("/instances", &body).await?);
            }
        }
        for mut stream in streams {
            let events = stream.rest().await?;
            ensure!(events.last().is_some_and(|event| event.name == "ready"), "{events:?}");
        }
        let most = registry.faults.most_at_once();
        ensure!(most == 2, "{most} pulls at once");
        Ok(())
    })
    .await
}

async fn list(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let first = registry.push("allowed", "1.0.0", &Build::default()).await?;
    registry.push("other", "1.0.0", &Build::default()).await?;
    let image = registry.reference("allowed", "1.0.0");
    let engine = machine.dockerd.engine();
    Cluster::with(machine, async |cluster| {
        let entry = json!({
            "ref": image, "label": "one", "service_type": "openclaw", "status": "allow-create", "preferred": 0, "note": "",
        });
        let added = cluster.client.post("/images", &entry).await?;
        ensure!(added.status.as_u16() == 201, "{}", added.text);
        cluster.client.post("/images", &entry).await?.problem(409, "conflict")?;
        let listed = cluster.client.get("/images").await?.success()?;
        ensure!(
            listed[0]["ref"] == image.as_str() && listed[0]["digest"] == first.as_str(),
            "{listed}"
        );
        let come = async |digest: String| {
            become_true("an allowed image comes by itself", PATIENCE, async || {
                is_here(engine, &by_digest("allowed", &digest)).await
            })
            .await
        };
        come(first.clone()).await?;
        for refused in [registry.reference("other", "1.0.0"), crabshack_tests::image::STUB.to_owned()] {
            let words = refusal(cluster, &refused, 400, "image_not_allowed").await?;
            ensure!(words.contains("service_type \"openclaw\" not supported by image"), "{words}");
        }
        // The tag is replaced: the list means what it meant until it is looked up again.
        let second = registry.push("allowed", "1.0.0", &Build::default()).await?;
        let asked = registry.faults.requests(Caller::Docker);
        cluster.client.create(&from("early", &image)).await?;
        ensure!(registry.faults.requests(Caller::Docker) == asked, "it was pulled once more");
        refusal_code(cluster, &format!("{image}@{second}"), "image_not_allowed").await?;
        let resolved = cluster
            .client
            .post("/images/resolve-digests", &Value::Null)
            .await?
            .success()?;
        ensure!(resolved["images"][0]["digest"] == second.as_str(), "{resolved}");
        come(second.clone()).await?;
        cluster.client.create(&from("late", &image)).await?;
        for (name, digest) in [("early", &first), ("late", &second)] {
            ensure!(
                cluster.client.instance(name).await?["image_digest"] == digest.as_str(),
                "{name}"
            );
        }
        // What cannot be had is told.
        let missing = json!({"ref": registry.reference("missing", "1"), "service_type": "openclaw"});
        let added = cluster.client.post("/images", &missing).await?;
        ensure!(
            added.status.as_u16() == 201 && added.json()?["digest"].is_null(),
            "{}",
            added.text
        );
        become_true("the node says what it cannot have", PATIENCE * 2, async || {
            let nodes = cluster.client.get("/nodes").await?.text;
            Ok(nodes.contains("missing:1 cannot be pulled"))
        })
        .await?;
        let path = format!("/images?ref={image}");
        let gone = cluster.client.request(Method::DELETE, &path).send().await?;
        ensure!(gone.status().as_u16() == 204, "{gone:?}");
        refusal_code(cluster, &image, "image_not_allowed").await
    })
    .await
}

async fn refusal_code(cluster: &Cluster<'_>, image: &str, code: &str) -> anyhow::Result<()> {
    let answer = cluster.client.post("/instances", &from("refused", image)).await?;
    answer.problem(400, code).map(drop)
}

async fn own_list(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    registry.push("ours/agent", "1", &Build::default()).await?;
    registry.push("theirs/agent", "1", &Build::default()).await?;
    let allowed = format!("{HOST}/ours/*");
    Cluster::with_settings(
        machine,
        &[(Who::NodeAgent, "CRABSHACK_ALLOWED_IMAGES", &allowed)],
        async |cluster| {
            cluster
                .client
                .create(&from("ours", &registry.reference("ours/agent", "1")))
                .await?;
            for image in [
                registry.reference("theirs/agent", "1"),
                crabshack_tests::image::STUB.to_owned(),
            ] {
                let events = cluster
                    .client
                    .events("/instances", &from("theirs", &image))
                    .await?
                    .rest()
                    .await?;
                let last = events.last().context("no events")?;
                ensure!(last.name == "error", "{last:?}");
                ensure!(text(&last.data, "message")?.contains("CRABSHACK_ALLOWED_IMAGES"), "{last:?}");
                cluster.client.delete("theirs", true).await?;
            }
            // A list that grows narrower stops nothing that runs.
            cluster.stop(Who::NodeAgent).await?;
            cluster.set(Who::NodeAgent, "CRABSHACK_ALLOWED_IMAGES", "elsewhere.example/*");
            cluster.start(Who::NodeAgent)?;
            cluster.ready(Who::NodeAgent).await?;
            stay_true("it runs on", Duration::from_secs(3), async || {
                Ok(cluster.client.instance("ours").await?["phase"] == "ready")
            })
            .await
        },
    )
    .await
}

async fn collection(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let mut digests = BTreeMap::new();
    for name in ["unneeded", "needed", "used", "foreign", "allowed-1"] {
        digests.insert(name, registry.push(name, "1", &Build::default()).await?);
    }
    let engine = machine.dockerd.engine();
    let here = async |name: &str| is_here(engine, &by_digest(name, &digests[name])).await;
    Cluster::with_settings(machine, &[(Who::NodeAgent, "CRABSHACK_IMAGE_GRACE", "1s")], async |cluster| {
        // Somebody else's, pulled by somebody else.
        pull(engine, &by_digest("foreign", &digests["foreign"])).await?;
        let entry = json!({"ref": registry.reference("allowed-1", "1"), "service_type": "other"});
        for name in ["unneeded", "needed", "used", "foreign"] {
            cluster.client.create(&from(name, &registry.reference(name, "1"))).await?;
        }
        ensure!(
            cluster.client.post("/images", &entry).await?.status.as_u16() == 201,
            "it is not in the list"
        );
        // A stopped container of somebody else's.
        let options = CreateContainerOptions {
            name: Some("somebody-elses".to_owned()),
            ..CreateContainerOptions::default()
        };
        let body = ContainerCreateBody {
            image: Some(by_digest("used", &digests["used"])),
            ..ContainerCreateBody::default()
        };
        engine.create_container(Some(options), body).await?;
        for name in ["unneeded", "used", "foreign"] {
            cluster.client.delete(name, true).await?;
        }
        cluster.client.act("needed", "stop").await?;
        // What is known must outlive the node agent.
        cluster.crash_and_restart(Who::NodeAgent).await?;
        become_true("what nobody needs goes", PATIENCE, async || Ok(!here("unneeded").await?)).await?;
        become_true("what is allowed comes", PATIENCE, async || here("allowed-1").await).await?;
        stay_true("the others stay", Duration::from_secs(5), async || {
            Ok(here("needed").await? && here("used").await? && here("foreign").await? && here("allowed-1").await?)
        })
        .await?;
        crabshack_tests::engine::remove_container(engine, "somebody-elses").await?;
        become_true("what was used by a container goes", PATIENCE, async || {
            Ok(!here("used").await?)
        })
        .await?;
        cluster.client.act("needed", "start").await?;
        Ok(())
    })
    .await
}

async fn pull(engine: &Docker, image: &str) -> anyhow::Result<()> {
    use futures_util::TryStreamExt as _;
    let options = bollard::query_parameters::CreateImageOptions {
        from_image: Some(image.to_owned()),
        ..bollard::query_parameters::CreateImageOptions::default()
    };
    engine.create_image(Some(options), None, None).try_collect::<Vec<_>>().await?;
    Ok(())
}

async fn full_disk(machine: &Machine) -> anyhow::Result<()> {
    let registry = Registry::start(machine).await?;
    let old = registry.push("old", "1", &Build::default()).await?;
    registry.push("big", "1", &Build::large(8)).await?;
    let engine = machine.dockerd.engine();
    let mut cluster = Cluster::new(machine)?;
    let folder = cluster.data(Who::NodeAgent);
    std::fs::create_dir_all(&folder)?;
    let folder = folder.display().to_string();
    command::run(&format!("mount -t tmpfs -o size=16g tmpfs {folder}"))?;
    let case = async {
        cluster.start_all().await?;
        cluster.client.create(&from("old", &registry.reference("old", "1"))).await?;
        cluster.client.delete("old", true).await?;
        ensure!(
            is_here(engine, &by_digest("old", &old)).await?,
            "it went although there is room and time"
        );
        registry.faults.set_for(Caller::Docker, Fault::Slow(512 << 10));
        let body = from("big", &registry.reference("big", "1"));
        let mut events = cluster.client.events("/instances", &body).await?;
        become_true("its image is under way", PATIENCE, async || {
            Ok(cluster.client.instance("big").await?["phase"] == "pulling")
        })
        .await?;
        command::run(&format!("mount -o remount,size=1g {folder}"))?;
        become_true("what nobody needs goes at once", PATIENCE, async || {
            Ok(!is_here(engine, &by_digest("old", &old)).await?)
        })
        .await?;
        reason(&cluster, "big", "nearly full").await?;
        command::run(&format!("mount -o remount,size=16g {folder}"))?;
        registry.faults.set(&Fault::None);
        become_true("it gets ready when there is room", PULL_PATIENCE, async || {
            Ok(cluster.client.instance("big").await?["phase"] == "ready")
        })
        .await?;
        drop(events.rest().await?);
        Ok(())
    }
    .await;
    for who in Who::ALL {
        cluster.kill9(who).await?;
    }
    crabshack_tests::engine::wipe(engine).await?;
    command::run(&format!("umount --lazy {folder}"))?;
    let wiped = cluster.wipe().await;
    case.and(wiped)
}
