use crabshack_shared::{
    ids::InstanceId,
    instance::{InstanceStatus, ServiceType},
};
use http::{Request, request::Builder};

use super::*;

const ORIGIN: &str = "http://a.localhost:3000";

struct House {
    _folder: tempfile::TempDir,
    tickets: TicketKey,
    admin: Secret,
    target: GatewayTarget,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            tickets: TicketKey::load_or_create(&folder.path().join("key")).unwrap(),
            _folder: folder,
            admin: Secret::random(),
            target: GatewayTarget {
                id: InstanceId::random(),
                service_type: ServiceType::new(ServiceType::OPENCLAW),
                token: Secret::random(),
                agent_token: Secret::random(),
                profile: Default::default(),
                origin: ORIGIN.to_owned(),
                node: None,
                status: InstanceStatus::Running,
                ready: true,
            },
        }
    }

    fn token(&self) -> &str {
        self.target.token.expose()
    }

    fn cookie(&self) -> String {
        let scope = Scope {
            instance: self.target.id,
            origin: ORIGIN,
            token: &self.target.token,
        };
        format!("crabshack_gateway={}", self.tickets.issue(scope, SystemTime::now()))
    }

    fn decide(&self, request: Builder) -> Entry {
        let parts = request.body(()).unwrap().into_parts().0;
        let is_upgrade = parts.headers.contains_key("upgrade");
        decide(
            &parts,
            is_upgrade,
            Some(&self.target),
            &self.admin,
            &self.tickets,
            SystemTime::now(),
        )
    }
}

fn admitted(path: &'static str, is_bearer: bool) -> Entry {
    Entry::Admitted {
        path: PathAndQuery::from_static(path),
        is_bearer,
    }
}

#[test]
fn token_in_the_url__should_be_exchanged_for_the_same_url_without_it() {
    let house = House::new();
    let token = house.token();
    for (target, location) in [
        (format!("/?token={token}"), "/"),
        (format!("/a%2Fb/c?x=1&token={token}&y=%20&token=other"), "/a%2Fb/c?x=1&y=%20"),
        (format!("//evil.example/x?token={token}"), "/.//evil.example/x"),
        (format!("/\\evil.example/x?token={token}"), "/./\\evil.example/x"),
        (format!("http://a.localhost:3000/x?token={token}"), "/x"),
    ] {
        assert_eq!(
            house.decide(Request::get(&target)),
            Entry::Exchange {
                location: location.to_owned()
            },
            "{target}"
        );
    }
}

#[test]
fn token_in_the_url__should_admit_at_once_what_is_not_a_page() {
    let house = House::new();
    let target = format!("/ws?token={}&x=1", house.token());
    assert_eq!(
        house.decide(Request::get(&target).header("upgrade", "websocket")),
        admitted("/ws?x=1", false)
    );
    assert_eq!(house.decide(Request::post(&target)), admitted("/ws?x=1", false));
    assert_eq!(
        house.decide(Request::get(&target).header("sec-fetch-mode", "cors")),
        admitted("/ws?x=1", false)
    );
}

#[test]
fn wrong_token__should_be_refused_unless_somebody_is_known_by_other_means() {
    let house = House::new();
    assert_eq!(
        house.decide(Request::get("/?token=wrong")),
        Entry::Refused { had_token: true }
    );
    assert_eq!(house.decide(Request::get("/?token=")), Entry::Refused { had_token: true });
    assert_eq!(house.decide(Request::get("/")), Entry::Refused { had_token: false });
    let known = Request::get("/?token=agents-own").header("cookie", house.cookie());
    assert_eq!(house.decide(known), admitted("/?token=agents-own", false));
}

#[test]
fn bearer__should_be_the_token_or_the_admin_secret() {
    let house = House::new();
    for credential in [house.token(), house.admin.expose()] {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let request = Request::post("/x?y").header("authorization", format!("{scheme} {credential}"));
            assert_eq!(house.decide(request), admitted("/x?y", true));
        }
    }
    let wrong = Request::get("/").header("authorization", "Bearer wrong");
    assert_eq!(house.decide(wrong), Entry::Refused { had_token: false });
    let theirs = Request::get("/")
        .header("authorization", "Bearer agents-own")
        .header("cookie", house.cookie());
    assert_eq!(house.decide(theirs), admitted("/", false));
}

#[test]
fn cookie__should_not_serve_other_web_pages() {
    let house = House::new();
    let cookie = house.cookie();
    assert_eq!(
        house.decide(Request::get("/").header("cookie", &cookie)),
        admitted("/", false)
    );
    let upgrade = || Request::get("/").header("cookie", &cookie).header("upgrade", "websocket");
    assert_eq!(house.decide(upgrade().header("origin", ORIGIN)), admitted("/", false));
    assert_eq!(house.decide(upgrade()), Entry::ForeignOrigin);
    assert_eq!(
        house.decide(upgrade().header("origin", "http://b.localhost:3000")),
        Entry::ForeignOrigin
    );
    assert_eq!(
        house.decide(Request::post("/").header("cookie", &cookie)),
        Entry::ForeignOrigin
    );
    let planted = Request::get("/").header("cookie", format!("crabshack_gateway=planted; {cookie}"));
    assert_eq!(house.decide(planted), admitted("/", false));
}

#[test]
fn stranger__should_not_learn_which_names_exist() {
    let house = House::new();
    let parts = Request::get("/?token=x").body(()).unwrap().into_parts().0;
    let of_nobody = decide(&parts, false, None, &house.admin, &house.tickets, SystemTime::now());
    let of_somebody = decide(
        &parts,
        false,
        Some(&house.target),
        &house.admin,
        &house.tickets,
        SystemTime::now(),
    );
    assert_eq!(of_nobody, of_somebody);
}
