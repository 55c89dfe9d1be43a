//! What a creation may ask for.

use super::*;

#[tokio::test]
async fn create__should_refuse_bad_input_before_the_first_byte() {
    let test = TestApp::new();
    test.node().await;
    let huge = "x".repeat(600);
    let cases: Vec<(Value, &str)> = vec![
        (json!({"service_type": "quantum"}), "unknown service_type `quantum`"),
        (
            json!({"service_type": null, "cpus": ""}),
            "Missing required fields: service_type, cpus",
        ),
        (json!({"name": "Bad_Name"}), "DNS label"),
        (json!({"name": "../etc"}), "DNS label"),
        (json!({"name": "api"}), "reserved"),
        (json!({"mem_limit": "-1g"}), "mem_limit"),
        (json!({"mem_limit": "99999999999999t"}), "mem_limit"),
        (json!({"mem_limit": "1k"}), "mem_limit"),
        (json!({"mem_limit": {}}), "does not fit"),
        (json!({"cpus": "-2"}), "cpus"),
        (json!({"cpus": -2}), "cpus"),
        (json!({"cpus": "1e9"}), "cpus"),
        (json!({"storage_size": "-5g"}), "storage_size"),
        (json!({"ssh_pubkey": "ssh-rsa nonsense"}), "ssh_pubkey"),
        (json!({"ssh_pubkey": format!("{ED25519}\nssh-ed25519 AAAA")}), "ssh_pubkey"),
        (json!({"ssh_pubkey": format!("command=\"x\" {ED25519}")}), "ssh_pubkey"),
        (json!({"nearai_api_url": "ftp://example.com"}), "nearai_api_url"),
        (json!({"nearai_api_url": "https://example.com/?a=b"}), "nearai_api_url"),
        (
            json!({"nearai_api_url": format!("https://example.com/{huge}")}),
            "nearai_api_url",
        ),
        (json!({"nearai_api_url": "https://example.com/\nX"}), "nearai_api_url"),
        (json!({"nearai_api_key": "a\nb"}), "nearai_api_key"),
        (json!({"image": "-v"}), "image"),
        (json!({"extra_env": {"A": "a\nB=b"}}), "one line"),
        (json!({"extra_env": {"A=B": "x"}}), "variable name"),
        (json!({"extra_env": {"1A": "x"}}), "variable name"),
        (json!({"extra_env": {"PATH": "/x"}}), "set by the server"),
        (json!({"extra_env": {"OPENCLAW_GATEWAY_TOKEN": "x"}}), "set by the server"),
        (json!({"extra_env": ["A"]}), "does not fit"),
        (
            json!({"on_disconnect": {"action": "stop_after", "seconds": 1}}),
            "on_disconnect: seconds",
        ),
        (json!({"on_disconnect": {"action": "stop_after"}}), "on_disconnect"),
        (json!({"on_disconnect": {"action": "move"}}), "on_disconnect"),
    ];
    for (change, says) in cases {
        let mut body = create_body("one");
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, problem) = test.json(Method::POST, "/instances", body.to_string()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{change}");
        assert_eq!(problem["code"], "invalid_request", "{change}");
        assert!(problem["error"].as_str().unwrap().contains(says), "{change}: {problem}");
    }
    for body in ["", "  ", "{", "[]", "[1]", "nonsense", "\"text\""] {
        let (status, problem) = test.json(Method::POST, "/instances", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(problem["error"].is_string() && problem["code"].is_string());
    }
    let (status, problem) = test.json(Method::POST, "/instances", vec![b'x'; 2 << 20]).await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large"))
    );
    nothing_created(&test);
}

#[tokio::test]
async fn create__should_refuse_a_taken_name_and_what_does_not_fit() {
    let test = TestApp::new();
    let (status, problem) = test.json(Method::POST, "/instances", create_body("one").to_string()).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_capacity")));
    nothing_created(&test);

    test.node().await;
    for (key, value) in [("mem_limit", "9g"), ("cpus", "64")] {
        let mut body = create_body("one");
        body[key] = json!(value);
        let (status, problem) = test.json(Method::POST, "/instances", body.to_string()).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::CONFLICT, &json!("no_capacity")),
            "{key}"
        );
    }
    nothing_created(&test);

    // 8 GiB: four times 2 GiB, also before the reconciler has placed one.
    for name in ["one", "two", "three", "four"] {
        assert_eq!(
            test.ask(Method::POST, "/instances", create_body(name).to_string())
                .await
                .status(),
            200
        );
    }
    let (_, problem) = test.json(Method::POST, "/instances", create_body("one").to_string()).await;
    assert_eq!(problem["code"], "name_taken");
    let (_, problem) = test.json(Method::POST, "/instances", create_body("five").to_string()).await;
    assert_eq!(problem["code"], "no_capacity");
    test.reconcile().await;
    let (_, problem) = test.json(Method::POST, "/instances", create_body("five").to_string()).await;
    assert_eq!(problem["code"], "no_capacity");
    assert_eq!(test.app.store.reading().unwrap().instances().unwrap().len(), 4);
}

#[tokio::test]
async fn create__should_accept_numbers_and_keys_of_every_kind() {
    let test = TestApp::new();
    test.node().await;
    let mut body = create_body("one");
    body["cpus"] = json!(0.5);
    body["mem_limit"] = json!(1_073_741_824);
    body["ssh_pubkey"] = json!(ED25519);
    body["extra_env"] = json!({"LANGUAGE": "de", "EMPTY": null});
    body["name"] = Value::Null;
    assert_eq!(test.ask(Method::POST, "/instances", body.to_string()).await.status(), 200);
    let records = test.app.store.reading().unwrap().instances().unwrap();
    let record = &records[0];
    assert!(record.name.as_str().starts_with("agent-"));
    assert_eq!(record.spec.resources.cpus.milli(), 500);
    assert_eq!(record.spec.ssh_pubkey.as_deref(), Some(ED25519));
    let secrets = test.app.store.secrets(record).unwrap();
    assert_eq!(secrets.extra_env.len(), 1);
    assert_eq!(secrets.extra_env["LANGUAGE"].expose(), "de");
}
