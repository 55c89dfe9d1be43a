//! What unit tests share: records, and a whole coordinator over a temporary folder, without sockets.

use std::{path::Path, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
    response::Response,
};
use chrono::Utc;
use clap::Parser as _;
use crabshack_shared::{
    agent_api::v1::{Desired, HeldImage, InstanceReport, NodeFacts, OnDisconnect, Phase, Pressure, Report},
    generation::Generation,
    ids::{InstanceId, NodeId, UserId},
    instance::{InstanceName, ServiceType},
    resources::{Bytes, Resources},
    seal::Sealed,
    tls,
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    agents::report,
    app::App,
    cli::{Cli, Command},
    config::Settings,
    reconcile, router, serve,
    store::{InstanceRecord, NodeRecord, Observation, Spec},
};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// What the nodes of tests have from no registry.
pub(crate) const LOCAL_IMAGE: &str = "docker.io/owner/stub:1";

/// A record of an instance that wants 1 GiB.
pub(crate) fn record(desired: Desired, node: Option<&str>) -> InstanceRecord {
    InstanceRecord {
        id: InstanceId::random(),
        name: InstanceName::random(),
        owner: UserId::admin(),
        spec: Spec {
            service_type: ServiceType::new(ServiceType::OPENCLAW),
            image: "stub:1".parse().unwrap(),
            resources: Resources {
                memory: Bytes::gibibytes(1),
                cpus: "1".parse().unwrap(),
                storage: Bytes::gibibytes(10),
            },
            ssh_pubkey: None,
            nearai_api_url: "https://example.com/v1".to_owned(),
            profile: Default::default(),
        },
        sealed: serde_json::from_value::<Sealed>(json!("")).unwrap(),
        ssh_port: 19_001,
        desired,
        generation: Generation { epoch: 1, counter: 5 },
        wish_generation: Generation { epoch: 1, counter: 5 },
        restarts: 0,
        assignment: node.map(|node| node.parse().unwrap()),
        created_at: Utc::now(),
        deleted_at: None,
        spec_revision: 0,
        spec_generation: Generation::default(),
        on_disconnect: OnDisconnect::Keep,
        lease_generation: Generation::default(),
        protected: false,
        disk_only: false,
        left: Vec::new(),
    }
}

/// An observation that answers a record's wish.
pub(crate) fn observation(record: &InstanceRecord, phase: Phase, ready_once: bool) -> Observation {
    Observation {
        node: record
            .assignment
            .clone()
            .unwrap_or_else(|| "node-000000000001".parse().unwrap()),
        report: instance_report(record, phase),
        ready_once,
    }
}

/// What a node says of an instance whose last wish it carries out.
pub(crate) fn instance_report(record: &InstanceRecord, phase: Phase) -> InstanceReport {
    InstanceReport {
        id: record.id,
        generation: Some(record.generation),
        phase,
        reason: None,
        image_digest: None,
        address: (phase == Phase::Ready).then(|| "10.201.0.10".parse().unwrap()),
        ssh_fingerprint: None,
        disk_used: None,
        disk_limit: None,
        pending_change: false,
        last_exit: None,
        ssh_port: None,
        pull: None,
    }
}

/// A machine with 8 GiB.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "machine".to_owned(),
        data_plane: "127.0.0.1:7702".to_owned(),
        memory: Bytes::gibibytes(8),
        cpus: 4,
        docker_version: "20.10.24".to_owned(),
        architecture: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        runtimes: vec!["runc".to_owned()],
        warnings: Vec::new(),
        storage: None,
        pressure: Pressure::None,
        images: Some(vec![HeldImage {
            name: LOCAL_IMAGE.to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)),
            local: true,
        }]),
    }
}

/// A coordinator without listeners and without a running reconciler.
pub(crate) struct TestApp {
    pub(crate) app: Arc<App>,
    folder: tempfile::TempDir,
}

impl TestApp {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(flags: &[&str]) -> Self {
        tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let app = start(folder.path(), flags);
        Self { app, folder }
    }

    /// The same folder with a new process.
    pub(crate) fn restarted(self) -> Self {
        let Self { app, folder } = self;
        drop(app);
        let app = start(folder.path(), &[]);
        Self { app, folder }
    }

    /// Takes in a node that reports nothing yet.
    pub(crate) async fn node(&self) -> NodeId {
        let id = NodeId::random();
        let record = NodeRecord {
            id: id.clone(),
            hostname: "machine".to_owned(),
            facts: None,
            revoked: false,
            enrolled_at: Utc::now(),
            certificate_serial: None,
        };
        self.app.store.write_now(|writing| writing.put_node(&record)).unwrap();
        self.report(&id, Vec::new()).await;
        id
    }

    /// Lets a node report.
    pub(crate) async fn report(&self, node: &NodeId, instances: Vec<InstanceReport>) {
        self.report_seen(node, Generation::default(), instances).await;
    }

    /// Lets a node report that has seen a generation.
    pub(crate) async fn report_seen(&self, node: &NodeId, highest_generation: Generation, instances: Vec<InstanceReport>) {
        self.app.registry.heard(node);
        let report = Report {
            highest_generation,
            facts: facts(),
            instances,
            events: Vec::new(),
            findings: Vec::new(),
        };
        let kept = report::take_in(Arc::clone(&self.app), node.clone(), report).await;
        assert!(kept.is_ok(), "{kept:?}");
    }

    /// Lets the reconciler pass once.
    pub(crate) async fn reconcile(&self) {
        reconcile::pass(&self.app).await;
    }

    pub(crate) fn record(&self, name: &str) -> InstanceRecord {
        let reading = self.app.store.reading().unwrap();
        reading.instance_named(&name.parse().unwrap()).unwrap().unwrap()
    }

    pub(crate) fn router(&self) -> Router {
        router::api(&self.app)
    }

    /// Asks the API as the admin.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: impl Into<Body>) -> Response {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {SECRET}"))
            .body(body.into())
            .unwrap();
        self.router().oneshot(request).await.unwrap()
    }

    /// Asks and reads the whole answer as JSON.
    pub(crate) async fn json(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let response = self.ask(method, path, body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap()
        };
        (status, value)
    }
}

fn start(folder: &Path, flags: &[&str]) -> Arc<App> {
    let data_dir = folder.join("data");
    let base = [
        "crabshack",
        "serve",
        "--admin-secret",
        SECRET,
        "--data-dir",
        data_dir.to_str().unwrap(),
    ];
    let cli = Cli::try_parse_from(base.iter().chain(flags)).unwrap();
    let Command::Serve(arguments) = cli.command else {
        unreachable!("only serve is asked for")
    };
    serve::build(Settings::new(&arguments).unwrap(), arguments.halt_at.clone()).unwrap()
}

/// A body of `POST /instances` with all that is required.
pub(crate) fn create_body(name: &str) -> Value {
    json!({
        "name": name,
        "service_type": "openclaw",
        "image": LOCAL_IMAGE,
        "mem_limit": "2G",
        "cpus": "1",
        "nearai_api_key": "sk-agent-0123456789abcdef0123456789abcdef",
        "nearai_api_url": "https://example.com/v1",
        "ssh_pubkey": null,
        "user_id": "ignored"
    })
}
