//! The health service of gRPC.

use std::time::Duration;

use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tarsier_proto::grpc::health::v1 as pb;

use crate::grpc::{Client, Stream, WIDE, framed};
use crate::server::{self, Server};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const LIST: &str = "/grpc.health.v1.Health/List";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

fn asks(service: &str) -> bytes::Bytes {
    framed(&pb::HealthCheckRequest { service: service.to_owned() }.encode_to_vec())
}

async fn watched(client: &Client, service: &str) -> (Stream, i32) {
    let mut stream = client.start(WATCH, asks(service), true).await.expect("a watch begins");
    let message = stream.next_bytes().await;
    let status = pb::HealthCheckResponse::decode(&message[5..]).expect("a whole response").status;
    (stream, status)
}

#[test]
fn the_server_as_a_whole_is_serving_and_watchers_are_let_go_at_its_end() {
    let mut server = Server::start(&server::binary_under_test());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let client = Client::connect(server.address(), WIDE).await;
        let (body, status) = client.call(CHECK, asks("")).await.expect("the connection lives");
        assert_eq!((&body[5..], status), (&[8, 1][..], 0), "SERVING");
        let (body, status) = client.call(CHECK, asks("etcdserverpb.KV")).await.expect("the connection lives");
        assert_eq!((body.len(), status), (0, 5), "NOT_FOUND");
        let (body, status) = client.call(LIST, framed(&[])).await.expect("the connection lives");
        let list = pb::HealthListResponse::decode(&body[5..]).expect("a whole response");
        assert_eq!((list.statuses.len(), list.statuses[""].status, status), (1, 1, 0));
        let (mut whole, serving) = watched(&client, "").await;
        let (_unknown, unknown) = watched(&client, "nope").await;
        assert_eq!((serving, unknown), (1, 3), "SERVING and SERVICE_UNKNOWN");
        let mut nothing = client.start(WATCH, bytes::Bytes::new(), true).await.expect("a call begins");
        assert_ne!(nothing.status().await.expect("it ends with a status"), 0, "it never said what to watch");
        if server::is_real_etcd(&server::binary_under_test()) {
            return;
        }
        let process = Pid::from_raw(server.process() as i32).expect("a process has a number");
        kill_process(process, Signal::TERM).expect("it is our own child");
        assert_eq!(whole.status().await.expect("it ends with a status"), 14, "UNAVAILABLE");
        drop((client, whole));
        for _ in 0..200 {
            if server.ended().is_some_and(|status| status.success()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a watcher of its health keeps the server from its end");
    });
}
