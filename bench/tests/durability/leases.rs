//! What leases have left over kills, with etcd's feature `LeaseCheckpoint` and without.

use std::time::Duration;

use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::fault::Result;
use crate::proof::calls::call;
use crate::scene::{self, tarsier, with_log};
use crate::server::Server;

const TTL: i64 = 600;
/// What a start adds, and what passes from a start to an answer.
const GRACE: i64 = 1;
const PATIENCE: i64 = 10;

async fn left(caller: &Caller, lease: i64) -> Result<i64> {
    let request = pb::LeaseTimeToLiveRequest { id: lease, keys: false };
    let response: pb::LeaseTimeToLiveResponse = call(caller, "/etcdserverpb.Lease/LeaseTimeToLive", &request).await?;
    assert_eq!(response.granted_ttl, TTL);
    Ok(response.ttl)
}

async fn killed_and_started(server: &mut Server) -> Result<Caller> {
    server.kill();
    server.spawn_again()?;
    server.wait_until_ready().await?;
    server.caller().await
}

#[test]
fn a_restart_gives_a_lease_what_it_had_left_and_one_that_was_kept_alive_since_all_its_time() {
    let Some(mut program) = tarsier("what leases have left") else { return };
    program.flags =
        ["--feature-gates=LeaseCheckpoint=true", "--lease-checkpoint-interval=1s"].map(str::to_owned).into();
    scene::run(async {
        let mut server = program.start().await?;
        let outcome = async {
            let caller = server.caller().await?;
            let (left_alone, kept_alive) = (caller.grant(TTL).await?, caller.grant(TTL).await?);
            tokio::time::sleep(Duration::from_secs(16)).await;
            // It was written down every second until here, and this takes it back.
            caller.keep_alive(kept_alive).await?;
            let caller = killed_and_started(&mut server).await?;
            let after = left(&caller, left_alone).await?;
            assert!((TTL - 16 - PATIENCE..=TTL - 15 + GRACE).contains(&after), "{after} s of {TTL} are left");
            let after = left(&caller, kept_alive).await?;
            assert!((TTL - PATIENCE..=TTL + GRACE).contains(&after), "{after} s of {TTL} are left of one kept alive");

            // What is on the disk holds for a server that writes no more of it, until the lease is kept alive.
            server.spawn_without_checkpoints().await?;
            let caller = server.caller().await?;
            let after = left(&caller, left_alone).await?;
            assert!(after <= TTL - 15 + GRACE, "{after} s of {TTL} are left");
            caller.keep_alive(left_alone).await?;
            let caller = killed_and_started(&mut server).await?;
            let after = left(&caller, left_alone).await?;
            assert!((TTL - PATIENCE..=TTL + GRACE).contains(&after), "{after} s of {TTL} are left of one kept alive");
            Ok(())
        };
        let outcome = outcome.await;
        with_log(&server, outcome)
    });
}

impl Server {
    async fn spawn_without_checkpoints(&mut self) -> Result<()> {
        self.kill();
        self.spawn_again_with("--feature-gates=LeaseCheckpoint=false")?;
        self.wait_until_ready().await.map(drop)
    }
}
