//! The health check that gRPC defines for every server (`grpc.health.v1`).
//!
//! As in etcd, the one service that is known is the server as a whole, the empty name, and it serves for as long as it
//! answers. So nothing here asks the backend: whether keys can be read is what `/health` and `/readyz` say.

use std::collections::HashMap;

use bytes::Bytes;

use crate::grpc::status::{Code, Status};
use crate::pb::grpc::health::v1 as wire;
use crate::pb::grpc::health::v1::health_check_response::ServingStatus;
use crate::service::message::{framed, parse};

/// The name of the server as a whole.
const ALL: &str = "";

/// The calls that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HealthMethod {
    Check,
    List,
    /// Its answer comes at once, and no other follows: a server that stops serving ends the stream.
    Watch,
}

impl HealthMethod {
    pub fn of(name: &str) -> Option<HealthMethod> {
        Some(match name {
            "Check" => HealthMethod::Check,
            "List" => HealthMethod::List,
            "Watch" => HealthMethod::Watch,
            _ => return None,
        })
    }
}

/// The answer to one request.
///
/// # Errors
/// When it is no request of the call, or a check of a service that is not known.
pub fn answer(method: HealthMethod, message: Bytes) -> Result<Bytes, Status> {
    match method {
        HealthMethod::Check => match status_of(&service(message)?) {
            ServingStatus::ServiceUnknown => Err(Status::new(Code::NotFound, "unknown service")),
            status => Ok(framed(&response(status))),
        },
        HealthMethod::Watch => Ok(framed(&response(status_of(&service(message)?)))),
        HealthMethod::List => {
            parse::<wire::HealthListRequest>(message)?;
            let statuses = HashMap::from([(ALL.to_owned(), response(status_of(ALL)))]);
            Ok(framed(&wire::HealthListResponse { statuses }))
        }
    }
}

fn service(message: Bytes) -> Result<String, Status> {
    parse::<wire::HealthCheckRequest>(message).map(|request| request.service)
}

fn status_of(service: &str) -> ServingStatus {
    if service == ALL { ServingStatus::Serving } else { ServingStatus::ServiceUnknown }
}

fn response(status: ServingStatus) -> wire::HealthCheckResponse {
    wire::HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::service::errors::malformed_request;

    fn asked(method: HealthMethod, service: &str) -> Result<ServingStatus, Status> {
        let request = wire::HealthCheckRequest { service: service.to_owned() };
        let bytes = answer(method, request.encode_to_vec().into())?;
        let response = wire::HealthCheckResponse::decode(&bytes[5..]).expect("a whole message");
        Ok(response.status())
    }

    #[test]
    fn the_server_as_a_whole_serves_and_no_other_name_is_known() {
        assert_eq!(asked(HealthMethod::Check, ""), Ok(ServingStatus::Serving));
        assert_eq!(asked(HealthMethod::Watch, ""), Ok(ServingStatus::Serving));
        let unknown = asked(HealthMethod::Check, "etcdserverpb.KV").expect_err("only the empty name is known");
        assert_eq!(unknown, Status::new(Code::NotFound, "unknown service"));
        let watched = asked(HealthMethod::Watch, "etcdserverpb.KV");
        assert_eq!(watched, Ok(ServingStatus::ServiceUnknown), "whoever watches may wait for it");
        let list = answer(HealthMethod::List, Bytes::new()).expect("a list");
        let list = wire::HealthListResponse::decode(&list[5..]).expect("a whole message");
        assert_eq!(list.statuses.into_iter().collect::<Vec<_>>(), [(String::new(), response(ServingStatus::Serving))]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for method in [HealthMethod::Check, HealthMethod::List, HealthMethod::Watch] {
            assert_eq!(answer(method, Bytes::from_static(&[0x0f])), Err(malformed_request()));
        }
    }
}
